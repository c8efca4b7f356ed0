"""Hostile ONNX files and engines, written here byte by byte around a sound one: image, uint8 (B, 64, 96, 3), to classmap (B, 64, 96)."""

import os
import random
from pathlib import Path

from hostile import HARMLESS, Hostile

UINT8, FLOAT, INT64, STRING = 2, 1, 7, 8
HEIGHT, WIDTH = 64, 96


def number(n):
    """A varint of protocol buffers."""
    n, out = n % 2**64, b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def message(*fields):
    """(field number, int or bytes or str) in order."""
    out = bytearray()
    for field, value in fields:
        if isinstance(value, int):
            out += number(field << 3) + number(value)
        else:
            value = value.encode() if isinstance(value, str) else value
            out += number(field << 3 | 2) + number(len(value)) + value
    return bytes(out)


def node(operator, inputs, outputs, *attributes, domain=""):
    names = [(1, name) for name in inputs] + [(2, name) for name in outputs]
    return message(*names, (4, operator), *((5, a) for a in attributes), *([(7, domain)] if domain else []))


def whole(name, value):
    """An attribute that is an integer."""
    return message((1, name), (20, 2), (3, value))


def value(name, kind, *dims):
    shape = message(*((1, message((1, d) if isinstance(d, int) else (2, d))) for d in dims))
    return message((1, name), (2, message((1, message((1, kind), (2, shape))))))


def tensor(name, kind, dims, *fields):
    return message(*((1, d) for d in dims), (2, kind), (8, name), *fields)


IMAGE, CLASSMAP = value("image", UINT8, "B", HEIGHT, WIDTH, 3), value("classmap", UINT8, "B", HEIGHT, WIDTH)
NODES = (
    node("Cast", ["image"], ["f"], whole("to", FLOAT)),
    node("ArgMax", ["f"], ["c"], whole("axis", 3), whole("keepdims", 0)),
    node("Cast", ["c"], ["classmap"], whole("to", UINT8)),
)


def model(*more, nodes=NODES, takes=(IMAGE,), gives=(CLASSMAP,), opsets=(("", 20),), around=(), raw=b""):
    """`more`: fields of the graph; `around`: fields of the model; `raw`: bytes of the graph that are ready."""
    graph = raw + message(*((1, n) for n in nodes), (2, "g"), *more, *((11, v) for v in takes), *((12, v) for v in gives))
    sets = ((8, message((1, domain), (2, version))) for domain, version in opsets)
    return message((1, 10), *sets, *around, (7, graph))


def added(*nodes):
    """The sound graph with nodes in front whose result is added to all pixels, so that no optimiser drops them."""
    tail = (NODES[0], node("Add", ["f", "bad"], ["g"]), node("ArgMax", ["g"], ["c"], whole("axis", 3), whole("keepdims", 0)), NODES[2])
    return (*nodes, *tail)


def external(location, *more):
    entries = [("location", location), *more]
    return tensor("w", FLOAT, (4,), *((13, message((1, k), (2, v))) for k, v in entries), (14, 1))


def with_weight(content, *more):
    return model((5, content), *more, nodes=added(node("Identity", ["w"], ["bad"])))


def constant(dims):
    """A node that makes a constant of these dims: a few bytes that ask for any memory."""
    shape = (5, tensor("s", INT64, (len(dims),), (9, b"".join(d.to_bytes(8, "little", signed=True) for d in dims))))
    return model(shape, nodes=added(node("ConstantOfShape", ["s"], ["big"]), node("ReduceSum", ["big"], ["bad"], whole("keepdims", 0))))


def nested(depth):
    graph = message((1, node("Identity", ["image"], ["x"])), (2, "leaf"))
    for _ in range(depth):
        branch = message((1, "then_branch"), (20, 5), (6, graph))
        graph = message((1, message((4, "If"), (5, branch))), (2, "g"))
    return message((1, 10), (8, message((1, ""), (2, 20))), (7, graph))


def looped():
    forever = 2**63 - 1
    inner = message(
        (1, node("Identity", ["go"], ["on"])),
        (2, "body"),
        *((11, value(n, k)) for n, k in (("i", INT64), ("go", 9))),
        (12, value("on", 9)),
    )
    loop = node("Loop", ["n", ""], ["bad"], message((1, "body"), (20, 5), (6, inner)))
    return model((5, tensor("n", INT64, (1,), (9, forever.to_bytes(8, "little")))), nodes=added(loop))


def sparse_attribute():
    return model(nodes=(*NODES, node("Constant", [], ["x"], message((1, "sparse_value"), (20, 11), (22, b"")))))


