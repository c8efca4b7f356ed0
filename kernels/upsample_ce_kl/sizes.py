"""What upsample_ce_kl is measured on: the logits of real training steps, and the usual sum of both losses."""

import torch
from torch import Tensor

from kernels.upsample_ce_kl import upsample_ce_kl

SIZES = {
    "tiny": {"tiny": {"batch": 1, "classes": 5, "grid": (4, 5), "to": (16, 20)}},
    "cpu": {
        "19 classes": {"batch": 4, "classes": 19, "grid": (128, 128), "to": (512, 512)},
        "150 classes": {"batch": 1, "classes": 150, "grid": (128, 128), "to": (512, 512)},
    },
    "cuda": {
        "Cityscapes, crop": {"batch": 8, "classes": 19, "grid": (128, 256), "to": (512, 1024)},
        "Cityscapes, whole": {"batch": 2, "classes": 19, "grid": (256, 512), "to": (1024, 2048)},
        "ADE20K": {"batch": 16, "classes": 150, "grid": (128, 128), "to": (512, 512)},
        "stride 8, corners aligned": {"batch": 8, "classes": 19, "grid": (64, 128), "to": (512, 1024), "align_corners": True},
        "VOC": {"batch": 16, "classes": 21, "grid": (128, 128), "to": (512, 512)},
        "CamVid": {"batch": 8, "classes": 11, "grid": (90, 120), "to": (360, 480)},
    },
}
DTYPES = {"cpu": ("fp32",), "cuda": ("bf16", "fp32")}


def inputs(
    batch: int, classes: int, grid: tuple, to: tuple, device: str, dtype: torch.dtype, seed: int, align_corners: bool = False
) -> list:
    made = torch.Generator(device).manual_seed(seed)
    draw = {"generator": made, "device": device}
    z, t = ((3 * torch.randn(batch, classes, *grid, **draw)).to(dtype) for _ in range(2))
    labels = torch.randint(0, classes, (batch, *to), dtype=torch.uint8, **draw)
    labels[torch.rand(labels.shape, **draw) < 0.1] = 255
    return [z.requires_grad_(), t, labels, align_corners]


def loss(student: Tensor, teacher: Tensor, labels: Tensor, align_corners: bool, using: str) -> Tensor:
    maps = upsample_ce_kl(student, teacher, labels, temperature=4.0, align_corners=align_corners, using=using)
    return (maps.ce.sum() + 16 * maps.kl.sum()) / labels.numel()
