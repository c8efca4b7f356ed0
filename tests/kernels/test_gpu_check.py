"""What gpu_check makes of the words of other tools, and of their silence, where no GPU has been asked yet."""

import importlib.util
import os
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def check():
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "benchmarks/gpu_check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("code", "last", "told"),
    [
        (0, "========= ERROR SUMMARY: 0 errors", "0 errors"),
        (0, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", "0 errors"),
        (9, "========= ERROR SUMMARY: 12 errors", "FOUND: ========= ERROR SUMMARY: 12 errors"),
        (0, "========= ERROR SUMMARY: 10 errors", "did not work here: ========= ERROR SUMMARY: 10 errors"),
        (1, "Device not supported", "did not work here: Device not supported"),
    ],
)
def test_each_checker_is_understood_in_its_own_words(code, last, told, check, tmp_path, monkeypatch):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(
        f"#!{sys.executable}\nimport os\nassert os.environ['PYTORCH_NO_CUDA_MEMORY_CACHING'] == '1'\nprint('{last}')\nexit({code})\n"
    )
    tool.chmod(0o755)
    monkeypatch.setattr(check.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(check.shutil, "which", lambda name: str(tool))
    assert check.sanitized("racecheck", {}) == told


def test_tests_that_do_not_end_are_ended_with_all_they_started_and_what_they_said_is_kept(check, tmp_path):
    alive, log = tmp_path / "alive", tmp_path / "log"
    os.mkfifo(alive)
    reader = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
    child = f"import time; held = open({str(alive)!r}, 'w'); print('begun', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"]
    began = time.monotonic()
    assert check._watched(command, {}, 3, log) is None and log.read_text() == "begun\n"
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b"" and time.monotonic() - began < 30  # the end of what the child holds open is the child's
    os.close(reader)


def test_what_was_left_out_is_said_with_its_reason(check, tmp_path, monkeypatch):
    said = ["..s [100%]", "SKIPPED [1] tests/kernels/test_cuda.py:3: needs nvcc", "1 passed, 1 skipped in 1.00s"]
    monkeypatch.setattr(check, "_watched", lambda command, environment, seconds, log: log.write_text("\n".join(said)) * 0)
    monkeypatch.setattr(check.native, "why_not", lambda: "it was not compiled")
    found = check.tested({}, 1, tmp_path / "log")
    left_out = "left out, tests of the compiled CPU variants: it was not compiled"
    assert found == {"passed": True, "said": "\n".join([said[1], left_out, said[2]])}


def test_a_missing_package_is_named_and_nothing_begins(check, monkeypatch, capsys):
    monkeypatch.setattr(check, "find_spec", lambda name: None if name == "pytest" else name)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    assert check.main() == 2 and capsys.readouterr().err == f"{sys.executable} has no pytest: pip install pytest\n"
