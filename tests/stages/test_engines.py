"""One contract for every engine row: images in, class maps out, what runs is read back, and nothing falls back in silence."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import Missing, Refused
from stages import machine
from stages.engines import TABLE, onnxruntime, openvino, pytorch
from stages.measure.parity import agreement, compare, probes
from stages.measure.predict import open_session
from stages.optimize import FIELDS, Optimize
from stages.samples import open_samples
from tests.stages import small_line

ROOT = Path(__file__).resolve().parents[2]
LEAST = {"f32": 0.9999, "bf16": 0.9}  # an untrained network has many pixels where two classes are nearly equal


def variants():
    """Every row with every precision it knows and each way to take the argmax, on the CPU."""
    for kind, row in TABLE.rows().items():
        known = row.model_fields.get("precision")
        for precision in known.annotation.__args__ if known else ("f32",):
            for argmax in ("graph",) if row(kind=kind).no_native() else ("graph", "native"):
                settings = {"kind": kind, "argmax": argmax} | ({"precision": precision} if known else {})
                yield pytest.param(row.model_validate(settings), id=f"{kind} {precision} {argmax}")


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    folder = tmp_path_factory.mktemp("line")
    dataset = small_line.data(folder)
    student = small_line.checkpoint(folder, dataset)
    onnx = small_line.exported(folder, dataset, student)
    images = np.stack([open_samples(dataset, "val")[i][0] for i in range(3)])
    return dataset, {"Checkpoint": student, "OnnxModel": onnx}, images, open_session(student)(images)


ON_A_GPU = ("tensorrt", "tensorrt_rtx")  # without one: tests/stages/test_tensorrt.py and test_tensorrt_rtx.py


def need(row):
    if row.kind in ON_A_GPU and not machine.has_device():
        pytest.skip(f"{row.kind} runs on an NVIDIA GPU")
    if not any(importlib.util.find_spec(name) for name in (row.package, f"{row.package}_bindings")):
        pytest.skip(f"{row.package} is not installed")
    if getattr(row, "precision", "") == "bf16" and row.kind == "openvino" and not machine.has_bf16():
        pytest.skip("this CPU has no bfloat16 arithmetic")


@pytest.mark.parametrize("row", list(variants()))
def test_an_engine_gives_the_classes_of_the_checkpoint_for_any_batch_in_call_and_bound(line, tmp_path, row):
    need(row)
    _, sources, images, expected = line
    facts = json.loads(json.dumps(row.build(sources[row.takes], tmp_path)))
    assert all(file.name.startswith("engine.") for file in tmp_path.iterdir())
    session = row.open(tmp_path, facts)
    precision = getattr(row, "precision", "f32")
    for batch in (images, images[:1], images[1:]):
        found = session(batch)
        assert found.dtype == np.uint8 and found.shape == batch.shape[:3]
    assert agreement(session(images), expected) >= LEAST[precision]
    assert (session(images[1:2]) == session(images)[1:2]).mean() >= LEAST[precision]
    before = session(images[:1])
    run = session.bind(images[:1].copy())
    assert [run() for _ in range(2)] and (session(images[:1]) == before).all()
    assert session.ran == facts["ran"] and {"runtime", "provider", "precision", "threads"} <= session.ran.keys()
    assert row.package in session.ran["runtime"]


@pytest.mark.parametrize("row", list(variants()))
def test_what_changes_a_result_is_known_without_importing_the_runtime(row):
    found = row.environment()
    assert all(isinstance(value, str) for value in found.values())
    assert row.package in found["runtime"] or found["runtime"] == "missing"
    for line in row.requirements():
        assert "==" in line


@pytest.mark.parametrize("row", list(variants()))
def test_optimize_builds_what_the_row_takes_and_records_its_first_answers(line, tmp_path, row):
    need(row)
    _, sources, _, _ = line
    artifact = small_line.engine(tmp_path, sources[row.takes], **row.model_dump())
    assert artifact.facts["engine"] == row.model_dump() and artifact.facts["size"] == list(small_line.SIZE)
    assert artifact.facts["probe"]["images"] == 4
    assert artifact.facts["probe"]["agreement"] >= LEAST[getattr(row, "precision", "f32")]
    other = next(field for field in FIELDS.values() if field != FIELDS[row.takes])
    with pytest.raises(ValueError, match=f"write {FIELDS[row.takes]}"):
        Optimize.model_validate({"kind": "optimize", other: "x", "engine": row.model_dump()})


def test_an_engine_that_answers_otherwise_is_seen_by_the_first_look(line, tmp_path, monkeypatch):
    _, sources, _, _ = line
    monkeypatch.setattr(onnxruntime.Session, "__call__", lambda self, images: np.zeros(images.shape[:3], np.uint8))
    monkeypatch.setattr("stages.measure.predict.open_session", lambda source: pytorch_session(sources["Checkpoint"]))
    assert small_line.engine(tmp_path, sources["OnnxModel"], kind="onnxruntime").facts["probe"]["agreement"] < 0.9


def pytorch_session(student):
    from stages.models import open_model

    return pytorch.session_of(open_model(student))


def test_threads_reach_the_runtime(line, tmp_path):
    _, sources, _, _ = line
    row = onnxruntime.OnnxRuntime(kind="onnxruntime", threads=1)
    facts = row.build(sources["OnnxModel"], tmp_path)
    assert row.open(tmp_path, facts).session.get_session_options().intra_op_num_threads == 1
    if importlib.util.find_spec("openvino"):
        row = openvino.OpenVino(kind="openvino", threads=1)
        session = row.open(tmp_path, row.build(sources["OnnxModel"], tmp_path))
        assert session.compiled[1].get_property("INFERENCE_NUM_THREADS") == 1


@pytest.mark.skipif(machine.has_device(), reason="this machine has a GPU")
def test_a_provider_that_is_not_there_is_an_error_and_never_the_cpu(line, tmp_path):
    _, sources, _, _ = line
    with pytest.raises(ValueError, match="'cpu' or 'cuda'"):
        onnxruntime.OnnxRuntime(kind="onnxruntime", provider="tensorrt")
    with pytest.raises(Missing, match="provider: cpu"):
        onnxruntime.OnnxRuntime(kind="onnxruntime", provider="cuda").build(sources["OnnxModel"], tmp_path)


def test_a_session_that_fell_back_is_an_error(line, tmp_path, monkeypatch):
    import onnxruntime as ort

    real = ort.InferenceSession
    monkeypatch.setattr(machine, "has_device", lambda: True)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(ort, "InferenceSession", lambda path, options, providers: real(path, options, providers=["CPUExecutionProvider"]))
    with pytest.raises(Missing, match="the session runs on CPUExecutionProvider"):
        onnxruntime.session_of(line[1]["OnnxModel"].file("model.onnx"), "cuda")


@pytest.mark.skipif(machine.has_device(), reason="this machine has a GPU")
def test_a_bundle_of_a_cuda_engine_asks_for_cuda_and_cudnn_and_its_runner_names_them(line, monkeypatch):
    import onnxruntime as ort

    from stages.bundle_files import runtime_onnxruntime as runtime

    def version(*names):
        return next(f"{name} 1.31.1" for name in names)

    needed = {
        provider: onnxruntime.OnnxRuntime(kind="onnxruntime", provider=provider).requirements(version) for provider in ("cpu", "cuda")
    }
    assert needed == {"cpu": ["onnxruntime==1.31.1"], "cuda": ["onnxruntime-gpu[cuda,cudnn]==1.31.1"]}
    file, settings = line[1]["OnnxModel"].file("model.onnx"), {"provider": "cuda", "threads": 1}
    with pytest.raises(runtime.Unfit, match=r"not part of the installed onnxruntime: .* onnxruntime-gpu\[cuda,cudnn\]"):
        runtime.opened(file, settings)
    real = ort.InferenceSession
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(ort, "InferenceSession", lambda path, options, providers: real(path, options, providers=["CPUExecutionProvider"]))
    with pytest.raises(runtime.Unfit, match=r"gives CPUExecutionProvider on this machine, for want of CUDA, cuDNN or a driver"):
        runtime.opened(file, settings)


def test_bf16_on_a_cpu_without_it_is_an_error(line, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "has_bf16", lambda: False)
    with pytest.raises(Missing, match="Write precision: f32"):
        openvino.OpenVino(kind="openvino", precision="bf16").open(tmp_path, {})


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
def test_a_signal_after_two_openvino_engines_were_opened_and_dropped_ends_nothing(line, tmp_path):
    """Each root object of the runtime puts back the signal stack it found, which may be that of another that is gone."""
    openvino.OpenVino(kind="openvino", threads=1).build(line[1]["OnnxModel"], tmp_path)
    code = f"""
