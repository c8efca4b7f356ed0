"""TensorRT 10.x and 11.x without a GPU: the row runs against doubles that keep real bytes and compute the plan's network."""

import enum
import importlib.util
import json

import numpy as np
import pytest

from pipeline.artifact import Artifact
from pipeline.errors import BadData, Missing
from stages import machine
from stages.bundle import FILES, Bundle, builder_file
from stages.bundle_files import build_tensorrt, runtime_tensorrt
from stages.elsewhere import runner
from stages.engines import TABLE
from stages.measure.predict import open_session
from tests.stages import cuda_double, small_line
from tests.stages import nvinfer_double as double

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="tensorrt-rtx-cu13-bindings, from which the double is made, is not installed",
)
PACKAGES = ("cuda", "cuda.bindings", "cuda.bindings.runtime", "pycuda", "pycuda.autoprimaryctx")
VERSIONS = ("10.9.0.34", "11.4.0.106")
MEMORIES = ("cuda-python", "pycuda")


def row(**settings):
    return TABLE.row("tensorrt").model_validate({"kind": "tensorrt"} | settings)


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    dataset = small_line.data(folder, size=(64, 96))
    return small_line.exported(folder, dataset, small_line.checkpoint(folder, dataset), logits=True)


@pytest.fixture
def host(monkeypatch):
    """host(version, gpu, memories): from here on this machine has this TensorRT, this GPU and these packages for its memory."""

    def become(version=VERSIONS[0], gpu="GPU A", memories=MEMORIES, most=1 << 30):
        become.memory = cuda_double.Memory()
        become.trt = double.module(importlib.import_module("tensorrt_rtx_bindings"), version, gpu, become.memory)
        rtx = importlib.import_module("tensorrt_rtx_bindings")
        runtime_tensorrt.LOGGERS[become.trt] = runtime_tensorrt.logger(rtx)  # the real builder inside keeps its first one
        modules = {"tensorrt": become.trt} | dict.fromkeys(PACKAGES)
        modules |= cuda_double.cuda_python(become.memory, most) if "cuda-python" in memories else {}
        become.hosts = modules["cuda.bindings.runtime"] and modules["cuda.bindings.runtime"].hosts
        modules |= cuda_double.pycuda(become.memory) if "pycuda" in memories else {}
        for name, module in modules.items():
            monkeypatch.setitem(__import__("sys").modules, name, module)
        monkeypatch.setattr(machine, "gpus", lambda: [{"name": gpu, "capability": "8.9", "memory_gb": 24.0}])
        return become

    return become


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 96, 3), dtype=np.uint8)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("memory", MEMORIES)
def test_images_go_to_the_device_and_class_maps_come_back_for_every_batch(onnx, tmp_path, host, version, memory):
    here = host(version, memories=(memory,))
    facts = json.loads(json.dumps(row(batch=[1, 2, 3]).build(onnx, tmp_path)))
    session, expected = row().open(tmp_path, facts), open_session(onnx)
    assert session.ran == facts["ran"] and facts["opened"]
    assert session.ran == {"runtime": f"tensorrt {version}", "provider": "GPU A", "precision": "f32", "threads": None, "memory": memory}
    for count in (3, 1, 2, 1):
        images = pictures(count, seed=count)
        found = session(images)
        assert found.dtype == np.uint8 and (found == expected(images)).all()
    mine, other = pictures(2, seed=5), pictures(2, seed=6)
    run, first = session.bind(mine), session(mine)
    kept = session(other)
    assert (first == expected(mine)).all(), "an answer is the caller's own, not the next answer's buffer"
    run()
    assert (session.runner.memory.name, len(here.memory.streams)) == (
        memory,
        2,
    )  # one stream for the look at build time, one for this session
    assert (session(other) == kept).all() and (kept == expected(other)).all()


@pytest.mark.parametrize("version", VERSIONS)
def test_the_network_is_strongly_typed_and_gives_the_class_map_alone(onnx, tmp_path, host, version):
    """That no flag of weak typing is touched, and none that 11.x dropped, the double itself watches over."""
    here = host(version)
    row().build(onnx, tmp_path)
    assert [here.trt.networks[0].get_output(i).name for i in range(here.trt.networks[0].num_outputs)] == ["classmap"]
    with pytest.raises(AssertionError, match="FP16 was touched"):
        double.flags(here.trt.BuilderFlag, {"FP16": 0}).FP16  # noqa: B018
    if version.startswith("11"):
        with pytest.raises(AssertionError, match="STRONGLY_TYPED was touched"):
            here.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED  # noqa: B018


