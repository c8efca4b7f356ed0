"""Finds the compiled CPU variants: one library for all operations, made with the package where there was a C++ compiler (setup.py).

Importing it, and what it says of the library for every machine, needs no torch.
"""

import ctypes
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

HERE = Path(__file__).parent
FITTING = {"AVX512": ("_cpu_avx512", "_cpu_avx2"), "AVX2": ("_cpu_avx2",)}  # by torch's name of the machine's vectors, best first


@cache
def why_not() -> str:
    """Why the library cannot be used, or ""."""
    return unusable(built())


@cache
def library() -> ctypes.CDLL:
    return ctypes.CDLL(str(built()[0]))


def built() -> list[Path]:
    """The libraries that run on this machine, best first."""
    import torch

    return [path for name in (*FITTING.get(torch.backends.cpu.get_cpu_capability(), ()), "_cpu") for path in named(name)]


def named(name: str) -> list[Path]:
    """Those made for this Python: one that was here before may have left its own, which nothing makes anew."""
    return [path for suffix in EXTENSION_SUFFIXES if (path := HERE / f"{name}{suffix}").is_file()]


def unusable(found: list[Path]) -> str:
    """Why the first of these libraries cannot be used, or ""."""
    if not found:
        return "it was not compiled when this package was installed (install g++, then `pip install` it again)"
    # only where they may be edited: a wheel's files are written in any order, and setup.py is not among them
    sources = (*HERE.glob("*.h"), *HERE.glob("*/*.cpp"), *HERE.glob("*/*.c")) if HERE.with_name("setup.py").is_file() else ()
    if any(source.stat().st_mtime > found[0].stat().st_mtime for source in sources):
        return f"{found[0].name} is older than its sources (`pip install` this package again)"
    try:
        ctypes.CDLL(str(found[0]))
    except OSError as error:
        return f"{found[0].name} cannot be loaded: {error}"
    return ""


def pointer(tensor: "Tensor | None") -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
