"""What channel_kl is measured on: logits at stride 4, and features as wide as CWD and KT compare them."""

import torch
from torch import Tensor

from kernels.channel_kl import channel_kl

SIZES = {
    "tiny": {"tiny": {"batch": 1, "channels": 3, "grid": (7, 9)}},
    "cpu": {
        "logits, 19 classes": {"batch": 4, "channels": 19, "grid": (128, 128)},
        "features": {"batch": 2, "channels": 256, "grid": (64, 64)},
    },
    "cuda": {
        "logits, 19 classes": {"batch": 8, "channels": 19, "grid": (128, 256)},
        "logits, 150 classes": {"batch": 16, "channels": 150, "grid": (128, 128)},
        "features": {"batch": 8, "channels": 512, "grid": (64, 128)},
    },
}
DTYPES = {"cpu": ("fp32",), "cuda": ("bf16", "fp32")}


def inputs(batch: int, channels: int, grid: tuple, device: str, dtype: torch.dtype, seed: int) -> list[Tensor]:
    made = torch.Generator(device).manual_seed(seed)
    z, t = ((3 * torch.randn(batch, channels, *grid, generator=made, device=device)).to(dtype) for _ in range(2))
    return [z.requires_grad_(), t]


def loss(student: Tensor, teacher: Tensor, using: str) -> Tensor:
    return 16 * channel_kl(student, teacher, temperature=4.0, using=using).mean()
