"""Finds the compiled CPU variants: one library for all operations, made with the package where there was a C++ compiler (setup.py)."""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).parent
FITTING = {"AVX512": ("_cpu_avx512", "_cpu_avx2"), "AVX2": ("_cpu_avx2",)}  # by torch's name of the machine's vectors, best first


@cache
def why_not() -> str:
    """Why the library cannot be used, or ""."""
    if not (found := built()):
        return "it was not compiled when this package was installed (install g++, then `pip install` it again)"
    if any(source.stat().st_mtime > found[0].stat().st_mtime for source in (*HERE.glob("*.h"), *HERE.glob("*/*.cpp"), *HERE.glob("*/*.c"))):
        return f"{found[0].name} is older than its sources (`pip install` this package again)"
    try:
        library()
    except OSError as error:
        return f"{found[0].name} cannot be loaded: {error}"
    return ""


@cache
def library() -> ctypes.CDLL:
    return ctypes.CDLL(str(built()[0]))


def built() -> list[Path]:
    """The libraries that run on this machine, best first."""
    names = (*FITTING.get(torch.backends.cpu.get_cpu_capability(), ()), "_cpu")
    return [path for name in names for path in sorted((*HERE.glob(f"{name}.*so"), *HERE.glob(f"{name}.*pyd")))]


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
