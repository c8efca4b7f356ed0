"""What pixel_kl is measured on: logits of both networks at stride 4, with the teacher's auxiliary head as RDD needs it."""

import torch
from torch import Tensor

from kernels.pixel_kl import pixel_kl

SIZES = {
    "tiny": {"tiny": {"batch": 1, "classes": 5, "grid": (4, 6)}},
    "cpu": {"19 classes": {"batch": 4, "classes": 19, "grid": (128, 128)}},
    "cuda": {
        "Cityscapes": {"batch": 8, "classes": 19, "grid": (128, 256)},
        "ADE20K": {"batch": 16, "classes": 150, "grid": (128, 128)},
    },
}
DTYPES = {"cpu": ("fp32",), "cuda": ("bf16",)}


def inputs(batch: int, classes: int, grid: tuple, device: str, dtype: torch.dtype, seed: int) -> list[Tensor]:
    made = torch.Generator(device).manual_seed(seed)
    z, t, aux = ((3 * torch.randn(batch, classes, *grid, generator=made, device=device)).to(dtype) for _ in range(3))
    return [z.requires_grad_(), t, aux]


def loss(student: Tensor, teacher: Tensor, auxiliary: Tensor, using: str) -> Tensor:
    maps = pixel_kl(student, teacher, auxiliary, temperature=4.0, using=using)
    return (maps.kl * (-maps.discrepancy).exp()).mean()
