"""Loads the CUDA C++ kernels that kernels/nvcc.py compiled and launches them: through the driver's own C interface, without a compiler."""

import ctypes
from ctypes import Structure, addressof, byref, c_char_p, c_int, c_uint, c_void_p
from functools import cache
from pathlib import Path

import torch

HERE = Path(__file__).parent


@cache
def why_not() -> str:
    """Why the compiled kernels cannot be launched, or ""."""
    for source in sorted(HERE.glob("*/kernel.cu")):
        built, name = source.with_suffix(".fatbin"), f"{HERE.name}/{source.parent.name}/kernel"
        if not built.is_file():
            return f"{name}.cu was not compiled (python -m kernels.nvcc, where CUDA's nvcc is)"
        if source.stat().st_mtime > built.stat().st_mtime:
            return f"{name}.fatbin is older than its source (python -m kernels.nvcc)"
    try:
        library()
    except OSError as error:
        return f"the driver cannot be loaded: {error}"
    return ""


@cache
def library() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def version() -> str:
    """The CUDA version that the driver serves."""
    number = c_int()
    _call("cuDriverGetVersion", byref(number))
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def launch(built: Path, kernel: str, blocks: int, threads: int, arguments: Structure, device: torch.device) -> None:
    """On torch's stream of `device`, after what is already there. The kernel takes one structure, by value."""
    with torch.cuda.device(device):
        index, stream = torch.cuda.current_device(), c_void_p(torch.cuda.current_stream().cuda_stream)
        _call("cuCtxSetCurrent", _context(index))  # a thread of autograd may have none yet
        size, given = map(c_uint, (blocks, 1, 1, threads, 1, 1)), (c_void_p * 1)(addressof(arguments))
        _call("cuLaunchKernel", _function(built, kernel, index), *size, c_uint(0), stream, given, None)


@cache
def _context(device: int) -> c_void_p:
    """The one that torch works in."""
    handle, context = c_int(), c_void_p()
    _call("cuInit", c_uint(0))
    _call("cuDeviceGet", byref(handle), c_int(device))
    _call("cuDevicePrimaryCtxRetain", byref(context), handle)
    return context


@cache
def _function(built: Path, kernel: str, device: int) -> c_void_p:
    function = c_void_p()
    _call("cuModuleGetFunction", byref(function), _module(built, device), c_char_p(kernel.encode()))
    return function


@cache
def _module(built: Path, device: int) -> c_void_p:
    """Called in the device's context. Stays loaded."""
    module = c_void_p()
    _call("cuModuleLoadData", byref(module), c_char_p(built.read_bytes()))
    return module


def _call(name: str, *arguments) -> None:
    if code := getattr(library(), name)(*arguments):
        said = c_char_p()
        library().cuGetErrorString(c_int(code), byref(said))
        raise RuntimeError(f"{name}: {(said.value or b'error').decode()} ({code})")
