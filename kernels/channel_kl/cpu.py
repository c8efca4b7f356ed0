"""channel_kl in compiled C++ (cpu.cpp): float32 inside, the same bits for any number of threads."""

from ctypes import c_float

import torch
from torch import Tensor

from kernels.native import library, pointer


def forward(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    s, t = student.float(), teacher.float()
    kl, ls, lt = (torch.empty(s.shape[:2], dtype=torch.float32, device="cpu") for _ in range(3))
    tensors = map(pointer, (kl, ls, lt))
    library().channel_kl_forward(pointer(s), pointer(t), *_rows(s), c_float(temperature), *tensors, torch.get_num_threads())
    return kl, ls, lt


def backward(student: Tensor, teacher: Tensor, ls: Tensor, lt: Tensor, upstream: Tensor, temperature: float) -> Tensor:
    s, t = student.float(), teacher.float()
    out = torch.empty_like(s)
    tensors = map(pointer, (s, t, ls, lt, upstream))
    library().channel_kl_backward(*tensors, *_rows(s), c_float(temperature), pointer(out), torch.get_num_threads())
    return out.to(student.dtype)


def _rows(maps: Tensor) -> tuple[int, int]:
    """How many rows, and pixels in each."""
    batch, channels, height, width = maps.shape
    return batch * channels, height * width
