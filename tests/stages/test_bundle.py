"""What leaves the house runs without it: with its own files, numpy, pillow and the runtime, and it notices when a file was changed."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import Stillhouse
from stages import machine
from stages.bundle import FILES, Bundle, least_agreement
from stages.bundle_files import run as runner
from stages.engines import TABLE
from stages.measure.predict import fitted, open_session
from stages.optimize import Optimize
from tests.stages import small_line

KINDS = [file.stem.removeprefix("runtime_") for file in sorted(FILES.glob("runtime_*.py"))]
STAGE = Bundle(kind="bundle", data="data", onnx="onnx", engine="engine", measured="measured", verdict="gate")


@pytest.fixture(scope="module", params=KINDS)
def packed(request, tmp_path_factory):
    """onnxruntime fails its gate and takes the argmax in its graph; openvino passes and takes it in argmax.c: all of it is looked at."""
    kind = request.param
    if kind == "tensorrt" and not machine.has_device():
        pytest.skip("tensorrt runs on an NVIDIA GPU; its runner against doubles: tests/stages/test_tensorrt.py")
    if importlib.util.find_spec(TABLE.row(kind).package) is None:
        pytest.skip(f"{kind} is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        argmax = "graph" if kind == "onnxruntime" else "native"
        yield small_line.bundled(tmp_path_factory.mktemp(kind), passes=kind != "onnxruntime", kind=kind, argmax=argmax)


def copied(bundle, folder):
    for file in bundle.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def run(folder, *arguments):
    """As on another machine: in the folder's own place, without this repository on the path."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [sys.executable, "-B", str(folder / "run.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder.parent, env=environment)


def test_the_folder_is_flat_whole_and_has_no_word_of_this_machine(packed):
    inputs, bundle = packed
    names = {file.name for file in bundle.folder.iterdir()}
    expected = {
        "run.py",
        "runtime.py",
        "model.onnx",
        "classes.json",
        "preprocessing.json",
        "requirements.txt",
        "sample.png",
        "expected.png",
    }
    assert names >= expected | {"README.txt", "engine.json", "bundle.json", "verdict.json"} and any(
        name.startswith("engine.") for name in names
    )
    assert all(file.is_file() for file in bundle.folder.iterdir())
    assert bundle.json("bundle.json")["files"].keys() == names - {"bundle.json"}
    for file in bundle.folder.iterdir():
        assert str(inputs["data"].folder.parent).encode() not in file.read_bytes()
    pinned = bundle.file("requirements.txt").read_text().splitlines()
    assert len(pinned) == 3 and all("==" in line for line in pinned)


def test_the_verdict_goes_with_the_bundle(packed):
    inputs, bundle = packed
    passed = inputs["verdict"].facts["passed"]
    assert bundle.facts["passed"] is passed and bundle.json("bundle.json")["passed"] is passed
    readme = bundle.file("README.txt").read_text()
    assert ("FAILED - do not ship this" in readme) is not passed
    assert inputs["verdict"].json("verdict.json")["rules"][0]["text"] in readme
    miou = inputs["measured"].json("measurement.json")["models"]["engine"]["miou"]
    assert f"{miou:.2f} points" in readme


def test_its_check_passes_and_says_when_the_gate_did_not(packed, tmp_path):
    inputs, bundle = packed
    done = run(copied(bundle, tmp_path), "--check")
    assert done.returncode == 0, done.stderr
    assert "whole" in done.stdout and "100.0000%" in done.stdout
    assert ("broke a rule" in done.stdout) is not inputs["verdict"].facts["passed"]


