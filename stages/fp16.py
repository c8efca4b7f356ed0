"""Float16 in the graph itself: every node computes in it unless its values would not survive there; every change of type is a Cast.

The image's normalisation and everything after the tensor `logits` stay float32. So does a node that reads or makes values close to
half's limits (seen on calibration images), whose weights would lose more than rounding, or that sums too many values.
"""

from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import BadData

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

LARGEST, SMALLEST = 65504.0, 2.0**-14  # of float16: finite; with all its digits
HEADROOM = 4.0  # other images may reach beyond those that were looked at
ROUNDING = 1e-3  # relative error of a tensor of weights; rounding alone stays below 2^-11 = 4.9e-4
BEFORE = ("Transpose", "Cast", "Sub", "Add", "Mul", "Div", "Identity")  # what stands between image bytes and the first layer
SUMS = ("ReduceSum", "ReduceMean", "ReduceSumSquare", "ReduceL1", "ReduceL2", "GlobalAveragePool", "CumSum")  # over whole images
KEPT_INPUTS = {"Resize": (1, 2)}  # inputs that the ONNX standard wants in float32 (scales), or that nobody converts (roi)
ANY_TYPE = ("Shape", "Size")


class Kept(NamedTuple):
    """A node that stays float32, and why."""

    node: str
    why: str


def converted(proto: "ModelProto", largest: dict[str, float]) -> "tuple[ModelProto, list[Kept]]":
    """The graph in half precision, and the nodes left out of it. `largest`: absolute values that its tensors reach."""
    import onnx

    from stages.ranges import tensor_types

    source = onnx.ModelProto()
    source.CopyFrom(proto)
    constants_to_weights(source.graph)
    kept = [*outer(source.graph), *unfit(source.graph, largest)]
    half = Half(source.graph, tensor_types(source), {k.node for k in kept})
    nodes = half.nodes()
    del source.graph.node[:], source.graph.value_info[:]
    source.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in (*source.graph.initializer, *half.weights.values()) if tensor.name in used]
    weights = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in weights]
    del source.graph.initializer[:]
    source.graph.initializer.extend(weights)
    return source, [k for k in kept if k.why]


def outer(graph: "GraphProto") -> list[Kept]:
    """The nodes before the first layer and after the logits, which stay float32 by rule."""
    if not any("logits" in node.output for node in graph.node):
        raise BadData("the ONNX file has no tensor named logits: export it again with this version")
    weights = {tensor.name for tensor in graph.initializer} | {""}
    early, late, found = {value.name for value in graph.input}, {"logits"}, []
    for node in graph.node:
        if node.op_type in BEFORE and any(name in early for name in node.input) and all(n in early | weights for n in node.input):
            early.update(node.output)
        elif any(name in late for name in node.input):
            late.update(node.output)
        else:
            continue
        found.append(Kept(node.name, ""))
    return found


def unfit(graph: "GraphProto", largest: dict[str, float]) -> list[Kept]:
    """Nodes whose values or weights half precision does not hold, with the reason."""
    weights, found = {tensor.name: tensor for tensor in graph.initializer}, []
    for node in graph.node:
        reasons = [f"{node.op_type} sums over whole images"] if node.op_type in SUMS else []
        for name in (*node.input, *node.output):
            if name in weights:
                reasons += weight_trouble(weights[name])
            elif name in largest:
                reasons += value_trouble(name, largest[name])
        if reasons:
            found.append(Kept(node.name, reasons[0]))
    return found


def value_trouble(name: str, value: float) -> list[str]:
    if value > LARGEST / HEADROOM:
        return [f"{name} reaches {value:.3g}; float16 ends at {LARGEST:g}"]
    return [f"{name} stays below {value:.2g}; float16 has all its digits from {SMALLEST:.2g} on"] if 0 < value < SMALLEST else []


def weight_trouble(tensor: "TensorProto") -> list[str]:
    import numpy as np
    from onnx import TensorProto, numpy_helper

    if tensor.data_type != TensorProto.FLOAT:
        return []
    values = numpy_helper.to_array(tensor).astype(np.float64)
    with np.errstate(over="ignore"):
        lost = np.linalg.norm(values - values.astype(np.float16)) / max(np.linalg.norm(values), 1e-300)
    return [] if lost <= ROUNDING else [f"{tensor.name} would be changed by {lost:.2g} of its size"]


class Half:
    """Rewrites the nodes one by one. A tensor keeps its name where it is made; its other type is a Cast next to it."""

    def __init__(self, graph: "GraphProto", types: dict[str, int], single: set[str]):
        from onnx import TensorProto

        self.graph, self.single = graph, single
        self.float32 = {name for name, kind in types.items() if kind == TensorProto.FLOAT}
        self.given = {tensor.name: tensor for tensor in graph.initializer}
        self.weights: dict[str, TensorProto] = {}  # in half precision, by their new names
        self.halved: set[str] = set()  # tensors that are float16 under their own name
        self.made: list[NodeProto] = []
        self.casts: set[str] = set()

    def nodes(self) -> "list[NodeProto]":
        for node in self.graph.node:
            if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
                raise BadData(f"{node.op_type} {node.name} holds graphs of its own; float16 is made of plain graphs: use exporter: dynamo")
            self.one(node)
        return self.made

    def one(self, node: "NodeProto") -> None:
        import onnx

        copy = onnx.NodeProto.FromString(node.SerializeToString())
        touched = any(name in self.float32 for name in (*node.input, *node.output))
        if not touched or node.op_type in ANY_TYPE:
            self.made.append(copy)
            return
        half = node.name not in self.single and node.op_type != "Constant"
        for i, name in enumerate(node.input):
            if name in self.float32:
                copy.input[i] = self.read(name, half and i not in KEPT_INPUTS.get(node.op_type, ()))
        if half:
            retype(copy)
        self.made.append(copy)
        for i, name in enumerate(node.output):
            if half and name in self.float32:
                self.give(copy, i, name)

    def give(self, node: "NodeProto", i: int, name: str) -> None:
        """What leaves a half node: the logits go back to float32 under their own name."""
        if name == "logits":
            node.output[i] = "logits_half"
            self.cast("logits_half", "logits", half=False)
        else:
            self.halved.add(name)

    def read(self, name: str, half: bool) -> str:
        """The name under which a tensor can be read in this type."""
        if name in self.given:
            return self.weight(name) if half else name
        if (name in self.halved) == half:
            return name
        other = f"{name}_{'half' if half else 'single'}"
        if other not in self.casts:
            self.cast(name, other, half)
        return other

    def cast(self, name: str, other: str, half: bool) -> None:
        from onnx import TensorProto, helper

        to = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        self.made.append(helper.make_node("Cast", [name], [other], name=f"cast_{other}", to=to))
        self.casts.add(other)

    def weight(self, name: str) -> str:
        import numpy as np
        from onnx import numpy_helper

        other = f"{name}_half"
        if other not in self.weights:
            self.weights[other] = numpy_helper.from_array(numpy_helper.to_array(self.given[name]).astype(np.float16), other)
        return other


def retype(node: "NodeProto") -> None:
    """The attributes of a node that name the type it makes."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    for attribute in node.attribute:
        if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        elif attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float16)))


def constants_to_weights(graph: "GraphProto") -> None:
    """Constant nodes become initializers, so that there is one kind of constant."""
    kept = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if value is None:
            kept.append(node)
        else:
            value.name = node.output[0]
            graph.initializer.append(value)
    kept = [type(node).FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(kept)
