"""The last step of a network outside its graph: the graph is cut at the logits, and compiled C names the classes from there.

Within a graph the logits are enlarged to the image's size, written, and read again for the argmax: at 150 classes that costs more than
the network. kernels/upsample_argmax/argmax.c never writes them. Its class maps are those of the graph except where the two largest
logits of a pixel are equal within rounding.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifact import Artifact
from pipeline.errors import BadData, Missing
from stages import machine
from stages.engines._forms import Form

if TYPE_CHECKING:
    import numpy as np
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

FILE = "engine.tail.onnx"  # what was cut off: for a device that cannot compile C
PLAIN = {"Resize", "ArgMax", "Cast", "Shape", "Slice", "Gather", "Concat", "Constant", "Squeeze", "Unsqueeze", "Reshape", "Identity"}
WAYS = {"half_pixel": False, "pytorch_half_pixel": False, "align_corners": True}  # Resize's coordinates: align_corners


def cut(source: Artifact, out: Path, suited: Form) -> tuple[bytes, dict[str, Any]]:
    """The network from image to logits as a serialised ONNX model, and the facts a Tail is made of.

    Writes FILE into `out`, in the form of _forms.py that suits the runtime.
    """
    import onnx

    if "align_corners" not in source.facts:
        raise BadData(f"{source.name} does not say how its logits are enlarged, as exports of today do: export it again")
    facts = {"size": source.facts["size"], "align_corners": source.facts["align_corners"], "classes": len(source.facts["classes"])}
    whole = onnx.load(source.file("model.onnx"))
    if "logits" not in {name for node in whole.graph.node for name in node.output}:
        raise BadData(f"{source.name} has no tensor named logits to cut its graph at: export it again, or write argmax: graph")
    image, batch = whole.graph.input[0], whole.graph.input[0].type.tensor_type.shape.dim[0]
    shape = [batch.dim_param or batch.dim_value, facts["classes"], "h", "w"]
    logits = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, shape)
    classmap = next(value for value in whole.graph.output if value.name == "classmap")
    tail = part(whole, logits, classmap)
    require_plain(tail.graph, facts["align_corners"], source.name)
    suited(tail.graph, facts["classes"])
    (out / FILE).write_bytes(checked(tail).SerializeToString(deterministic=True))
    return checked(part(whole, image, logits)).SerializeToString(deterministic=True), facts


def part(whole: "ModelProto", begin: "ValueInfoProto", end: "ValueInfoProto") -> "ModelProto":
    """The model from one tensor to another, with nothing in it that this needs not."""
    from onnx import helper

    kept, wanted = [], {end.name}
    for node in reversed(whole.graph.node):  # in their order: each node reads only what stands before it
        if wanted & set(node.output) - {begin.name}:
            kept.append(node)
            wanted |= reads(node)
    made = {name for node in kept for name in node.output} - {end.name}
    constants = [tensor for tensor in whole.graph.initializer if tensor.name in wanted]
    values = [value for value in whole.graph.value_info if value.name in made]
    graph = helper.make_graph(kept[::-1], whole.graph.name, [begin], [end], constants, value_info=values)
    return helper.make_model(graph, opset_imports=whole.opset_import, ir_version=whole.ir_version, producer_name=whole.producer_name)


def checked(model: "ModelProto") -> "ModelProto":
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        begin, end = model.graph.input[0].name, model.graph.output[0].name
        said = str(error).strip().splitlines()[0]
        raise BadData(f"the graph from {begin} to {end} cannot be cut out ({said}): write argmax: graph") from None
    return model


def reads(node: "NodeProto") -> set[str]:
    """The tensors a node needs, also those that graphs inside it take from around them."""
    import onnx

    inner = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return {name for name in node.input if name}.union(*(reads(n) for graph in inner for n in graph.node))


def require_plain(tail: "GraphProto", align_corners: bool, name: str) -> None:
    """BadData when what is cut off is anything but bilinear enlarging as the facts have it, and the argmax."""
    other = sorted({node.op_type for node in tail.node} - PLAIN)
    ways = [{a.name: a.s.decode() for a in node.attribute if a.s} for node in tail.node if node.op_type == "Resize"]
    if other or len(ways) != 1 or ways[0].get("mode") != "linear":
        found = f"it holds {', '.join(other)}" if other else f"it enlarges {len(ways)} times, {[way.get('mode') for way in ways]}"
        raise BadData(f"{name} ends otherwise than in bilinear enlarging and argmax ({found}): write argmax: graph")
    how = ways[0].get("coordinate_transformation_mode", "half_pixel")
    if WAYS.get(how) is not align_corners:
        raise BadData(f"{name} enlarges its logits by {how}, and its facts say align_corners: {align_corners}: export it again")


class Tail:
    """Names the classes of logits where a runtime left them."""

    def __init__(self, facts: dict[str, Any], threads: int | None):
        from kernels import arrays

        if why := arrays.why_not():
            raise Missing(f"argmax: native asks for the compiled library, and {why}; or write argmax: graph")
        self.enlarge = arrays.upsample_argmax
        self.size, self.align_corners, self.classes = tuple(facts["size"]), facts["align_corners"], facts["classes"]
        self.threads = threads or machine.cores()

    def room(self, images: "np.ndarray") -> "np.ndarray":
        """Where class maps of these images go."""
        import numpy as np

        return np.empty((len(images), *self.size), np.uint8)

    def __call__(self, logits: "np.ndarray", classmap: "np.ndarray") -> "np.ndarray":
        """float32 (B, C, h, w) into uint8 (B, H, W)."""
        if logits.shape[:2] != (len(classmap), self.classes):
            raise BadData(f"the engine gives logits {list(logits.shape)}, not of {len(classmap)} images and {self.classes} classes")
        self.enlarge(logits, classmap, self.align_corners, self.threads)
        return classmap
