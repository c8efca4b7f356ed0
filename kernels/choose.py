"""Picks the variant of an operation that runs: the one asked for by name, or, with "auto", the fastest that fits the tensors.

An operation is a folder. reference.py holds its truth, a differentiable function of the operation's name in plain PyTorch. A fast
variant is a module beside it with `forward` and `backward` on raw tensors: triton_.py, cuda_.py, cpu.py (compiled C++), blocks.py
(plain PyTorch, for what the reference has no memory for). It is imported when it is chosen, and only then needs what it is made
with. fused.py makes one differentiable function of them all, which torch.compile can trace and which takes the variant's name as
its last argument.
"""

import importlib
import logging
import os
import shutil
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from kernels import driver, native, tuned

# In the order in which "auto" tries them. Triton comes before CUDA until CUDA has been measured to be faster on a GPU.
FILES = {"triton": "triton_", "cuda": "cuda_", "cpu": "cpu", "blocks": "blocks", "reference": "reference"}


def choose(operation: str, using: str, like: torch.Tensor) -> str:
    """The variant's name, for `operation`, its package. One that was asked for and cannot run here is an error, never a fallback."""
    return variant(operation, using, like.device.type, like.dtype)


def variant(operation: str, using: str, device: str, dtype: torch.dtype) -> str:
    return _variant(operation, using, device, dtype)


# What torch.compiler.assume_constant_result does, without its import of the whole compiler.
variant._dynamo_marked_constant = True


@cache  # so that a choice costs and is logged once
def _variant(operation: str, using: str, device: str, dtype: torch.dtype) -> str:
    there = variants(operation)
    if using != "auto":
        if using not in there:
            raise ValueError(f"{operation}: using={using!r} was asked for; there is {', '.join(map(repr, ('auto', *there)))}")
        if why := unfit(using, device, dtype):
            raise ValueError(f"{operation}: using={using!r} was asked for, but {why}; using='auto' takes what runs here")
        return using
    fitting = (name for name in there if not unfit(name, device, dtype))
    name = next(name for name in fitting if name != "triton" or device == "cuda")
    logging.getLogger(__name__).info("%s on %s: auto takes %s", operation, device, name)
    return name


@cache
def variants(operation: str) -> tuple[str, ...]:
    """The names of the variants in the operation's folder, in the order of FILES."""
    folder = Path(importlib.import_module(operation).__file__).parent
    return tuple(name for name, file in FILES.items() if (folder / f"{file}.py").is_file())


def module(operation: str, name: str):
    """The module of a variant."""
    return importlib.import_module(f"{operation}.{FILES[name]}")


def unfit(name: str, device: str, dtype: torch.dtype) -> str:
    """Why a variant cannot run on a device with such tensors, or ""."""
    if name == "reference":
        return ""
    if dtype.is_floating_point and dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it computes in float32 and was given {dtype}"
    return {"triton": _triton, "cuda": _cuda, "cpu": _cpu, "blocks": lambda device: ""}[name](device)


def choices(device: torch.device) -> dict[str, str]:
    """{operation: variant}: what "auto" takes on a device, for a record of what ran; and whether by configurations measured on it."""
    told = {}
    for operation in sorted(f"{__package__}.{path.parent.name}" for path in Path(__file__).parent.glob("*/reference.py")):
        name = variant(operation, "auto", device.type, torch.float32)
        of_triton = name in ("triton", "cuda")  # the forward of a cuda variant may be Triton's
        told[operation.rpartition(".")[2]] = f"{name}, {tuned.used(operation, device)}" if of_triton else name
    return told


def slow(device: str) -> str:
    """Why what was made for a device cannot be used there, so that its losses take the plain PyTorch forms; or ""."""
    return unfit("triton" if device == "cuda" else "cpu", device, torch.float32)


def told() -> str:
    """Both of the device that a training here would take, for people."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    taken = "; ".join(f"{operation} {name}" for operation, name in choices(device).items())
    return f"on {device.type}: {taken}" + (f"; plain PyTorch, which is slower, stands in: {why}" if (why := slow(device.type)) else "")


def _triton(device: str) -> str:
    if find_spec("triton") is None:
        return "triton is not installed (pip install 'stillhouse[triton]')"
    if device != "cuda" and not os.environ.get("TRITON_INTERPRET"):
        return f"the tensors are on {device}: Triton needs a CUDA device (TRITON_INTERPRET=1 runs its kernels slowly on a CPU)"
    if device == "cuda" and not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton finds no C compiler, with which it makes what launches its kernels (install gcc)"
    return ""


def _cuda(device: str) -> str:
    if device != "cuda":
        return f"the tensors are on {device}"
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    if torch.cuda.get_device_capability() < (8, 0):
        return "it is compiled for GPUs from compute capability 8.0 on (Ampere)"
    return driver.why_not() or _triton(device)  # the forward is Triton's


def _cpu(device: str) -> str:
    return native.why_not() if device == "cpu" else f"the tensors are on {device}"
