"""Hostile weights, written here byte by byte: safetensors that lie, and folders that lead out (hostile_pickles.py has the pickles).

A case is made in two folders: `given` is what a user would hand to the product, `outside` holds what nobody may touch. Whatever
a payload would do, it leaves something in `outside`.
"""

import json
import os
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

REFUSED, HARMLESS, TRIGGERED = "refused", "harmless", "triggered"
TINY = {"kind": "tiny", "size": "small"}


@dataclass(frozen=True)
class Hostile:
    """`make(given, outside)` writes the files and returns what to ask; `says` is the pattern that the refusal must hold."""

    way: str  # how a user makes the product open it: a name in opener.py
    make: Callable[[Path, Path], dict]
    says: str
    ends: str = REFUSED


def loaded(module, name, *arguments, protocol=0, end=b"."):
    """A pickle that calls module.name(*arguments) when it is opened."""
    if protocol >= 4:
        body = short(module) + short(name) + b"\x93"
    else:
        body = b"c" + module.encode() + b"\n" + name.encode() + b"\n"
    head = b"" if protocol < 2 else b"\x80" + bytes([protocol])
    return head + body + b"(" + b"".join(argument(a, protocol) for a in arguments) + b"tR" + end


def short(text):
    return b"\x8c" + bytes([len(text)]) + text.encode()


def argument(value, protocol):
    if isinstance(value, bytes):  # opcodes already
        return value
    if protocol < 2:
        return b"V" + value.encode() + b"\n"
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def npy_of(pickle, descr="|O", shape=(1,)):
    """An .npy file whose elements are a pickle."""
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + pickle


# -- safetensors


def weights(given, name, content, model=TINY):
    (given / name).write_bytes(content)
    (given / "canary_module.py").write_text(f"open({str(given.parent / 'outside/mark')!r}, 'w')")
    return {"weights": str(given / name), "model": model}


def tensors(header, body=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(dtype="F32", shape=(2,), at=0, size=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}


def _twice(a, b):
    return b'{"w":' + json.dumps(a).encode() + b',"w":' + json.dumps(b).encode() + b"}"


BODY = bytes(8)
MALFORMED = {
    "a header longer than the file": tensors({"w": entry()}, BODY, 2**40),
    "a header of 2^64 - 1": tensors({"w": entry()}, BODY, 2**64 - 1),
    "a negative header": tensors({"w": entry()}, BODY, 2**63),
    "an empty header": tensors(b"", BODY),
    "a header that ends in the data": tensors({"w": entry()}, BODY, 70),
    "no JSON": tensors(b"{nothing}", BODY),
    "JSON that is a list": tensors(b"[" + b" " * 8 + b"]", BODY),
    "JSON nested a million deep": tensors(b'{"w":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}", BODY),
    "JSON of four million lists": tensors(b'{"w":[' + b"[]," * 2_700_000 + b"[]]}", BODY),
    "a number of a million digits": tensors(b'{"w":{"dtype":"F32","shape":[' + b"9" * 1_000_000 + b'],"data_offsets":[0,8]}}', BODY),
    "no UTF-8": tensors(b'{"\xff\xfe":{}}', BODY),
    "half a surrogate": tensors(b'{"\\ud800":{"dtype":"EVIL","shape":[2],"data_offsets":[0,8]}}', BODY),
    "a key of control characters": tensors({"\x1b[2Jw": entry("EVIL")}, BODY),
    "two tensors in one place": tensors({"a": entry(), "b": entry()}, BODY),
    "tensors that overlap": tensors({"a": entry(), "b": entry(at=4)}, bytes(12)),
    "a gap between tensors": tensors({"a": entry(), "b": entry(at=16)}, bytes(24)),
    "a tensor beyond the end": tensors({"w": entry(at=8)}, BODY),
    "a tensor that ends before it begins": tensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, BODY),
    "a negative offset": tensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, BODY),
    "an offset of 2^64": tensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**64 + 8]}}, BODY),
    "three offsets": tensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]}}, BODY),
    "offsets in words": tensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": ["0", "8"]}}, BODY),
    "an unknown type": tensors({"w": entry("EVIL")}, BODY),
    "a type that is a list": tensors({"w": entry(["F32"])}, BODY),
    "a shape that overflows": tensors({"w": entry(shape=(2**62, 8))}, BODY),
    "a shape of four terabytes": tensors({"w": entry(shape=(2**40,))}, BODY),
    "a negative shape": tensors({"w": entry(shape=(-2, -1))}, BODY),
    "a broken shape": tensors({"w": entry(shape=(1.5,))}, BODY),
    "a shape of true": tensors({"w": entry(shape=(True, 2))}, BODY),
    "ten thousand dimensions": tensors({"w": entry(shape=(1,) * 10_000 + (2,))}, BODY),
    "a name twice": tensors(_twice(entry(), entry(shape=(1, 2))), BODY),
    "no type": tensors({"w": {"shape": [2], "data_offsets": [0, 8]}}, BODY),
    "one thing too many": tensors({"w": entry() | {"code": "x"}}, BODY),
    "metadata of numbers": tensors({"__metadata__": {"n": 1}, "w": entry()}, BODY),
    "metadata that is a list": tensors({"__metadata__": [], "w": entry()}, BODY),
    "bytes after the last tensor": tensors({"w": entry()}, BODY + b"tail"),
    "nothing": b"",
    "seven bytes": b"\x01" * 7,
    "zeros": bytes(4096),
    "a web page": b"<!DOCTYPE html><html>Not found</html>",
    "a pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
}
MALFORMED |= {f"random bytes {seed}": random.Random(seed).randbytes(2000) for seed in range(4)}


