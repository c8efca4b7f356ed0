"""Hostile pictures, class tables, data sets and bundles; and weights through the real command line."""

import hashlib
import io
import json
import os
import struct
import zipfile
import zlib

from common import ROOT
from hostile import HARMLESS, Hostile, entry, folder_cases, loaded, tensors
from hostile_graphs import FLOAT, HEIGHT, NODES, UINT8, WIDTH, message, model, node, value, whole
from hostile_pickles import torch_zip

# -- pictures


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(wide, high, pixels=None, colour=2, before=()):
    """A PNG of these sides; `pixels` packed, or too few of them."""
    header = struct.pack(">IIBBBBB", wide, high, 8, colour, 0, 0, 0)
    rows = zlib.compress(bytes(1000)) if pixels is None else pixels
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(before) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def painted(wide, high, channels=3, value=0):
    return zlib.compress((b"\0" + bytes([value]) * wide * channels) * high)


def jpeg(wide, high):
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, high, wide, 3) + b"\x01\x11\x00\x02\x11\x00\x03\x11\x00"
    scan = b"\xff\xda" + struct.pack(">HB", 12, 3) + b"\x01\x00\x02\x00\x03\x00\x00\x3f\x00" + bytes(100)
    return b"\xff\xd8\xff\xe0\x00\x10JFIF\0\1\1\0\0\1\0\1\0\0" + frame + scan + b"\xff\xd9"


def many_rows():
    """A megabyte that unpacks to a gigabyte."""
    pack, out = zlib.compressobj(9), b""
    for _ in range(1024):
        out += pack.compress(bytes(1 << 20))
    return out + pack.flush()


PICTURES = {
    "a PNG of 10^10 pixels": lambda o: png(100_000, 100_000),
    "a PNG of 2^31 by 2^31": lambda o: png(2**31 - 1, 2**31 - 1),
    "a PNG without width": lambda o: png(0, 32),
    "a PNG bomb": lambda o: png(16_000, 16_000, many_rows()),
    "a PNG with a text bomb": lambda o: png(32, 32, b"", before=[chunk(b"zTXt", b"a\0\0" + many_rows())]),
    "a PNG with a profile bomb": lambda o: png(32, 32, b"", before=[chunk(b"iCCP", b"a\0\0" + many_rows())]),
    "a PNG with a false chunk": lambda o: png(32, 32) + struct.pack(">I", 2**31) + b"IDAT",
    "a JPEG of 65,500 by 65,500": lambda o: jpeg(65_500, 65_500),
    "half a JPEG": lambda o: jpeg(32, 32)[:60],
    "PostScript": lambda o: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n(" + str(o / "mark").encode() + b") (w) file\n",
    "an SVG": lambda o: b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
    "a TIFF": lambda o: b"II*\0\x08\0\0\0" + bytes(100),
    "a GIF": lambda o: b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(100),
    "a PSD": lambda o: b"8BPS\0\1" + bytes(100),
    "a WMF": lambda o: b"\xd7\xcd\xc6\x9a" + bytes(100),
    "a zip": lambda o: torch_zip(loaded("os", "system", f"touch {o / 'mark'}", protocol=2)),
    "a pickle": lambda o: loaded("os", "system", f"touch {o / 'mark'}", protocol=2),
    "an array of objects": lambda o: b"\x93NUMPY\x01\x00" + loaded("os", "system", "x", protocol=2),
    "nothing": lambda o: b"",
}


# -- data sets

CLASSES = {"classes": [{"name": "road"}, {"name": "tree"}]}