def test_settings_reach_the_builder(onnx, tmp_path, host):
    here = host()
    settings = {
        "batch": [1, 3, 4],
        "workspace_mb": 64,
        "optimization_level": 5,
        "hardware_compatible": "ampere_plus",
        "version_compatible": True,
    }
    facts = row(**settings).build(onnx, tmp_path)
    config, trt = here.trt.configs[0], here.trt
    assert [shape[0] for shape in config.batch] == [1, 3, 4] and config.said["builder_optimization_level"] == 5
    assert config.real.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 64 << 20
    assert config.said["hardware_compatibility_level"] == trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert config.real.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE) and not config.real.get_flag(trt.BuilderFlag.TF32)
    assert facts["built"]["options"] == {**settings, "batch": (1, 3, 4), "tf32": False}
    with pytest.raises(BadData, match=r"does not take images of shape .5, 64, 96, 3.: it was built for 1 to 4 images of .64, 96."):
        row(**settings).open(tmp_path, facts)(pictures(5))


@pytest.mark.parametrize("batch", [[2, 4, 8], [4, 4, 4], [1, 8, 4], [8, 1, 1]], ids=str)
def test_an_engine_that_does_not_take_one_image_is_refused_before_it_is_built(batch):
    with pytest.raises(ValueError, match=r"are no batches \[fewest, best, most\]: begin with 1"):
        row(batch=batch)


def test_a_level_the_version_lacks_is_told_with_the_version(onnx, tmp_path, host):
    here = host()
    here.trt.HardwareCompatibilityLevel = enum.IntEnum("HardwareCompatibilityLevel", {"NONE": 0, "AMPERE_PLUS": 1})
    with pytest.raises(BadData, match=r"same_compute_capability is not known to tensorrt 10\.9\.0\.34, which has none, ampere_plus"):
        row(hardware_compatible="same_compute_capability").build(onnx, tmp_path)


def test_a_network_of_a_fixed_batch_is_built_for_that_batch_and_no_other(onnx, tmp_path, host):
    import onnx as onnx_package

    proto = onnx_package.load(onnx.file("model.onnx"))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx_package.save(proto, tmp_path / "model.onnx")
    fixed = Artifact("fixed", "OnnxModel", "x", tmp_path, onnx.facts)
    host()
    with pytest.raises(BadData, match="asks for other batches than the network's fixed 1"):
        row().build(fixed, tmp_path)
    session = row(batch=[1, 1, 1]).open(tmp_path, row(batch=[1, 1, 1]).build(fixed, tmp_path))
    assert (session(pictures(1)) == open_session(onnx)(pictures(1))).all()
    with pytest.raises(BadData, match="it was built for 1 to 1 images"):
        session(pictures(2))


def built(folder, onnx, timing=None, **settings):
    from stages.optimize import Optimize

    stage = Optimize.model_validate(
        {"kind": "optimize", "onnx": "onnx", "engine": {"kind": "tensorrt"} | settings, "timing": timing and "earlier"}
    )
    folder.mkdir()
    return small_line.made(stage, "engine", {"onnx": onnx} | ({"timing": timing} if timing else {}), folder)


def test_a_timing_cache_is_handed_to_the_next_build_and_never_to_another_version_or_device(onnx, tmp_path, host):
    host()
    first = built(tmp_path / "first", onnx)
    assert first.facts["built"]["timing"] == "none given; measured anew" and first.facts["probe"]["agreement"] == 1.0
    assert sorted(file.name for file in first.folder.iterdir()) == ["engine.json", "engine.layers.json", "engine.plan", "engine.timing"]
    second = built(tmp_path / "second", onnx, first)
    assert second.facts["built"]["timing"] == "taken" and second.json("engine.timing")[2] == 2
    for name, other in {"version": {"version": "10.13.0.35"}, "device": {"gpu": "GPU B"}}.items():
        host(**other)
        elsewhere = built(tmp_path / name, onnx, first)
        assert elsewhere.facts["built"]["timing"] == "refused: of another version or device; measured anew"
        assert elsewhere.json("engine.timing")[2] == 1


