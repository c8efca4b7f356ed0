"""`gate RUN`, baselines beside the recipe, and artifacts that go from store to store: through the real command line over the toy table."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import axes, cli, finding, fleet, report
from pipeline.plan import _unsettled, make
from pipeline.recipe import read
from pipeline.runner import Runner
from pipeline.show import Lines
from pipeline.store import Store

HERE = Path(__file__).parent
RECIPE = """
name: toy
stages:
  one: {kind: number, value: 3}
  sum: {kind: sum, of: [one]}
  judge: {kind: judge, of: sum, at_most: 10, against: released}
"""


class Place:
    """A folder with a recipe; commands run in this process, stages in their own."""

    def __init__(self, folder, toys, capsys):
        self.folder, self.recipe, self.capsys = folder, folder / "toy.yaml", capsys
        self.recipe.write_text(RECIPE)
        self.parts = cli.Parts(toys.KINDS, lambda: True, dict, lambda *_: ("", {}), judge=toys.judged, baseline=toys.baseline)

    def call(self, *words, code=0):
        found = cli.main([str(word) for word in words], self.parts)
        said = "".join(self.capsys.readouterr())
        assert found == code, said
        return said.replace("\n  ", " ") if words[0] == "gate" else said  # sentences are wrapped

    def run(self, code=0):
        return self.call("run", self.recipe, code=code)

    def edit(self, old, new):
        assert old in self.recipe.read_text()
        self.recipe.write_text(self.recipe.read_text().replace(old, new))


@pytest.fixture
def place(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(HERE))  # for this process, and for those of stages
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(HERE), str(HERE.parent.parent))))
    monkeypatch.chdir(tmp_path)
    import toy_stages

    yield Place(tmp_path, toy_stages, capsys)
    sys.modules.pop("toy_stages", None)


@pytest.fixture
def accepted(place):
    """A run that has become the baseline; its sum is 3."""
    place.run(code=4)
    place.call("gate", "toy-1", "--accept")
    return place


def baseline(place):
    return place.folder / "baselines/toy.json"


def objects(place):
    return {path.name for path in (place.folder / ".stillhouse/objects/sha256").glob("*/*")}


def named(place):
    [id] = json.loads(baseline(place).read_text())["artifacts"]
    return id


def test_without_a_baseline_a_run_is_undecided_and_accept_makes_it_one(place):
    out = place.run(code=4)
    assert "judge of toy-1: undecided" in out
    assert "baselines/toy.json does not exist" in place.call("gate", code=4)
    out = place.call("gate", "--accept")
    assert (
        "toy-1 is the baseline, although its gate was undecided" in out
        and f"store push DIR {baseline(place)}   # Checkpoint: 0.0 MB" in out
    )
    written = json.loads(baseline(place).read_text())
    assert (written["recipe"], written["profile"], written["run"], written["value"]) == ("toy", None, "toy-1", 3.0)
    assert str(place.folder) not in baseline(place).read_text()
    assert "3.0, released is 3.0" in place.call("gate", "toy-1")
    assert ": passed, 2 rules hold" in place.run()


def test_who_accepts_a_run_of_other_settings_than_the_recipe_is_told_so(place):
    place.call("run", place.recipe, "--set", "stages.one.value=4", code=4)
    assert "although its gate was undecided, made with --set stages.one.value=4; commit" in place.call("gate", "--accept")


def test_what_noise_left_undecided_is_made_anew_by_the_next_run_and_stays_for_those_who_ask_for_the_old_one(place):
    gauge = place.folder / "gauge.txt"
    place.recipe.write_text(RECIPE.replace("{kind: sum, of: [one]}", f"{{kind: gauge, file: {gauge}}}").replace(", against: released", ""))
    gauge.write_text("-1")
    assert "judge of toy-1: undecided" in place.run(code=4)
    gauge.write_text("-2")
    plan = place.call("plan", place.recipe).splitlines()
    assert plan[1].endswith("runs  judge was left undecided by it: it is made anew") and plan[2].endswith("runs  sum will be made anew")
    assert "judge was left undecided by it" in place.call("why", "sum", place.recipe)
    assert "judge of toy-2: undecided" in place.run(code=4)  # once in a run, not until it suits
    gauge.write_text("3")
    assert "judge of toy-3: passed" in place.run()
    gauge.write_text("-4")
    assert "every stage kept" in place.run()  # it is settled
    states = [[line.split()[1] for line in place.call("ls", f"toy-{k}").splitlines()] for k in (1, 2, 3)]
    assert states == [["made", "made", "made"], ["kept", "made", "made"], ["kept", "made", "made"]]
    assert "-1.0 is noise" in place.call("gate", "toy-1", "--replay", code=4) and "3.0 of at most" in place.call(
        "gate", "toy-3", "--replay"
    )
    _, artifacts = report.gather(Store(place.folder / ".stillhouse"), "toy-1", place.parts)
    assert [one.facts.get("value") for one in artifacts.values()] == [3, -1.0, None]  # its own figures on its own page


def test_what_another_run_has_made_anew_meanwhile_is_kept(place, monkeypatch):
    import toy_stages

    place.run(code=4)
    store = Store(place.folder / ".stillhouse")
    steps = make({"one": toy_stages.Number(kind="number", value=3), "sum": toy_stages.Sum(kind="sum", of=["one"])}, store)
    runner, id = Runner(store, toy_stages.KINDS, Lines()), steps[1].artifact.id
    monkeypatch.setattr(runner, "_make", lambda *_: "another")
    for stale, state in ((id, "made"), ("0" * 64, "kept"), (None, "kept")):
        ended = {}
        runner._one(replace(steps[1], artifact=None, stale=stale), steps, "toy-1", ended)
        assert ended["sum"]["state"] == state


def test_a_run_stays_with_what_it_settled_whatever_another_makes_of_the_same_key_meanwhile(place):
    gauge = place.folder / "gauge.txt"
    place.recipe.write_text(RECIPE.replace("{kind: sum, of: [one]}", f"{{kind: gauge, file: {gauge}}}").replace(", against: released", ""))
    store = Store(Path(".stillhouse"))
    for number in ("-1", "-2"):
        gauge.write_text(number)
        place.run(code=4)
    first, second = (finding.stages(store, run)["sum"] for run in ("toy-1", "toy-2"))
    assert first["key"] == second["key"] and first["id"] != second["id"]
    stages = read(place.recipe, place.parts.kinds).stages
    for entry in (first, second):
        settled = {"one": (entry["key"], entry["id"]), "sum": (entry["key"], entry["id"])}  # of `one` the key is another: it is not asked
        held = {step.name: step.artifact.id for step in make(stages, store, done=settled)}
        assert held["sum"] == entry["id"] and held["one"] == finding.stages(store, "toy-1")["one"]["id"]


def test_what_another_verdict_has_judged_is_not_made_anew_for_a_busy_one():
    def step(name, passed, asks=()):
        stage = SimpleNamespace(unsettled=lambda facts: asks)
        return SimpleNamespace(name=name, stage=stage, artifact=SimpleNamespace(facts={"passed": passed}), inputs={"of": ["measured"]})

    busy = step("busy", None, ("of",))
    for beside, anew in (([], 1), ([step("other", True)], 1), ([step("other", False)], 0), ([step("other", None)], 0)):
        assert len(_unsettled([busy, *beside], {})) == anew


def test_a_run_is_judged_by_the_baseline_and_again_when_that_changes(accepted):
    accepted.run()
    accepted.edit("value: 3}", "value: 5}")
    assert ": FAILED, 1 of 2 rules FAILED" in accepted.run(code=3)
    out = accepted.call("gate", code=3)
    assert out.startswith("judge of toy-3: FAILED") and "\nFAILED: 5.0, released is 3.0\nnext: python -m pipeline diff toy-1 toy-3" in out
    assert "baselines.toy" in accepted.call("store", "pin")
    accepted.call("store", "gc", "--keep", "0")
    assert accepted.call("gate", "toy-3", code=2).startswith("no run 'toy-3'") and named(accepted) in objects(accepted)
    assert ": FAILED, 1 of 2 rules FAILED" in accepted.run(code=3)
    accepted.call("gate", "toy-4", "--accept")
    assert "runs  released" not in accepted.call("plan", accepted.recipe)
    assert "outside.released" in accepted.call("why", "judge", accepted.recipe)
    assert ": passed, 2 rules hold" in accepted.run()


def test_a_verdict_is_replayed_with_the_baseline_of_its_day(accepted):
    accepted.run()
    accepted.edit("value: 3}", "value: 5}")
    accepted.run(code=3)
    accepted.call("gate", "toy-3", "--accept")
    assert "judge of toy-3: passed" in accepted.call("gate", "toy-3")
    assert "replayed from stored samples to the same verdict" in accepted.call("gate", "toy-3", "--replay", code=3)
    assert "to the same verdict" in accepted.call("gate", "toy-2", "--replay")
    baseline(accepted).unlink()
    assert "to the same verdict" in accepted.call("gate", "toy-2", "--replay")
    assert "give one of the two" in accepted.call("gate", "toy-2", "--replay", "--accept", code=2)
    assert "leave --baseline out" in accepted.call("gate", "toy-2", "--replay", "--baseline", "other.json", code=2)


def test_stored_samples_that_changed_are_never_replayed(accepted):
    accepted.run()
    folder = Store(accepted.folder / ".stillhouse").folder(named(accepted))
    os.chmod(folder / "number.txt", 0o644)
    (folder / "number.txt").write_text("1")
    assert "not the file that was published" in accepted.call("gate", "toy-2", "--replay", code=5)


def test_a_baseline_whose_bytes_changed_is_undecided_and_moved_aside(accepted):
    accepted.edit("value: 3}", "value: 5}")
    accepted.run(code=3)
    folder = Store(accepted.folder / ".stillhouse").folder(named(accepted))
    os.chmod(folder / "number.txt", 0o644)
    (folder / "number.txt").write_text("9")
    assert f"store pull DIR {named(accepted)}" in accepted.call("gate", code=4)
    assert named(accepted) not in objects(accepted)


def test_a_verdict_that_a_damaged_baseline_left_open_is_made_anew_once_it_was_pulled(accepted):
    accepted.call("store", "push", "cache", baseline(accepted))
    folder = Store(accepted.folder / ".stillhouse").folder(named(accepted))
    os.chmod(folder / "number.txt", 0o644)
    (folder / "number.txt").write_text("9")
    accepted.edit("value: 3}", "value: 2}")
    assert f"store pull DIR {baseline(accepted)}" in accepted.run(code=4)
    accepted.call("store", "pull", "cache", baseline(accepted))
    assert ": passed, 2 rules hold" in accepted.run()


def test_a_baseline_that_is_not_there_is_undecided_and_says_what_to_do(accepted):
    accepted.run()
    assert "no/toy.json does not exist: name the right one with --baseline" in accepted.call("gate", "--baseline", "no/toy.json", code=4)
    other = accepted.folder / "other.json"
    other.write_text("[1, 2")
    assert "is no baseline: take it from version control again" in accepted.call("gate", "--baseline", other, code=4)
    other.write_text('{"artifacts": {}, "number": 1e999}')
    assert "is no baseline: take it from version control again" in accepted.call("gate", "--baseline", other, code=4)
    other.write_text(json.dumps({"artifacts": {"f" * 64: "Checkpoint"}}))
    assert f"store pull DIR {'f' * 64}" in accepted.call("gate", "--baseline", other, code=4)


def test_the_baseline_of_another_profile_is_used_only_where_it_is_named(accepted):
    accepted.run()
    baseline(accepted).write_text(baseline(accepted).read_text().replace('"profile": null', '"profile": "cpu"'))
    told = "toy.json is the baseline of toy, profile cpu, not of toy, no profile: make a run the baseline"
    assert told in accepted.call("gate", code=4)
    assert "judge of toy-3: undecided" in accepted.run(code=4)
    assert "3.0, released is 3.0" in accepted.call("gate", "--baseline", baseline(accepted))


def test_another_machine_pulls_what_the_baseline_names_and_judges_by_it(accepted):
    accepted.call("store", "push", "cache", named(accepted))
    assert "is sound" in accepted.call("store", "push", "cache", baseline(accepted))
    (accepted.folder / ".stillhouse").rename(accepted.folder / "elsewhere")
    accepted.edit("value: 3}", "value: 2}")
    out = accepted.run(code=4)
    assert "judge of toy-1: undecided" in out
    assert f"next:\n  python -m pipeline store pull DIR {baseline(accepted)}\n  python -m pipeline run {accepted.recipe}\n" in out
    assert "pinned" in accepted.call("store", "pull", "cache", baseline(accepted))
    assert "nothing.json does not exist" in accepted.call("store", "pull", "cache", "nothing.json", code=2)
    assert "to the same verdict" in accepted.call("gate", "toy-1", "--replay", code=4)  # as it was judged, without what came later
    assert ": passed, 2 rules hold" in accepted.run()
    accepted.call("store", "gc", "--keep", "1")
    assert "2.0, released is 3.0" in accepted.call("gate")


@pytest.mark.parametrize("damage", ["number.txt", "MANIFEST.json", "more"])
def test_a_copy_that_somebody_changed_is_refused(accepted, damage):
    id = named(accepted)
    accepted.call("store", "push", "cache", id)
    file = accepted.folder / "cache" / id / damage
    if file.exists():
        os.chmod(file, 0o644)
    file.write_text("1" if damage != "MANIFEST.json" else file.read_text().replace("3.0", "1.0"))
    assert "push it again" in accepted.call("store", "pull", "cache", id, "--store", "other", code=7)
    assert not list((accepted.folder / "other/objects/sha256").glob("*/*")) and not list((accepted.folder / "other/tmp").iterdir())


def test_code_for_another_machine_is_not_pulled_and_unknown_words_are_told(place, tmp_path):
    place.edit("judge: {kind: judge", "packed: {kind: pack, of: one}\n  judge: {kind: judge")
    place.run(code=4)
    place.call("store", "push", "cache", "toy-1/packed")
    assert "build it here" in place.call("store", "pull", "cache", next((tmp_path / "cache").iterdir()).name, "--store", "b", code=7)
    assert "names 0 of the 1 artifacts" in place.call("store", "pull", "cache", "f" * 64, code=2)
    assert "is no folder" in place.call("store", "pull", "nowhere", "f" * 64, code=2)
    place.edit("  packed: {kind: pack, of: one}\n", "")
    place.edit("  judge: {kind: judge, of: sum, at_most: 10, against: released}\n", "")
    place.run()
    assert "toy-2 has no verdict" in place.call("gate", code=2)


def test_the_first_table_of_a_sweep_tells_verdicts_against_the_baseline_that_earlier_sweeps_made(place):
    grid = place.folder / "grid.yaml"
    grid.write_text("recipe: toy.yaml\naxes: {times: {a: {stages.sum.times: 1.0}}}\n")
    place.call("sweep", grid)
    place.call("gate", "toy.a-1", "--accept")
    place.call("sweep", grid)
    chosen = axes.read(grid, place.parts.kinds, profile_for=lambda _: "none", sets=[])
    (told,) = fleet.Results(chosen, Store(place.folder / ".stillhouse"), {}, place.folder).found.values()
    assert told["run"] == "toy.a-2" and told["artifacts"].keys() == {"one", "sum", "judge"}


def test_a_run_that_ended_before_it_had_a_journal_gets_no_figures_of_other_settings(place):
    grid = place.folder / "grid.yaml"
    text = "recipe: toy.yaml\naxes: {times: {a: {stages.sum.times: 1.0}}}\nfigures: [sum.value]\n"
    grid.write_text(text)
    place.call("sweep", grid)
    grid.write_text(text.replace("1.0", "2.0"))
    chosen, store = axes.read(grid, place.parts.kinds, profile_for=lambda _: "none", sets=[]), Store(place.folder / ".stillhouse")
    results = fleet.Results(chosen, store, {}, place.folder)
    results.ended(chosen.variants[0], -2)
    (told,) = results.found.values()
    assert told["exit"] == -2 and told["run"] is None and told["artifacts"].keys() == {"one"} and "sum.value" not in told["figures"]


def test_of_a_damaged_artifact_no_figure_is_told(place):
    place.run(code=4)
    store = Store(place.folder / ".stillhouse")
    stages = finding.stages(store, "toy-1")
    assert report.figures(store, stages)["sum.value"] == 3
    shutil.rmtree(store.folder(stages["sum"]["id"]))
    found = report.figures(store, stages)
    assert "one.value" in found and "sum.value" not in found
