"""What upsample_ce_kl is measured on: the logits of real training steps, and the usual sum of both losses.

Beside it stand two ways that bring the logits to the labels first: our own kernels there, which shows what the upsampling inside them is
worth, and Liger-Kernel's losses (github.com/linkedin/Liger-Kernel), made for rows of a language model's vocabulary.
"""

from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import interpolate, log_softmax

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


def after_upsampling(student: Tensor, teacher: Tensor, labels: Tensor, align_corners: bool) -> Tensor:
    return loss(*at_labels(student, teacher, labels, align_corners), labels, align_corners, "auto")


def liger(student: Tensor, teacher: Tensor, labels: Tensor, align_corners: bool) -> Tensor:
    """Its losses take (rows, classes): the copies that this costs are part of the way. Of both, KL takes logarithms of probabilities."""
    from liger_kernel.transformers import LigerCrossEntropyLoss, LigerKLDIVLoss

    x, u = (maps.permute(0, 2, 3, 1).flatten(0, 2) for maps in at_labels(student, teacher, labels, align_corners))
    q, p = (log_softmax(logits / 4.0, -1, dtype=torch.float32) for logits in (x, u))
    kl = LigerKLDIVLoss(reduction="sum", log_target=True)(q, p)
    ce = LigerCrossEntropyLoss(ignore_index=255, reduction="sum")(x, labels.flatten().long())  # last: it writes its gradient over x
    return (ce + 16 * kl) / labels.numel()


def at_labels(student: Tensor, teacher: Tensor, labels: Tensor, align_corners: bool) -> list[Tensor]:
    return [interpolate(maps, labels.shape[1:], mode="bilinear", align_corners=align_corners) for maps in (student, teacher)]


def absent(device: str) -> dict[str, str]:
    """{contender: why it cannot run}."""
    if find_spec("liger_kernel") is None:
        return {"liger": "not installed (pip install liger-kernel)"}
    return {} if device == "cuda" else {"liger": "needs a GPU"}


OTHERS = {"after upsampling": after_upsampling, "liger": liger}