def test_a_timing_cache_is_asked_only_of_engines_that_keep_one():
    from stages.optimize import Optimize

    with pytest.raises(ValueError, match="timing: engines of kind tensorrt_rtx measure nothing"):
        Optimize.model_validate({"kind": "optimize", "onnx": "onnx", "engine": {"kind": "tensorrt_rtx"}, "timing": "first"})
    stage = Optimize.model_validate({"kind": "optimize", "onnx": "onnx", "engine": {"kind": "tensorrt"}, "timing": "first"})
    plain = Optimize.model_validate({"kind": "optimize", "onnx": "onnx", "engine": {"kind": "onnxruntime"}})
    assert stage.problems({"first": plain})[0][1].startswith("first keeps no timing cache") and stage.problems({"first": stage}) == []


def test_an_engine_of_another_version_or_device_is_told_with_what_to_do(onnx, tmp_path, host):
    host()
    facts = row().build(onnx, tmp_path)
    for other, said in (
        ({"version": "10.13.0.35"}, "here is tensorrt 10.13.0.35 on GPU A"),
        ({"gpu": "GPU B"}, "here is tensorrt 10.9.0.34 on GPU B"),
    ):
        host(**other)
        with pytest.raises(BadData, match=r"does not match.* It was built by tensorrt 10.9.0.34 on GPU A .8.9.; ") as caught:
            row().open(tmp_path, facts)
        assert said in str(caught.value) and "build it again here from its ONNX file" in str(caught.value)


def test_a_version_compatible_plan_is_opened_by_a_newer_version_and_only_then_may_bring_code(onnx, tmp_path, host):
    host()
    facts = row(version_compatible=True).build(onnx, tmp_path)
    host(version="10.13.0.35")
    assert (row(version_compatible=True).open(tmp_path, facts)(pictures(1)) == open_session(onnx)(pictures(1))).all()
    with pytest.raises(BadData, match="host code is not allowed"):
        row().open(tmp_path, facts)


def test_what_was_not_tried_for_lack_of_memory_is_a_warning_about_quality(onnx, tmp_path, host, caplog):
    here = host()
    severity = here.trt.ILogger.Severity
    here.trt.messages += [(severity.WARNING, double.MESSAGE)] * 2 + [(severity.VERBOSE, "endless"), (severity.INFO, "layers fused")]
    facts = row().build(onnx, tmp_path)
    assert facts["skipped_tactics"] == 1 and facts["warnings"] == [double.MESSAGE]
    assert "1 times a way of computing was left out for lack of memory" in caplog.text and "endless" not in caplog.text


def test_layers_and_their_times_lie_beside_the_plan(onnx, tmp_path, host):
    host()
    row(batch=[1, 1, 2]).build(onnx, tmp_path)
    found = json.loads((tmp_path / "engine.layers.json").read_text())
    names = [entry["name"] for entry in found["profile"]["layers"]]
    assert found["layers"] == {"Layers": names} and len(names) > 40
    assert {entry["ms"] for entry in found["profile"]["layers"]} == {0.5} and found["profile"][
        "ms"
    ] == 1.0  # the doubles' clock ticks per event


def test_memory_is_what_was_named_and_auto_says_what_it_took(onnx, tmp_path, host):
    host(memories=("pycuda",))
    facts = row().build(onnx, tmp_path)
    assert facts["ran"]["memory"] == "pycuda"
    with pytest.raises(Missing, match=r"memory: cuda-python cannot be had here .* pip install cuda-python"):
        row(memory="cuda-python").open(tmp_path, facts)
    host(memories=())
    with pytest.raises(Missing, match=r"memory: auto cannot be had here .neither cuda-python nor pycuda"):
        row().open(tmp_path, facts)