def data_set(given):
    """Two sound pairs and a table; the request that reads them."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (given / split / kind).mkdir(parents=True)
        (given / split / "images" / "a.png").write_bytes(png(32, 32, painted(32, 32, value=len(split))))
        (given / split / "labels" / "a.png").write_bytes(png(32, 32, zlib.compress((b"\0" + bytes(16) + b"\1" * 16) * 32), colour=0))
    (given / "classes.json").write_text(json.dumps(CLASSES))
    return {"source": {"kind": "folder", "root": str(given), "images": "{split}/images/{stem}.png", "classes": "classes.json"}}


def pictured(given, outside, content, kind="images"):
    asked = data_set(given)
    (given / "train" / kind / "a.png").write_bytes(content)
    return asked


def tabled(given, outside, content, suffix):
    asked = data_set(given)
    (given / f"table{suffix}").write_bytes(content)
    asked["source"]["classes"] = f"table{suffix}"
    return asked


def replaced(given, outside, make):
    asked = data_set(given)
    file = given / "train/images/a.png"
    file.unlink()
    make(file, outside)
    return asked


def rooted(given, outside, content):
    (given / "data.zip").write_bytes(content)
    return {"source": {"kind": "folder", "root": str(given / "data.zip")}}


def listing(given, outside, lines):
    asked = data_set(given)
    for split in ("train", "val"):
        (given / f"{split}.txt").write_bytes(lines)
    asked["source"]["lists"] = "{split}.txt"
    return asked


def rowed(given, outside, name, content):
    (given / name).write_bytes(content)
    return {"source": {"kind": "hf", "files": {"train": [str(given / name)]}, "classes": ["road", "tree"]}}


def slips(outside):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../outside/mark", "x")
        archive.writestr("/etc/cron.d/x", "x")
        archive.writestr("big", bytes(1 << 24))
    return out.getvalue()


TABLES = {
    "a Python tag": (b"classes: !!python/object/apply:os.system ['touch mark']\n", ".yaml"),
    "a Python name": (b"classes: !!python/name:os.system\n", ".yaml"),
    "a billion laughs": (
        b"a: &a [x,x,x,x,x,x,x,x,x]\n"
        + b"".join(b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 9)) for i in range(12)),
        ".yaml",
    ),
    "merge keys": (b"a: &a {x: 1}\nb: &b {<<: [*a, *a]}\nclasses: {<<: [*b, *b]}\n", ".yaml"),
    "brackets": (b"[" * 100_000, ".yaml"),
    "braces in JSON": (b'{"classes":' + b"[" * 200_000 + b"]" * 200_000 + b"}", ".json"),
    "10 MB": (b'{"classes": "' + b"x" * 10_000_000 + b'"}', ".json"),
    "a pickle": (loaded("os", "system", "x", protocol=2), ".json"),
    "numbers without end": (b'{"classes":[{"name":"a","id":' + b"9" * 100_000 + b"}]}", ".json"),
    "another ending": (loaded("os", "system", "x", protocol=2), ".pkl"),
    "zeros": (bytes(5000), ".yaml"),
    "control characters": (b'{"classes": [{"name": "\\u001b[2J\\u0007"}]}', ".json"),
}
OTHERS = {
    "a FIFO": lambda file, outside: os.mkfifo(file),
    "a link to a device": lambda file, outside: file.symlink_to("/dev/zero"),
    "a link to the environment": lambda file, outside: file.symlink_to("/proc/self/environ"),
    "a link that leads out": lambda file, outside: file.symlink_to(outside / "secret.txt"),
    "a link in circles": lambda file, outside: file.symlink_to(file),
    "a folder": lambda file, outside: file.mkdir(),
    "a terabyte": lambda file, outside: (file.write_bytes(png(32, 32)), os.truncate(file, 1 << 40)),
}


def data_cases():
    found = {"a sound data set": Hostile("data", lambda g, o: data_set(g), "", HARMLESS)}
    for i, (name, content) in enumerate(PICTURES.items()):
        kind = ("images", "labels")[i % 3 == 2]
        found[f"data with {name} among its {kind}"] = Hostile("data", lambda g, o, c=content, k=kind: pictured(g, o, c(o), k), r"a\.png")
    for name, (content, suffix) in TABLES.items():
        found[f"a class table of {name}"] = Hostile("data", lambda g, o, c=content, s=suffix: tabled(g, o, c, s), "class table")
    for name, make in OTHERS.items():
        found[f"data with {name}"] = Hostile("data", lambda g, o, m=make: replaced(g, o, m), r"a\.png|a: ")
    lists = {
        "traversal": b"../../outside/secret\n",
        "a path from the root": b"/etc/passwd\n",
        "zeros": bytes(1000),
        "a pickle": loaded("os", "system", "x"),
    }
    for name, lines in lists.items():
        found[f"a list of {name}"] = Hostile("data", lambda g, o, x=lines: listing(g, o, x), r"train\.txt")
    found["a zip in place of a folder"] = Hostile("data", lambda g, o: rooted(g, o, slips(o)), "not a folder")
    rows = {
        "x.parquet": b"PAR1" + bytes(200) + b"PAR1",
        "y.parquet": loaded("os", "system", "x", protocol=2),
        "x.arrow": bytes(300),
        "x.zip": slips(None),
    }
    for name, content in rows.items():
        found[f"rows of a false {name}"] = Hostile(
            "data", lambda g, o, n=name, c=content: rowed(g, o, n, c), "cannot be loaded|give .parquet"
        )
    return found


# -- bundles


def bundle(given):
    """A sound bundle around the sound graph, as the bundle stage writes it; the request that checks it."""
    files = ROOT / "stages/bundle_files"
    contents = {
        "run.py": (files / "run.py").read_bytes(),
        "runtime.py": (files / "runtime_onnxruntime.py").read_bytes(),
        "engine.onnx": model(),
        "model.onnx": model(),
        "preprocessing.json": json.dumps({"input": {"size": [HEIGHT, WIDTH]}}).encode(),
        "classes.json": json.dumps(
            {"classes": ["r", "g", "b"], "colours": [[255, 0, 0], [0, 255, 0], [0, 0, 255]], "ignore": 255}
        ).encode(),
        "requirements.txt": b"numpy\npillow\nonnxruntime\n",
        "README.txt": b"",
        "verdict.json": b"{}",
        "sample.png": png(WIDTH, HEIGHT, zlib.compress(rows())),
        "expected.png": png(WIDTH, HEIGHT, zlib.compress(expected()), colour=0),
    }
    for name, content in contents.items():
        (given / name).write_bytes(content)
    return signed(given)


def rows():
    return b"".join(b"\0" + bytes(v for x in range(WIDTH) for v in colour(x, y)) for y in range(HEIGHT))


def expected():
    return b"".join(b"\0" + bytes(max(range(3), key=lambda c: colour(x, y)[c]) for x in range(WIDTH)) for y in range(HEIGHT))


def colour(x, y):
    return ((7 * x) % 200, (5 * y) % 201 + (7 * x) % 200 % 2, (3 * x + 2 * y) % 203)


def signed(given, **changes):
    """bundle.json with the digests of what lies there now."""
    digests = {
        f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(given.iterdir()) if f.is_file() and f.name != "bundle.json"
    }
    engine = {"kind": "onnxruntime", "provider": "cpu", "threads": 1}
    whole = {"engine": engine, "passed": True, "least_agreement": 0.999, "sample": "a", "verdict": {}, "files": digests}
    (given / "bundle.json").write_text(json.dumps(whole | changes))
    return {"command": ["-B", str(given / "run.py"), "--check"], "cwd": str(given.parent / "work")}


def native(given, **changes):
    """The same bundle around an engine that gives logits, with argmax.c for the rest."""
    bundle(given)
    logits, turned = value("logits", FLOAT, "B", 3, HEIGHT, WIDTH), message((1, "perm"), (20, 7), *((8, i) for i in (0, 3, 1, 2)))
    tail = (node("ArgMax", ["logits"], ["c"], whole("axis", 1), whole("keepdims", 0)), NODES[2])
    contents = {
        "engine.onnx": model(nodes=(NODES[0], node("Transpose", ["f"], ["logits"], turned)), gives=(logits,)),
        "engine.tail.onnx": model(nodes=tail, takes=(logits,), gives=(value("classmap", UINT8, "B", HEIGHT, WIDTH),)),
        "argmax.py": (ROOT / "stages/bundle_files/argmax.py").read_bytes(),
        "argmax.c": (ROOT / "kernels/upsample_argmax/argmax.c").read_bytes(),
    }
    for name, content in contents.items():
        (given / name).write_bytes(content)
    engine = {"kind": "onnxruntime", "provider": "cpu", "threads": 1, "argmax": "native"}
    return signed(given, **{"engine": engine, "tail": {"size": [HEIGHT, WIDTH], "align_corners": False, "classes": 3}} | changes)


def tampered(given, outside, change, sign=False, make=bundle):
    asked = make(given)
    change(given, outside)
    return signed(given) if sign else asked


def put(name, content):
    return lambda given, outside: (given / name).write_bytes(content(outside) if callable(content) else content)


def link(name, target):
    def change(given, outside):
        content = (given / name).read_bytes()
        (given / name).unlink()
        if target is None:
            (outside / "copy").write_bytes(content)
        (given / name).symlink_to(target or outside / "copy")

    return change


def fifo(name):
    def change(given, outside):
        (given / name).unlink()
        os.mkfifo(given / name)

    return change


def described(**changes):
    return lambda given, outside: signed(given, **changes)


def code(outside):
    return f"open({str(outside / 'mark')!r}, 'w')\n".encode()


TAMPERED = {
    "another runtime.py": put("runtime.py", lambda o: code(o) + b"def load(folder, settings):\n    pass\n"),
    "other requirements": put("requirements.txt", b"evil==1.0\n"),
    "another size": put("preprocessing.json", b'{"input": {"size": [100000, 100000]}}'),
    "other classes": put("classes.json", b'{"classes": [], "colours": []}'),
    "another engine": put("engine.onnx", bytes(range(256))),
    "another sample": put("sample.png", png(100_000, 100_000)),
    "a linked engine": link("engine.onnx", "/etc/passwd"),
    "an engine that is a FIFO": fifo("engine.onnx"),
    "settings linked to the environment": link("preprocessing.json", "/proc/self/environ"),
    "a linked bundle.json": link("bundle.json", None),
    "a bundle.json that is a FIFO": fifo("bundle.json"),
    "a bundle.json of pickle": put("bundle.json", loaded("os", "system", "x", protocol=2)),
    "a bundle.json of 10 MB": put("bundle.json", b'{"a":"' + b"x" * 10_000_000 + b'"}'),
    "a bundle.json nested deep": put("bundle.json", b"[" * 100_000 + b"]" * 100_000),
    "a bundle.json that is a list": put("bundle.json", b"[]"),
    "no file to compare": described(files={}),
    "files that lead out": described(files={"../outside/secret.txt": "0" * 64}),
    "files from the root": described(files={"/etc/passwd": "0" * 64}),
    "files as a list": described(files=["run.py"]),
    "agreement of zero": described(least_agreement=0.0),
    "agreement in words": described(least_agreement="0.999"),
    "no engine settings": described(engine=None),
    "an unknown provider": described(engine={"kind": "onnxruntime", "provider": "evil", "threads": 1}),
    "threads in words": described(engine={"kind": "onnxruntime", "provider": "cpu", "threads": "many"}),
}
RESIGNED = {
    "a size of 10^10 pixels": put("preprocessing.json", b'{"input": {"size": [100000, 100000]}}'),
    "a size in words": put("preprocessing.json", b'{"input": {"size": ["a", "b"]}}'),
    "no size": put("preprocessing.json", b"{}"),
    "an engine of random bytes": put("engine.onnx", bytes(range(256)) * 9),
    "an engine of pickle": put("engine.onnx", loaded("os", "system", "x", protocol=2)),
    "a sample that is a bomb": put("sample.png", png(100_000, 100_000)),
    "a sample of PostScript": put("sample.png", PICTURES["PostScript"]),
    "an expected map that is a bomb": put("expected.png", png(16_000, 16_000, painted(1, 1))),
}
TAMPERED_NATIVE = {
    "another argmax.c": put("argmax.c", b"__attribute__((constructor)) static void mark(void) { __builtin_trap(); }"),
    "another argmax.py": put("argmax.py", code),
    "another tail": put("engine.tail.onnx", bytes(range(256))),
    "a linked argmax.c": link("argmax.c", None),
    "an argmax.c that is a FIFO": fifo("argmax.c"),
}
TAILS = {  # what bundle.json says of the step from logits to classes
    "no tail": None,
    "an empty tail": {},
    "a tail of 10^10 pixels": {"size": [100_000, 100_000], "align_corners": False, "classes": 3},
    "a tail of another size": {"size": [HEIGHT // 2, WIDTH], "align_corners": False, "classes": 3},
    "a tail in words": {"size": ["a", "b"], "align_corners": False, "classes": 3},
    "a tail that is true": {"size": [True, WIDTH], "align_corners": False, "classes": 3},
    "a tail without classes": {"size": [HEIGHT, WIDTH], "align_corners": False, "classes": 0},
    "a tail of a million classes": {"size": [HEIGHT, WIDTH], "align_corners": False, "classes": 10**6},
    "corners in words": {"size": [HEIGHT, WIDTH], "align_corners": "no", "classes": 3},
}
PLANTED = {
    "numpy.py": code,
    "json.py": code,
    "PIL.py": code,
    "onnxruntime.py": code,
    "sitecustomize.py": code,
    "hashlib.py": code,
}


def planted_cache(given, outside):
    """A compiled runtime.py that claims to belong to the source."""
    import importlib._bootstrap_external as compiled
    import sys

    source = given / "runtime.py"
    info = source.stat()
    content = compiled._code_to_timestamp_pyc(compile(code(outside), "runtime.py", "exec"), int(info.st_mtime), info.st_size)
    (given / "__pycache__").mkdir()
    (given / f"__pycache__/runtime.{sys.implementation.cache_tag}.pyc").write_bytes(content)


def bundle_cases():
    says = "fetch (this folder|it) again|cannot be opened|not usable here|cannot be read|does not"
    found = {"a sound bundle": Hostile("command", lambda g, o: bundle(g), "", HARMLESS)}
    for name, change in TAMPERED.items():
        found[f"a bundle with {name}"] = Hostile("command", lambda g, o, c=change: tampered(g, o, c), says)
    for name, change in RESIGNED.items():
        found[f"a bundle signed anew with {name}"] = Hostile("command", lambda g, o, c=change: tampered(g, o, c, sign=True), says)
    for name, content in PLANTED.items():
        found[f"a bundle beside a {name}"] = Hostile("command", lambda g, o, n=name, c=content: tampered(g, o, put(n, c)), "", HARMLESS)
    alone = {"environment": {"PATH": "/nonexistent"}}  # no compiler there: nothing but the runner may be started
    found["a sound bundle with argmax.c"] = Hostile("command", lambda g, o: native(g) | alone, "", HARMLESS)
    for name, change in TAMPERED_NATIVE.items():
        found[f"a bundle with {name}"] = Hostile("command", lambda g, o, c=change: tampered(g, o, c, make=native), says)
    for name, tail in TAILS.items():
        found[f"a bundle signed anew with {name}"] = Hostile("command", lambda g, o, t=tail: native(g, tail=t), says)
    found["a bundle beside an argmax.so"] = Hostile(
        "command", lambda g, o: tampered(g, o, put("argmax.so", code), make=native) | alone, "", HARMLESS
    )
    found["a bundle beside a compiled runtime"] = Hostile("command", lambda g, o: tampered(g, o, planted_cache), "", HARMLESS)
    for name, content in PICTURES.items():

        def shown(given, outside, content=content):
            asked = bundle(given)
            (given / "picture.png").write_bytes(content(outside))
            return asked | {"command": [*asked["command"][:2], str(given / "picture.png")]}

        found[f"a bundle given {name}"] = Hostile("command", shown, "cannot be read as a picture")
    return found


# -- the command line

RECIPE = """
name: hostile
stages:
  data: {kind: data, source: {kind: streets, seed: 1, train: 2, val: 1, test: 0}, size: [32, 32]}
  teacher: {kind: load, data: data, model: {kind: tiny, size: small}, weights: {file: FILE}}
