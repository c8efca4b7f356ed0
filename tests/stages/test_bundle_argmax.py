"""A bundle whose engine gives logits: argmax.c is compiled where there is a compiler, a graph gives the same where there is none."""

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kernels.upsample_argmax import upsample_argmax
from stages.bundle import ARGMAX
from stages.bundle_files import argmax
from tests.stages import small_line

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
SOURCE = ARGMAX.read_bytes()
TAIL = {"size": [61, 45], "align_corners": False, "classes": 19}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The openvino engine with argmax.c is looked at in test_bundle.py; this is the other one."""
    if importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed")
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        found = small_line.bundled(tmp_path_factory.mktemp("onnxruntime"), passes=True, kind="onnxruntime", argmax="native")
    assert not list(home.iterdir()), "packing left something in the user's cache folder"
    return found[1]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def run(folder, cache, *arguments, path=None):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | {"XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-B", str(folder / "run.py"), *map(str, arguments)]
    environment |= {} if path is None else {"PATH": str(path)}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder.parent, env=environment)


def copied(bundle, folder):
    return shutil.copytree(bundle.folder, folder / "bundle")


def compiler(folder, does):
    """A folder with a cc that does this, and notes that it was called."""
    folder.mkdir()
    (folder / "cc").write_text(f"#!/bin/sh\necho called >> {folder}/calls\n{does}\n")
    (folder / "cc").chmod(0o755)
    return folder


def test_the_bundle_holds_the_network_once_and_both_ways_to_end_it(packed):
    names = {file.name for file in packed.folder.iterdir()}
    assert names >= {"argmax.c", "argmax.py", "engine.onnx", "engine.tail.onnx", "model.onnx"}
    assert packed.file("argmax.c").read_bytes() == SOURCE and packed.file("engine.tail.onnx").stat().st_size < 2000
    assert packed.json("bundle.json")["tail"] == {"size": list(small_line.SIZE), "align_corners": False, "classes": 12}
    assert {"argmax.c", "argmax.py", "engine.tail.onnx"} <= packed.json("bundle.json")["files"].keys()
    assert "engine.tail.onnx gives the same map" in packed.file("README.txt").read_text()


def test_with_and_without_a_compiler_the_map_is_the_same_and_which_ran_is_said(packed, tmp_path, cache):
    folder = copied(packed, tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 75, 3), dtype=np.uint8)).save(tmp_path / "picture.png")
    masks = []
    for path, says in (
        (None, "argmax in argmax.c, compiled with /"),
        (tmp_path, "argmax in a graph of its own, for there is no C compiler"),
    ):
        done = run(folder, cache, "--check", path=path)
        assert done.returncode == 0 and says in done.stdout and "100.0000%" in done.stdout, done.stderr
        assert ("graph would give the same class on 100.0000%" in done.stdout) is (path is None)
        done = run(folder, cache, tmp_path / "picture.png", path=path)
        assert done.returncode == 0 and says in done.stdout, done.stderr
        masks.append((tmp_path / "picture_mask.png").read_bytes())
    assert masks[0] == masks[1]


def test_a_changed_argmax_c_is_refused_before_it_is_compiled(packed, tmp_path, cache):
    folder, path = copied(packed, tmp_path), compiler(tmp_path / "bin", "exit 1")
    (folder / "argmax.c").write_bytes(SOURCE.replace(b"free(memory)", b"free(memory), 0"))
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    for arguments in (["--check"], [tmp_path / "small.png"]):
        done = run(folder, cache, *arguments, path=path)
        assert done.returncode == 7 and "argmax.c is not the file" in done.stderr and not (path / "calls").exists()


@pytest.mark.parametrize(
    ("does", "says"), [("echo no such instruction >&2; exit 3", "ended with 3: no such instruction"), ("exit 0", "it said nothing")]
)
def test_a_compiler_that_fails_is_named_and_the_graph_runs(packed, tmp_path, cache, does, says):
    done = run(copied(packed, tmp_path), cache, "--check", path=compiler(tmp_path / "bin", does))
    assert done.returncode == 0 and "in a graph of its own, for" in done.stdout and says in done.stdout, done.stderr


def test_a_library_that_gives_another_map_is_seen_by_the_check(packed, tmp_path):
    """A compiler that translates wrongly: here the smallest logit wins."""
    wrong = f"sed 's/v > best\\[l\\]/v < best[l]/; s/= -2 \\* LARGEST, index/= 2 * LARGEST, index/' | {shutil.which('cc')} $*"
    path = compiler(tmp_path / "bin", f"PATH={os.environ['PATH']}\n{wrong}")
    done = run(copied(packed, tmp_path), tmp_path, "--check", path=path)
    assert done.returncode == 2 and "not usable here" in done.stderr and (path / "calls").exists()


def test_the_library_is_made_once_and_kept_where_nobody_else_writes(tmp_path, monkeypatch):
    path = compiler(tmp_path / "bin", f"PATH={os.environ['PATH']} exec {shutil.which('cc')} $* -O0")
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):
        argmax.load(SOURCE, TAIL, 1)
    kept = list((tmp_path / "cache/stillhouse").iterdir())
    assert [file.name.partition("-")[0] for file in kept] == ["argmax"] and kept[0].stat().st_mode & 0o777 == 0o700
    assert (path / "calls").read_text() == "called\n"
    kept[0].unlink()  # not written over: this process has it loaded
    kept[0].write_bytes(b"put there by somebody else")
    kept[0].chmod(0o722)
    argmax.load(SOURCE, TAIL, 1)
    assert (path / "calls").read_text() == "called\n" * 2, "what others may write is made anew"
    (tmp_path / "cache/stillhouse").chmod(0o777)
    kept[0].unlink()
    argmax.load(SOURCE, TAIL, 1)
    assert not list((tmp_path / "cache/stillhouse").iterdir()), "a folder for everybody keeps nothing"
    assert (path / "calls").read_text() == "called\n" * 3


@pytest.mark.parametrize("place", ["a file", "a link"])
def test_a_cache_folder_of_no_use_is_passed_over(tmp_path, monkeypatch, place):
    (tmp_path / "other").mkdir()
    if place == "a file":
        (tmp_path / "stillhouse").write_text("")
    else:
        (tmp_path / "stillhouse").symlink_to(tmp_path / "other")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert argmax.cache_folder() is None


def test_a_compiler_is_never_taken_from_the_folder_one_stands_in(tmp_path, monkeypatch):
    compiler(tmp_path / "bin", "exit 1")
    monkeypatch.chdir(tmp_path / "bin")
    monkeypatch.setenv("PATH", ".")
    with pytest.raises(argmax.Unfit, match="no C compiler"):
        argmax.found()


def test_a_compiler_that_does_not_end_is_ended_with_what_it_started(tmp_path, monkeypatch):
    path = compiler(tmp_path / "bin", f"PATH={os.environ['PATH']}\nsleep 60 & echo $! > {tmp_path}/child; wait")
    monkeypatch.setattr(argmax, "LIMIT_S", 0.5)
    with pytest.raises(argmax.Unfit, match="did not end"):
        argmax.compiled(SOURCE, str(path / "cc"), tmp_path / "argmax.so")
    left = Path(f"/proc/{(tmp_path / 'child').read_text().strip()}/cmdline")
    assert not left.exists() or not left.read_bytes()  # gone, or nothing but its number


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return argmax.opened(argmax.compiled(SOURCE, argmax.found(), tmp_path_factory.mktemp("library") / "argmax.so"))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_bits_of_the_kernel(library, threads):
    logits = np.random.default_rng(0).normal(0, 3, (1, 19, 33, 21)).astype(np.float32)
    for align in (False, True):
        expected = upsample_argmax(torch.from_numpy(logits), (61, 45), align, using="cpu").numpy()
        assert (argmax.named(library.upsample_argmax, logits, 19, (61, 45), align, threads) == expected).all()


def test_logits_of_another_kind_are_an_error(library):
    for shape in ((2, 19, 3, 3), (1, 18, 3, 3), (19, 3, 3)):
        with pytest.raises(ValueError, match="not logits of one image and 19 classes"):
            argmax.named(library.upsample_argmax, np.zeros(shape, np.float32), 19, (61, 45), False, 1)
    failing = ctypes.CFUNCTYPE(ctypes.c_int)(lambda *_: 1)
    with pytest.raises(MemoryError, match="no memory"):
        argmax.named(lambda *_: failing(), np.zeros((1, 19, 3, 3), np.float32), 19, (61, 45), False, 2)
