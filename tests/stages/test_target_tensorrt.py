"""TensorRT on a target: the plan is built, looked into, timed and fetched there, and never opened here."""

import json
import shutil

import pytest

from pipeline.artifact import Artifact
from pipeline.errors import BadData, Missing, Refused
from pipeline.targets import Asked, Target
from stages import elsewhere, link, sidecar
from stages.engines import TABLE
from stages.measure.predict import open_session
from stages.optimize import Optimize
from stages.validate import Validate
from tests.stages import device_double, small_line
from tests.stages.loopback import SSHD, Server

pytest.importorskip("tensorrt_rtx_bindings", reason="the double of TensorRT is made from tensorrt-rtx-cu13-bindings")


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    return device_double.line(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    return device_double.python(tmp_path_factory.mktemp("device"))


def directly(target):
    """Instead of ssh's arguments: the same process, here."""
    return [target.python, "-u", "-c", link.BOOT]


def device(folder, python):
    target = Target(host="far", user="u", workdir=str(folder / "work"), python=python)
    return Asked(name="jetson", target=target, facts=elsewhere.facts_of("jetson", target))


@pytest.fixture
def here(tmp_path, python, monkeypatch):
    """A target without ssh."""
    monkeypatch.setattr(link, "argv", directly)
    return device(tmp_path, python)


def optimize(there, timing=None, **settings):
    engine = {"kind": "tensorrt"} | settings
    fields = {"kind": "optimize", "onnx": "onnx", "engine": engine, "target": "jetson", "timing": timing and timing.name}
    return Optimize.model_validate(fields).at(there)


def built(folder, onnx, there, timing=None, **settings):
    job = small_line.Job(folder)
    job.target = there
    inputs = {"onnx": onnx} | ({"timing": timing} if timing else {})
    made = optimize(there, timing, **settings).run(inputs, job)
    return Artifact("engine", "Engine", "id-engine", job.out, json.loads(json.dumps(made.facts)), {}), job


def test_what_the_target_is_belongs_to_the_key_in_the_words_of_this_machine(here, monkeypatch):
    found = optimize(here).environment()
    assert found == {"runtime": f"tensorrt {device_double.VERSION}", "gpu": "GPU A", "capability": "8.7", "driver": "12.6"}
    monkeypatch.setattr(elsewhere.machine, "facts", lambda: here.facts)
    monkeypatch.setattr(elsewhere.machine, "version", elsewhere.versions(here.facts))
    assert Optimize.model_validate({"kind": "optimize", "onnx": "onnx", "engine": {"kind": "tensorrt"}}).environment() == found


@pytest.mark.skipif(SSHD is None, reason="sshd is not installed (apt-get install openssh-server)")
def test_a_plan_is_built_timed_and_fetched_over_ssh_and_never_opened_here(line, python, tmp_path):
    dataset, student, onnx = line
    server = Server(tmp_path)
    try:
        target = server.target(python=python)
        there = Asked(name="jetson", target=target, facts=elsewhere.facts_of("jetson", target))
        engine, job = built(tmp_path / "engine", onnx, there, batch=[1, 1, 2])
        assert sorted(file.name for file in engine.folder.iterdir()) == [
            "engine.json",
            "engine.layers.json",
            "engine.plan",
            "engine.timing",
        ]
        settings = {"reference": "student", "candidates": ["engine"], "latency_of": ["engine"], "latency": {"runs": 4, "warmup_ms": 0}}
        stage = Validate.model_validate({"kind": "validate", "data": "data", "target": "jetson", "pictures": 0} | settings).at(there)
        inputs = {"data": dataset, "reference": student, "candidates": [engine], "latency_of": [engine]}
        measured = small_line.made(stage, "measured", inputs, tmp_path, target=there).json("measurement.json")["models"]["engine"]
    finally:
        server.kill()
    ran = {"runtime": f"tensorrt {device_double.VERSION}", "provider": "GPU A", "precision": "f32", "threads": None}
    ran |= {"memory": "cuda-python", "place": "target jetson"}
    assert engine.facts["ran"] == measured["ran"] == ran and engine.facts["probe"]["agreement"] == measured["agreement"] == 1.0
    assert len(measured["latency"]["samples_engine_ms"]) == 4 and measured["latency"]["on_gpu"]
    assert f"tensorrt {device_double.VERSION} on GPU A of target jetson, f32" in job.said[0]
    with pytest.raises(Refused, match="never opened here"):
        open_session(engine)
    made = sidecar.read(engine.folder)
    assert made.device.model_dump(exclude_none=True) == {"gpu": "GPU A", "capability": "8.7", "driver": "12.6"}
    assert made.needs.model_dump() == {"runtime": "same", "capability": "same", "instructions": []} and made.target == "jetson"


def test_facts_tell_of_the_build_as_they_do_here(line, here, tmp_path):
    engine, _ = built(tmp_path / "engine", line[2], here, batch=[1, 1, 2], optimization_level=1)
    facts = engine.facts
    assert facts["built"]["runtime"] == facts["ran"]["runtime"] and facts["built"]["gpu"] == "GPU A (8.7)"
    row = TABLE.row("tensorrt").model_validate(facts["engine"])
    assert facts["built"]["options"] == {
        name: value for name, value in row.model_dump(mode="json").items() if name not in ("kind", "threads", "memory", "argmax")
    }
    assert facts["network"]["precision"] == "f32" and facts["network"]["types"]["CONVOLUTION"]["FLOAT"] > 3
    assert facts["skipped_tactics"] == 0 and facts["warnings"] == [] and facts["opened"] is True
    layers = engine.json("engine.layers.json")
    assert len(layers["layers"]["Layers"]) == len(layers["profile"]["layers"]) > 20 and layers["profile"]["ms"] > 0


def test_a_timing_cache_goes_there_and_comes_back_with_what_was_measured(line, here, tmp_path):
    first, _ = built(tmp_path / "first", line[2], here)
    assert first.facts["built"]["timing"] == "none given; measured anew" and first.json("engine.timing")[2] == 1
    second, _ = built(tmp_path / "second", line[2], here, timing=first)
    assert second.facts["built"]["timing"] == "taken" and second.json("engine.timing")[2] == 2


def test_what_tensorrt_does_not_take_is_told_with_what_to_do(line, here, tmp_path):
    import onnx

    proto = onnx.load(line[2].file("model.onnx"))
    cast, turned = (onnx.NodeProto.FromString(node.SerializeToString()) for node in proto.graph.node[:2])
    cast.input[0], turned.input[0], cast.output[0], turned.output[0] = "turned", "image", turned.output[0], "turned"
    for node, swapped in zip(proto.graph.node, (turned, cast), strict=False):
        node.CopyFrom(swapped)
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(BadData, match=r"target jetson, asked for build: tensorrt 10.9.*; TensorRT takes uint8 only into a cast"):
        built(tmp_path / "engine", Artifact("onnx", "OnnxModel", "x", tmp_path, line[2].facts), here)


def test_a_network_of_another_precision_than_is_told_is_refused(line, here, tmp_path):
    lying = Artifact("onnx", "OnnxModel", "x", line[2].folder, line[2].facts | {"precision": "fp16"})
    with pytest.raises(BadData, match="is said to be fp16, and TensorRT reads a network that computes in f32"):
        built(tmp_path / "engine", lying, here)


def test_a_target_without_a_gpu_or_tensorrt_is_told_what_it_lacks(line, tmp_path, monkeypatch):
    monkeypatch.setattr(link, "argv", directly)
    there = device(tmp_path, shutil.which("python3"))
    if there.facts["gpus"]:
        pytest.skip("this machine has an NVIDIA GPU")
    with pytest.raises(Missing, match=r"target jetson, asked for build: .*the driver shows none on this machine"):
        built(tmp_path / "cpu", line[2], there)
    there = device(tmp_path, device_double.python(tmp_path, tensorrt=False))
    assert optimize(there).environment()["runtime"] == "missing"
    with pytest.raises(Missing, match="ModuleNotFoundError: No module named 'tensorrt'"):
        built(tmp_path / "bare", line[2], there)


@pytest.mark.parametrize(
    "bent",
    [
        {"told": {"network": {}, "timing": "", "warnings": [], "skipped_tactics": 0}},
        {"ran": {"runtime": "r", "provider": "\x1b[2J", "precision": "f32", "threads": None}},
        {"files": {"engine.layers.json.sh": {"sha256": "0" * 64, "bytes": 1}}},
    ],
    ids=range(3),
)
def test_what_a_build_tells_is_looked_at_before_it_is_kept(line, here, tmp_path, monkeypatch, bent):
    real = link.Link.ask

    def ask(self, asked, *given, **more):
        answer, data = real(self, asked, *given, **more)
        return (answer | bent, data) if asked == "build" else (answer, data)

    monkeypatch.setattr(link.Link, "ask", ask)
    with pytest.raises(Refused, match="does not speak as it should"):
        built(tmp_path / "engine", line[2], here)


def test_both_kinds_are_built_by_one_program():
    assert elsewhere.programs("tensorrt") == elsewhere.programs("tensorrt_rtx")
    assert set(elsewhere.programs("tensorrt")) == {"builder", "runtime", "planner", "layers"}
