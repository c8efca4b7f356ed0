"""What the command line says of the variants that are taken here."""

import sys

import pytest
import torch

from kernels import choose
from pipeline.__main__ import main


@pytest.fixture
def doctor(monkeypatch, capsys, tmp_path):
    """Its line about the kernels, on a machine without a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["pipeline", "doctor", "--store", str(tmp_path / "store")])

    def asked():
        choose._variant.cache_clear()
        main()
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("kernels "))

    yield asked
    choose._variant.cache_clear()


def test_doctor_says_which_variant_of_each_operation_runs(doctor):
    said = doctor()
    assert "on cpu: " in said and "upsample_ce_kl cpu" in said and "pixel_kl reference" in said and "stands in" not in said


def test_triton_without_a_c_compiler_is_passed_over_in_words(monkeypatch, tmp_path):
    pytest.importorskip("triton")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert choose.slow("cuda") == "Triton finds no C compiler, with which it makes what launches its kernels (install gcc)"
    (tmp_path / "gcc").touch(0o755)
    assert choose.slow("cuda") == ""


def test_doctor_says_where_plain_pytorch_stands_in_and_why(doctor, monkeypatch):
    monkeypatch.setattr(choose.native, "why_not", lambda: "it was not compiled")
    said = doctor()
    assert "upsample_ce_kl reference" in said and said.endswith("plain PyTorch, which is slower, stands in: it was not compiled")
