"""What values the tensors of an ONNX graph reach on given images: what half precision must hold.

Every tensor is reduced to one number inside the graph: fetched whole, those of one image would fill the memory.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pipeline.errors import BadData

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto

PREFIX = "largest of "


def largest(proto: "ModelProto", images: "Iterable[np.ndarray]") -> dict[str, float]:
    """Largest absolute value of every float32 tensor that a node makes, over all images uint8 (H, W, 3)."""
    import numpy as np

    from stages.answers import session_of

    watched = watching(proto)
    session = session_of(watched)
    names = [output.name for output in watched.graph.output]
    found = np.zeros(len(names))
    for image in images:
        values = np.array([float(value) for value in session.run(names, {"image": image[None].copy()})])
        found = np.maximum(found, values)  # NaN stays NaN
    if not np.isfinite(found).all():
        raise BadData(f"{names[int(np.argmax(~np.isfinite(found)))]} is not finite on an image of train: train the network again")
    return {name.removeprefix(PREFIX): float(value) for name, value in zip(names, found, strict=True)}


def watching(proto: "ModelProto") -> "ModelProto":
    """The graph with one scalar per float32 tensor as its outputs."""
    import onnx
    from onnx import TensorProto, helper

    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    types, made = tensor_types(proto), [name for node in proto.graph.node for name in node.output if name]
    del watched.graph.output[:]
    for name in made:
        if types.get(name) == TensorProto.FLOAT:
            watched.graph.node.append(helper.make_node("Abs", [name], [f"size of {name}"]))
            watched.graph.node.append(helper.make_node("ReduceMax", [f"size of {name}"], [PREFIX + name], keepdims=0))
            watched.graph.output.append(helper.make_tensor_value_info(PREFIX + name, TensorProto.FLOAT, []))
    return watched


def tensor_types(proto: "ModelProto") -> dict[str, int]:
    """ONNX's number of the element type of every tensor of the graph."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True).graph
    values = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return values | {tensor.name: tensor.data_type for tensor in graph.initializer}
