"""An engine is built, run and timed on the machine it is for: over a real ssh server on loopback, with the cable pulled, and with liars.

The far end is tried without ssh too: the same program, started as an ordinary process, so that its words can be bent.
"""

import ast
import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifact import Artifact
from pipeline.errors import BadData, Missing, Refused, Stopped
from pipeline.targets import Asked, Target
from stages import elsewhere, link, sidecar
from stages.bundle import Bundle
from stages.engines import TABLE as ENGINES
from stages.gate import Gate
from stages.measure.predict import open_session
from stages.optimize import Optimize
from stages.target_files.agent import Agent
from stages.validate import Validate
from tests.stages import device_double, small_line
from tests.stages.loopback import SSHD, Server, below, gone

needs_sshd = pytest.mark.skipif(SSHD is None, reason="sshd is not installed (apt-get install openssh-server)")
PROGRAM = [sys.executable, "-u", "-c", link.BOOT]


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    return device_double.line(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    one = Server(tmp_path_factory.mktemp("ssh"))
    yield one
    one.kill()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A target without ssh: the far end as a process of this machine."""
    monkeypatch.setattr(link, "argv", lambda target: PROGRAM)
    target = Target(host="far", user="u", workdir=str(tmp_path / "work"))
    return Asked(name="device", target=target, facts=elsewhere.facts_of("device", target))


def optimize(kind="onnxruntime", **fields):
    return Optimize.model_validate(
        {"kind": "optimize", "onnx": "onnx", "engine": {"kind": kind, "threads": 1}, "target": "device"} | fields
    )


def built(folder, onnx, there, kind="onnxruntime", job=None):
    job = job or small_line.Job(folder / kind)
    job.target = there
    made = optimize(kind).at(there).run({"onnx": onnx}, job)
    return Artifact(kind, "Engine", f"id-{kind}", job.out, json.loads(json.dumps(made.facts)), {}), job


def suited(onnx):
    """What is sent for onnxruntime: with the last step that is fastest there."""
    return ENGINES.rows()["onnxruntime"].model_validate({"kind": "onnxruntime"}).network(onnx)


# -- over ssh


@needs_sshd
def test_engines_are_built_measured_and_fetched_over_ssh(line, server, tmp_path):
    dataset, student, onnx = line
    there = server.asked()
    engines = []
    for kind in ("onnxruntime", "openvino"):
        pytest.importorskip(kind)
        engine, job = built(tmp_path, onnx, there, kind)
        engines.append(engine)
        found = engine.json("engine.json")
        assert found["target"] == "device" and found["runtime"].startswith(kind) and engine.facts["foreign"]["target"] == "device"
        assert (
            engine.facts["ran"]["place"] == "target device"
            and "of target device, " in job.said[0]
            and "on 100.000% of the pixels" in job.said[0]
        )
        assert {part: state for part, state, _ in sidecar.examine(engine.folder) if state != "good"} == {}
        everything = json.dumps(engine.facts) + (engine.folder / "engine.json").read_text() + "".join(job.said)
        assert "127.0.0.1" not in everything and str(server.folder) not in everything
    ours = [small_line.engine(tmp_path / f"ours_{kind}", onnx, kind=kind, threads=1) for kind in ("onnxruntime", "openvino")]
    assert engines[0].file("engine.onnx").read_bytes() == ours[0].file("engine.onnx").read_bytes()
    for name in ("engine.xml", "engine.bin"):  # but for the numbers in names, which OpenVINO counts on through a process
        here, far = (re.sub(rb' name="[^"]*"', b"", engine.file(name).read_bytes()) for engine in (ours[1], engines[1]))
        assert here == far
    assert engines[0].file("engine.onnx").read_bytes() != onnx.file("model.onnx").read_bytes()  # both end as is fastest there
    assert b"tail_largest" in engines[1].file("engine.xml").read_bytes()

    settings = {"reference": "student", "candidates": ["onnx", "onnxruntime", "openvino"], "latency_of": ["onnxruntime", "openvino"]}
    settings |= {"latency": {"runs": 12, "warmup_ms": 0}, "target": "device", "pictures": 1}
    stage = Validate.model_validate({"kind": "validate", "data": "data"} | settings).at(there)
    job = small_line.Job(tmp_path / "measured")
    job.target = there
    inputs = {"data": dataset, "reference": student, "candidates": [onnx, *engines], "latency_of": engines}
    stage.run(inputs, job)
    measured = json.loads((job.out / "measurement.json").read_text())
    assert measured["target"] == {"name": "device", "facts": there.facts}
    for engine in engines:
        entry = measured["models"][engine.name]
        assert entry["agreement"] == 1.0 and entry["ran"]["place"] == "target device"
        for boundary in ("image_ms", "engine_ms"):
            assert len(entry["latency"][f"samples_{boundary}"]) == 12 and 0 < entry["latency"][boundary]["p50"] < 1000
    assert "place" not in measured["models"]["onnx"]["ran"]
    far = {"target": "device", "models": ["onnxruntime", "openvino"], "reasons": []}
    assert measured["conditions"] == {"valid": True, "reasons": [], "order": measured["conditions"]["order"], "not_watched": far}
    assert gone([pid for pid in below(server.process.pid)])


@needs_sshd
@pytest.mark.parametrize("moment", ["put", "get"])
def test_a_pulled_cable_ends_in_clear_words_and_the_same_command_goes_on_from_there(line, server, tmp_path, monkeypatch, moment):
    there, pieces, cut = server.asked(workdir=str(server.folder / f"work_{moment}")), [], 8
    monkeypatch.setattr(elsewhere, "CHUNK", 8192)
    real = link.Link.ask

    def ask(self, what, payload=b"", **given):
        if what == moment and (payload or moment == "get"):
            pieces.append(given["at"])
            if len(pieces) == cut:
                at_work.extend(below(server.process.pid))
                server.kill()
        return real(self, what, payload, **given)

    monkeypatch.setattr(link.Link, "ask", ask)
    job, at_work = small_line.Job(tmp_path / "engine"), []
    with pytest.raises(Missing, match="the same command goes on from what is there") as caught:
        built(tmp_path, line[2], there, job=job)
    assert "127.0.0.1" not in str(caught.value) and at_work and gone(at_work)
    with pytest.raises(Missing, match="connecting to"):
        built(tmp_path, line[2], there, job=job)
    server.start()
    again = len(pieces)
    engine, _ = built(tmp_path, line[2], there, job=job)
    assert pieces[again] == 8192 * (cut - 1) and engine.file("engine.onnx").read_bytes() == suited(line[2])
    assert not list(Path(there.target.workdir).rglob("*.part")) and not list(job.state.iterdir())


@needs_sshd
def test_a_build_that_loses_its_cable_ends_on_the_target_and_is_made_anew(line, server, tmp_path, monkeypatch):
    there, slow, waiting = server.asked(workdir=str(server.folder / "work_build")), tmp_path / "build_onnxruntime.py", tmp_path / "waiting"
    slow.write_text(
        f"import pathlib, time\nwaiting = pathlib.Path({str(waiting)!r})\n"
        + elsewhere.builder("onnxruntime")
        .read_text()
        .replace(
            "    import onnxruntime\n",
            "    import onnxruntime\n    if not waiting.exists():\n        (out / 'engine.half').write_text('x')\n"
            "        waiting.touch()\n        time.sleep(120)\n",
        )
    )
    monkeypatch.setattr(elsewhere, "builder", lambda kind: slow)
    real, at_work = link.select.select, []

    def pulled(*given):
        if waiting.exists() and not at_work:
            at_work.extend(below(server.process.pid))
            server.kill()
        return real(*given)

    monkeypatch.setattr(link.select, "select", pulled)
    with pytest.raises(Missing, match="asking for build"):
        built(tmp_path, line[2], there)
    assert at_work and gone(at_work)
    server.start()
    engine, _ = built(tmp_path / "again", line[2], there)
    assert sorted(file.name for file in engine.folder.iterdir()) == ["engine.json", "engine.onnx"]


@needs_sshd
def test_a_host_whose_key_is_another_or_unknown_is_refused(server):
    try:
        for known in ("stranger", None):
            server.knows(known) if known else (server.folder / "known_hosts").write_text("")
            with pytest.raises(Refused, match="host key") as caught:
                elsewhere.facts_of("device", server.target())
            assert "known_hosts" in str(caught.value) and "127.0.0.1" not in str(caught.value)
    finally:
        server.knows("host")
    with pytest.raises(Missing, match="Permission denied"):
        elsewhere.facts_of("device", server.target(identity_file=str(server.folder / "stranger")))


# -- the client's arguments


def test_the_client_never_asks_forwards_or_trusts_and_a_host_comes_after_all_options():
    words = link.argv(Target(host="far", user="u", workdir="w", port=2222, identity_file="/k/id", known_hosts="/k/known"))
    options = dict(words[k + 1].split("=", 1) for k, word in enumerate(words) if word == "-o")
    assert words[:3] == ["ssh", "-F", "none"] and words[-3:-1] == ["--", "far"]
    assert options["BatchMode"] == options["StrictHostKeyChecking"] == options["ClearAllForwardings"] == "yes"
    assert options["ForwardAgent"] == options["ForwardX11"] == options["PermitLocalCommand"] == options["UpdateHostKeys"] == "no"
    assert int(options["ConnectTimeout"]) and int(options["ServerAliveInterval"]) and options["IdentitiesOnly"] == "yes"
    assert options["UserKnownHostsFile"] == "/k/known" and options["GlobalKnownHostsFile"] == "/dev/null"
    assert words[-1].startswith("exec python3 -u -c '") and "w" not in words and words[words.index("-p") + 1] == "2222"


def test_the_far_end_is_python_of_3_9():
    for file in [
        *(Path(link.__file__).parent / "target_files").glob("*.py"),
        *(Path(link.__file__).parent / "bundle_files").glob("*.py"),
        Path(link.__file__).parent / "engines/_layers.py",
        link.MACHINE,
    ]:
        tree = ast.parse(file.read_text(), feature_version=(3, 9))
        zips = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "zip"]
        assert not any(node.keywords for node in zips), f"{file}: zip(strict=...) is of Python 3.10"


# -- the far end as a process


def test_what_a_login_shell_prints_first_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(link, "argv", lambda target: ["sh", "-c", 'echo Welcome; exec "$@"', "sh", *PROGRAM])
    assert elsewhere.facts_of("device", Target(host="far", user="u", workdir=str(tmp_path / "work")))["cores"] >= 1


@pytest.mark.parametrize(
    ("program", "error", "said"),
    [
        ("import sys; sys.stdout.write('x' * 200_000)", Refused, "something else"),
        ("import sys; sys.exit('no such \\x1b[31mthing on far')", Missing, r"no such \[31mthing on device"),
        ("pass", Missing, "without a word"),
    ],
)
def test_a_target_that_does_not_speak_is_refused(tmp_path, monkeypatch, program, error, said):
    monkeypatch.setattr(link, "argv", lambda target: [sys.executable, "-c", program])
    with pytest.raises(error, match=said):
        elsewhere.facts_of("device", Target(host="far", user="u", workdir="w"))


GREETS = "import sys; i = sys.stdin.buffer; n, a, m = i.readline().split(); i.read(int(a) + int(m)); o = sys.stdout.buffer; "
GREETS += "o.write(b'stillhouse ' + n + b'\\n'); o.flush(); i.readline(); "


@pytest.mark.parametrize(
    "answer",
    [
        b"[1]\n",
        b"{\n",
        b"[" * 100_000 + b"\n",
        b"x" * 3_000_000,
        b'{"bytes": 5}\nhello',
        b'{"bytes": -1}\n',
        b'{"bytes": 0, "cores": NaN}\n',
        b'{"bytes": 0}\n',
        b'{"bytes": 0, "cpu": "x\\u001b[2J", "cores": 1, "instructions": []}\n',
    ],
)
def test_garbage_is_refused_whatever_its_kind(tmp_path, monkeypatch, answer):
    (tmp_path / "answer").write_bytes(answer)
    program = GREETS + f"o.write(open({str(tmp_path / 'answer')!r}, 'rb').read()); o.flush(); i.read()"
    monkeypatch.setattr(link, "argv", lambda target: [sys.executable, "-c", program])
    with pytest.raises(Refused, match="does not speak as it should"):
        elsewhere.facts_of("device", Target(host="far", user="u", workdir="w"))


@pytest.mark.parametrize(
    ("what", "bent", "error", "said"),
    [
        ("hello", lambda a, d: (a | {"cpu": "Another"}, d), Missing, "is not what it was"),
        ("hello", lambda a, d: (a | {"instructions": ["rm"]}, d), Refused, "not asked for"),
        ("put", lambda a, d: ({"have": 10**12}, d), Refused, "of 1"),
        ("put", lambda a, d: ({"have": 0}, d), Refused, "never has the whole"),
        ("build", lambda a, d: (a | {"files": {"../x": {"sha256": "0" * 64, "bytes": 1}}}, d), Refused, "speak as it should"),
        ("build", lambda a, d: (a | {"files": {"engine.onnx": {"sha256": "0" * 64, "bytes": 10**15}}}, d), Refused, "speak as it should"),
        ("build", lambda a, d: (a | {"ran": {}}, d), Refused, "speak as it should"),
        ("get", lambda a, d: (a, bytes(len(d))), Refused, "sha256 differs"),
        ("maps", lambda a, d: (a | {"dtype": "int64"}, d), BadData, "not uint8"),
        ("maps", lambda a, d: (a, b"\xff" * len(d)), BadData, "up to 255"),
    ],
)
def test_an_answer_that_cannot_be_is_refused_before_it_is_used(line, here, tmp_path, monkeypatch, what, bent, error, said):
    real = link.Link.ask

    def ask(self, asked, *given, **more):
        answer = real(self, asked, *given, **more)
        return bent(*answer) if asked == what else answer

    monkeypatch.setattr(link.Link, "ask", ask)
    job = small_line.Job(tmp_path / "engine")
    with pytest.raises(error, match=said):
        built(tmp_path, line[2], here, job=job)
    assert not any(file.name == "x" for file in tmp_path.rglob("*"))


def test_times_that_cannot_be_are_refused(line, here, tmp_path, monkeypatch):
    engine, job = built(tmp_path, line[2], here)
    timer = elsewhere.Timer(engine, job, [np.zeros((50, 70, 3), np.uint8)], (64, 96), 0, None)  # brought to the network's size there
    timer.warm()
    found = timer.timed(3)
    assert all(len(values) == 3 and min(values) > 0 for values in found.values()) and timer.ran["threads"] == 1
    for bent in ({}, found | {"engine_ms": [1.0, 2.0]}, found | {"image_ms": [1.0, 2.0, -3.0]}, found | {"image_ms": [1.0, "2", 3.0]}):
        monkeypatch.setattr(timer.link, "ask", lambda *a, bent=bent, **k: (bent, b""))
        with pytest.raises(Refused, match="gives no 3 times"):
            timer.timed(3)
    timer.end()


def test_turns_on_a_target_go_on_through_the_images_as_they_do_here():
    agent, seen = Agent(), []
    agent.ways = {"image_ms": [lambda k=k: seen.append(k) for k in range(8)]}
    for runs in (3, 4, 3):
        agent.time(b"", runs)
    assert seen == [0, 1, *(0, 1, 2), 3, 4, *(3, 4, 5, 6), 7, 0, *(7, 0, 1)]  # before the timed ones two that are not


def test_what_an_earlier_build_left_goes_there_and_comes_back(line, here, tmp_path, monkeypatch):
    program = tmp_path / "build_onnxruntime.py"
    program.write_text(
        elsewhere.builder("onnxruntime")
        .read_text()
        .replace(
            "    import onnxruntime\n",
            "    import onnxruntime\n    timing = out / 'engine.timing'\n    timing.write_bytes(timing.read_bytes() + b' and after')\n",
        )
    )
    monkeypatch.setattr(elsewhere, "builder", lambda kind: program)
    job = small_line.Job(tmp_path / "engine")
    (job.out / "engine.timing").write_bytes(b"before")
    engine, _ = built(tmp_path, line[2], here, job=job)
    assert engine.file("engine.timing").read_bytes() == b"before and after"
    assert set(engine.json("engine.json")["files"]) == {"engine.onnx", "engine.timing"}


def test_who_stops_a_run_ends_the_build_on_the_target_too(line, here, tmp_path, monkeypatch):
    slow = tmp_path / "build_onnxruntime.py"
    slow.write_text("import time\n\n\ndef build(onnx, out, settings, runtime):\n    time.sleep(120)\n")
    monkeypatch.setattr(elsewhere, "builder", lambda kind: slow)
    job, started = small_line.Job(tmp_path / "engine"), []
    real = link.Link.__init__
    monkeypatch.setattr(link.Link, "__init__", lambda self, *given: (real(self, *given), started.append(self.process.pid))[0])
    job.stop = 2
    with pytest.raises(Stopped, match="goes on from there") as caught:
        built(tmp_path, line[2], here, job=job)
    assert caught.value.code == 130 and gone(started)


def test_what_was_built_is_not_built_again_and_what_was_damaged_is(line, here, tmp_path):
    first, _ = built(tmp_path / "1", line[2], here)
    record = next((Path(here.target.workdir) / "built").glob("*.json"))
    made = record.stat().st_mtime_ns
    second, _ = built(tmp_path / "2", line[2], here)
    assert record.stat().st_mtime_ns == made and first.facts == second.facts
    for file in Path(here.target.workdir).rglob("*.onnx"):
        file.write_bytes(b"damaged")
    third, _ = built(tmp_path / "3", line[2], here)
    assert third.file("engine.onnx").read_bytes() == first.file("engine.onnx").read_bytes() and record.stat().st_mtime_ns != made


def test_a_piece_of_another_file_is_replaced(line, here, tmp_path):
    onnx = suited(line[2])
    sha256 = hashlib.sha256(onnx).hexdigest()
    folder = Path(here.target.workdir) / sha256
    folder.mkdir(parents=True)
    (folder / "model.onnx.part").write_bytes(b"of another file")
    built(tmp_path, line[2], here)
    assert (folder / "model.onnx").read_bytes() == onnx and not (folder / "model.onnx.part").exists()


def test_a_work_folder_that_others_may_write_to_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(link, "argv", lambda target: PROGRAM)
    (tmp_path / "work").mkdir()
    (tmp_path / "work").chmod(0o777)
    with pytest.raises(Missing, match="nobody else may write to"):
        elsewhere.facts_of("device", Target(host="far", user="u", workdir=str(tmp_path / "work")))


# -- engines from elsewhere


def test_an_engine_from_elsewhere_is_never_opened_here(line, here, tmp_path):
    engine, job = built(tmp_path, line[2], here)
    with pytest.raises(Refused, match="target: device"):
        open_session(engine)
    job.target = None
    with pytest.raises(Refused, match="never opened here"):
        elsewhere.session(engine, job)
    job.target = here.model_copy(update={"name": "other"})
    with pytest.raises(Refused, match="opened only there"):
        elsewhere.session(engine, job)


def test_a_recipe_that_would_open_it_here_is_told_before_anything_runs():
    there, own = optimize(), optimize(target=None)
    settings = {"kind": "validate", "data": "data", "reference": "own", "candidates": ["there"]}
    earlier = {"own": own, "there": there}
    assert "write target: device" in Validate.model_validate(settings).problems(earlier)[0][1]
    assert Validate.model_validate(settings | {"target": "device"}).problems(earlier) == []
    found = Validate.model_validate(settings | {"target": "other"}).problems(earlier)
    assert [path for path, _ in found] == [("target",)] * 2
    assert "leave target out" in Validate.model_validate(settings | {"target": "device"}).problems({"own": own})[0][1]
    bundle = {"kind": "bundle", "data": "data", "onnx": "onnx", "engine": "there", "measured": "m", "verdict": "v"}
    for target in (None, "other"):
        assert (
            "runs only on target device: write target: device" in Bundle.model_validate(bundle | {"target": target}).problems(earlier)[0][1]
        )
    assert Bundle.model_validate(bundle | {"target": "device"}).problems(earlier) == []
    assert "leave target out" in Bundle.model_validate(bundle | {"engine": "own", "target": "device"}).problems(earlier)[0][1]
    rule = {"metric": "p50_ms", "of": "there", "against": "own", "at_most_ratio": 1.0}
    measured = Validate.model_validate(settings | {"target": "device", "latency_of": ["own", "there"]})
    for one, said in ((rule, 1), (rule | {"metric": "miou", "at_most_ratio": None, "at_least": 0.0}, 0)):
        gate = Gate.model_validate({"kind": "gate", "measured": "measured", "rules": [one]})
        assert ["different machines" in text for _, text in gate.problems(earlier | {"measured": measured})] == [True] * said
    stage = Optimize.model_validate({"kind": "optimize", "checkpoint": "c", "engine": {"kind": "pytorch"}, "target": "device"})
    assert "leave target out" in stage.problems({})[0][1]
