"""Looks at files that runtimes and parsers would take in: what is refused there is refused before them, and sound files pass."""

import ast
import contextlib
import json
import os
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import BadData, Refused
from stages import tensorfile
from stages.bounds import bounded
from stages.engines import _ir, opening


def tensors(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


# Safetensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_what_safetensors_writes_passes(dtype, tmp_path):
    file = tmp_path / "a.safetensors"
    save_file(
        {"a": torch.zeros(3, 5).to(dtype), "none": torch.zeros(0, 4).to(dtype), "one": torch.ones(()).to(dtype)}, file, metadata={"x": "y"}
    )
    assert tensorfile.check(file) == file


@pytest.mark.parametrize(
    "header, body, why",
    [
        (b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x", "twice"),
        (
            {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "b": {"dtype": "U8", "shape": [1], "data_offsets": [2, 3]}},
            b"xxx",
            "begins",
        ),
        (
            {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "b": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}},
            b"x",
            "begins",
        ),
        ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"xx", "follow the header"),
        ({"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, b"x", "described by"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"xxxx", "has 4 bytes"),
        ({"__metadata__": {"a": 1}}, b"", "not texts"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", "nested too deep"),
    ],
    ids=range(8),
)
def test_a_header_that_lies_is_refused_with_what_is_wrong(header, body, why, tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_bytes(tensors(header, body))
    with pytest.raises(Refused, match=why):
        tensorfile.check(file)


def test_a_file_of_a_terabyte_is_refused_without_reading_it(tmp_path):
    file, size = tmp_path / "a.safetensors", 1 << 40
    file.write_bytes(tensors({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}))
    os.truncate(file, file.stat().st_size + size)
    with pytest.raises(Refused, match="are read up to"):
        tensorfile.check(file)


def test_an_archive_is_not_called_a_pickle(tmp_path):
    file = tmp_path / "model.tar.gz"
    file.write_bytes(b"\x1f\x8b\x08" + bytes(100))
    with pytest.raises(Refused, match="unpack it"):
        tensorfile.check(file)


def converted(file):
    import shlex

    with pytest.raises(Refused) as e:
        tensorfile.check(file)
    command = shlex.split(str(e.value).split("trust: ")[1])
    assert command[:2] == ["python", "-c"]
    return subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True, cwd=file.parent)


def test_the_command_that_converts_opens_weights_and_nothing_else(tmp_path):
    from safetensors.torch import load_file

    state = {"w": torch.arange(6.0).view(2, 3), "step": 7, "tied": torch.ones(2)}
    state["tied again"] = state["tied"]
    for name in ("plain.pt", "'; touch mark; '.pth", "false.safetensors"):
        torch.save({"model": state, "epoch": 3}, tmp_path / name)
        before = (tmp_path / name).read_bytes()
        assert converted(tmp_path / name).returncode == 0
        assert (tmp_path / name).read_bytes() == before
    made = {file.name for file in tmp_path.iterdir()} - {"plain.pt", "'; touch mark; '.pth", "false.safetensors"}
    assert made == {"plain.safetensors", "'; touch mark; '.safetensors", "false.converted.safetensors"}
    for name in made:
        found = load_file(tmp_path / name)
        assert found.keys() == {"w", "tied", "tied again"} and torch.equal(found["w"], state["w"])


@pytest.mark.parametrize("zipped", [True, False])
def test_the_command_that_converts_does_not_run_what_is_hidden(zipped, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "mark"), "w"))

    torch.save({"w": torch.zeros(2), "x": Evil()}, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    done = converted(tmp_path / "model.pt")
    assert done.returncode != 0 and "Weights only load failed" in done.stderr
    assert not (tmp_path / "mark").exists() and not (tmp_path / "model.safetensors").exists()


# Bounds


def test_a_body_that_wants_more_memory_than_fits_is_ended_in_words():
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(BadData, match=r"the thing asks for more than the .* MiB of memory"), bounded("the thing", 1000):
        torch.zeros(1 << 40)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    with bounded("the thing", 1000):
        torch.zeros(1 << 20)


def test_a_body_that_takes_too_long_is_ended_in_words():
    with pytest.raises(BadData, match="processor time"), bounded("the thing", 0, 0.2):
        while True:
            with contextlib.suppress(Exception):  # as libraries do
                sum(range(1000))
    began = time.process_time()
    while time.process_time() - began < 0.4:  # and nothing is left that would end this
        sum(range(1000))


def test_a_mistake_of_ours_inside_stays_what_it_is():
    with pytest.raises(KeyError), bounded("the thing", 0):
        raise KeyError("x")


def test_a_runtimes_own_error_is_told_in_one_line(tmp_path):
    with pytest.raises(BadData, match=r"somebody does not take .*: first\. Build it again"), opening(tmp_path, "somebody", 0):
        raise RuntimeError("first\nsecond\x1b[2J")


# OpenVINO's files

PLAN = '<?xml version="1.0"?><net><layers><layer type="Const" version="opset1"><data offset="{at}" size="8"/></layer></layers></net>'


@pytest.mark.parametrize(
    "content, why",
    [
        ('<!DOCTYPE net [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + PLAN.format(at=0), "declares things"),
        (PLAN.format(at=1), "in an engine.bin of 8"),
        (PLAN.format(at="-8"), "in an engine.bin of 8"),
        (PLAN.format(at=0).replace("opset1", "extension"), "not the runtime's own"),
        (PLAN.format(at=0).replace("Const", "Loop"), "without end"),
        (PLAN.format(at=0)[:60], "not an engine"),
        ("<html/>", "begins with <html>"),
        ("<net>" + "<a>" * 1000 + "</a>" * 1000 + "</net>", "inside each other"),
    ],
    ids=range(8),
)
def test_an_engine_that_openvino_did_not_write_is_refused(content, why, tmp_path):
    (tmp_path / "engine.bin").write_bytes(bytes(8))
    (tmp_path / "engine.xml").write_text(PLAN.format(at=0))
    assert _ir.check(tmp_path) == tmp_path / "engine.xml"
    (tmp_path / "engine.xml").write_text(content)
    with pytest.raises(Refused, match=why):
        _ir.check(tmp_path)


# What the product never does

ROOT = Path(__file__).resolve().parent.parent.parent
OPENERS = {"zipfile", "tarfile", "gzip", "bz2", "lzma", "pickle", "marshal", "shelve", "dill", "joblib", "xml.etree", "lxml"}
CALLS = {"unpack_archive", "extractall", "eval", "exec", "yaml.load", "torch.load", "pickle.load", "pickle.loads", "Unpickler"}
ALLOWED = {(f"stages/bundle_files/{name}.py", "exec") for name in ("run", "build_tensorrt")}  # of bytes whose sha256 was compared
ALLOWED |= {("stages/target_files/agent.py", "exec")}  # of what its own link sends, as it came itself
ALLOWED |= {("pipeline/junit.py", "xml.etree")}  # only writes


def test_no_code_here_opens_archives_or_pickles_or_runs_text():
    """So no archive can slip or burst: nothing reads one. zlib alone unpacks, with a limit, to count the rows of a PNG."""
    found = set()
    for file in (f for package in ("pipeline", "stages", "kernels") for f in (ROOT / package).rglob("*.py")):
        name = str(file.relative_to(ROOT))
        for step in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(step, ast.Import | ast.ImportFrom):
                modules = [a.name for a in step.names] if isinstance(step, ast.Import) else [step.module or ""]
                found |= {(name, m) for m in modules if m.startswith(tuple(OPENERS))}
            if isinstance(step, ast.Call):
                words = ast.unparse(step.func)
                found |= {(name, c) for c in CALLS if words == c or (words.endswith("." + c) and c not in ("eval", "exec"))}
                if words.endswith("np.load") or words == "numpy.load":
                    found |= {(name, "allow_pickle") for k in step.keywords if k.arg == "allow_pickle" and ast.unparse(k.value) != "False"}
    assert found == ALLOWED


def test_what_strikes_while_torch_leaves_no_grad_does_not_take_gradients_from_the_process():
    import torch

    with pytest.raises(KeyError), bounded("the thing", 0):
        torch.set_grad_enabled(False)  # as it is in no_grad, whose end was never reached
        raise KeyError
    assert torch.is_grad_enabled()
