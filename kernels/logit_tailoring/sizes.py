"""What logit_tailoring is measured on, and the dense form its authors wrote, which everything is held against."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate, log_softmax

from kernels.label_histogram import cell_sizes, label_histogram
from kernels.logit_tailoring import logit_tailoring

SIZES = {
    "tiny": {"tiny": {"batch": 1, "classes": 3, "grid": (4, 5), "to": (8, 15)}},
    "cpu": {"150 classes": {"batch": 1, "classes": 150, "grid": (64, 64), "to": (512, 512)}},
    "cuda": {
        "Cityscapes": {"batch": 8, "classes": 19, "grid": (64, 128), "to": (512, 1024)},
        "ADE20K": {"batch": 4, "classes": 150, "grid": (64, 64), "to": (512, 512)},
    },
}
DTYPES = {"cpu": ("fp32",), "cuda": ("fp32",)}


def inputs(batch: int, classes: int, grid: tuple, to: tuple, device: str, dtype: torch.dtype, seed: int) -> list[Tensor]:
    made = torch.Generator(device).manual_seed(seed)
    z, t = ((3 * torch.randn(batch, classes, *grid, generator=made, device=device)).to(dtype) for _ in range(2))
    labels = torch.randint(0, classes, (batch, *to), dtype=torch.uint8, generator=made, device=device)
    return [z.requires_grad_(), t, labels]


def loss(student: Tensor, teacher: Tensor, labels: Tensor, using: str) -> Tensor:
    """With the histogram, which other losses of the step would share."""
    grid = student.shape[2:]
    cells = cell_sizes(grid, labels.shape[1:], labels.device)
    histogram = label_histogram(labels, student.shape[1], grid, using=using)
    return logit_tailoring(student, teacher, histogram, cells, temperature=4.0, using=using).mean()


OTHERS = {"dense": lambda student, teacher, labels: dense(student, teacher, labels, 4.0).mean()}


def dense(student, teacher, labels, temperature):
    """(B, C): KT's logit tailoring as its authors wrote it, on maps (B, C, H, W), without the factor T^2 / (B C)."""
    s, t = (interpolate(logits, labels.shape[1:], mode="nearest") for logits in (student, teacher))
    inside = (
        labels[:, None] == torch.arange(student.shape[1], device=labels.device)[:, None, None]
    )  # an ignored pixel is outside of every class

    def tailored(z):
        positive = inside & (z > 0)
        count = positive.sum((2, 3), keepdim=True)
        mu = torch.where(count > 0, (z * positive).sum((2, 3), keepdim=True) / count.clamp(min=1), -torch.inf)
        nu = (z * ~inside).mean((2, 3), keepdim=True)
        return torch.where(inside, torch.maximum(z, mu), torch.minimum(z, nu))

    def kl(a, b):
        q, p = (log_softmax(z.flatten(2) / temperature, -1) for z in (a, b))
        return (p.exp() * (p - q)).sum(-1)

    a, b = tailored(s), tailored(t)
    return kl(s, b) + kl(a * inside, b * inside) + kl(a * ~inside, b * ~inside)
