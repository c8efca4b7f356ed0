"""Float16 and int8 in the ONNX file: what is rounded, what is left alone and why, and that it costs what it says."""

import json
import logging
import sys
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from pipeline.artifact import Artifact
from pipeline.errors import BadData, BadRecipe, Missing, Stillhouse
from pipeline.recipe import read
from stages import KINDS, fp16, int8, qdq, sensitivity
from stages.answers import answers, sqnr
from stages.quantize import Calibration, Quantize, divided
from stages.samples import open_samples
from tests.stages import small_line

RUNTIMES = ("onnxruntime", "tensorrt", "openvino")
RECIPE = """
name: small
stages:
  data: {kind: data, source: {kind: streets, seed: 5, train: 24, val: 4, test: 0}, size: [64, 128]}
  student: {kind: train, data: data, model: {kind: tiny}, fit: {steps: 2, batch: 2}}
  onnx: {kind: export, data: data, checkpoint: student}
  small: {QUANTIZE, onnx: onnx, SETTINGS}
"""
QUANTIZE = "kind: quantize, data: data"
RECIPE = RECIPE.replace("QUANTIZE", QUANTIZE)
TWICE = f"twice: {{{QUANTIZE}, onnx: small, to: fp16, runtime: tensorrt"
OLD = "old: {kind: export, data: data, checkpoint: student, opset: 18}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("quantize")


@pytest.fixture(scope="module")
def data(folder):
    from stages.data import Data

    source = {"kind": "streets", "seed": 5, "train": 24, "val": 4, "test": 0}
    return small_line.made(Data.model_validate({"kind": "data", "source": source, "size": [64, 128]}), "data", {}, folder)


@pytest.fixture(scope="module")
def exported(folder, data):
    """A network that has learned a little: roads, houses and the sky."""
    from stages.train import Train

    fit = {"steps": 120, "batch": 8, "lr": 1.2e-2, "warmup": 10, "seed": 1}
    stage = Train.model_validate({"kind": "train", "data": "data", "model": {"kind": "tiny"}, "fit": fit})
    student = small_line.made(stage, "student", {"data": data}, folder)
    return small_line.exported(folder, data, student)


@pytest.fixture(scope="module")
def attention(folder, data):
    """A SegFormer of four blocks with random weights, as a graph and its images."""
    from stages.models.segformer import net

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(net.DEPTHS, "b0", (1, 1, 1, 1))
        random = small_line.checkpoint(folder, data, "random", model={"kind": "segformer", "size": "b0"})
        return small_line.exported(folder, data, random, "attention")


def quantised(folder, data, source, name, **settings):
    settings = {"calibration": {"images": 8, "held_out": 8}} | settings
    stage = Quantize.model_validate({"kind": "quantize", "data": "data", "onnx": source.name, **settings})
    return small_line.made(stage, name, {"data": data, "onnx": source}, folder)


@pytest.fixture(scope="module")
def rounded(folder, data, exported):
    """The int8 artifact of each runtime, made once."""
    kept = {}

    def of(runtime):
        if runtime == "openvino":
            pytest.importorskip("nncf")
        if runtime not in kept:
            kept[runtime] = quantised(folder, data, exported, f"int8_{runtime}", to="int8", runtime=runtime)
        return kept[runtime]

    return of


def graph_of(artifact):
    return onnx.load(artifact.file("model.onnx"))


def pictures(data, count=4, split="val"):
    samples = open_samples(data, split)
    return [samples[i][0] for i in range(count)]


def zero_points(proto):
    """Types of the zeros of activations."""
    held = {tensor.name: tensor for tensor in proto.graph.initializer}
    return Counter(held[node.input[2]].data_type for node in proto.graph.node if node.op_type == "QuantizeLinear")


def weights_behind(proto):
    """(layer, stored weights, its DQ) of every layer with weights of its own."""
    held, graph = {tensor.name: tensor for tensor in proto.graph.initializer}, qdq.Graph(proto)
    for node in proto.graph.node:
        maker = graph.maker.get(node.input[1]) if graph.is_layer(node) else None
        if maker is not None and maker.op_type == "DequantizeLinear" and maker.input[0] in held:
            yield node, held[maker.input[0]], maker


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_int8_is_really_int8_and_costs_little(runtime, rounded, exported, data):
    found, proto = rounded(runtime), graph_of(rounded(runtime))
    told = found.facts["quantized"]
    assert found.facts["precision"] == "int8" and (told["to"], told["runtime"], told["how"]) == ("int8", runtime, "post-training")
    assert told["images"] == 8 and told["layers"] == len(qdq.layers(proto)) == 15 and told["excluded"] == []
    assert [tensor.data_type for _, tensor, _ in weights_behind(proto)] == [TensorProto.INT8] * 15
    assert found.file("model.onnx").stat().st_size < 0.5 * exported.file("model.onnx").stat().st_size
    assert told["loss"] <= 1.0 and told["agreement"] > 0.98 and told["sqnr_db"] > 25
    assert found.facts["align_corners"] is False and found.facts["parameters"] == exported.facts["parameters"]
    assert found.json("preprocessing.json") == exported.json("preprocessing.json")
    (before, _), (after, logits) = (answers(graph_of(a), pictures(data)) for a in (exported, found))
    assert (before == after).mean() > 0.98 and logits.dtype == np.float32


