"""Which cell of a smaller grid each label pixel lies in, and how many lie in each: of an axis, and of the grid. Kept per size, for a
training step asks for the same few again.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def cell_sizes(size: tuple[int, int], label_size: tuple[int, int], device: str = "cpu") -> Tensor:
    """(h, w) int32: how many of H x W label pixels lie in each cell, whatever their label."""
    return _cell_sizes(tuple(size), tuple(label_size), str(device))


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept may be saved for a backward later
def _cell_sizes(size, label_size, device):
    rows, columns = (starts(n, to).diff() for n, to in zip(size, label_size, strict=True))
    return (rows[:, None] * columns).to(device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def cell_of_pixel(n: int, to: int, device: str = "cpu") -> Tensor:
    """(to,) int32: the cell, 0 .. n-1, of each pixel of an axis, asked of PyTorch: formulas in integers differ at some sizes."""
    return interpolate(torch.arange(n, dtype=torch.float32)[None, None], to, mode="nearest").flatten().to(device, torch.int32)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def starts(n: int, to: int, device: str = "cpu") -> Tensor:
    """(n + 1,) int32: cell i holds the pixels starts[i] .. starts[i + 1] - 1 of its axis."""
    return torch.searchsorted(cell_of_pixel(n, to), torch.arange(n + 1, dtype=torch.int32), out_int32=True).to(device)
