"""The last step of a network outside its graph: the graph is cut at the logits, and compiled C names the classes from there.

Within a graph the logits are enlarged to the image's size, written, and read again for the argmax: at 150 classes that costs more than
the network. kernels/upsample_argmax/argmax.c never writes them. Its class maps are those of the graph except where the two largest
logits of a pixel are equal within rounding.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifact import Artifact
from pipeline.errors import BadData, Missing
from stages import machine

if TYPE_CHECKING:
    import numpy as np
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

FILE = "engine.tail.onnx"  # what was cut off: for a device that cannot compile C
PLAIN = {"Resize", "ArgMax", "Cast", "Shape", "Slice", "Gather", "Concat", "Constant", "Squeeze", "Unsqueeze", "Reshape", "Identity"}
WAYS = {"half_pixel": False, "pytorch_half_pixel": False, "align_corners": True}  # Resize's coordinates: align_corners


def cut(source: Artifact, out: Path, suited: Callable[["GraphProto", int], None]) -> tuple[bytes, dict[str, Any]]:
    """The network from image to logits as a serialised ONNX model, and the facts a Tail is made of.

    Writes FILE into `out`, in the form of _forms.py that suits the runtime.
    """
    import onnx

    if "align_corners" not in source.facts:
        raise BadData(f"{source.name} does not say how its logits are enlarged, as exports of today do: export it again")
    whole = onnx.load(source.file("model.onnx"))
    known = {value.name: value for value in onnx.shape_inference.infer_shapes(whole).graph.value_info}
    logits = known.get("logits") or next((value for value in whole.graph.output if value.name == "logits"), None)
    if logits is None or logits.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise BadData(f"{source.name} has no float32 tensor named logits to cut its graph at: export it again, or write argmax: graph")
    facts = {"size": source.facts["size"], "align_corners": source.facts["align_corners"], "classes": len(source.facts["classes"])}
    ends = {value.name: value for value in whole.graph.output}
    tail = part(whole, logits, ends["classmap"])
    require_plain(tail.graph, facts["align_corners"], source.name)
    suited(tail.graph, facts["classes"])
    onnx.checker.check_model(tail, full_check=True)
    (out / FILE).write_bytes(tail.SerializeToString(deterministic=True))
    return part(whole, whole.graph.input[0], logits).SerializeToString(deterministic=True), facts


def part(whole: "ModelProto", begin: "ValueInfoProto", end: "ValueInfoProto") -> "ModelProto":
    """The model from one tensor to another, with nothing in it that this needs not."""
    import onnx

    kept, wanted = [], {end.name}
    for node in reversed(whole.graph.node):  # in their order: each node reads only what stands before it
        if wanted & set(node.output) - {begin.name}:
            kept.append(node)
            wanted |= reads(node)
    made = {name for node in kept for name in node.output}
    model = onnx.ModelProto()
    model.CopyFrom(whole)
    for field in ("node", "initializer", "input", "output", "value_info"):
        model.graph.ClearField(field)
    model.graph.node.extend(reversed(kept))
    model.graph.initializer.extend(tensor for tensor in whole.graph.initializer if tensor.name in wanted)
    model.graph.input.append(begin)
    model.graph.output.append(end)
    model.graph.value_info.extend(value for value in whole.graph.value_info if value.name in made - {end.name})
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        said = str(error).strip().splitlines()[0]
        raise BadData(f"the graph from {begin.name} to {end.name} cannot be cut out ({said}): write argmax: graph") from None
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