@pytest.mark.parametrize(("runtime", "kind"), [("onnxruntime", "onnxruntime"), ("tensorrt", "onnxruntime"), ("openvino", "openvino")])
def test_an_engine_is_built_from_it_and_answers_as_the_float_file_does(runtime, kind, rounded, exported, data, folder):
    engine = small_line.engine(folder, rounded(runtime), f"engine_{runtime}", kind=kind)
    assert engine.facts["probe"]["agreement"] > 0.98
    from stages.measure.predict import open_session

    images = np.stack(pictures(data))
    assert (open_session(engine)(images) == open_session(exported)(images)).mean() > 0.98


def test_tensorrt_gets_symmetric_integers_before_layers_only_and_no_rounded_bias(rounded, attention, data, tmp_path):
    for proto in (graph_of(rounded("tensorrt")), int8.quantised(graph_of(attention), iter(pictures(data)), "tensorrt", tmp_path)):
        held = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
        pairs = [node for node in proto.graph.node if node.op_type in qdq.PAIR]
        assert all(held[node.input[2]].dtype == np.int8 and not held[node.input[2]].any() for node in pairs)
        readers = {name: node for node in proto.graph.node for name in node.input}
        assert all(readers[n.output[0]].op_type in qdq.LAYERS for n in pairs if n.op_type == "DequantizeLinear")
        for node, tensor, pair in weights_behind(proto):
            axis = {"Conv": 0, "MatMul": 1}[node.op_type]
            assert [a.i for a in pair.attribute if a.name == "axis"] == [axis]
            assert len(held[pair.input[1]]) == tensor.dims[axis]
            assert len(node.input) < 3 or held[node.input[2]].dtype in (np.float16, np.float32)


def test_between_its_integers_tensorrt_computes_in_float16(rounded):
    found, proto = rounded("tensorrt"), graph_of(rounded("tensorrt"))
    held = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    assert {held[node.input[1]] for node in proto.graph.node if node.op_type in qdq.PAIR} == {TensorProto.FLOAT16}
    assert found.facts["quantized"]["rest"] == "fp16" and found.facts["quantized"]["kept_in_f32"] == []
    assert rounded("onnxruntime").facts["quantized"]["rest"] == "f32"


def test_onnxruntime_and_openvino_get_unsigned_activations(rounded):
    assert set(zero_points(graph_of(rounded("onnxruntime")))) == {TensorProto.UINT8}
    assert set(zero_points(graph_of(rounded("openvino")))) == {TensorProto.UINT8}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_layers_of_attention_are_quantised_too_and_each_can_go_back_to_float(runtime, attention, data, tmp_path):
    if runtime == "openvino":
        pytest.importorskip("nncf")
    proto, images, rounding = graph_of(attention), pictures(data), int8.ROUNDING[runtime]
    found = int8.quantised(proto, iter(images), runtime, tmp_path)
    names = qdq.layers(found)
    kinds = Counter(node.op_type for node in proto.graph.node if node.name in names)
    assert kinds["Conv"] == 16 and kinds["MatMul"] >= (28 if runtime == "openvino" else 32)
    held = {tensor.name: tensor for tensor in found.graph.initializer}
    scales = [held[node.input[1]] for node in found.graph.node if node.op_type == "QuantizeLinear"]
    assert all(np.prod(scale.dims) == 1 for scale in scales)  # before depthwise convolutions too: onnxruntime knows no other
    _, signal = answers(proto, images)
    db = sqnr(signal, answers(found, images)[1])
    half = qdq.loosened(found, proto, names[::2], rounding)
    assert qdq.layers(half) == names[1::2]
    assert 25 < db < sqnr(signal, answers(half, images)[1])
    none = qdq.loosened(found, proto, names, rounding)
    assert not any(node.op_type in qdq.PAIR for node in none.graph.node)
    assert sqnr(signal, answers(none, images)[1]) > 100


def test_the_logits_are_never_rounded(rounded):
    for runtime in ("onnxruntime", "tensorrt"):
        proto = graph_of(rounded(runtime))
        readers = {node.op_type for node in proto.graph.node if "logits" in node.input}
        assert readers == {"Shape", "Resize"}