import faulthandler, os, signal
from pathlib import Path
from stages.engines.openvino import OpenVino
faulthandler.enable()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
row = OpenVino(kind="openvino", threads=1)
first, second = (row.open(Path({str(tmp_path)!r}), {{}}) for _ in range(2))
del first
del second
os.kill(os.getpid(), signal.SIGUSR1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_a_missing_package_is_one_line_that_says_what_to_install(line, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    for row in (onnxruntime.OnnxRuntime(kind="onnxruntime"), openvino.OpenVino(kind="openvino")):
        with pytest.raises(Missing, match=f"pip install {row.kind}") as caught:
            row.build(line[1]["OnnxModel"], tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
def test_an_onnx_file_that_reads_other_files_is_refused_before_the_runtime_sees_it(line, tmp_path, kind):
    import onnx

    proto = onnx.load(line[1]["OnnxModel"].file("model.onnx"))
    onnx.save(proto, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    hostile = small_line.Artifact("onnx", "OnnxModel", "x", tmp_path, line[1]["OnnxModel"].facts)
    with pytest.raises(Refused, match="external data"):
        TABLE.row(kind)(kind=kind).build(hostile, tmp_path)


def test_agreement_equals_a_count_made_one_pixel_at_a_time():
    random = np.random.default_rng(0)
    one, other = random.integers(0, 3, (2, 7, 5), dtype=np.uint8), random.integers(0, 3, (2, 7, 5), dtype=np.uint8)
    equal = sum(a == b for a, b in zip(one.ravel().tolist(), other.ravel().tolist(), strict=True))
    assert agreement(one, other) == equal / 70
    with pytest.raises(ValueError, match="hide differences"):
        agreement(one, other[:, :, :4])


def test_parity_weighs_images_by_their_pixels_and_names_the_worst():
    small, large = np.zeros((2, 2, 3), np.uint8), np.full((4, 4, 3), 9, np.uint8)

    def zeros(images):
        return np.zeros(images.shape[:3], np.uint8)

    def wrong_on_small(images):
        return zeros(images) + (images.shape[1] == 2) * np.eye(2, dtype=np.uint8)[None] if images.shape[1] == 2 else zeros(images)

    found = compare(zeros, wrong_on_small, [("large", large), ("small", small)])
    assert found.agreement == pytest.approx(18 / 20) and found.worst == "small" and found.worst_agreement == 0.5


def test_probe_pictures_are_the_same_everywhere_and_differ_from_each_other():
    first, again = probes((32, 48)), probes((32, 48))
    assert all((a[1] == b[1]).all() for a, b in zip(first, again, strict=True))
    assert len({image.tobytes() for _, image in first}) == 4
    assert all(image.std() > 20 for _, image in first)