def test_a_picture_of_another_size_becomes_a_mask_of_its_own_size(packed, tmp_path):
    inputs, bundle = packed
    folder = tmp_path / "bundle"
    folder.mkdir()
    copied(bundle, folder)
    image = np.random.default_rng(0).integers(0, 256, (100, 75, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "holiday.png")
    done = run(folder, tmp_path / "holiday.png")
    assert done.returncode == 0, done.stderr
    mask = Image.open(tmp_path / "holiday_mask.png")
    assert mask.size == (75, 100) and mask.mode == "P"
    classes = open_session(inputs["engine"])(fitted(image, small_line.SIZE)[None].copy())[0]
    expected = np.asarray(Image.fromarray(classes).resize((75, 100), Image.Resampling.NEAREST))
    assert (np.asarray(mask) == expected).all()
    colours = np.array(inputs["data"].facts["colours"], np.uint8)
    assert (np.asarray(mask.convert("RGB")) == colours[expected]).all()
    shares = dict(reversed(line.split()) for line in done.stdout.splitlines()[1:])
    for number, name in enumerate(inputs["data"].facts["classes"]):
        share = float((expected == number).mean())
        assert (name in shares) is (share > 0)
        if share:
            assert shares[name] == f"{share:.2%}"
    assert run(folder, tmp_path / "holiday.png", "-o", tmp_path / "there.png").returncode == 0 and (tmp_path / "there.png").is_file()


@pytest.mark.parametrize("victim", ["engine", "classes.json", "run.py", "missing"])
def test_a_changed_or_missing_file_is_seen_by_its_check(packed, tmp_path, victim):
    folder = copied(packed[1], tmp_path)
    file = sorted(folder.glob("engine.*"))[-1] if victim in ("engine", "missing") else folder / victim
    if victim == "missing":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[-1 if victim != "run.py" else content.index(b"PNG")] ^= 1
        file.write_bytes(content)
    done = run(folder, "--check")
    assert done.returncode == 7 and file.name in done.stderr and "Traceback" not in done.stderr
    if victim != "run.py":
        Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
        done = run(folder, tmp_path / "small.png")  # not only its check looks
        assert done.returncode == 7 and file.name in done.stderr and not (tmp_path / "small_mask.png").exists()


@pytest.mark.parametrize("name", ["numpy.py", "json.py", "PIL.py", "runtime.pyc", "sitecustomize.py"])
def test_a_program_that_was_put_beside_it_is_not_run(packed, tmp_path, name):
    folder = copied(packed[1], tmp_path)
    (folder / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    done = run(folder, "--check")
    assert done.returncode == 0 and not (tmp_path / "ran").exists(), done.stderr


@pytest.mark.parametrize(
    "change",
    [
        {"files": {}},
        {"files": {"../run.py": "0" * 64}},
        {"files": None},
        {"least_agreement": 0.0},
        {"least_agreement": None},
        {"engine": None},
        {"passed": "yes"},
    ],
    ids=range(7),
)
def test_a_bundle_json_that_asks_for_less_is_refused(packed, tmp_path, change):
    folder = copied(packed[1], tmp_path)
    bundle = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(bundle | change))
    done = run(folder, "--check")
    assert done.returncode == 7 and "bundle.json" in done.stderr and "Traceback" not in done.stderr


def test_files_are_compared_before_any_package_is_needed(packed, tmp_path):
    """requirements.txt says what pip installs: whether it is the bundled one must be known before."""
    folder = copied(packed[1], tmp_path)
    without = [sys.executable, "-S", "-E", str(folder / "run.py"), "--check"]
    done = subprocess.run(without, capture_output=True, text=True)
    assert done.returncode == 2 and "pip install -r" in done.stderr
    (folder / "requirements.txt").write_text("evil==1.0\n")
    done = subprocess.run(without, capture_output=True, text=True)
    assert done.returncode == 7 and "requirements.txt is not the file" in done.stderr


def test_an_engine_that_computes_something_else_is_seen_by_its_check(packed, tmp_path):
    """All digests agree, but the sample does not: another machine, another runtime."""
    folder = copied(packed[1], tmp_path)
    expected = Image.open(folder / "expected.png")
    turned = Image.fromarray(np.roll(np.asarray(expected), 7, axis=1))
    turned.putpalette(expected.getpalette())
    turned.save(folder / "expected.png")
    bundle = json.loads((folder / "bundle.json").read_text())
    bundle["files"]["expected.png"] = hashlib.sha256((folder / "expected.png").read_bytes()).hexdigest()
    (folder / "bundle.json").write_text(json.dumps(bundle))
    done = run(folder, "--check")
    assert done.returncode == 2 and "not usable here" in done.stderr


def test_bad_pictures_get_one_line(packed, tmp_path):
    folder = copied(packed[1], tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    for given in ("text.png", "absent.png"):
        done = run(folder, tmp_path / given)
        assert done.returncode == 2 and "cannot be read as a picture" in done.stderr and "Traceback" not in done.stderr
    assert run(folder).returncode == 2


def test_a_mask_is_a_png_by_any_name_and_a_place_that_takes_none_gets_one_line(packed, tmp_path):
    folder = copied(packed[1], tmp_path)
    for name in ("mask.jpg", "mask"):
        done = run(folder, folder / "sample.png", "-o", tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert (np.asarray(Image.open(tmp_path / name, formats=["PNG"])) == np.asarray(Image.open(folder / "expected.png"))).all()
    for place in (tmp_path, tmp_path / "absent/mask.png"):
        done = run(folder, folder / "sample.png", "-o", place)
        assert done.returncode == 2 and f"{place} cannot be written" in done.stderr and "name another place with -o" in done.stderr


def test_a_runtime_that_stops_while_it_computes_is_told_as_this_machines_failing(tmp_path, monkeypatch):
    (tmp_path / "preprocessing.json").write_text(json.dumps({"input": {"size": [32, 40]}}))
    monkeypatch.setattr(runner, "HERE", tmp_path)

    def engine(images):
        raise ValueError("CUDA failure 2: out of memory")

    with pytest.raises(runner.Problem, match="does not compute: ValueError: CUDA failure 2: out of memory") as told:
        runner.predicted(Image.new("RGB", (40, 32)), engine)
    assert told.value.code == 2


def test_a_bundle_that_fails_on_its_own_sample_is_not_published(packed, tmp_path, monkeypatch):
    import stages.validate

    inputs, _ = packed
    real = stages.validate.write_map
    monkeypatch.setattr(stages.validate, "write_map", lambda found, colours, file: real(np.roll(found, 9, axis=1), colours, file))
    with pytest.raises(Stillhouse, match="fails on its own sample"):
        small_line.made(STAGE, "bundle", inputs, tmp_path)


def test_an_engine_that_needs_this_package_is_refused_when_the_recipe_is_checked():
    engine = Optimize.model_validate({"kind": "optimize", "checkpoint": "student", "engine": {"kind": "pytorch"}})
    assert STAGE.problems({"engine": engine}) == [
        (
            ("engine",),
            "an engine of kind pytorch runs only with this package; bundle one of kind onnxruntime or openvino or tensorrt or tensorrt_rtx",
        )
    ]
    engine = Optimize.model_validate({"kind": "optimize", "onnx": "onnx", "engine": {"kind": "onnxruntime"}})
    assert STAGE.problems({"engine": engine}) == []


@pytest.mark.parametrize("kind", ["tensorrt", "tensorrt_rtx"])
def test_an_engine_that_is_built_again_elsewhere_is_packed_with_the_file_it_was_built_from(kind):
    engine = Optimize.model_validate({"kind": "optimize", "onnx": "fp16", "engine": {"kind": kind}})
    text = "a device builds engine again from the packed ONNX file, and it was built from fp16: write onnx: fp16"
    assert STAGE.problems({"engine": engine}) == [(("onnx",), text)]
    assert STAGE.model_copy(update={"onnx": "fp16"}).problems({"engine": engine}) == []


@pytest.mark.parametrize(
    ("runtime", "graph", "least"),
    [(None, "f32", 0.999), ("bf16", "f32", 0.98), (None, "fp16", 0.995), ("f32", "int8", 0.98), ("bf16", "fp16", 0.98)],
)
def test_another_machine_must_reproduce_what_the_coarser_of_graph_and_arithmetic_allows(runtime, graph, least):
    settings = {"kind": "openvino", "precision": runtime} if runtime else {"kind": "tensorrt"}
    assert least_agreement({"engine": settings, "onnx": {"precision": graph}}) == least


def test_the_runner_resizes_as_the_data_stage_does(tmp_path, monkeypatch):
    image = np.random.default_rng(1).integers(0, 256, (50, 71, 3), dtype=np.uint8)
    (tmp_path / "preprocessing.json").write_text(json.dumps({"input": {"size": [32, 40]}}))
    monkeypatch.setattr(runner, "HERE", tmp_path)
    given = []

    def engine(images):
        given.append(images)
        return np.zeros((1, 32, 40), np.uint8)

    assert runner.predicted(Image.fromarray(image), engine).shape == (50, 71)
    assert (given[0][0] == fitted(image, (32, 40))).all()
