"""Looks at an ONNX file before any parser does: a file from elsewhere must not read other files, nor ask for absurd memory.

The container is protocol buffers; only its outline is walked here (field numbers of onnx.proto3), payloads are skipped.
Refused: external data, operators outside the ONNX standard, functions and training graphs of the file's own, loops, tensors that
claim more elements than their bytes can hold, graphs nested deeper than any network is, and whatever does not turn an `image` into
a `classmap`. A field number or length that parsers might read otherwise than this one is refused too.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import Refused

DOMAINS = ("", "ai.onnx")
LARGEST = 2 * 1024**3 - 1  # bytes; what protocol buffers can hold
LATEST = 100  # operator set; ONNX 1.23 knows 28
DEEPEST = 8  # graphs inside graphs (If, Loop)
MOST_NODES = 10_000  # SegFormer-B5 has a quarter of it; runtimes take time that grows with its square
MOST_FIELDS = 2_000_000  # of the outline; SegFormer-B0 has 30,000
MOST_DIMS = 64
LOOPS = (b"Loop", b"Scan")  # run as often as their data say

# Field numbers of onnx.proto3.
MODEL_GRAPH, MODEL_OPSETS, MODEL_TRAINING, MODEL_FUNCTIONS = 7, 8, 20, 25
GRAPH_NODE, GRAPH_TENSOR, GRAPH_INPUT, GRAPH_OUTPUT, GRAPH_SPARSE = 1, 5, 11, 12, 15
NODE_OPERATOR, NODE_ATTRIBUTE, NODE_DOMAIN = 4, 5, 7
ATTRIBUTE_TENSOR, ATTRIBUTE_GRAPH, ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS, ATTRIBUTE_SPARSE, ATTRIBUTE_SPARSES = 5, 6, 10, 11, 22, 23
TENSOR_DIMS, TENSOR_EXTERNAL, TENSOR_LOCATION = 1, 13, 14
VALUE_NAME, VALUE_TYPE, TYPE_TENSOR, TYPE_ELEMENT, TYPE_SHAPE, SHAPE_DIM = 1, 2, 1, 1, 2, 1

UINT8, FLOAT = 2, 1  # numbers of types in onnx.proto3
TAKES = {"image": (UINT8, 4)}  # name: (type, dimensions)
GIVES = {"classmap": (UINT8, 3)}
MAY_GIVE = {"logits": (FLOAT, 4)}  # and an engine that leaves the argmax to others gives them alone


class File(mmap.mmap):
    """The bytes of an ONNX file, and how many fields of it may still be looked at."""

    left = MOST_FIELDS


def check(path: Path, ends_at_logits: bool = False) -> Path:
    """The path itself when the file may be given to a parser; Refused otherwise. `ends_at_logits`: it gives those and no class map."""
    if path.is_symlink() or not path.is_file():
        raise Refused(f"{path} is not a plain file; an ONNX model is read from one file without links")
    size = path.stat().st_size
    if not 0 < size <= LARGEST:
        raise Refused(f"{path} has {size} bytes; an ONNX model has 1 to {LARGEST} bytes in one file")
    with path.open("rb") as file:
        whole = memoryview(File(file.fileno(), 0, access=mmap.ACCESS_READ))  # closed with the last slice of it
    try:
        _model(whole, ends_at_logits)
    except Refused as refused:
        raise Refused(f"{path}: {refused}") from None
    except (ValueError, TypeError, LookupError):  # TypeError: a number where a message must be
        raise Refused(f"{path} is not an ONNX model: its outline does not hold together; export it again") from None
    return path


def _model(message: memoryview, ends_at_logits: bool) -> None:
    graphs, left = 0, [MOST_NODES]
    for number, value in _fields(message):
        if number in (MODEL_FUNCTIONS, MODEL_TRAINING):
            raise Refused(
                "it brings functions or a training graph of its own; only plain graphs are read. Export it again with them inlined"
            )
        if number == MODEL_OPSETS:
            _domain(b"".join(bytes(v) for n, v in _fields(value) if n == 1))
            if any(n == 2 and not 0 < v <= LATEST for n, v in _fields(value)):  # runtimes count up to it
                raise Refused(f"it uses an operator set after {LATEST}, of which nobody knows yet")
        if number == MODEL_GRAPH:
            graphs += 1
            _graph(value, 1, left)
            graph = value
    if graphs != 1:
        raise ValueError("a model holds one graph")
    _contract(graph, (MAY_GIVE,) if ends_at_logits else (GIVES, GIVES | MAY_GIVE))


def _graph(message: memoryview, depth: int, left: list[int]) -> None:
    if depth > DEEPEST:
        raise Refused(f"its graphs are nested deeper than {DEEPEST}")
    for number, value in _fields(message):
        if number == GRAPH_NODE:
            left[0] -= 1
            if left[0] < 0:
                raise Refused(f"it has more than {MOST_NODES} nodes")
            _node(value, depth, left)
        elif number == GRAPH_TENSOR:
            _tensor(value)
        elif number == GRAPH_SPARSE:
            raise Refused("it holds sparse tensors, which no engine here reads")


def _node(message: memoryview, depth: int, left: list[int]) -> None:
    for number, value in _fields(message):
        if number == NODE_DOMAIN:
            _domain(bytes(value))
        elif number == NODE_OPERATOR and bytes(value) in LOOPS:
            raise Refused(f"it holds a {bytes(value).decode()}, which may run without end; export it again without loops")
        elif number == NODE_ATTRIBUTE:
            for kind, inner in _fields(value):
                if kind in (ATTRIBUTE_TENSOR, ATTRIBUTE_TENSORS):
                    _tensor(inner)
                elif kind in (ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS):
                    _graph(inner, depth + 1, left)
                elif kind in (ATTRIBUTE_SPARSE, ATTRIBUTE_SPARSES):
                    raise Refused("it holds sparse tensors, which no engine here reads")


def _tensor(message: memoryview) -> None:
    elements, rank = 1, 0
    for number, value in _fields(message):
        if number == TENSOR_EXTERNAL or (number == TENSOR_LOCATION and value):
            raise Refused("it keeps weights in other files (external data); save it as one file")
        if number == TENSOR_DIMS:
            for dim in [value] if isinstance(value, int) else _varints(value):
                elements, rank = elements * dim, rank + 1
                if rank > MOST_DIMS:
                    raise Refused(f"a tensor has more than {MOST_DIMS} dimensions")
    if elements > 2 * len(message):  # the densest type packs two elements into a byte
        raise Refused(f"a tensor claims {elements} elements in {len(message)} bytes")


def _domain(name: bytes) -> None:
    text = name.decode("utf-8", "replace")
    if text not in DOMAINS:
        raise Refused(f'it uses operators of the domain "{text[:64]}"; only standard ONNX operators are run here')


def _contract(graph: memoryview, may_give: tuple[dict[str, Any], ...]) -> None:
    """Whether the graph takes and gives what the house exports and every runtime here is asked for."""
    values = {GRAPH_INPUT: {}, GRAPH_OUTPUT: {}}
    for number, value in _fields(graph):
        if number in values:
            name, kind = _value(value)
            if name in values[number]:
                raise ValueError("a name stands there twice")
            values[number][name] = kind
    takes, gives = values.values()
    if takes != TAKES or gives not in may_give:
        raise Refused(
            f"it takes {_spoken(takes)} and gives {_spoken(gives)}; an exported network takes image, uint8 (B, H, W, 3), "
            f"and gives {'classmap, uint8 (B, H, W)' if GIVES in may_give else 'here logits, float32 (B, C, h, w)'}"
        )


def _value(message: memoryview) -> tuple[str, tuple[int, int] | None]:
    """The name of an input or output, and (type, dimensions) where it is a tensor of known rank."""
    value = _once(message)
    name = bytes(value[VALUE_NAME]).decode("utf-8", "replace")
    kind = _once(value[VALUE_TYPE])
    tensor = _once(kind[TYPE_TENSOR]) if kind.keys() == {TYPE_TENSOR} else {}
    if not tensor.keys() >= {TYPE_ELEMENT, TYPE_SHAPE}:
        return name, None
    return name, (tensor[TYPE_ELEMENT], sum(number == SHAPE_DIM for number, _ in _fields(tensor[TYPE_SHAPE])))


def _once(message: memoryview) -> dict[int, int | memoryview]:
    """The fields of a message of which none is repeated: parsers differ in what they make of repetitions."""
    found = list(_fields(message))
    if len(dict(found)) != len(found):
        raise ValueError("a field stands there twice")
    return dict(found)


def _spoken(values: dict[str, Any]) -> str:
    return ", ".join(name[:64] for name in list(values)[:5]) or "nothing"


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value): an int for a varint, the bytes for everything else."""
    at, end = 0, len(message)
    while at < end:
        message.obj.left -= 1
        if message.obj.left < 0:
            raise Refused(f"its outline has more than {MOST_FIELDS} fields")
        key, at = _varint(message, at)
        wire = key & 7
        if key >> 32 or not key >> 3:  # parsers cut such a number off and see another field
            raise ValueError("a field number out of range")
        if wire == 0:
            value, at = _varint(message, at)
        else:
            size, at = _varint(message, at) if wire == 2 else ({1: 8, 5: 4}[wire] if wire in (1, 5) else -1, at)
            if size < 0 or at + size > end:
                raise ValueError("a field that ends outside its message")
            value, at = message[at : at + size], at + size
        yield key >> 3, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number that does not end")


def _varints(message: memoryview) -> Iterator[int]:
    at = 0
    while at < len(message):
        value, at = _varint(message, at)
        yield value
