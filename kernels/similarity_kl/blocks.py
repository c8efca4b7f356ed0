"""similarity_kl in blocks of rows, in plain PyTorch on any device: cosines are made, used and forgotten, and made again in the backward.

A block is some pixels of one image against all pixels of all images. Three maps of BLOCK numbers are held at a time, whatever the
size: with 8 images of 64 x 128 pixels and 256 channels, 192 MiB beside the gradient, where the reference would take over 100 GiB.
That case is 11 TFLOP, nearly all in matrix products: minutes.

S_ji is S_ij turned over, so a block of the backward serves both roles of its pixels, as row and as column:
    G = e^((S - 1) / T) (zs_ij[row] + zs_ji[column]) - the same of the teacher,    gradient of f_i = upstream / (T M B^2) sum_j G f_j
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 2**24  # cosines of a block: 64 MiB, a few hundred rows at the size above, so that its products run at full speed


def forward(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    images, pixels, _ = student.shape
    s_all, t_all = student.float(), teacher.float()
    kl, zs, zt = (torch.empty((images, images, pixels), dtype=torch.float32, device=student.device) for _ in range(3))
    for i, rows in _blocks(images, pixels):
        s, t = _cosines(s_all, i, rows), _cosines(t_all, i, rows)
        gap = t - s
        sum_s, sum_t = (_powers(v, temperature).sum(-1) for v in (s, t))  # from here on s and t hold powers
        apart = gap.mul_(t).sum(-1) / temperature
        kl[i, :, rows] = (apart / sum_t + sum_s.log() - sum_t.log()).T
        zs[i, :, rows], zt[i, :, rows] = sum_s.reciprocal().T, sum_t.reciprocal().T
    return kl.mean(), zs, zt


def backward(student: Tensor, teacher: Tensor, zs: Tensor, zt: Tensor, upstream: Tensor, temperature: float) -> Tensor:
    images, pixels, _ = student.shape
    s_all, t_all = student.float(), teacher.float()
    grad = torch.empty(s_all.shape, dtype=torch.float32, device=student.device)
    for i, rows in _blocks(images, pixels):
        g = _powers(_cosines(s_all, i, rows), temperature)
        weight = zs[i, :, rows].T[..., None] + zs[:, i]
        g.mul_(weight)
        t = _powers(_cosines(t_all, i, rows), temperature)
        torch.add(zt[i, :, rows].T[..., None], zt[:, i], out=weight)
        g.sub_(t.mul_(weight))
        grad[i, rows] = g.flatten(1) @ s_all.flatten(0, 1)
    return grad.mul_(upstream / (temperature * pixels * images**2)).to(student.dtype)


def _blocks(images: int, pixels: int) -> Iterator[tuple[int, slice]]:
    """(image, some of its pixels), such that their cosines with all pixels are at most BLOCK, or one pixel's."""
    step = max(1, BLOCK // (images * pixels))
    return ((i, slice(at, min(at + step, pixels))) for i in range(images) for at in range(0, pixels, step))


def _cosines(features: Tensor, i: int, rows: slice) -> Tensor:
    """(rows, B, M)."""
    return (features[i, rows] @ features.flatten(0, 1).T).unflatten(1, features.shape[:2])


def _powers(cosines: Tensor, temperature: float) -> Tensor:
    """e^((cosine - 1) / T), in place of the cosines."""
    return cosines.sub_(1).mul_(math.log2(math.e) / temperature).exp2_()
