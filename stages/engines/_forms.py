"""The last step of a network inside its graph, in the form that the runtime at hand computes fastest: the same class maps.

What exporters write, Resize and ArgMax over classes that lie apart, is slow everywhere, and no form is fast everywhere. These are the
best of a dozen that were tried (layouts, TopK, products of matrices), 128x128 to 512x512, float32, noise, one thread of a Xeon with
AVX-512; milliseconds of processor time at 19 and 150 classes:

                                        onnxruntime 1.31    openvino 2026.4
    Resize, ArgMax                         14.8    239         25.0    192
    classes last, Resize, ArgMax            6.9     48         73.5    574
    Resize, where the maximum is            24.9    466         13.4     44
    Resize, TopK                           23.2    240          8.3     26

OpenVINO's TopK takes any of several equal classes, and is not used for that.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.artifact import Artifact

if TYPE_CHECKING:
    import numpy as np
    from onnx import GraphProto, NodeProto

Form = Callable[["GraphProto", int], None]  # changes a graph of so many classes
ORDER = [0, 2, 3, 1]  # (B, C, H, W) to (B, H, W, C)


def suited(source: Artifact, form: Form) -> bytes:
    """The network as it was exported, serialised, with its last step in this form."""
    import onnx

    model = onnx.load(source.file("model.onnx"))
    form(model.graph, len(source.facts["classes"]))
    return model.SerializeToString(deterministic=True)


def classes_last(graph: "GraphProto", classes: int) -> None:
    """For ONNX Runtime on a CPU: logits become (B, h, w, C) before they are enlarged. A graph that ends otherwise stays as it is."""
    import numpy as np
    from onnx import helper

    argmax, resize = ends(graph)
    if argmax is None or resize is None or len(resize.input) != 4:  # enlarged by scales in place of sizes
        return
    add_constant(graph, "tail_order", np.array(ORDER, np.int64))
    put_before(graph, resize, helper.make_node("Transpose", [resize.input[0]], ["tail_logits"], perm=ORDER))
    put_before(graph, resize, helper.make_node("Gather", [resize.input[3], "tail_order"], ["tail_sizes"]))
    for value in [value for value in graph.value_info if value.name == resize.output[0]]:
        graph.value_info.remove(value)  # it has another shape now
    resize.input[0], resize.input[3] = "tail_logits", "tail_sizes"
    next(a for a in argmax.attribute if a.name == "axis").i = 3


def where_the_maximum_is(graph: "GraphProto", classes: int) -> None:
    """For OpenVINO on a CPU in float32: of the classes that equal the largest logit the lowest, as C minus the largest of C - class.

    A graph that ends otherwise stays as it is. Where a logit is not a number no class equals the largest; the last one is given then.
    """
    import numpy as np
    from onnx import helper

    argmax, _ = ends(graph)
    if argmax is None:
        return
    add_constant(graph, "tail_axis", np.array([1], np.int64))
    add_constant(graph, "tail_ranks", np.arange(classes, 0, -1, dtype=np.float32).reshape(1, classes, 1, 1))
    add_constant(graph, "tail_classes", np.array([classes], np.float32))
    add_constant(graph, "tail_last", np.array([classes - 1], np.float32))
    logits = argmax.input[0]
    for operator, given, gives, more in (
        ("ReduceMax", [logits, "tail_axis"], "tail_largest", {"keepdims": 1}),
        ("Equal", [logits, "tail_largest"], "tail_is", {}),
        ("Cast", ["tail_is"], "tail_one", {"to": 1}),
        ("Mul", ["tail_one", "tail_ranks"], "tail_rank", {}),
        ("ReduceMax", ["tail_rank", "tail_axis"], "tail_best", {"keepdims": 0}),
        ("Sub", ["tail_classes", "tail_best"], "tail_class", {}),
        ("Min", ["tail_class", "tail_last"], "tail_bounded", {}),
    ):
        put_before(graph, argmax, helper.make_node(operator, given, [gives], **more))
    for node in graph.node:  # the Cast
        node.input[:] = ["tail_bounded" if name == argmax.output[0] else name for name in node.input]
    for value in [value for value in graph.value_info if value.name == argmax.output[0]]:
        graph.value_info.remove(value)
    graph.node.remove(argmax)


def ends(graph: "GraphProto") -> tuple["NodeProto | None", "NodeProto | None"]:
    """The ArgMax over classes that the class map is made of, and the bilinear Resize before it, where they are there."""
    makes = {name: node for node in graph.node for name in node.output}
    argmax = makes.get("classmap")
    for _ in range(2):  # the Cast to bytes, and one to floating point before it, as stages/graph.py writes it
        argmax = makes.get(argmax.input[0]) if argmax is not None and argmax.op_type == "Cast" else argmax
    found = settings(argmax)
    if found.pop("kind") != "ArgMax" or (found.get("axis"), found.get("keepdims"), found.get("select_last_index", 0)) != (1, 0, 0):
        return None, None
    resize = makes.get(argmax.input[0])
    found = settings(resize)
    return argmax, resize if found["kind"] == "Resize" and found.get("mode") == b"linear" and "axes" not in found else None


def settings(node: "NodeProto | None") -> dict[str, Any]:
    from onnx import helper

    if node is None:
        return {"kind": None}
    return {"kind": node.op_type} | {a.name: helper.get_attribute_value(a) for a in node.attribute}


def add_constant(graph: "GraphProto", name: str, values: "np.ndarray") -> None:
    from onnx import numpy_helper

    graph.initializer.append(numpy_helper.from_array(values, name))


def put_before(graph: "GraphProto", node: "NodeProto", new: "NodeProto") -> None:
    graph.node.insert(list(graph.node).index(node), new)
