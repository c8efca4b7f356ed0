"""Picks the variant of an operation that runs: the one asked for by name, or, with "auto", the fastest that fits the tensors.

A variant is a module beside the operation's __init__.py that defines a function of the operation's name. One that does not
run everywhere also defines `unfit(device) -> str`: why it cannot run there, or "".
"""

import importlib
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

FILES = {"triton": "triton_", "cuda": "cuda_", "cpu": "cpu", "reference": "reference"}  # fastest first


@cache  # so that a choice costs and is logged once
def choose(operation: str, using: str, device: torch.device) -> Callable:
    """`operation` is its package, e.g. "kernels.channel_kl". A name that cannot run here is an error, never a fallback."""
    there = variants(operation)
    if using != "auto":
        if using not in there:
            raise ValueError(f"{operation}: using={using!r} was asked for; there is {', '.join(map(repr, ('auto', *there)))}")
        if why := _unfit(operation, using, device):
            raise ValueError(f"{operation}: using={using!r} was asked for, but {why}; using='auto' takes what runs here")
        return _function(operation, using)
    name = next(name for name in there if not _unfit(operation, name, device))
    logging.getLogger(__name__).info("%s on %s: auto takes %s", operation, device.type, name)
    return _function(operation, name)


@cache
def variants(operation: str) -> tuple[str, ...]:
    """The names of the variants in the operation's folder, fastest first."""
    folder = Path(importlib.import_module(operation).__file__).parent
    return tuple(name for name, file in FILES.items() if (folder / f"{file}.py").is_file())


def _module(operation: str, name: str):
    return importlib.import_module(f"{operation}.{FILES[name]}")


def _function(operation: str, name: str) -> Callable:
    return getattr(_module(operation, name), operation.rpartition(".")[2])


def _unfit(operation: str, name: str, device: torch.device) -> str:
    unfit = getattr(_module(operation, name), "unfit", None)
    return unfit(device) if unfit else ""