@pytest.mark.parametrize("memory", MEMORIES)
def test_what_a_session_took_of_the_device_it_gives_back(onnx, tmp_path, host, memory):
    here = host(memories=(memory,))
    facts = row().build(onnx, tmp_path)
    assert here.memory.blocks == {}, "the look at build time left memory behind"
    session = row().open(tmp_path, facts)
    run = session.bind(pictures(1))
    assert sorted(map(len, here.memory.blocks.values())) == [6144, 18432, 49152, 147456]  # one image, and the eight of the largest batch
    del session, run
    assert here.memory.blocks == {}
    assert memory == "pycuda" or here.hosts == {}  # pycuda frees pinned memory itself


def test_a_device_without_memory_is_told_in_the_words_of_the_driver(onnx, tmp_path, host):
    host(most=1000)
    with pytest.raises(Missing, match=r"CUDA: out of memory; .* build for a smaller batch"):
        row().build(onnx, tmp_path)


@pytest.mark.skipif(machine.has_device(), reason="this machine has an NVIDIA GPU")
def test_without_a_gpu_nothing_of_tensorrt_is_touched(onnx, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(Missing, match=r"builds on the GPU that will run it.*tensorrt_rtx, which builds without one"):
        row().build(onnx, tmp_path)
    with pytest.raises(Missing, match="runs on an NVIDIA GPU"):
        row().open(tmp_path, {})
    monkeypatch.setattr(machine, "gpus", lambda: [{"name": "GPU A", "capability": "8.9"}])
    with pytest.raises(Missing, match=r"install it: pip install 'tensorrt>=10.9'"):
        row().build(onnx, tmp_path)


def test_the_double_knows_what_the_real_signatures_know(host):
    here = host()
    context = here.trt.Runtime(None)
    with pytest.raises(AttributeError, match="Runtime has no deserialize"):
        context.deserialize(b"")
    with pytest.raises(AssertionError, match="deserialize_cuda_engine"):
        context.deserialize_cuda_engine("a path")
    with pytest.raises(AssertionError, match="no property nothing"):
        context.nothing = 1
    assert build_tensorrt.strongly_typed(here.trt) == 2 and build_tensorrt.strongly_typed(host(VERSIONS[1]).trt) == 0


@pytest.fixture
def bundle(onnx, tmp_path, host, monkeypatch):
    """A folder with what a bundle holds of an engine that was built here, and a driver that answers."""
    import ctypes
    import hashlib
    import shutil

    host()
    folder, real = tmp_path / "bundle", ctypes.CDLL
    folder.mkdir()
    row(batch=[1, 1, 2]).build(onnx, folder)
    shutil.copyfile(onnx.file("model.onnx"), folder / "model.onnx")
    shutil.copyfile(FILES / "build_tensorrt.py", folder / "build_tensorrt.py")
    shutil.copyfile(FILES / "runtime_tensorrt.py", folder / "runtime.py")
    settings = row(batch=[1, 1, 2]).model_dump(mode="json")
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    (folder / "bundle.json").write_text(json.dumps({"engine": settings, "files": files}))
    monkeypatch.setattr(ctypes, "CDLL", lambda name, *given: cuda_double.Driver() if name == "libcuda.so.1" else real(name, *given))
    return folder


def opened(folder):
    """As run.py opens it."""
    import types

    runtime = types.ModuleType("runtime")
    exec((folder / "runtime.py").read_text(), runtime.__dict__)
    return runtime, lambda: runtime.load(folder, json.loads((folder / "bundle.json").read_text())["engine"])


def rebuilt(folder):
    import types

    builder = types.ModuleType("builder")
    builder.__file__ = str(folder / "build_tensorrt.py")
    exec((folder / "build_tensorrt.py").read_text(), builder.__dict__)
    return builder.main()


def test_a_bundles_runner_gives_the_class_maps_with_its_own_file_alone(bundle, onnx):
    _, load = opened(bundle)
    images = pictures(1, seed=9)
    assert (load()(images) == open_session(onnx)(images)).all()


def test_on_another_machine_a_bundle_says_how_to_build_its_engine_and_runs_what_was_built(bundle, onnx, host, capsys):
    host(gpu="GPU B")
    runtime, load = opened(bundle)
    with pytest.raises(runtime.Unfit, match=r"device does not match. For this machine: python build_tensorrt.py"):
        load()
    assert rebuilt(bundle) == 0
    assert "timing cache: refused: of another version or device; measured anew. Now: python run.py --check" in capsys.readouterr().out
    assert (load()(pictures(1)) == open_session(onnx)(pictures(1))).all()
    assert json.loads((bundle / "rebuilt.plan").read_bytes().partition(b"\n")[0])["device"] == "GPU B"
    (bundle / "rebuilt.plan").write_bytes((bundle / "engine.plan").read_bytes())
    with pytest.raises(runtime.Unfit, match=r"rebuilt.plan is not what build_tensorrt.py wrote"):
        load()


def test_on_the_machine_it_was_built_on_a_bundle_builds_from_its_timing_cache(bundle, capsys):
    assert rebuilt(bundle) == 0 and "timing cache: taken." in capsys.readouterr().out


@pytest.mark.parametrize("victim", ["model.onnx", "runtime.py", "engine.timing"])
def test_a_bundle_builds_from_nothing_but_what_was_bundled(bundle, capsys, victim):
    (bundle / victim).write_bytes((bundle / victim).read_bytes() + b"\n")
    assert rebuilt(bundle) == 7 and f"{victim} is not the file that was bundled" in capsys.readouterr().err


def test_a_bundle_without_a_driver_touches_nothing_of_tensorrt(bundle, capsys, monkeypatch):
    monkeypatch.setattr(cuda_double.Driver, "cuInit", lambda self, flags: 100)
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    runtime, load = opened(bundle)
    with pytest.raises(runtime.Unfit, match="the driver shows none on this machine"):
        load()
    assert rebuilt(bundle) == 2 and "the driver shows none" in capsys.readouterr().err


ELSEWHERE = f"""
import ctypes, sys
sys.path.insert(0, {str(FILES.parent.parent)!r})
import tensorrt_rtx_bindings
from tests.stages import cuda_double
from tests.stages import nvinfer_double as double
real, memory = ctypes.CDLL, cuda_double.Memory()
ctypes.CDLL = lambda name, *given: cuda_double.Driver() if name == "libcuda.so.1" else real(name, *given)
sys.modules |= cuda_double.cuda_python(memory)
sys.modules["tensorrt"] = double.module(tensorrt_rtx_bindings, "{VERSIONS[0]}", "GPU A", memory)
sys.path.pop(0)
"""


def test_a_bundle_is_packed_with_all_a_device_needs_and_its_runner_was_tried(onnx, tmp_path, host, monkeypatch):
    host()
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(ELSEWHERE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    (tmp_path / "line").mkdir()
    dataset = small_line.data(tmp_path / "line", size=(64, 96))
    engine = small_line.engine(tmp_path, onnx, kind="tensorrt", batch=[1, 1, 2])
    for name, content in (
        ("verdict", {"passed": True, "rules": []}),
        ("measurement", {"models": {}, "machine": {}, "split": "val", "images": 3}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    inputs = {"data": dataset, "onnx": onnx, "engine": engine}
    inputs |= {name: Artifact(name, name.title(), "x", tmp_path, {}) for name in ("measured", "verdict")}
    stage = Bundle(kind="bundle", data="data", onnx="onnx", engine="engine", measured="measured", verdict="verdict")
    packed = small_line.made(stage, "bundle", inputs, tmp_path)
    names = {file.name for file in packed.folder.iterdir()}
    assert names >= {"engine.plan", "engine.timing", "model.onnx", "runtime.py", "build_tensorrt.py", "run.py", "expected.png"}
    assert packed.json("bundle.json")["engine"]["kind"] == "tensorrt"
    assert packed.json("engine.json")["source"]["sha256"] == packed.json("bundle.json")["files"]["model.onnx"]
    (tmp_path / "model.onnx").write_bytes(onnx.file("model.onnx").read_bytes() + b"\n")
    with pytest.raises(BadData, match="engine was not built from other"):
        small_line.made(stage, "strange", inputs | {"onnx": Artifact("other", "OnnxModel", "x", tmp_path, onnx.facts)}, tmp_path)


def test_both_kinds_of_plan_are_opened_by_one_runner():
    assert runner("tensorrt") == runner("tensorrt_rtx") and builder_file("tensorrt_rtx").name == "build_tensorrt.py"
    assert runner("openvino").name == "runtime_openvino.py" and not builder_file("openvino").is_file()
