"""Runtimes that call their makers when they are imported or open a model do not do so here: each is opened under a tracer."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stages import small_line

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = """
import json, sys, time
from pathlib import Path
from stages.engines import TABLE
row = TABLE.row(sys.argv[1])(kind=sys.argv[1], threads=1)
session = row.open(Path(sys.argv[2]), {})
import numpy
session(numpy.zeros((1, 64, 96, 3), numpy.uint8))
time.sleep(1)
"""
NNCF = """
import sys, time
from pathlib import Path
import numpy, onnx
from stages import int8
int8.quantised(onnx.load(sys.argv[1]), iter([numpy.zeros((64, 96, 3), numpy.uint8)]), "openvino", Path(sys.argv[2]))
time.sleep(1)
"""


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    folder = tmp_path_factory.mktemp("silence")
    dataset = small_line.data(folder)
    return small_line.exported(folder, dataset, small_line.checkpoint(folder, dataset))


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
def test_a_runtime_calls_nobody_and_writes_nothing_at_home(kind, onnx, tmp_path):
    if importlib.util.find_spec(kind) is None:
        pytest.skip(f"{kind} is not installed")
    engine = small_line.engine(tmp_path, onnx, kind=kind, threads=1)
    traced(tmp_path, SCRIPT, kind, engine.folder)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_nncf_calls_nobody_and_writes_nothing_at_home(onnx, tmp_path):
    pytest.importorskip("nncf")
    traced(tmp_path, NNCF, onnx.file("model.onnx"), tmp_path)


def traced(tmp_path, script, *arguments):
    home = tmp_path / "home"
    home.mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ORT_", "HF_", "XDG_")) and key not in ("CI",)}
    tracing = ["strace", "-f", "-q", "-e", "trace=connect", "-o", tmp_path / "trace"]
    command = [*tracing, sys.executable, "-c", script, *arguments]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env={**kept, "HOME": str(home)}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    called = re.findall(r"sa_family=AF_INET6?, .*", (tmp_path / "trace").read_text())
    assert not called and not list(home.iterdir()), f"{called}, {list(home.rglob('*'))}"
