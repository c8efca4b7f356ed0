"""Pickles as weights: under every name, in every cover, with the names and opcodes that went past published scanners."""

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

from hostile import Hostile, argument, loaded, npy_of, short, weights


def payloads(given, outside):
    """{name: (module, function, arguments)}: names that published scanners knew, and names that went past them."""
    mark = str(outside / "mark")
    shell, code = f"touch {mark}", f"open({mark!r}, 'w')"
    calls = {
        "os.system": (shell,),
        "posix.system": (shell,),
        "posixpath.os.system": (shell,),
        "subprocess.getoutput": (shell,),
        "subprocess.check_output": (b"]" + argument("touch", 2) + b"a" + argument(mark, 2) + b"a",),
        "builtins.exec": (code,),
        "builtins.eval": (code,),
        "builtins.open": (mark, "w"),
        "__builtin__.eval": (code,),
        "io.open": (mark, "w"),
        "pathlib.Path.touch": (loaded("pathlib", "Path", mark, protocol=2, end=b""),),
        "runpy.run_path": (str(given / "canary_module.py"),),
        "importlib.import_module": ("canary_module",),
        "pkgutil.resolve_name": ("canary_module",),
        "pydoc.locate": ("canary_module",),
        "pydoc.pipepager": ("", shell),
        "pty.spawn": ("touch",),
        "timeit.timeit": (code,),
        "timeit.repeat": ("0", code),
        "cProfile.run": (code,),
        "profile.run": (code,),
        "ctypes.CDLL": (str(given / "evil.so"),),
        "code.compile_command": (code,),
        "numpy.testing._private.utils.runstring": (code, b"}"),
        "numpy.f2py.crackfortran.myeval": (code,),
        "numpy.load": (str(given / "nested.npy"),),
        "torch.load": (str(given / "nested.pt"),),
        "torch.utils.collect_env.run": (shell,),
        "torch.hub.load": (str(given), "x"),
        "pip.main": (b"]" + argument("download", 2) + b"a",),
        "shutil.copyfile": (str(outside / "secret.txt"), mark),
        "shutil.rmtree": (str(outside),),
        "sqlite3.connect": (mark,),
        "logging.FileHandler": (mark,),
        "urllib.request.urlopen": ("http://127.0.0.1:9/x",),
        "smtplib.SMTP": ("127.0.0.1",),
        "webbrowser.open": (f"file://{mark}",),
        "multiprocessing.util.spawnv_passfds": (b"C\x02sh", b"]", b"]"),
        "venv.create": (mark,),
        "operator.attrgetter": ("system",),
        "functools.partial": (loaded("builtins", "exec", code, protocol=2, end=b""),),
        "uuid._get_command_stdout": ("touch", mark),
    }
    return {name: (*name.rpartition(".")[::2], arguments) for name, arguments in calls.items()}


def opcodes(outside):
    """{name: bytes}: other ways for a pickle to reach a call, and pickles that break off after it."""
    shell, mark = f"touch {outside / 'mark'}", str(outside / "mark")
    call = loaded("os", "system", shell, protocol=2, end=b"")
    inner = loaded("os", "system", shell, protocol=4)
    return {
        "INST": b"(V" + shell.encode() + b"\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nV" + shell.encode() + b"\no.",
        "NEWOBJ": b"\x80\x02cpathlib\nPath\n(V" + mark.encode() + b"\nt\x81.",
        "BUILD with a __setstate__": b"\x80\x02c__main__\nX\n)\x81}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsbX"
        + struct.pack("<I", len(shell))
        + shell.encode()
        + b"b.",
        "EXT1": b"\x80\x02\x82\x01(V" + shell.encode() + b"\ntR.",
        "EXT4": b"\x80\x02\x84\x01\x00\x00\x00)R.",
        "without an end": call,
        "broken after the call": call + b"\xff\xff\xff",
        "many memos": b"\x80\x02" + b"".join(b"Nr" + struct.pack("<I", i) + b"0" for i in range(3000)) + call[2:] + b".",
        "a frame too long": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f" + inner[2:],
        "unicode in names": b"\x80\x04" + short("os\u200b") + short("system") + b"\x93)R.",
        "nested in a pickle": b"\x80\x04C"
        + bytes([len(inner)])
        + inner
        + b"0"
        + short("pickle")
        + short("loads")
        + b"\x93C"
        + bytes([len(inner)])
        + inner
        + b"\x85R.",
        "persistent id": b"\x80\x02X\x01\x00\x00\x00aQ" + call[2:] + b".",
        "the name in a memo": b"\x80\x04" + short("system") + b"\x940" + short("os") + b"h\x00\x93" + argument(shell, 4) + b"\x85R.",
        "behind a thousand pickles": b"\x80\x02N." * 1000 + call + b".",
    }


