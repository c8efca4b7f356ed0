"""Which compiled library is taken, and what is said where there is none."""

import os
import shutil
from importlib.machinery import EXTENSION_SUFFIXES

import pytest

from kernels import native

NAME = f"_cpu{EXTENSION_SUFFIXES[0]}"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A folder `kernels` whose one source was written after its library, as a wheel's files may be."""
    there = tmp_path / "kernels"
    (there / "sums").mkdir(parents=True)
    shutil.copyfile(native.named("_cpu")[0], there / NAME)
    os.utime(there / NAME, (1e9, 1e9))
    (there / "sums/cpu.cpp").touch()
    monkeypatch.setattr(native, "HERE", there)
    return there


def test_an_installed_library_is_used_in_whatever_order_its_files_were_written(installed):
    assert native.unusable(native.named("_cpu")) == ""


def test_where_sources_are_edited_a_library_older_than_them_is_refused(installed):
    installed.with_name("setup.py").touch()
    assert native.unusable(native.named("_cpu")) == f"{NAME} is older than its sources (`pip install` this package again)"


def test_a_library_that_another_python_left_is_not_taken(installed):
    shutil.copyfile(installed / NAME, installed / "_cpu.cpython-31-any.so")
    assert native.named("_cpu") == [installed / NAME]
    (installed / NAME).unlink()
    assert native.unusable(native.named("_cpu")).startswith("it was not compiled when this package was installed")
