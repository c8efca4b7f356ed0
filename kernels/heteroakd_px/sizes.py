"""What heteroakd_px is measured on: projected features of both networks as maps of classes, at stride 8."""

import torch
from torch import Tensor

from kernels.heteroakd_px import heteroakd_px

SIZES = {
    "tiny": {"tiny": {"batch": 1, "classes": 5, "grid": (4, 6)}},
    "cpu": {"19 classes": {"batch": 4, "classes": 19, "grid": (64, 64)}},
    "cuda": {
        "Cityscapes": {"batch": 8, "classes": 19, "grid": (64, 128)},
        "ADE20K": {"batch": 16, "classes": 150, "grid": (64, 64)},
    },
}
DTYPES = {"cpu": ("fp32",), "cuda": ("fp32",)}


def inputs(batch: int, classes: int, grid: tuple, device: str, dtype: torch.dtype, seed: int) -> list[Tensor]:
    made = torch.Generator(device).manual_seed(seed)
    z, t = ((2 * torch.randn(batch, classes, *grid, generator=made, device=device)).to(dtype) for _ in range(2))
    labels = torch.randint(0, classes, (batch, *grid), dtype=torch.uint8, generator=made, device=device)
    return [z.requires_grad_(), t, labels]


def loss(student: Tensor, teacher: Tensor, labels: Tensor, using: str) -> Tensor:
    return heteroakd_px(student, teacher, labels, temperature=4.0, using=using).mean()