def torch_zip(pickle, inner="archive/data.pkl", break_crc=False, flags=0):
    """The layout of torch.save: a zip without compression."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (
            (inner, pickle),
            ("archive/byteorder", b"little"),
            ("archive/data/0", bytes(16)),
            ("archive/version", b"3\n"),
        ):
            archive.writestr(name, content)
    content = bytearray(out.getvalue())
    at = content.index(b"PK\x01\x02")
    if flags:
        content[at + 8] |= flags
        content[6] |= flags
    if break_crc:
        content[at + 16] ^= 1
        content[14] ^= 1
    return bytes(content)


def legacy_tar(pickle):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = len(pickle)
            archive.addfile(info, io.BytesIO(pickle))
    return out.getvalue()


def pickle_cases():
    found, place = {}, (Path("/given"), Path("/outside"))
    names = list(payloads(*place))
    suffixes = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".pkl")
    for i, name in enumerate(names):  # every name, with the protocols, covers and endings in turn
        protocol, suffix, zipped = (0, 1, 2, 3, 4, 5)[i % 6], suffixes[i // 2 % 6], i % 3 == 0

        def make(given, outside, name=name, protocol=protocol, suffix=suffix, zipped=zipped):
            module, function, arguments = payloads(given, outside)[name]
            content = loaded(module, function, *arguments, protocol=protocol)
            return weights(given, f"model{suffix}", torch_zip(content) if zipped else content)

        says = "not safetensors but a pickle" if zipped or protocol >= 2 or suffix != ".safetensors" else "does not begin like"
        cover = "a torch zip" if zipped else f"protocol {protocol}"
        found[f"pickle {name}, {cover}, {suffix}"] = Hostile("weights", make, says)
    for name in opcodes(place[1]):

        def make(given, outside, name=name):
            return weights(given, "model.pt", opcodes(outside)[name])

        found[f"pickle, {name}"] = Hostile("weights", make, "not safetensors but a pickle")
    return found


COVERS = {
    "data.pkl under another name": (lambda p: torch_zip(p, "archive/model.pkl"), "model.pt"),
    "a zip with a wrong sum": (lambda p: torch_zip(p, break_crc=True), "model.pt"),
    "a zip that claims to be encrypted": (lambda p: torch_zip(p, flags=1), "model.safetensors"),
    "a zip behind some bytes": (lambda p: b"\x00" * 64 + torch_zip(p), "model.bin"),
    "a zip with a slip": (lambda p: torch_zip(p, "../outside/mark"), "model.pt"),
    "a zip bomb": (lambda p: _bomb(), "model.zip"),
    "the oldest torch, a tar": (legacy_tar, "model.pth"),
    "a tar": (legacy_tar, "model.safetensors"),
    "a tar.gz": (lambda p: gzip.compress(legacy_tar(p)), "model.tar.gz"),
    "gzip": (lambda p: gzip.compress(p), "model.safetensors"),
    "a gzip bomb": (lambda p: gzip.compress(bytes(1 << 24)), "model.gz"),
    "7z": (lambda p: b"7z\xbc\xaf\x27\x1c" + p, "model.7z"),
    "joblib in zlib": (lambda p: zlib.compress(p), "model.joblib"),
    "npy of objects": (lambda p: npy_of(p), "model.npy"),
    "npz of objects": (lambda p: torch_zip(npy_of(p), "w.npy"), "model.npz"),
    "HDF5": (lambda p: b"\x89HDF\r\n\x1a\n" + p, "model.h5"),
    "TorchScript": (lambda p: torch_zip(p, "model/code/__torch__.py"), "model.pt"),
    "GGUF": (lambda p: b"GGUF\x03\0\0\0" + p, "model.gguf"),
    "Python source": (lambda p: b"import os; os.system('x')", "model.py"),
}


def cover_cases():
    def made(given, outside, wrap, name):
        return weights(given, name, wrap(loaded("os", "system", f"touch {outside / 'mark'}", protocol=2)))

    return {
        f"pickle in {cover}": Hostile("weights", lambda g, o, w=wrap, n=name: made(g, o, w, n), "pickle|archive|does not begin like")
        for cover, (wrap, name) in COVERS.items()
    }


def _bomb():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", bytes(1 << 26))
    return out.getvalue()


def cases():
    return pickle_cases() | cover_cases()