def malformed_cases():
    says = "not a sound safetensors file|does not begin like|in its header|is a pickle"
    return {
        f"safetensors, {name}": Hostile("weights", lambda g, o, c=content: weights(g, "model.safetensors", c), says)
        for name, content in MALFORMED.items()
    }


def hidden_cases():
    """Pickles inside files that are sound otherwise."""

    def call(outside):
        return loaded("os", "system", f"touch {outside / 'mark'}", protocol=2)

    def appended(given, outside):
        return weights(given, "model.safetensors", tensors({"w": entry()}, BODY + call(outside)))

    def as_tensor(given, outside):
        content = call(outside)
        return weights(given, "model.safetensors", tensors({"w": entry("U8", (len(content),), 0, len(content))}, content))

    def in_metadata(given, outside):
        notes = {"__metadata__": {"pickle": call(outside).decode("latin1"), "auto_map": "canary_module.X", "format": "../../evil"}}
        return weights(given, "model.safetensors", tensors(notes | {"w": entry()}, BODY))

    def as_key(given, outside):
        return weights(given, "model.safetensors", tensors({call(outside).decode("latin1"): entry()}, BODY))

    def long_header(given, outside):
        file = given / "model.safetensors"
        with open(file, "wb") as f:  # sparse: nothing of it is on the disk
            f.write(struct.pack("<Q", 100 << 20) + b"{" + b" " * 100)
            f.truncate(200 << 20)
        return {"weights": str(file), "model": TINY}

    def terabyte(given, outside):
        file, size = given / "model.safetensors", 1 << 40
        with open(file, "wb") as f:
            f.write(tensors({"w": entry("U8", (size,), 0, size)}))
            f.truncate(f.tell() + size)
        return {"weights": str(file), "model": TINY}

    return {
        "a pickle behind safetensors": Hostile("weights", appended, "not a sound safetensors file"),
        "a pickle as a tensor": Hostile("weights", as_tensor, "does not fit the model"),
        "a pickle in the metadata": Hostile("weights", in_metadata, "does not fit the model"),
        "a pickle as a key": Hostile("weights", as_key, "does not fit the model"),
        "a header of 100 MB": Hostile("weights", long_header, "in its header"),
        "a file of a terabyte": Hostile("weights", terabyte, "bytes"),
    }


# -- folders


def sound(folder, name="model.safetensors"):
    (folder / name).write_bytes(tensors({"w": entry()}, BODY))


def index(given, names):
    (given / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}), encoding="utf-8")
    return {"weights": str(given), "model": TINY}


