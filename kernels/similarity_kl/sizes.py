"""What similarity_kl is measured on: small enough that the dense form fits beside it; CIRKD's own size is in benchmarks/similarity.py."""

import torch
from torch import Tensor

from kernels.similarity_kl import similarity_kl

SIZES = {
    "tiny": {"tiny": {"batch": 2, "grid": (4, 5), "widths": (8, 16)}},
    "cpu": {"32 x 32": {"batch": 4, "grid": (32, 32), "widths": (128, 256)}},
    "cuda": {"64 x 64": {"batch": 4, "grid": (64, 64), "widths": (256, 256)}},
}
DTYPES = {"cpu": ("fp32",), "cuda": ("bf16",)}


def inputs(batch: int, grid: tuple, widths: tuple, device: str, dtype: torch.dtype, seed: int) -> list[Tensor]:
    made = torch.Generator(device).manual_seed(seed)
    student, teacher = (torch.randn(batch, width, *grid, generator=made, device=device).to(dtype) for width in widths)
    return [student.requires_grad_(), teacher]


def loss(student: Tensor, teacher: Tensor, using: str) -> Tensor:
    return similarity_kl(student, teacher, temperature=0.1, using=using)