def spoilt(proto, layer, factor=1000):
    """One channel `factor` times as large as the others, made small again by the next layer: the same network, but not in few bits."""
    held = {tensor.name: tensor for tensor in proto.graph.initializer}
    convs = [node for node in proto.graph.node if node.op_type == "Conv"]
    this, after = convs[layer], convs[layer + 1]
    changes = ((this.input[1], factor, (0,)), (this.input[2], factor, (0,)), (after.input[1], 1 / factor, (slice(None), 0)))
    for name, by, channel in changes:
        values = numpy_helper.to_array(held[name]).copy()
        values[channel] *= np.float32(by)
        held[name].CopyFrom(numpy_helper.from_array(values, name))
    return this.name, after.name


def test_the_search_takes_the_layer_back_to_float_that_does_the_harm_and_no_other(exported, data, folder):
    proto = graph_of(exported)
    _, after = spoilt(proto, 6)
    bad = Artifact("bad", "OnnxModel", "id-bad", folder / "bad", exported.facts)
    bad.folder.mkdir()
    onnx.save(proto, bad.file("model.onnx"))
    bad.file("preprocessing.json").write_text(exported.file("preprocessing.json").read_text())
    found = quantised(folder, data, bad, "searched", to="int8", runtime="tensorrt", budget=0.5)
    told, tried = found.facts["quantized"], found.json("sensitivity.json")
    assert tried["order"][0]["layers"] == [after] and tried["order"][0]["alone_db"] < tried["order"][1]["alone_db"] - 10
    assert [step["excluded"] for step in tried["steps"]] == [[], [after]]
    assert tried["steps"][0]["loss"] > 0.5 >= max(tried["steps"][1]["loss"], told["loss"])
    why = f"rounded alone, it leaves the logits {tried['order'][0]['alone_db']} dB"
    assert told["excluded"] == [{"node": after, "why": why}] and told["layers"] == 15
    assert after not in qdq.layers(graph_of(found)) and len(qdq.layers(graph_of(found))) == 14


def test_a_budget_that_nothing_meets_is_said():
    proto = onnx.ModelProto()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stillhouse, match="no layer can be int8 within a budget of 0"):
        patch.setattr(sensitivity, "ranked", lambda *_: [{"layers": [name], "alone_db": 1.0} for name in "ab"])
        patch.setattr(sensitivity.Graphs, "without", lambda *_: proto)
        job = type("Job", (), {"say": lambda *_: None, "stop_asked": lambda _: 0})()
        sensitivity.search(sensitivity.Graphs(proto, proto, ()), 0.5, lambda _: 7.0, [], job)


def test_float16_is_float16_inside_and_float32_at_its_edges(exported, data, folder):
    found = quantised(folder, data, exported, "fp16", to="fp16", runtime="tensorrt")
    proto = graph_of(found)
    told = found.facts["quantized"]
    assert found.facts["precision"] == "fp16" and told["excluded"] == [] and told["agreement"] > 0.999 and abs(told["loss"]) < 0.2
    held = {tensor.name: tensor for tensor in proto.graph.initializer}
    layers = [node for node in proto.graph.node if node.op_type == "Conv"]
    assert all(held[name].data_type == TensorProto.FLOAT16 for node in layers for name in node.input[1:])
    types = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph.value_info}
    assert types["logits"] == TensorProto.FLOAT and types["logits_half"] == TensorProto.FLOAT16 and types["div"] == TensorProto.FLOAT
    assert found.file("model.onnx").stat().st_size < 0.6 * exported.file("model.onnx").stat().st_size
    engine = small_line.engine(folder, found, "engine_fp16", kind="onnxruntime")
    assert engine.facts["probe"]["agreement"] > 0.995


def test_float16_leaves_out_what_it_would_not_hold_and_says_why(attention, data):
    from stages.ranges import largest

    proto = graph_of(attention)
    seen = largest(proto, pictures(data, 2))
    assert seen["logits"] == pytest.approx(float(np.abs(answers(proto, pictures(data, 2))[1]).max()), rel=1e-5)
    gelu = next(node for node in proto.graph.node if node.op_type == "Gelu")
    matmul = next(
        node for node in proto.graph.node if node.op_type == "MatMul" and node.input[1] in {t.name for t in proto.graph.initializer}
    )
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == matmul.input[1])
    values = numpy_helper.to_array(weight) * np.float32(1e-6)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    made, kept = fp16.converted(proto, seen | {gelu.output[0]: 30000.0})
    why = {one.node: one.why for one in kept}
    assert f"{gelu.output[0]} reaches 3e+04; float16 ends at 65504" == why[gelu.name]
    assert why[matmul.name].startswith(f"{weight.name} would be changed by 0.") and len(why) == 3  # with the reader of the Gelu
    onnx.checker.check_model(made, full_check=True)
    assert sqnr(answers(proto, pictures(data))[1], answers(made, pictures(data))[1]) > 45


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_an_overflow_in_the_middle_is_carried_in_float32(exported, data):
    """Looked at with ONNX's reference, which computes in float16: onnxruntime on a CPU goes through float32 and would hide it."""
    from stages.ranges import largest

    proto, images = graph_of(exported), pictures(data)
    this, after = spoilt(proto, 3, 1e5)
    blind, _ = fp16.converted(proto, {})
    assert not np.isfinite(in_float16(blind, images[0])).all()
    made, kept = fp16.converted(proto, largest(proto, images))
    relu = next(node.name for node in proto.graph.node if node.op_type == "Relu" and node.input[0] in made_by(proto, this))
    assert {one.node for one in kept} == {this, relu, after} and "float16 ends at 65504" in kept[0].why
    assert sqnr(answers(proto, images[:1])[1], in_float16(made, images[0])) > 45