def folder_cases():
    ways = {
        "traversal": "../outside/secret.safetensors",
        "an absolute path": None,
        "/proc/self/environ": "/proc/self/environ",
        "/dev/zero": "/dev/zero",
        "a parent": "..",
        "itself": ".",
        "a backslash": "..\\outside\\secret.safetensors",
        "a null byte": "a\0b",
        "escapes": "\x1b]0;x\x07.safetensors",
        "a name of 5000": "a" * 5000,
        "a URL": "https://127.0.0.1:9/x.safetensors",
        "a folder below": "sub/x.safetensors",
    }
    found = {}
    for name, target in ways.items():

        def make(given, outside, target=target):
            return index(given, {"w": target or str(outside / "secret.safetensors")})

        found[f"an index that names {name}"] = Hostile("weights", make, "only files of that folder are read")
    makers = {
        "an index of numbers": (lambda g, o: index(g, {"w": 1}), "must map each weight"),
        "an index of lists": (lambda g, o: index(g, ["x"]), "must map each weight"),
        "an index nested deep": (lambda g, o: _raw_index(g, b'{"weight_map":' + b"[" * 200_000 + b"]" * 200_000 + b"}"), "nested too deep"),
        "an index of 10 MB": (lambda g, o: _raw_index(g, b'{"weight_map":{"' + b"a" * 10_000_000 + b'":"x"}}'), "larger than"),
        "an index that is a pickle": (lambda g, o: _raw_index(g, loaded("os", "system", "x", protocol=2)), "not JSON"),
        "an index of pickled shards": (_pickled_shard, "not safetensors but a pickle"),
        "a linked shard": (lambda g, o: _linked(g, o, os.symlink), "link that leads out"),
        "a shard that is a hard link": (lambda g, o: _linked(g, o, os.link, "secret.txt"), "does not begin like"),
        "a shard that is a FIFO": (lambda g, o: _special(g, "fifo"), "not a plain file"),
        "a shard that is a socket": (lambda g, o: _special(g, "socket"), "not a plain file"),
        "a linked index": (lambda g, o: _link(g, "model.safetensors.index.json", o / "secret.json"), "link that leads out"),
        "a linked model": (lambda g, o: _link(g, "model.safetensors", o / "secret.safetensors"), "link that leads out"),
        "a link to a device": (lambda g, o: _link(g, "model.safetensors", Path("/dev/zero")), "link that leads out"),
        "a linked config": (lambda g, o: _with_config(g, o / "secret.json"), "link that leads out"),
        "a config linked to the environment": (lambda g, o: _with_config(g, Path("/proc/self/environ")), "link that leads out"),
        "a false hub cache": (_false_cache, "link that leads out"),
        "a FIFO": (lambda g, o: _special(g, "fifo", whole=True), "plain file"),
        "a link that leads in circles": (
            lambda g, o: _link(g, "model.safetensors", g / "model.safetensors"),
            "leads out|not a plain file|found",
        ),
        "only pickles": (lambda g, o: _only(g, "pytorch_model.bin"), "not safetensors but a pickle"),
        "a pickle whose name acts on terminals": (lambda g, o: _only(g, "\x1b[2J\x1b]0;x\x07.bin"), "not safetensors but a pickle"),
        "a pickle whose name is a command": (lambda g, o: _only(g, "';touch mark;'$(touch mark).pt"), "not safetensors but a pickle"),
        "a folder in place of the file": (lambda g, o: _folder(g), "plain file|holds 0"),
    }
    return found | {f"a folder with {name}": Hostile("weights", make, says) for name, (make, says) in makers.items()}


def _raw_index(given, content):
    (given / "model.safetensors.index.json").write_bytes(content)
    return {"weights": str(given), "model": TINY}


def _pickled_shard(given, outside):
    (given / "a.safetensors").write_bytes(loaded("os", "system", f"touch {outside / 'mark'}", protocol=4))
    return index(given, {"w": "a.safetensors"})


def _linked(given, outside, link, what="secret.safetensors"):
    link(outside / what, given / "a.safetensors")
    return index(given, {"w": "a.safetensors"})


def _link(given, name, target):
    (given / name).symlink_to(target)
    return {"weights": str(given), "model": TINY}


def _with_config(given, target):
    sound(given)
    (given / "config.json").symlink_to(target)
    return {"weights": str(given), "model": {"kind": "hf"}}


def _special(given, kind, whole=False):
    import socket

    file = given / ("model.safetensors" if whole else "a.safetensors")
    if kind == "fifo":
        os.mkfifo(file)
    else:
        here = os.getcwd()
        os.chdir(given)  # the path of a socket is short
        try:
            with socket.socket(socket.AF_UNIX) as s:
                s.bind(file.name)
        finally:
            os.chdir(here)
    return {"weights": str(given), "model": TINY} if whole else index(given, {"w": "a.safetensors"})


def _false_cache(given, outside):
    """The layout of the hub's cache, whose links are followed, with a blobs/ that is a link itself."""
    folder = given / "models/snapshots/0123"
    folder.mkdir(parents=True)
    (given / "models/blobs").symlink_to(outside)
    (folder / "model.safetensors").symlink_to(outside / "secret.safetensors")
    return {"weights": str(folder), "model": TINY}


def _only(given, name):
    (given / name).write_bytes(loaded("os", "system", "touch mark", protocol=2))
    return {"weights": str(given), "model": TINY}


def _folder(given):
    (given / "model.safetensors").mkdir()
    return {"weights": str(given), "model": TINY}


def cases():
    return malformed_cases() | hidden_cases() | folder_cases()
