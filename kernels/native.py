"""Finds the compiled CPU variants: one library for all operations, made with the package where there was a C++ compiler."""

import ctypes
from functools import cache
from pathlib import Path

from torch import Tensor

HERE = Path(__file__).parent


@cache
def why_not() -> str:
    """Why the library cannot be used, or ""."""
    if not (built := _built()):
        return "it was not compiled when this package was installed (install g++, then `pip install` it again)"
    if any(source.stat().st_mtime > built.stat().st_mtime for source in (*HERE.glob("*.h"), *HERE.glob("*/*.cpp"))):
        return f"{built.name} is older than its sources (`pip install` this package again)"
    try:
        library()
    except OSError as error:
        return f"{built.name} cannot be loaded: {error}"
    return ""


@cache
def library() -> ctypes.CDLL:
    return ctypes.CDLL(str(_built()))


def _built() -> Path | None:
    return next(iter(sorted((*HERE.glob("_cpu*.so"), *HERE.glob("_cpu*.pyd")))), None)


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
