"""The runner through the real command line, over a toy table without torch."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import limits
from pipeline.artifact import Artifact
from pipeline.errors import Missing, Stillhouse
from pipeline.runner import Runner, verdict
from pipeline.show import Lines
from pipeline.store import Store
from tests.pipeline.toy_place import Place, wait_for

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_a_run_makes_every_stage_and_the_same_command_keeps_every_stage(place):
    assert "toy-1" in place.run()
    began = time.monotonic()
    assert "every stage kept" in place.run()
    assert time.monotonic() - began < 2
    assert place.call("ls").count("\n") == 1
    assert set(place.states("toy-1").values()) == {"made"}


def test_a_change_reruns_the_stage_and_what_follows_and_why_names_the_field(place):
    place.run()
    place.edit("of: [one, two]", "of: [one, two], times: 2.0")
    assert "config.times: 1.0 -> 2.0" in place.call("why", "sum", place.recipe, "--profile", "none")
    plan = place.call("plan", place.recipe, "--profile", "none")
    assert [line.split()[2] for line in plan.splitlines()] == ["kept", "kept", "runs", "kept", "runs"]
    place.run()
    assert place.states("toy-2") == {"one": "kept", "two": "kept", "sum": "made", "far": "kept", "judge": "made"}
    assert "is kept" in place.call("why", "sum", place.recipe, "--profile", "none")


def test_an_equal_result_stops_the_rerun(place):
    place.run()
    place.edit("value: 1}", "value: 3}")
    place.edit("value: 2}", "value: 0}")
    place.run()
    assert place.states("toy-2")["sum"] == "made" and place.states("toy-2")["judge"] == "kept"


def test_renaming_a_stage_does_not_rerun_what_never_speaks_its_name(place):
    place.run()
    place.recipe.write_text(place.recipe.read_text().replace("far:", "farther:").replace("judge:", "verdict:"))
    place.run()
    assert set(place.states("toy-2").values()) == {"kept"}


def test_a_setting_that_cannot_change_the_result_reruns_nothing(place):
    place.run()
    place.edit("of: [one, two]", "of: [one, two], patience: 9")
    place.run()
    assert place.states("toy-1")["sum"] == "made" and "toy-2" not in place.call("ls")


def test_a_broken_rule_is_exit_3_and_everything_is_there_all_the_same(place):
    place.edit("at_most: 10", "at_most: 1")
    out = place.run(code=3)
    assert "judge of toy-1: FAILED" in out and (place.folder / "runs/toy-1/page.html").exists()
    assert "gate failed" in place.call("ls")
    place.run(code=3)
    assert "toy-2" not in place.call("ls")


def test_an_undecided_verdict_is_exit_4_now_and_when_it_is_kept(place):
    place.edit("at_most: 10", "at_most: null")
    out = place.run(code=4)
    assert "judge of toy-1: undecided" in out and (place.folder / "runs/toy-1/page.html").exists()
    assert "undecided" in place.call("ls")
    place.run(code=4)
    assert "toy-2" not in place.call("ls")


def test_a_broken_rule_outweighs_an_undecided_one():
    artifact = Artifact("judge", "Verdict", "x", Path(), {})
    steps = [[replace(artifact, facts={"passed": passed}) for passed in outcomes] for outcomes in ((True, None), (None, False), (True,))]
    assert [verdict([SimpleNamespace(artifact=one) for one in some]) for some in steps] == [4, 3, 0]


def test_without_a_device_the_cpu_profile_is_taken_and_said(place):
    del place.environment["TOY_DEVICE"]
    out = place.call("run", place.recipe, code=3)
    assert out.startswith("no CUDA device found: taking profile cpu") and "judge of toy-1 (cpu profile): FAILED" in out


def test_without_a_device_insisting_on_no_profile_is_an_error(place):
    del place.environment["TOY_DEVICE"]
    assert "needs a CUDA device, and none was found" in place.run(code=2)
    assert "runs" in place.call("plan", place.recipe, "--profile", "none")


def test_a_stage_that_finds_bad_data_ends_with_its_message_and_code(place):
    place.edit("value: 2}", "value: 2, fail: data}")
    out = place.run(code=2)
    assert "two: picture.png is missing: put it back" in out
    assert place.states("toy-1") == {"one": "made", "two": "FAILED"}
    place.edit(", fail: data", "")
    place.run()
    assert place.states("toy-2")["one"] == "kept"


@pytest.mark.parametrize(("how", "words"), [("bug", "ZeroDivisionError: a defect"), ("crash", "SIGKILL"), ("nest", "plain files")])
def test_a_stage_that_breaks_publishes_nothing_and_says_where_to_look(place, how, words):
    place.edit("value: 2}", f"value: 2, fail: {how}}}")
    out = place.run(code=5 if how == "nest" else 1)
    assert words in out
    assert len(list((place.folder / ".stillhouse/refs/cache").iterdir())) == 1
    assert not list((place.folder / ".stillhouse/tmp").iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_where_it_was(place, number):
    place.edit("steps: 3", "steps: 150")
    place.edit("  far:", "  # far last\n  far:")
    process = place.start("run", place.recipe, "--profile", "none")
    wait_for(process, "counting from 0")
    time.sleep(0.5)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number, out + err
    out = place.run()
    at = int(out.split("counting from ")[1].split()[0])
    assert 5 < at < 150
    assert not list((place.folder / ".stillhouse/state").iterdir())


def test_a_run_whose_reader_is_gone_still_saves_its_state(place):
    place.edit("steps: 3", "steps: 100000")
    process = place.start("run", place.recipe, "--profile", "none")
    wait_for(process, "counting")
    process.stdout.close()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert list((place.folder / ".stillhouse/state").glob("*/at"))


def test_a_failed_gate_is_exit_3_also_when_nobody_reads_along(place):
    place.edit("at_most: 10", "at_most: 1")
    process = place.start("run", place.recipe, "--profile", "none")
    process.stdout.close()
    assert process.wait(timeout=30) == 3


def test_a_signal_that_a_stage_does_not_see_any_more_stops_the_run_after_it(place):
    place.edit("value: 1}", "value: 1, fail: deaf}")
    process = place.start("run", place.recipe, "--profile", "none")
    wait_for(process, "deaf")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130 and place.states("toy-1") == {"one": "made"}


def test_a_second_signal_ends_the_run_at_once(place):
    place.edit("steps: 3", "steps: 100000")
    process = place.start("run", place.recipe, "--profile", "none")
    wait_for(process, "counting")
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGINT)
    began = time.monotonic()
    process.communicate(timeout=10)
    assert process.returncode == 130 and time.monotonic() - began < 2


def test_a_stage_dies_with_its_runner(place):
    place.edit("steps: 3", "steps: 100000")
    process = place.start("run", place.recipe, "--profile", "none")
    wait_for(process, "counting")
    process.kill()
    process.wait()
    time.sleep(0.5)
    ours = [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(place.folder).encode() in _read(p)]
    assert not ours
    place.edit("steps: 100000", "steps: 3")
    place.run()


def test_two_runs_at_once_make_each_artifact_once(place):
    place.edit("steps: 3", "steps: 60")
    processes = [place.start("run", place.recipe, "--profile", "none") for _ in range(3)]
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err
    ids = {place.call("show", f"toy-{n}/far") for n in (1, 2, 3)}
    assert len(ids) == 1


def test_a_damaged_input_is_set_aside_and_made_anew(place):
    place.run()
    shown = json.loads(place.call("show", "toy-1/two"))
    file = Path(shown["folder"]) / "number.txt"
    file.chmod(0o644)
    file.write_text("7")
    place.edit("of: [one, two]", "of: [one, two], times: 3.0")
    out = place.run()
    assert "number.txt is not the file that was published" in out
    assert json.loads(place.call("show", "toy-2/sum"))["facts"] == {"value": 9.0}
    assert json.loads(place.call("show", "toy-2/two"))["id"] == shown["id"]


def test_a_rehearsal_keeps_nothing(place):
    assert "every stage of toy works" in place.run("--rehearse")
    assert not (place.folder / ".stillhouse").exists() and not (place.folder / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rum", "toy.yaml"], "did you mean 'run'?"),
        (["run", "tyo.yaml"], "tyo.yaml"),
        (["ls", "toy-9"], "no run 'toy-9'"),
        (["show", "zz"], "names 0 artifacts"),
        (["why", "summ", "toy.yaml"], "did you mean 'sum'?"),
        (["run", "toy.yaml", "--profile", "gpu"], "gpu"),
        (["run", "toy.yaml", "--set", "stages.two.valu=3"], "value"),
        (["run"], "RECIPE"),
        (["report"], "no run"),
    ],
)
def test_a_mistyped_command_is_one_screen_and_a_suggestion(place, arguments, words):
    process = place.start(*arguments)
    _, err = process.communicate(timeout=30)
    assert process.returncode in (2, 5) and words in err and len(err.splitlines()) < 20 and "Traceback" not in err


def test_the_report_can_be_written_again(place):
    place.run()
    page = place.folder / "runs/toy-1/page.html"
    page.unlink()
    place.call("report", "toy-1")
    assert page.exists() and json.loads((page.parent / "page.json").read_text())["run"] == "toy-1"


def _read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_stage_that_the_system_killed_for_want_of_memory_is_explained_and_another_kill_is_not(tmp_path):
    runner = Runner(Store(tmp_path / "store"), {}, Lines())
    with pytest.raises(Missing, match=r"want of memory. Lower fit.batch"):
        runner._result({}, -signal.SIGKILL, tmp_path / "log", short_of_memory=True)
    with pytest.raises(Stillhouse, match="killed by SIGKILL") as caught:
        runner._result({}, -signal.SIGKILL, tmp_path / "log", short_of_memory=False)
    assert caught.value.code == 1


def test_kills_for_want_of_memory_are_counted_for_the_machine_and_the_container(tmp_path, monkeypatch):
    events = tmp_path / "memory.events"
    events.write_text("low 0\noom 3\noom_kill 2\n")
    before = limits.memory_kills()
    monkeypatch.setattr(limits, "_cgroups", lambda: [events])
    assert limits.memory_kills() == before + 2


def test_a_stage_whose_runner_is_gone_before_it_starts_does_nothing(tmp_path):
    spec = tmp_path / "spec.json"
    spec.write_text("{}")
    read, write = os.pipe()
    command = [sys.executable, "-m", "pipeline.child", str(spec), str(write), "1"]  # process 1 is not the parent of what a test starts
    done = subprocess.run(command, pass_fds=[write], cwd=ROOT, capture_output=True, text=True, timeout=30)
    os.close(write)
    assert done.returncode == 1 and os.read(read, 100) == b"" and not done.stderr


def test_what_a_stage_writes_is_for_its_owner_only_and_it_leaves_no_core(place):
    place.edit("value: 1}", "value: 1, fail: tell}")
    out = place.run()
    assert "umask 77, core 0" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stage_that_is_signalled_itself_ends_the_run_as_stopped(place, number):
    place.edit("steps: 3", "steps: 100000")
    process = place.start("run", place.recipe, "--profile", "none")
    wait_for(process, "counting")
    time.sleep(0.3)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), number)
    process.communicate(timeout=30)
    assert process.returncode == 128 + number


def test_the_newest_run_is_told_by_its_place_and_not_by_a_clock(place):
    place.run()
    place.edit("value: 2}", "value: 4}")
    place.run()
    runs = place.folder / ".stillhouse/refs/runs"
    os.utime(runs / "toy-1", (4e9, 4e9))
    assert place.call("report").strip().endswith("toy-2/page.html")


def test_a_stage_that_is_killed_in_the_middle_of_a_word_has_said_nothing():
    runner = Runner(None, {}, Lines())
    assert runner._follow("one", iter(['{"progress": [1, 2, {}]}\n', '{"made": {"facts": {"val'])) == {}