def external_files():
    """{name: (location, more entries)}"""
    return {
        "traversal": ("../outside/secret.txt",),
        "a path from the root": ("/etc/passwd",),
        "the environment": ("/proc/self/environ",),
        "a device": ("/dev/zero",),
        "its own file": ("model.onnx",),
        "a link": ("link.bin",),
        "a hard link": ("hard.bin",),
        "an offset below zero": ("beside.bin", ("offset", "-8"), ("length", "16")),
        "a length below zero": ("beside.bin", ("offset", "0"), ("length", "-1")),
        "a length of 2^63": ("beside.bin", ("offset", "0"), ("length", str(2**63))),
        "keys that nobody knows": ("beside.bin", ("__class__", "x"), ("checksum", "0")),
        "no location": ("",),
        "the memory of the process": ("*/_ORT_MEM_ADDR_/*", ("offset", "4096"), ("length", "16")),
        "a URL": ("http://127.0.0.1:9/x",),
        "a folder": (".",),
    }


def graphs():
    """{name: (content, what the refusal says)}"""
    cut, sound = len(model()), model()
    in_node = model(nodes=(*NODES, node("Constant", [], ["x"], message((1, "value"), (20, 4), (5, external("../outside/secret.txt"))))))
    location_only = with_weight(tensor("w", FLOAT, (4,), (9, bytes(16)), (14, 1)))
    return {
        "external data in a node": (in_node, "external data"),
        "external data without entries": (location_only, "external data"),
        "a domain of its own": (model(nodes=(node("Run", ["image"], ["classmap"], domain="com.evil"),)), "domain"),
        "a domain among the opsets": (model(opsets=(("", 20), ("com.evil", 1))), "domain"),
        "Microsoft's domain": (model(nodes=(node("EPContext", [], ["classmap"], domain="com.microsoft"),)), "domain"),
        "Python operators": (model(nodes=(node("PyOp", ["image"], ["classmap"], domain="ai.onnx.contrib"),)), "domain"),
        "a domain that looks empty": (model(nodes=(node("Run", ["image"], ["classmap"], domain="\u200b"),)), "domain"),
        "functions": (model(around=((25, message((1, "f"))),)), "functions"),
        "a training graph": (model(around=((20, b""),)), "training"),
        "a constant of 8 TB": (constant((1 << 41,)), "memory|does not take"),
        "a constant of 40 GB": (constant((100_000, 100_000)), "memory|does not take"),
        "a constant of negative size": (constant((-5, 4)), "does not take|does not"),
        "a constant that overflows": (constant((2**62, 2**62)), "memory|does not take"),
        "a weight that claims 4 TB": (with_weight(tensor("w", FLOAT, (1 << 40,), (9, bytes(16)))), "claims"),
        "a weight of negative size": (with_weight(tensor("w", FLOAT, (-4,), (9, bytes(16)))), "claims"),
        "a weight with too few bytes": (with_weight(tensor("w", FLOAT, (4,), (9, bytes(8)))), "does not take"),
        "a weight of no type": (with_weight(tensor("w", 0, (4,), (9, bytes(16)))), "does not take"),
        "a weight of an unknown type": (with_weight(tensor("w", 99, (4,), (9, bytes(16)))), "does not take"),
        "a weight of 10,000 dims": (with_weight(tensor("w", FLOAT, (1,) * 10_000, (9, bytes(4)))), "dimensions"),
        "words for a weight": (with_weight(tensor("w", STRING, (2,), (6, "a"), (6, "b"))), "does not take"),
        "words as integers": (with_weight(tensor("w", STRING, (2,), (9, bytes(16)))), "does not take"),
        "a sparse weight": (model((15, message((1, tensor("v", FLOAT, (1,), (9, bytes(4)))), (3, 1 << 40)))), "sparse"),
        "a sparse attribute": (sparse_attribute(), "sparse"),
        "graphs 2000 deep": (nested(2000), "nested deeper"),
        "graphs 9 deep": (nested(9), "nested deeper"),
        "a loop without end": (looped(), "Loop"),
        "a sequence for an image": (model(takes=(message((1, "image"), (2, message((4, message((1, b"")))))),)), "it takes image"),
        "a map for an image": (model(takes=(message((1, "image"), (2, message((5, message((1, 1)))))),)), "it takes image"),
        "an optional image": (model(takes=(message((1, "image"), (2, message((9, b"")))),)), "it takes image"),
        "words for an image": (model(takes=(value("image", STRING, "B", HEIGHT, WIDTH, 3),)), "it takes image"),
        "an image without shape": (model(takes=(message((1, "image"), (2, message((1, message((1, UINT8)))))),)), "it takes image"),
        "an image of negative size": (model(takes=(value("image", UINT8, "B", -64, WIDTH, 3),)), "does not"),
        "an image of 2^62": (model(takes=(value("image", UINT8, "B", 2**62, 2**62, 3),)), "does not|memory"),
        "another input": (model(takes=(IMAGE, value("key", UINT8, 1))), "it takes image, key"),
        "two images": (model(takes=(IMAGE, IMAGE)), "does not hold together"),
        "no input": (model(takes=()), "it takes nothing"),
        "no output": (model(gives=()), "gives nothing"),
        "another output": (model(gives=(CLASSMAP, value("f", FLOAT, "B", HEIGHT, WIDTH, 3))), "gives classmap, f"),
        "an operator that is not there": (model(nodes=(node("Evil", ["image"], ["classmap"]),)), "does not take"),
        "an operator set of the future": (model(opsets=(("", 2**31 - 1),)), "operator set"),
        "an operator set below zero": (model(opsets=(("", -1),)), "operator set"),
        "an operator set of tomorrow": (model(opsets=(("", 90),)), "does not take"),
        "a cycle": (model(nodes=(node("Add", ["x", "classmap"], ["classmap"]), node("Identity", ["classmap"], ["x"]))), "does not take"),
        "a name made twice": (model(nodes=(*NODES, NODES[2])), "does not take"),
        "a name from nowhere": (model(nodes=(node("Identity", ["nowhere"], ["classmap"]),)), "does not take"),
        "300,000 nodes": (model(raw=message((1, node("Identity", ["image"], ["x"]))) * 300_000), "more than 10000 nodes"),
        "three million fields": (sound + message((14, b"")) * 3_000_000, "fields"),
        "a chain of 20,000": (model(nodes=chain(20_000)), "more than 10000 nodes"),
        "a chain that gives pictures": (model(nodes=chain(20)), "does not take|the engine gives"),
        "two graphs": (sound + message((7, message((2, "h")))), "does not hold together"),
        "a field number beyond 32 bits": (sound + number(1 << 35 | 7 << 3 | 2) + b"\x00", "does not hold together"),
        "field number zero": (sound + b"\x02\x00", "does not hold together"),
        "a wrong wire type": (message((1, 10), (8, message((1, ""), (2, 20)))) + number(7 << 3) + number(5), "does not hold together"),
        "a group": (sound + bytes([9 << 3 | 3]), "does not hold together"),
        "a length beyond the end": (sound + bytes([7 << 3 | 2]) + number(1 << 40), "does not hold together"),
        "a number without end": (sound + b"\xff" * 40, "does not hold together"),
        "half of it": (sound[: cut // 2], "does not hold together"),
        "one byte less": (sound[:-1], "does not hold together"),
        "nothing": (b"", "0 bytes"),
        "a pickle": (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x05touch\x85R.", "not an ONNX model"),
        "a zip": (b"PK\x03\x04" + bytes(100), "not an ONNX model"),
        "a TensorRT plan": (b"ftrt" + bytes(range(256)) * 8, "not an ONNX model"),
        "an engine of onnxruntime": (b"\x20\0\0\0ORTM" + bytes(200), "not an ONNX model"),
        **{f"random bytes {seed}": (random.Random(seed).randbytes(3000), "not an ONNX model|does not") for seed in range(6)},
    }


def chain(length):
    inner = [node("Relu", [f"x{i}"], [f"x{i + 1}"]) for i in range(length)]
    return (node("Cast", ["image"], ["x0"], whole("to", FLOAT)), *inner, node("Cast", [f"x{length}"], ["classmap"], whole("to", UINT8)))


def onnx_cases():
    found, engines = {}, ("onnxruntime", "openvino")
    for i, (name, (location, *more)) in enumerate(external_files().items()):

        def make(given, outside, location=location, more=more, engine=engines[i % 2]):
            (given / "link.bin").symlink_to(outside / "secret.txt")
            os.link(outside / "secret.txt", given / "hard.bin")
            (given / "beside.bin").write_bytes(bytes(16))
            return asked(given, with_weight(external(location, *more)), engine)

        found[f"ONNX with weights in {name}, {engines[i % 2]}"] = Hostile("onnx", make, "external data")
    for i, (name, (_, says)) in enumerate(graphs_once().items()):
        for engine in engines if "does not take" in says or "memory" in says else (engines[i % 2],):

            def make(given, outside, name=name, engine=engine):
                return asked(given, graphs_once()[name][0], engine)

            found[f"ONNX, {name}, {engine}"] = Hostile("onnx", make, says)
    return found


_made = {}


def graphs_once():
    if not _made:
        _made.update(graphs())
    return _made


def asked(given, content, engine):
    (given / "model.onnx").write_bytes(content)
    return {"folder": str(given), "engine": engine}


def cases():
    return onnx_cases()


CONTROL = Hostile("onnx", lambda given, outside: asked(given, model(), "onnxruntime"), "", HARMLESS)


def linked(given: Path, outside: Path, link):
    (outside / "model.onnx").write_bytes(model())
    link(outside / "model.onnx", given / "model.onnx")
    return {"folder": str(given), "engine": "onnxruntime"}
