"""Reads a parsed TensorRT network before it is built: which layers, in which types, and which of them get quantised inputs.

After building, layers are fused and renamed; here they still stand as the ONNX file meant them, so that a layer that was left out of
quantisation, or a tensor that is not the type it should be, is seen without any GPU.
"""

from collections import Counter
from typing import Any

COMPUTING = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM")  # where nearly all the time goes
MOVING = ("SHUFFLE", "IDENTITY", "SQUEEZE", "UNSQUEEZE", "SLICE", "CONCATENATION")  # hand values on as they are
NAMED = 40  # layers listed by name
TYPES = {"FLOAT": "f32", "HALF": "fp16", "BF16": "bf16"}


def described(network: Any) -> dict[str, Any]:
    """{"layers", "types": {layer: {type: count}}, "quantised": {layer: count}, "plain": names left out, "precision"}."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    source = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    types: dict[str, Counter] = {}
    for layer in layers:
        types.setdefault(layer.type.name, Counter())[layer.get_output(0).dtype.name] += 1
    computing = [layer for layer in layers if layer.type.name in COMPUTING]
    dequantised = {layer.name: quantised(layer, source) for layer in computing}
    full = [layer for layer in computing if dequantised[layer.name]]
    found = {"layers": len(layers), "types": {name: dict(sorted(types[name].items())) for name in sorted(types)}}
    found["quantised"] = dict(sorted(Counter(layer.type.name for layer in full).items()))
    found["plain"] = [layer.name for layer in computing if not dequantised[layer.name]][:NAMED] if full else []
    return found | {"precision": precision(layers, computing)}


def quantised(layer: Any, source: dict[str, Any]) -> bool:
    """Whether both factors come out of DequantizeLinear: only then the product is computed in integers."""
    return layer.num_inputs > 1 and all(origin(layer.get_input(i), source) == "DEQUANTIZE" for i in (0, 1))


def origin(tensor: Any, source: dict[str, Any]) -> str:
    """The kind of layer that computed these values, past those that only move them."""
    while tensor is not None and tensor.name in source:
        layer = source[tensor.name]
        if layer.type.name not in MOVING:
            return layer.type.name
        tensor = layer.get_input(0)
    return "INPUT"


def precision(layers: list[Any], computing: list[Any]) -> str:
    """The narrowest type that anything is computed in, in the words of facts["precision"]."""
    narrow = {layer.get_input(0).dtype.name for layer in layers if layer.type.name == "DEQUANTIZE"}
    if narrow:
        return sorted(narrow)[0].lower()
    types = {layer.get_output(0).dtype.name for layer in computing}
    return next((TYPES[name] for name in ("HALF", "BF16") if name in types), "f32")


def sentence(found: dict[str, Any]) -> str:
    """Of the layers in which nearly all is computed: how many, in which types, how many with quantised inputs."""
    counts = (f"{sum(found['types'][name].values())} {name.lower()}" for name in COMPUTING if name in found["types"])
    return f"{', '.join(counts)}; {sum(found['quantised'].values())} of them with quantised inputs"