"""


def command_cases():
    def planned(given, outside, file):
        recipe = given.parent / "work/recipe.yaml"
        recipe.write_text(RECIPE.replace("FILE", json.dumps(str(file))))
        command = ["-m", "pipeline", "plan", str(recipe), "--profile", "none", "--store", str(given.parent / "work/store")]
        return {"command": command, "cwd": str(ROOT), "ours": True}

    def written(given, outside, name, content):
        (given / name).write_bytes(content)
        return planned(given, outside, given / name)

    def from_folder(given, outside, name):
        folder_cases()[name].make(given, outside)
        return planned(given, outside, given)

    call = loaded("os", "system", "touch mark", protocol=4)
    found = {
        "the command line, a pickle": lambda g, o: written(g, o, "model.pt", call),
        "the command line, a torch zip": lambda g, o: written(g, o, "model.safetensors", torch_zip(call)),
        "the command line, safetensors that lie": lambda g, o: written(
            g, o, "m.safetensors", tensors({"w": entry(shape=(2**40,))}, bytes(8))
        ),
        "the command line, traversal": lambda g, o: from_folder(g, o, "an index that names traversal"),
        "the command line, a linked shard": lambda g, o: from_folder(g, o, "a folder with a linked shard"),
        "the command line, a device": lambda g, o: planned(g, o, "/dev/zero"),
        "the command line, nothing there": lambda g, o: planned(g, o, g / "none.safetensors"),
    }
    return {name: Hostile("command", make, "safetensors|folder|plain file|not found") for name, make in found.items()}


def cases():
    return data_cases() | bundle_cases() | command_cases()
