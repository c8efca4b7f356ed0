"""Operations on memory that other runtimes than PyTorch hold: numpy arrays in and out, and no torch in the process.

The library taken is the one for every machine, whose argmax.c finds out by itself what vectors the machine has.
"""

import ctypes
from functools import cache

import numpy as np

from kernels import native

MOST = 256  # classes that a byte can name


@cache
def why_not() -> str:
    """Why the library cannot be used, or ""."""
    return native.unusable(native.named("_cpu"))


@cache
def library() -> ctypes.CDLL:
    return ctypes.CDLL(str(native.named("_cpu")[0]))


def upsample_argmax(logits: np.ndarray, classmap: np.ndarray, align_corners: bool, threads: int) -> None:
    """What kernels.upsample_argmax gives with using="cpu": from float32 (B, C, h, w), read where it lies, into uint8 (B, H, W)."""
    if logits.dtype != np.float32 or logits.ndim != 4 or not logits.flags.c_contiguous:
        raise ValueError(f"logits must be float32 (B, C, h, w) without gaps, found {logits.dtype} {logits.shape}")
    if classmap.dtype != np.uint8 or classmap.ndim != 3 or not classmap.flags.carray or len(classmap) != len(logits):
        raise ValueError(f"classmap must be uint8 ({len(logits)}, H, W) without gaps, found {classmap.dtype} {classmap.shape}")
    if not 1 <= logits.shape[1] <= MOST or 0 in logits.shape or 0 in classmap.shape:
        raise ValueError(f"logits {logits.shape} cannot become {classmap.shape}: 1 to {MOST} classes, and no side of 0")
    call = (*logits.shape, *classmap.shape[1:], int(align_corners), threads)
    if library().upsample_argmax_threads(ctypes.c_void_p(logits.ctypes.data), *call, ctypes.c_void_p(classmap.ctypes.data)):
        raise MemoryError(f"upsample_argmax has no memory for two rows of {logits.shape[3]} x {logits.shape[1]} logits")
