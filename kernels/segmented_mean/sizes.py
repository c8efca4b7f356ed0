"""What segmented_mean is measured on: features before the last classifier."""

import torch
from torch import Tensor

from kernels.segmented_mean import segmented_mean

SIZES = {
    "tiny": {"tiny": {"batch": 1, "classes": 3, "channels": 4, "grid": (5, 7)}},
    "cpu": {"19 classes": {"batch": 4, "classes": 19, "channels": 256, "grid": (64, 64)}},
    "cuda": {
        "Cityscapes": {"batch": 8, "classes": 19, "channels": 512, "grid": (64, 128)},
        "ADE20K": {"batch": 16, "classes": 150, "channels": 256, "grid": (128, 128)},
    },
}
DTYPES = {"cpu": ("fp32",), "cuda": ("bf16",)}


def inputs(batch: int, classes: int, channels: int, grid: tuple, device: str, dtype: torch.dtype, seed: int) -> list:
    made = torch.Generator(device).manual_seed(seed)
    features = torch.randn(batch, channels, *grid, generator=made, device=device).to(dtype)
    labels = torch.randint(0, classes, (batch, *grid), dtype=torch.uint8, generator=made, device=device)
    return [features.requires_grad_(), labels, classes]


def loss(features: Tensor, labels: Tensor, classes: int, using: str) -> Tensor:
    return segmented_mean(features, labels, classes, using=using).means.square().mean()
