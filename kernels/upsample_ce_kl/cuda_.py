"""upsample_ce_kl with its backward in CUDA C++: kernel.cu, compiled ahead of time. The forward is the Triton variant's."""

import math
from ctypes import Structure, c_float, c_int, c_void_p
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from kernels import driver
from kernels.tables import axis
from kernels.upsample_ce_kl.plan import marches
from kernels.upsample_ce_kl.triton_ import forward as forward

BUILT = Path(__file__).with_name("kernel.fatbin")
LANES, WARPS, THREADS = 31, 4, 128  # quad columns that a warp finishes; warps and threads of a block
MOST = 2**31 - 1  # logits or pixels: kernel.cu counts them in 32 bits
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def backward(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor,
    l1: Tensor,
    ls: Tensor,
    lt: Tensor,
    a: Tensor,
    b: Tensor,
    temperature: float,
    align_corners: bool,
    ignore: int,
) -> Tensor:
    if max(t.numel() for t in (student, teacher, labels) if t is not None) > MOST:
        raise ValueError(f"using='cuda' takes up to {MOST} logits or pixels, found {tuple(student.shape)} at {tuple(labels.shape)}")
    dtype = student.dtype
    if teacher is not None and teacher.dtype != dtype:  # one kernel reads both
        student, teacher = student.float(), teacher.float()
    if labels.dtype == torch.int64:
        labels = labels.int()
    (a, a_step), (b, b_step) = map(_weights, (a, b))
    grad = torch.empty(student.shape, dtype=student.dtype, device=student.device)
    temperature = 1.0 if teacher is None else temperature
    (B, C, h, w), (th, tw), (H, W) = student.shape, (student if teacher is None else teacher).shape[2:], labels.shape[1:]
    y, x, ty, tx = (axis(n, to, align_corners, str(student.device)) for n, to in ((h, H), (w, W), (th, H), (tw, W)))
    classes = 4 if C > 2 else 2
    chunks = -(-C // classes)
    segments, rows = marches(B, h, w, chunks)
    lanes = B * segments * (w + 1)
    read = (student, teacher, labels, l1, ls, lt, a, b)
    tables = (y.start, y.fraction, x.start, x.fraction, ty.quad, ty.fraction, tx.quad, tx.fraction)
    sizes = (C, h, w, th, tw, H, W, chunks, segments, rows, lanes, ignore, labels.element_size(), a_step, b_step)
    pointers = (None if tensor is None else tensor.data_ptr() for tensor in (*read, *tables, grad))
    arguments = Arguments(*pointers, *sizes, math.log2(math.e) / temperature, temperature)
    kernel = _kernel(student, teacher, temperature, _paired(w, W, align_corners, read[2:]), classes)
    blocks = -(-lanes // (WARPS * LANES)) * chunks
    driver.launch(BUILT, kernel, blocks, THREADS, arguments, student.device)
    return grad.to(dtype)


class Arguments(Structure):
    """As in kernel.cu, word for word."""

    _fields_ = [
        *((name, c_void_p) for name in ("student", "teacher", "labels", "l1", "ls", "lt", "a", "b")),
        *((name, c_void_p) for name in ("start_y", "fraction_y", "start_x", "fraction_x")),
        *((name, c_void_p) for name in ("teacher_quad_y", "teacher_fraction_y", "teacher_quad_x", "teacher_fraction_x", "grad")),
        *((name, c_int) for name in ("C", "h", "w", "th", "tw", "H", "W", "chunks", "segments", "rows", "lanes")),
        *((name, c_int) for name in ("ignore", "label_bytes", "a_step", "b_step")),
        *((name, c_float) for name in ("scale", "temperature")),
    ]


def _weights(of: Tensor) -> tuple[Tensor, int]:
    """The gradient of a sum or a mean is one number seen as a map: it is read as one."""
    return (of, 0) if of.numel() and not any(of.stride()) else (of.contiguous(), 1)


def _kernel(student: Tensor, teacher: Tensor | None, temperature: float, paired: bool, classes: int) -> str:
    on = "NONE" if teacher is None else "SAME" if teacher.shape == student.shape else "OTHER"
    special = int(temperature) if temperature in (1, 2, 4) else 0
    return f"backward_{TYPES[student.dtype]}_{on}_T{special}_V{2 if paired and on != 'OTHER' else 1}_C{classes}"


def _paired(w: int, W: int, align_corners: bool, maps: tuple[Tensor, ...]) -> bool:
    """Whether two pixels can be read in one load: where every quad begins at an even place, and in memory too."""
    return _even(w, W, align_corners) and all(not m.data_ptr() % (2 * m.element_size()) for m in maps)


@lru_cache(maxsize=64)
def _even(w: int, W: int, align_corners: bool) -> bool:
    return not (axis(w, W, align_corners).start % 2).any()