def in_float16(proto, image):
    proto.graph.output.append(onnx.helper.make_tensor_value_info("logits", TensorProto.FLOAT, None))
    return ReferenceEvaluator(proto).run(["logits"], {"image": image[None]})[0]


def made_by(proto, name):
    return next(node.output for node in proto.graph.node if node.name == name)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("to: int8, runtime: openvino, calibration: {split: val}", 'calibration.split: found "val"'),
        ("to: fp16, runtime: openvino", "write precision: bf16"),
        (f"to: int8, runtime: onnxruntime}}\n  {TWICE}", "quantised already"),
        (
            f"to: fp16, runtime: tensorrt}}\n  {OLD}\n  other: {{{QUANTIZE}, onnx: old, to: int8, runtime: tensorrt",
            "write opset: 19 in old",
        ),
    ],
    ids=["calibrated on val", "float16 for a CPU that has none", "twice", "too old an opset"],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(settings, said, tmp_path):
    (tmp_path / "small.yaml").write_text(RECIPE.replace("SETTINGS", settings))
    with pytest.raises(BadRecipe, match=said):
        read(tmp_path / "small.yaml", KINDS)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_graph_made_for_another_runtime_is_refused_where_it_could_run_wrong(runtime, engine, tmp_path):
    text = RECIPE.replace("SETTINGS", f"to: int8, runtime: {runtime}")
    (tmp_path / "small.yaml").write_text(text + f"  engine: {{kind: optimize, onnx: small, engine: {{kind: {engine}}}}}\n")
    if runtime == engine or (runtime, engine) == ("tensorrt", "onnxruntime"):
        read(tmp_path / "small.yaml", KINDS)
    else:
        with pytest.raises(BadRecipe, match=f"small is quantised for {runtime}, and {engine} may .* runtime: {engine}"):
            read(tmp_path / "small.yaml", KINDS)


def test_without_nncf_it_is_said_what_to_install(monkeypatch, attention, tmp_path):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(Missing, match=r"pip install stillhouse\[openvino\]"):
        int8.quantised(graph_of(attention), iter([]), "openvino", tmp_path)


def test_quiet_tools_leave_the_log_of_others_alone():
    pytest.importorskip("nncf")
    theirs, tool = logging.NullHandler(), logging.getLogger("nncf")
    tool.addHandler(theirs)  # as pytest does with every logger that does not propagate
    try:
        int8.nncf_silent()
        assert theirs.level == logging.NOTSET and not tool.isEnabledFor(logging.WARNING)
    finally:
        tool.removeHandler(theirs)


def test_calibration_and_held_out_images_are_spread_over_the_split_and_never_the_same():
    calibration, held_out = divided(100, Calibration(images=6, held_out=4))
    assert (calibration, held_out) == ([10, 30, 40, 60, 80, 90], [0, 20, 50, 70])
    for count in (2, 3, 7, 400):
        calibration, held_out = divided(count, Calibration())
        assert calibration and held_out and not set(calibration) & set(held_out) and max(calibration + held_out) < count
    with pytest.raises(BadData, match="split train has 1 images"):
        divided(1, Calibration())


def test_a_quantised_file_is_not_quantised_again(rounded, data, folder):
    with pytest.raises(BadData, match="int8_tensorrt is in int8 already"):
        quantised(folder, data, rounded("tensorrt"), "again", to="fp16", runtime="tensorrt")


def test_the_same_settings_give_the_same_bytes(rounded, exported, data, folder):
    again = quantised(folder, data, exported, "once_more", to="int8", runtime="onnxruntime")
    assert again.file("model.onnx").read_bytes() == rounded("onnxruntime").file("model.onnx").read_bytes()
    assert json.dumps(again.facts) == json.dumps(rounded("onnxruntime").facts)


torch.set_num_threads(1)
