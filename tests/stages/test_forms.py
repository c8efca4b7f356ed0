"""The last step inside a graph: each runtime's form gives, to the pixel, what that runtime makes of Resize and ArgMax."""

import importlib.util

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stages.engines import _forms

FORMS = {"onnxruntime": _forms.classes_last, "openvino": _forms.where_the_maximum_is}
KINDS = [kind for kind in FORMS if importlib.util.find_spec(kind)]
# classes, coordinates, logits' grid, size
CASES = [
    (2, "align_corners", (15, 21), (64, 96)),
    (19, "half_pixel", (16, 24), (61, 77)),
    (150, "align_corners", (9, 7), (5, 4)),
    (256, "half_pixel", (1, 5), (4, 20)),
]


def tail(classes, way, size):
    nodes = [
        helper.make_node("Shape", ["logits"], ["before"], start=0, end=2),
        helper.make_node("Concat", ["before", "size"], ["sizes"], axis=0),
        helper.make_node("Resize", ["logits", "", "", "sizes"], ["large"], mode="linear", coordinate_transformation_mode=way),
        helper.make_node("ArgMax", ["large"], ["number"], axis=1, keepdims=0),
        helper.make_node("Cast", ["number"], ["classmap_float"], to=TensorProto.FLOAT),  # as stages/graph.py ends it
        helper.make_node("Cast", ["classmap_float"], ["classmap"], to=TensorProto.UINT8),
    ]
    given = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", classes, "h", "w"])
    gives = helper.make_tensor_value_info("classmap", TensorProto.UINT8, ["b", *size])
    graph = helper.make_graph(nodes, "tail", [given], [gives], [numpy_helper.from_array(np.array(size, np.int64), "size")])
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def runs(kind, model):
    """The model as a function, in this runtime with one thread."""
    if kind == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        return lambda logits: session.run(["classmap"], {"logits": logits})[0]
    from stages.engines.openvino import core

    how = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core().compile_model(core().read_model(model.SerializeToString()), "CPU", how)
    return lambda logits: compiled({"logits": logits})["classmap"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_gives_the_same_class_at_every_pixel_also_where_classes_tie(case, kind):
    classes, way, grid, size = case
    plain, other = tail(classes, way, size), tail(classes, way, size)
    FORMS[kind](other.graph, classes)
    onnx.checker.check_model(other, full_check=True)
    assert [node.op_type for node in other.graph.node] != [node.op_type for node in plain.graph.node]
    noise = np.random.default_rng(0).normal(0, 1, (2, classes, *grid)).astype(np.float32)
    plain, other = runs(kind, plain), runs(kind, other)
    for logits in (noise, np.sign(noise) * (abs(noise) > 1.2), np.zeros_like(noise), noise - 1e4):
        expected = plain(logits.astype(np.float32))
        assert (other(logits.astype(np.float32)) == expected).all() and expected.shape == (2, *size)


@pytest.mark.skipif("openvino" not in KINDS, reason="openvino is not installed")
def test_logits_that_are_no_numbers_name_a_class_that_exists():
    model = tail(5, "half_pixel", (8, 8))
    _forms.where_the_maximum_is(model.graph, 5)
    found = runs("openvino", model)(np.full((1, 5, 2, 2), np.nan, np.float32))
    assert found.max() < 5


def squeezed(graph):
    graph.node[3].attribute[1].i = 1  # keepdims
    graph.node.insert(4, helper.make_node("Squeeze", ["number"], ["flat"]))
    graph.node[5].input[0] = "flat"


def last_index(graph):
    graph.node[3].attribute.append(helper.make_attribute("select_last_index", 1))


def weighed(graph):
    graph.node[3].input[0] = "weighed"
    graph.node.insert(3, helper.make_node("Neg", ["large"], ["weighed"]))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("change", [squeezed, last_index])
def test_a_graph_that_ends_otherwise_stays_as_it_is(form, change):
    model = tail(5, "half_pixel", (8, 8))
    change(model.graph)
    before = model.SerializeToString()
    form(model.graph, 5)
    assert model.SerializeToString() == before


def test_only_enlarging_right_before_the_argmax_is_done_with_classes_last():
    model = tail(5, "half_pixel", (8, 8))
    weighed(model.graph)
    before = model.SerializeToString()
    _forms.classes_last(model.graph, 5)
    assert model.SerializeToString() == before
