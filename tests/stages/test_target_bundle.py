"""A bundle of an engine that was built on a target is tried out there before it is packed, by its own runner."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.artifact import Artifact
from pipeline.errors import Missing, Stillhouse, Stopped
from pipeline.targets import Asked, Target
from stages import elsewhere, link
from stages.bundle import Bundle
from stages.optimize import Optimize
from tests.stages import device_double, small_line
from tests.stages.loopback import gone

FIELDS = {"kind": "bundle", "data": "data", "onnx": "onnx", "engine": "engine", "measured": "measured", "verdict": "verdict"}


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """Everything a bundle is made of, but the engine."""
    (dataset, _, onnx), folder = device_double.line(tmp_path_factory.getbasetemp()), tmp_path_factory.mktemp("judged")
    latency = {"image_ms": {"p50": 1.0, "p90": 2.0, "p99": 3.0}}
    model = {"miou": 50.0, "size_mb": 1.0, "latency": latency, "ran": {"provider": "GPU A"}}
    facts = {"gpus": [{"name": "GPU of the target"}], "cpu": "CPU of the target", "cores": 6}
    measured = {"models": {"engine": model}, "machine": {}, "split": "val", "images": 1, "target": {"name": "device", "facts": facts}}
    for name, content in (("verdict", {"passed": True, "rules": []}), ("measurement", measured)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    others = {name: Artifact(name, name.title(), "x", folder, {}) for name in ("measured", "verdict")}
    return {"data": dataset, "onnx": onnx, **others}


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    return device_double.python(tmp_path_factory.mktemp("device")) if device_double.AVAILABLE else sys.executable


@pytest.fixture
def there(tmp_path, tmp_path_factory, python, monkeypatch):
    """A target without ssh, with a home of its own."""
    monkeypatch.setattr(link, "argv", lambda target: ["env", f"HOME={tmp_path / 'home'}", target.python, "-u", "-c", link.BOOT])
    (tmp_path / "work").mkdir()
    (tmp_path / "work/cache").symlink_to(device_double.compiled(tmp_path_factory.getbasetemp()))
    target = Target(host="far", user="u", workdir=str(tmp_path / "work"), python=python)
    return Asked(name="device", target=target, facts=elsewhere.facts_of("device", target))


def packed(folder, line, there, **engine):
    """(the bundle, what was said)"""
    stage = Optimize.model_validate({"kind": "optimize", "onnx": "onnx", "engine": engine, "target": "device"}).at(there)
    built = small_line.made(stage, "engine", {"onnx": line["onnx"]}, folder, target=there)
    stage, job = Bundle.model_validate(FIELDS | {"target": "device"}).at(there), small_line.Job(folder / "bundle")
    job.target = there
    facts = stage.run(line | {"engine": built}, job).facts
    return Artifact("bundle", "Bundle", "id-bundle", job.out, facts, {}), job.said


@pytest.mark.skipif(not device_double.AVAILABLE, reason="the double of TensorRT is made from tensorrt-rtx-cu13-bindings")
def test_a_device_gets_all_that_runs_and_rebuilds_its_engine(line, there, tmp_path):
    bundle, said = packed(tmp_path, line, there, kind="tensorrt", batch=[1, 1, 2])
    names = {file.name for file in bundle.folder.iterdir()}
    assert names >= {
        "engine.plan",
        "engine.timing",
        "model.onnx",
        "runtime.py",
        "build_tensorrt.py",
        "run.py",
        "sample.png",
        "expected.png",
    }
    assert said[0].startswith(f"whole: {len(names) - 1} files as bundled; the sample gives the expected class on 100.0000%")
    assert said[0].endswith("(target device)")
    wanted = bundle.file("requirements.txt").read_text().split()
    assert f"tensorrt=={device_double.VERSION}" in wanted and "cuda-python==12.9.0" in wanted, "the target's own versions"
    readme = bundle.file("README.txt").read_text()
    assert "p50 1.00 ms" in readme and "(GPU of the target, 6 cores)" in readme and "--system-site-packages" in readme
    left = [folder for folder in Path(there.target.workdir).iterdir() if (folder / "run.py").exists()]
    assert not left and not (tmp_path / "home").exists()
    script = ["env", f"HOME={tmp_path / 'home'}", there.target.python, "-B", str(bundle.folder / "build_tensorrt.py")]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0 and "timing cache: taken." in done.stdout, done.stderr
    done = subprocess.run([*script[:-1], str(bundle.folder / "run.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0 and "expected class on 100.0000%" in done.stdout, done.stderr


def test_what_it_compiles_to_be_tried_lies_in_the_work_folder(line, there, tmp_path):
    pytest.importorskip("onnxruntime")
    if there.facts["compiler"] == "none":
        pytest.skip("there is no C compiler")
    bundle, said = packed(tmp_path, line, there, kind="onnxruntime", threads=1, argmax="native")
    assert "argmax in argmax.c, compiled with" in said[0] and {"argmax.c", "argmax.py"} <= bundle.json("bundle.json")["files"].keys()
    assert list(Path(there.target.workdir).glob("cache/stillhouse/argmax-*.so")) and not (tmp_path / "home").exists()


def test_a_bundle_that_fails_there_is_not_published_and_does_not_stay(line, there, tmp_path, monkeypatch):
    import numpy as np

    import stages.validate

    pytest.importorskip("onnxruntime")
    real = stages.validate.write_map
    monkeypatch.setattr(stages.validate, "write_map", lambda found, colours, file: real(np.roll(found, 9, axis=1), colours, file))
    with pytest.raises(Stillhouse, match=r"fails on its own sample, it says: the sample gives .* not usable here"):
        packed(tmp_path, line, there, kind="onnxruntime")
    assert not list(Path(there.target.workdir).glob("*/run.py"))


@pytest.mark.parametrize("stopped", [False, True])
def test_a_runner_that_does_not_end_is_ended_there(there, tmp_path, monkeypatch, stopped):
    """After its time, or with the link when somebody stops the run."""
    job, pid = small_line.Job(tmp_path / "job"), tmp_path / "pid"
    job.target = there
    lines = ["import os, time", f"draft, pid = {str(tmp_path / 'draft')!r}, {str(pid)!r}", "open(draft, 'w').write(str(os.getpid()))"]
    (job.out / "run.py").write_text("\n".join([*lines, "os.rename(draft, pid)", "time.sleep(60)", ""]))
    if stopped:
        monkeypatch.setattr(job, "stop_asked", lambda: 2 if pid.exists() else 0)
    monkeypatch.setattr(elsewhere, "CHECK_S", 60 if stopped else 2)
    with pytest.raises(Stopped if stopped else Missing, match="goes on from there" if stopped else "did not end within 2 s"):
        elsewhere.tried(job.out, job)
    assert gone([int(pid.read_text())])


def test_what_the_target_is_belongs_to_the_key(there):
    assert Bundle.model_validate(FIELDS | {"target": "device"}).at(there).environment()["target cpu"] == there.facts["cpu"]
    assert Bundle.model_validate(FIELDS).environment() == {}
