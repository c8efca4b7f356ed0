"""Looks at an ONNX file before any parser does: a file from elsewhere must not read other files, nor ask for absurd memory.

The container is protocol buffers; only its outline is walked here (field numbers of onnx.proto3), payloads are skipped.
Refused: external data, operators outside the ONNX standard, functions and training graphs of the file's own, tensors that
claim more elements than their bytes can hold, graphs nested deeper than any network is.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import Refused

DOMAINS = ("", "ai.onnx")
LARGEST = 2 * 1024**3 - 1  # bytes; what protocol buffers can hold
DEEPEST = 8  # graphs inside graphs (If, Loop)
MOST_NODES = 200_000

# Field numbers of onnx.proto3.
MODEL_GRAPH, MODEL_OPSETS, MODEL_TRAINING, MODEL_FUNCTIONS = 7, 8, 20, 25
GRAPH_NODE, GRAPH_TENSOR, GRAPH_SPARSE = 1, 5, 15
NODE_ATTRIBUTE, NODE_DOMAIN = 5, 7
ATTRIBUTE_TENSOR, ATTRIBUTE_GRAPH, ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS, ATTRIBUTE_SPARSE, ATTRIBUTE_SPARSES = 5, 6, 10, 11, 22, 23
TENSOR_DIMS, TENSOR_EXTERNAL, TENSOR_LOCATION = 1, 13, 14


def check(path: Path) -> Path:
    """The path itself when the file may be given to a parser; Refused otherwise."""
    if path.is_symlink() or not path.is_file():
        raise Refused(f"{path} is not a plain file; an ONNX model is read from one file without links")
    size = path.stat().st_size
    if not 0 < size <= LARGEST:
        raise Refused(f"{path} has {size} bytes; an ONNX model has 1 to {LARGEST} bytes in one file")
    with path.open("rb") as file:
        whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))  # closed with the last slice of it
    try:
        _model(whole)
    except Refused as refused:
        raise Refused(f"{path}: {refused}") from None
    except (ValueError, TypeError, IndexError):  # TypeError: a number where a message must be
        raise Refused(f"{path} is not an ONNX model: its outline does not hold together; export it again") from None
    return path


def _model(message: memoryview) -> None:
    graphs, left = 0, [MOST_NODES]
    for number, value in _fields(message):
        if number in (MODEL_FUNCTIONS, MODEL_TRAINING):
            raise Refused(
                "it brings functions or a training graph of its own; only plain graphs are read. Export it again with them inlined"
            )
        if number == MODEL_OPSETS:
            _domain(b"".join(bytes(v) for n, v in _fields(value) if n == 1))
        if number == MODEL_GRAPH:
            graphs += 1
            _graph(value, 1, left)
    if graphs != 1:
        raise ValueError("a model holds one graph")


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
        elif number == NODE_ATTRIBUTE:
            for kind, inner in _fields(value):
                if kind in (ATTRIBUTE_TENSOR, ATTRIBUTE_TENSORS):
                    _tensor(inner)
                elif kind in (ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS):
                    _graph(inner, depth + 1, left)
                elif kind in (ATTRIBUTE_SPARSE, ATTRIBUTE_SPARSES):
                    raise Refused("it holds sparse tensors, which no engine here reads")


def _tensor(message: memoryview) -> None:
    elements = 1
    for number, value in _fields(message):
        if number == TENSOR_EXTERNAL or (number == TENSOR_LOCATION and value):
            raise Refused("it keeps weights in other files (external data); save it as one file")
        if number == TENSOR_DIMS:
            for dim in [value] if isinstance(value, int) else _varints(value):
                elements *= dim
    if elements > 2 * len(message):  # the densest type packs two elements into a byte
        raise Refused(f"a tensor claims {elements} elements in {len(message)} bytes")


def _domain(name: bytes) -> None:
    text = name.decode("utf-8", "replace")
    if text not in DOMAINS:
        raise Refused(f'it uses operators of the domain "{text[:64]}"; only standard ONNX operators are run here')


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value): an int for a varint, the bytes for everything else."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        wire = key & 7
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
