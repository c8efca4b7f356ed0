"""How bilinear interpolation along one axis cuts the wanted pixels into quads: runs of pixels between the same two source values.

Source values 0 .. n-1 lie at quads -1 .. n-1: pixel y lies in quad q = floor(src(y)), between values q and q + 1 (clamped to the
axis), at the fraction f = src(y) - q. Before the first value f is 1 and after the last it is 0: there both neighbours are the
same value, so that nothing changes for the result, and the value outside the axis gets a weight of exactly 0. No edge needs code.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


class Axis(NamedTuple):
    quad: Tensor  # (to,) int32, -1 .. n-1: the quad of each pixel
    fraction: Tensor  # (to,) float32: how far it lies towards value quad + 1
    start: Tensor  # (n + 2,) int32: quad q holds the pixels start[q + 1] .. start[q + 2] - 1
    most: int  # pixels in the largest quad


@lru_cache(maxsize=64)
def axis(n: int, to: int, align_corners: bool, device: str = "cpu") -> Axis:
    """`n` values brought to `to` pixels, by PyTorch's rule. Kept, for a training step asks for the same few again."""
    y = torch.arange(to, dtype=torch.float64)
    source = y * ((n - 1) / max(to - 1, 1)) if align_corners else (y + 0.5) * (n / to) - 0.5
    quad = source.floor().clamp(-1, n - 1)
    fraction = torch.where(quad < 0, 1.0, torch.where(quad > n - 2, 0.0, (source - quad).clamp(0, 1)))
    start = torch.searchsorted(quad, torch.arange(-1, n + 1, dtype=torch.float64))  # quad never falls from pixel to pixel
    most = int(start.diff().max())
    return Axis(quad.to(device, torch.int32), fraction.to(device, torch.float32), start.to(device, torch.int32), most)
