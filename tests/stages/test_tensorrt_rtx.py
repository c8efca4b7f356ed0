"""TensorRT-RTX builds without a GPU: SegFormer-B0 in float32, fp16 and INT8, and what its parser understood is looked at before."""

import importlib.util
import json

import numpy as np
import pytest

from pipeline.artifact import Artifact
from pipeline.errors import BadData, Missing, Refused
from stages import machine
from stages.bundle_files import build_tensorrt, runtime_tensorrt
from stages.engines import TABLE, _layers
from tests.stages import small_line

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="tensorrt-rtx-cu13-bindings is not installed"
)
without_gpu = pytest.mark.skipif(machine.has_device(), reason="this machine has an NVIDIA GPU")
SIZE = (64, 128)


def row(**settings):
    return TABLE.row("tensorrt_rtx").model_validate({"kind": "tensorrt_rtx"} | settings)


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    """{precision: artifact} of one untrained SegFormer-B0."""
    folder = tmp_path_factory.mktemp("b0")
    dataset = small_line.data(folder, size=SIZE)
    student = small_line.checkpoint(folder, dataset, model={"kind": "segformer", "size": "b0"})
    plain = small_line.exported(folder, dataset, student)
    return {"f32": plain, "fp16": halved(plain, folder / "fp16"), "int8": quantised(plain, folder / "int8")}


