"""argmax: native on a target: argmax.c is compiled there, or a graph gives the same map; both boundaries include it, `ran` says which."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifact import Artifact
from pipeline.errors import Refused
from pipeline.targets import Asked, Target
from stages import elsewhere, link
from stages.optimize import Optimize
from tests.stages import device_double, small_line

KINDS = ("onnxruntime", "openvino")
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    return device_double.line(tmp_path_factory.getbasetemp())[2]


@pytest.fixture
def device(tmp_path, tmp_path_factory, monkeypatch):
    """device(path): a target without ssh, whose programs are looked for there."""

    def become(path=None):
        words = ["env", *([f"PATH={path}"] if path else []), f"HOME={tmp_path / 'home'}", sys.executable, "-u", "-c", link.BOOT]
        monkeypatch.setattr(link, "argv", lambda target: words)
        (tmp_path / "work").mkdir(exist_ok=True)
        if path is None:
            (tmp_path / "work/cache").symlink_to(device_double.compiled(tmp_path_factory.getbasetemp()))
        target = Target(host="far", user="u", workdir=str(tmp_path / "work"))
        return Asked(name="device", target=target, facts=elsewhere.facts_of("device", target))

    return become


def built(folder, onnx, there, kind, argmax="native"):
    pytest.importorskip(kind)
    engine = {"kind": kind, "threads": 1, "argmax": argmax}
    stage = Optimize.model_validate({"kind": "optimize", "onnx": "onnx", "engine": engine, "target": "device"}).at(there)
    assert stage.problems({}) == []
    job = small_line.Job(folder)
    job.target = there
    facts = json.loads(json.dumps(stage.run({"onnx": onnx}, job).facts))
    return Artifact(kind, "Engine", f"id-{argmax}", job.out, facts, {}), job


def maps(engine, there, folder, images):
    job = small_line.Job(folder)
    job.target = there
    return np.concatenate([elsewhere.session(engine, job)(image[None]) for image in images])


@needs_cc
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_compiled_there_and_gives_the_map_of_the_graph(onnx, device, tmp_path, kind):
    there = device()
    engine, job = built(tmp_path / "native", onnx, there, kind)
    assert engine.facts["ran"]["argmax"] == "native" and engine.facts["probe"]["agreement"] == 1.0 and len(job.said) == 1
    assert engine.facts["tail"] == {"size": list(small_line.SIZE), "align_corners": False, "classes": 12}
    assert {"engine.json", "engine.tail.onnx"} < {file.name for file in engine.folder.iterdir()}
    assert list(Path(there.target.workdir).glob("cache/stillhouse/argmax-*.so")) and not (tmp_path / "home").exists()
    plain, _ = built(tmp_path / "graph", onnx, there, kind, argmax="graph")
    images = np.random.default_rng(0).integers(0, 256, (2, *small_line.SIZE, 3), dtype=np.uint8)
    assert (maps(engine, there, tmp_path / "a", images) == maps(plain, there, tmp_path / "b", images)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_compiler_a_graph_does_it_and_that_is_said(onnx, device, tmp_path, kind):
    there = device(path=tmp_path)
    engine, job = built(tmp_path / "native", onnx, there, kind)
    assert engine.facts["ran"]["argmax"] == "graph of its own" and engine.facts["probe"]["agreement"] == 1.0
    assert job.said[0] == "target device takes the argmax in a graph, more slowly than in C: there is no C compiler here (cc, gcc, clang)"
    assert not (tmp_path / "work/cache").exists()


@needs_cc
def test_both_boundaries_include_it_and_what_times_says_what_ran(onnx, device, tmp_path, monkeypatch):
    """The argmax is made slow, and both are."""
    there, source = device(), (Path(elsewhere.__file__).parent / "bundle_files/argmax.py").read_text()
    engine, job = built(tmp_path / "engine", onnx, there, "onnxruntime")
    (tmp_path / "argmax.py").write_text(source.replace("    if failed:\n", "    import time\n\n    time.sleep(0.05)\n    if failed:\n"))
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: real(tmp_path / "argmax.py" if self.name == "argmax.py" else self))
    timer = elsewhere.Timer(engine, job, [np.zeros((*small_line.SIZE, 3), np.uint8)], small_line.SIZE, 0, None)
    timer.warm()
    times = timer.timed(2)
    timer.end()
    assert timer.ran["argmax"] == "native" and min(times["image_ms"] + times["engine_ms"]) > 50


def test_whether_there_is_a_compiler_belongs_to_the_key(device, tmp_path):
    def key(there, argmax):
        fields = {"kind": "optimize", "onnx": "onnx", "engine": {"kind": "openvino", "argmax": argmax}, "target": "device"}
        return Optimize.model_validate(fields).at(there).environment()

    without, there = device(path=tmp_path), device()
    assert key(without, "native") == key(without, "graph") | {"compiler": "none"}
    assert key(there, "graph") == key(without, "graph") and "compiler" in key(there, "native")


def test_a_target_that_does_not_say_who_takes_it_is_refused(onnx, device, tmp_path, monkeypatch):
    real = link.Link.ask
    monkeypatch.setattr(
        link.Link, "ask", lambda self, what, *given, **more: ({}, b"") if what == "open" else real(self, what, *given, **more)
    )
    with pytest.raises(Refused, match="how it takes the argmax"):
        built(tmp_path, onnx, device(), "onnxruntime")
