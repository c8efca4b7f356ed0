"""Graphs with QuantizeLinear and DequantizeLinear (Q and DQ) in them, whoever put them there: which layers they quantise, and undoing it.

The form kept here: the float graph, node by node under the same names, with Q and DQ added; weights stored as int8 behind a DQ.
So a layer becomes float again by reading what lies before the pairs, and its weights from the float graph.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

LAYERS = ("Conv", "MatMul", "Gemm")  # what integers make faster; all else computes in float between them
PAIR = ("QuantizeLinear", "DequantizeLinear")
ACTIVATIONS = ("Relu", "Clip")  # runtimes take them into the rounding after them
MOVES = ("Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Split", "Expand", "Concat")  # change no value
MOVES += ("MaxPool",)


def layers(proto: "ModelProto") -> list[str]:
    """The names of the layers whose two factors are rounded, in the order they run."""
    graph = Graph(proto)
    return [node.name for node in proto.graph.node if graph.is_layer(node)]


def loosened(quantised: "ModelProto", original: "ModelProto", names: Iterable[str] = (), rounding: tuple[str, ...] = ()) -> "ModelProto":
    """The quantised graph with these layers computed in float32 again, as in the original. A pair that no layer needs goes too.

    `rounding`: operators whose quantised layers round what they make; of others' results a pair belongs to the layers that read it.
    """
    import onnx

    proto = onnx.ModelProto()
    proto.CopyFrom(quantised)
    del proto.graph.node[:], proto.graph.value_info[:]
    proto.graph.node.extend(Loosening(quantised, original, set(names), rounding).nodes())
    return swept(proto, original)


def swept(proto: "ModelProto", original: "ModelProto") -> "ModelProto":
    """Without nodes and weights that nobody reads; with those of the original's weights that are read again."""
    wanted = {output.name for output in proto.graph.output} | {"logits"}
    nodes = []
    for node in reversed(proto.graph.node):
        if any(name in wanted for name in node.output):
            wanted.update(node.input)
            nodes.append(type(node).FromString(node.SerializeToString()))
    held = {tensor.name: tensor for tensor in original.graph.initializer} | {tensor.name: tensor for tensor in proto.graph.initializer}
    weights = [type(t).FromString(t.SerializeToString()) for name, t in held.items() if name in wanted]
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.extend(reversed(nodes))
    proto.graph.initializer.extend(weights)
    return proto


class Graph:
    """Who makes a tensor, and what lies behind the pairs."""

    def __init__(self, proto: "ModelProto"):
        self.maker = {name: node for node in proto.graph.node for name in node.output}

    def is_layer(self, node: "NodeProto") -> bool:
        return node.op_type in LAYERS and all(self.behind(name) is not None for name in node.input[:2])

    def behind(self, name: str) -> str | None:
        """The tensor that was quantised on the way to this one: its name, "" for stored integers, None when there is no pair."""
        node = self.maker.get(name)
        if node is None:
            return None
        if node.op_type == "DequantizeLinear":
            source = self.maker.get(node.input[0])
            return source.input[0] if source is not None and source.op_type == "QuantizeLinear" else ""
        if node.op_type in MOVES:
            return next((found for found in map(self.behind, node.input) if found is not None), None)
        return None


class Loosening:
    def __init__(self, quantised: "ModelProto", original: "ModelProto", names: set[str], rounding: tuple[str, ...]):
        self.graph, self.source, self.names, self.rounding = Graph(quantised), quantised.graph.node, names, rounding
        self.weights = {tensor.name for tensor in original.graph.initializer}
        self.first = {node.name: list(node.input) for node in original.graph.node}
        self.free: dict[str, str] = {}  # tensor behind a pair -> the same without it
        self.made: list[NodeProto] = []

    def nodes(self) -> "list[NodeProto]":
        for node in self.source:
            copy = type(node).FromString(node.SerializeToString())
            for i, name in enumerate(node.input):
                copy.input[i] = self.reads(node, i, name)
            self.made.append(copy)
        return self.made

    def reads(self, node: "NodeProto", i: int, name: str) -> str:
        if node.op_type in (*PAIR, *MOVES) or (self.graph.is_layer(node) and node.name not in self.names):
            return name
        if node.name in self.names and self.first[node.name][i] in self.weights:
            return self.first[node.name][i]
        return self.loose(name)

    def rounded(self, name: str) -> bool:
        """Whether a layer that stays quantised makes this tensor and rounds it."""
        node = self.graph.maker.get(name)
        while node is not None and node.op_type in ACTIVATIONS:
            node = self.graph.maker.get(node.input[0])
        return node is not None and node.op_type in self.rounding and self.graph.is_layer(node) and node.name not in self.names

    def loose(self, name: str) -> str:
        """The tensor without the pairs on its way; nodes that only move values are repeated for it."""
        node, behind = self.graph.maker.get(name), self.graph.behind(name)
        if not behind or self.rounded(behind):
            return name
        if node.op_type == "DequantizeLinear":
            return self.loose(behind)
        if name not in self.free:
            copy = type(node).FromString(node.SerializeToString())
            for i, entry in enumerate(node.input):
                copy.input[i] = self.loose(entry)
            for i, entry in enumerate(node.output):
                copy.output[i] = self.free[entry] = f"{entry}_float"
            copy.name = f"{node.name}_float"
            self.made.append(copy)
        return self.free[name]


def without_pair_on(proto: "ModelProto", tensor: str) -> "ModelProto":
    """Everybody who reads the rounded `tensor` reads the tensor itself."""
    graph = Graph(proto)
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            maker = graph.maker.get(name)
            if maker is not None and maker.op_type == "DequantizeLinear" and graph.behind(name) == tensor:
                node.input[i] = tensor
    return swept(proto, proto)


def restored(original: "ModelProto", quantised: "ModelProto") -> "ModelProto":
    """Puts back each Relu and Clip that was dropped because the rounding behind it clips too: one layer fewer and it would be missed.

    And a rounded weight gets a name of its own, where it has that of the float one.
    """
    made = {name for node in quantised.graph.node for name in node.output}
    taken = made & {tensor.name for tensor in original.graph.initializer}
    for node in quantised.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name in taken:
                    names[i] = f"{name}_rounded"
    there = {node.name for node in quantised.graph.node}
    lost = {node.output[0]: node for node in original.graph.node if node.op_type in ACTIVATIONS and node.name not in there}
    nodes = []
    for node in quantised.graph.node:
        again = [lost[name] for name in node.output if name in lost]
        for i, name in enumerate(node.output):
            if name in lost:
                node.output[i] = lost[name].input[0]
        nodes += [node, *again]
    nodes = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del quantised.graph.node[:]
    quantised.graph.node.extend(nodes)
    return swept(quantised, original)


def unsigned(proto: "ModelProto") -> "ModelProto":
    """The same rounding with activations in 0..255 instead of -128..127: OpenVINO is wrong on some graphs with signed ones."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    zeros = {tensor.name: tensor for tensor in proto.graph.initializer}
    activations = {node.output[0] for node in proto.graph.node if node.op_type == "QuantizeLinear"}
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear" or (node.op_type == "DequantizeLinear" and node.input[0] in activations):
            zero = zeros[node.input[2]]
            if zero.data_type == TensorProto.INT8:
                moved = (numpy_helper.to_array(zero).astype(np.int16) + 128).astype(np.uint8)
                name = f"{zero.name}_unsigned"
                if name not in zeros:
                    zeros[name] = numpy_helper.from_array(moved, name)
                    proto.graph.initializer.append(zeros[name])
                node.input[2] = name
    return swept(proto, proto)