def halved(source, folder):
    """float16 from the image to the logits, which are cast back: by hand."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    proto = onnx.load(source.file("model.onnx"))
    nodes = list(proto.graph.node)
    end = next(i for i, node in enumerate(nodes) if "logits" in node.output)
    kept = {name for node in nodes[end + 1 :] for name in node.input} | {
        n.input[2] for n in nodes if n.op_type == "Resize" and len(n.input) > 2
    }

    def narrowed(tensor):
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))

    for tensor in proto.graph.initializer:
        if tensor.name not in kept:
            narrowed(tensor)
    for node in nodes[: end + 1]:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
            if node.op_type == "Constant" and attribute.name == "value" and node.output[0] not in kept:
                narrowed(attribute.t)
    proto.graph.node[end].output[0] = "logits_half"
    proto.graph.node.insert(end + 1, helper.make_node("Cast", ["logits_half"], ["logits"], "logits_cast", to=TensorProto.FLOAT))
    del proto.graph.value_info[:]
    folder.mkdir()
    onnx.save(proto, folder / "model.onnx")
    return Artifact("fp16", "OnnxModel", "id-fp16", folder, source.facts | {"precision": "fp16"})


def quantised(source, folder, without=(), symmetric=True):
    """INT8 as TensorRT takes it (symmetric, biases left alone), or otherwise."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Noise(CalibrationDataReader):
        def __init__(self):
            self.left = iter([{"image": np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3), dtype=np.uint8)}])

        def get_next(self):
            return next(self.left, None)

    folder.mkdir()
    quantize_static(
        source.file("model.onnx"),
        folder / "model.onnx",
        Noise(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        nodes_to_exclude=list(without),
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        extra_options={"QuantizeBias": False, "ActivationSymmetric": symmetric, "WeightSymmetric": True},
    )
    return Artifact("int8", "OnnxModel", "id-int8", folder, source.facts | {"precision": "int8"})


@pytest.mark.parametrize("precision, kind", [("f32", "FLOAT"), ("fp16", "HALF"), ("int8", "FLOAT")])
def test_b0_is_built_in_every_precision_and_its_layers_types_and_quantised_inputs_are_those_of_the_onnx_file(
    onnx, tmp_path, precision, kind
):
    source = onnx[precision]
    batch = [1, 1, 8] if precision == "f32" else [1, 1, 1]  # one batch is built in two thirds of the time
    network = row(batch=batch).build(source, tmp_path)["network"]
    assert (tmp_path / "engine.plan").stat().st_size > 3_000_000
    operators = counted(source)
    assert network["types"]["CONVOLUTION"] == {kind: operators["Conv"]} and operators["Conv"] == 23
    assert network["types"]["MATRIX_MULTIPLY"] == {kind: operators["MatMul"]} and operators["MatMul"] == 64
    assert network["types"]["NORMALIZATION"] == {kind: 30} and network["types"]["SOFTMAX"] == {kind: 8}
    assert network["types"]["RESIZE"]["FLOAT"] == (1 if precision == "fp16" else 4), "the logits are enlarged in float32"
    assert network["types"]["CAST"]["UINT8"] == 1 and network["precision"] == precision
    if precision == "int8":
        assert network["quantised"] == {"CONVOLUTION": 23, "MATRIX_MULTIPLY": 64} and network["plain"] == []
        assert network["types"]["QUANTIZE"] == {"INT8": operators["QuantizeLinear"]}
        assert network["types"]["DEQUANTIZE"] == {"FLOAT": operators["DequantizeLinear"]}
    else:
        assert network["quantised"] == {} and "QUANTIZE" not in network["types"]


def counted(source):
    import onnx

    operators = [node.op_type for node in onnx.load(source.file("model.onnx")).graph.node]
    return {name: operators.count(name) for name in set(operators)}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    dataset = small_line.data(folder, size=SIZE)
    return small_line.exported(folder, dataset, small_line.checkpoint(folder, dataset))


def test_a_layer_left_out_of_quantisation_is_named(tiny, tmp_path):
    import onnx

    left_out = [node.name for node in onnx.load(tiny.file("model.onnx")).graph.node if node.op_type == "Conv"][3]
    network = row().build(quantised(tiny, tmp_path / "int8", [left_out]), tmp_path)["network"]
    assert network["plain"] == [left_out]
    assert network["quantised"]["CONVOLUTION"] == network["types"]["CONVOLUTION"]["FLOAT"] - 1


def test_what_tensorrt_does_not_take_is_told_with_what_to_do(tiny, tmp_path):
    import onnx

    with pytest.raises(BadData, match=r"\(QuantizeLinear\): .* zero point is not supported.*; TensorRT takes int8 with zero points of 0"):
        row().build(quantised(tiny, tmp_path / "int8", symmetric=False), tmp_path)
    proto = onnx.load(tiny.file("model.onnx"))
    cast, turned = proto.graph.node[:2]
    assert (cast.op_type, turned.op_type) == ("Cast", "Transpose")  # the other way round it was exported once
    cast.input[0], turned.input[0], cast.output[0], turned.output[0] = "turned", "image", turned.output[0], "turned"
    swapped = [turned, cast, *proto.graph.node[2:]]
    swapped = [onnx.NodeProto.FromString(node.SerializeToString()) for node in swapped]
    del proto.graph.node[:]
    proto.graph.node.extend(swapped)
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(BadData, match=r"node .* \(Transpose\): invalid_node, .*; TensorRT takes uint8 only into a cast"):
        row().build(Artifact("old", "OnnxModel", "x", tmp_path, tiny.facts), tmp_path)


def test_a_file_that_computes_in_something_else_than_it_says_is_not_built(tiny, tmp_path):
    for told, real in (("f32", "int8"), ("fp16", "f32")):
        source = quantised(tiny, tmp_path / told) if real == "int8" else tiny
        lying = Artifact("liar", "OnnxModel", "x", source.folder, source.facts | {"precision": told})
        with pytest.raises(BadData, match=f"liar is said to be {told}, and TensorRT reads a network that computes in {real} \\(15 conv"):
            row().build(lying, tmp_path)
        assert not (tmp_path / "engine.plan").exists()


def test_settings_reach_the_builder(tiny, tmp_path, monkeypatch):
    trt, configs, profiles = runtime_tensorrt.imported("tensorrt_rtx"), [], []
    real = build_tensorrt.configured
    monkeypatch.setattr(build_tensorrt, "configured", lambda *given: configs.append(real(*given)) or configs[-1])
    real_profile = build_tensorrt.profile
    monkeypatch.setattr(build_tensorrt, "profile", lambda *given: (profiles.append(given[3]), real_profile(*given)))
    settings = {"tf32": True, "workspace_mb": 64, "optimization_level": 1, "targets": ["sm75", "sm89"], "batch": [1, 2, 4]}
    facts = row(**settings).build(tiny, tmp_path)
    config = configs[0]
    assert config.get_flag(trt.BuilderFlag.TF32) and config.builder_optimization_level == 1 and profiles == [(1, 2, 4)]
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 64 << 20
    assert [config.get_compute_capability(i).name for i in range(config.num_compute_capabilities)] == ["SM75", "SM89"]
    assert facts["built"]["options"] == json.loads(json.dumps(settings)) | {"targets": ("sm75", "sm89"), "batch": (1, 2, 4)}
    assert facts["ran"]["precision"] == "f32 with tf32" and facts["built"]["runtime"] == f"tensorrt_rtx {trt.__version__}"
    row().build(tiny, tmp_path)
    assert not configs[1].get_flag(trt.BuilderFlag.TF32) and configs[1].num_compute_capabilities == 0


def test_every_node_the_parser_does_not_know_is_told_by_name(tiny, tmp_path):
    import onnx
    from onnx import helper

    proto = onnx.load(tiny.file("model.onnx"))
    first = proto.graph.node[0].output[0]
    proto.graph.node.extend(helper.make_node(kind, [first], [f"{kind}_out"], f"my_{kind}") for kind in ("Det", "Bernoulli"))
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(BadData, match=r"my_Det \(Det\): unsupported_node; node my_Bernoulli \(Bernoulli\)") as caught:
        row().build(Artifact("odd", "OnnxModel", "x", tmp_path, tiny.facts), tmp_path)
    assert "\n" not in str(caught.value) and "tensorrt_rtx 1." in str(caught.value)


def test_a_hostile_file_is_refused_before_the_parser_sees_it(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"xx")
    with pytest.raises(Refused, match="not an ONNX model"):
        row().build(Artifact("bad", "OnnxModel", "x", tmp_path, {}), tmp_path)
    trt = runtime_tensorrt.imported("tensorrt_rtx")
    with pytest.raises(build_tensorrt.Failed, match="no network with the input image"):
        build_tensorrt.parsed(trt, b"xx", runtime_tensorrt.logger(trt))


@without_gpu
def test_without_a_gpu_a_plan_is_built_and_nothing_pretends_to_open_it(tiny, tmp_path):
    artifact = small_line.engine(tmp_path, tiny, kind="tensorrt_rtx")
    assert artifact.facts["probe"] is None and artifact.facts["ran"]["provider"] == "no GPU here"
    assert {file.name for file in artifact.folder.iterdir()} == {"engine.json", "engine.plan"}
    with pytest.raises(Missing, match="runs on an NVIDIA GPU"):
        row().open(artifact.folder, artifact.facts)


def test_values_that_were_only_moved_count_as_what_computed_them():
    class Kind:
        def __init__(self, name):
            self.name = name

    class Tensor:
        def __init__(self, name):
            self.name, self.dtype = name, Kind("FLOAT")

    class Layer:
        num_outputs = 1

        def __init__(self, kind, name, *inputs):
            self.type, self.name, self.inputs, self.num_inputs = Kind(kind), name, inputs, len(inputs)

        def get_input(self, i):
            return Tensor(self.inputs[i]) if i < len(self.inputs) else None

        def get_output(self, i):
            return Tensor(self.name)

    class Network:
        layers = [
            Layer("DEQUANTIZE", "a", "x"),
            Layer("DEQUANTIZE", "w", "y"),
            Layer("SHUFFLE", "turned", "w"),
            Layer("MATRIX_MULTIPLY", "full", "a", "turned"),
            Layer("MATRIX_MULTIPLY", "half", "a", "image"),
        ]
        num_layers = len(layers)

        def get_layer(self, i):
            return self.layers[i]

    found = _layers.described(Network())
    assert found["quantised"] == {"MATRIX_MULTIPLY": 1} and found["plain"] == ["half"]
