"""Where student and teacher come together: maps of different strides on one grid, features of different widths and lengths in one space."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate


def on_grid(maps: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """(B, C, h, w) brought to another size, bilinearly and in float32 at least."""
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    return maps if maps.shape[-2:] == tuple(size) else interpolate(maps, tuple(size), mode="bilinear", align_corners=align_corners)


def same_grid(student: Tensor, teacher: Tensor, align_corners: bool = False) -> tuple[Tensor, Tensor]:
    """Both in float32 on the teacher's grid, which is where losses meet unless their paper says otherwise."""
    size = tuple(teacher.shape[-2:])
    return on_grid(student, size, align_corners), on_grid(teacher, size)


def projector(given: int, wanted: int) -> nn.Module:
    """Features (B, given, h, w) to the other network's width: a 1x1 convolution without bias, nothing where the widths agree."""
    return nn.Identity() if given == wanted else nn.Conv2d(given, wanted, 1, bias=False)


class BatchNorm(nn.BatchNorm2d):
    """By the batch's own mean and variance: no running averages, for nobody ever evaluates it. A single image with a map of one cell
    has no spread to divide by: there its features pass as they are, but for factor and summand."""

    def __init__(self, width: int):
        super().__init__(width, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        if x[:, 0].numel() == 1:
            return x * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)
        return super().forward(x)


def unit(vectors: Tensor, dim: int, shortest: float = 0.0) -> Tensor:
    """Of length 1 along `dim`, in float32 at least. One no longer than `shortest` has no direction: it becomes zeros and gets no
    gradient, which a division by a smallest length would make 1e12 times what comes back, and no number in half precision."""
    vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    length = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return vectors / torch.where(length > shortest, length, torch.inf)
