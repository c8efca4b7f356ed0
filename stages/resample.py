"""Where the pixels of a resized window come from, and how much each counts: what Pillow's resize() does, as tables of whole numbers.

Pillow resizes 8-bit pictures in whole numbers: along each row, rounded to 8 bits, then along each column. A bilinear weight is a
multiple of 2^-22, of a triangle that widens as the picture shrinks. Whoever adds up by the same tables comes to the same bytes, except
where Pillow takes the columns first (from 13 on, if it takes away more than twice as many rows as columns) or was built with fused
multiplication (not on x86-64): there a value may come out one higher or lower.
"""

from typing import NamedTuple

import numpy as np

BITS = 22  # Pillow's PRECISION_BITS for 8-bit pictures


class Axis(NamedTuple):
    """One axis of B windows of `side` pixels each: int32, in pixels of the source."""

    nearest: np.ndarray  # (B, side): the pixel that a label is taken from; -1 beyond the edge of the image
    first: np.ndarray  # (B, side): the first of the pixels that are mixed
    weights: np.ndarray  # (B, K, side): how much that one and those after it count, in 2^-BITS


def axis(windows: list[tuple[float, float, int, int]], full: int, side: int, mirrored: list[bool] | None = None) -> Axis:
    """`windows`: (a, b, u, v) each, as stages/augment.py has it; `full`: pixels of the source along this axis."""
    a, b, u, v = np.array(windows, np.float64).T[..., None]  # (B, 1) each
    low = np.floor(a)
    room = np.minimum(np.ceil(b), full) - low  # Pillow sees the pixels under the window only, and none beside them
    start, end = np.float32(a - low), np.float32(np.minimum(b - low, room))  # its C code takes the box as float
    scale = np.float64(end - start) / (v - u)  # source pixels per output pixel
    place = np.arange(side)[None]
    if mirrored is not None:
        place = np.where(np.array(mirrored)[:, None], side - 1 - place, place)
    inside = (u <= place) & (place < v)
    place = np.clip(place - u, 0, v - u - 1).astype(np.int64)  # within the part that is filled

    steps = np.concatenate([start + scale * 0.5, np.repeat(scale, side - 1, 1)], 1).cumsum(1)  # it adds up, one pixel after another
    nearest = low + np.minimum(np.floor(np.take_along_axis(steps, place, 1)), room - 1)

    centre, reach = start + (place + 0.5) * scale, np.maximum(scale, 1.0)
    first = np.maximum(np.trunc(centre - reach + 0.5), 0)
    count = np.minimum(np.trunc(centre + reach + 0.5), room) - first
    weights = _triangle(first, count, centre, reach)
    return Axis(np.where(inside, nearest, -1).astype(np.int32), (low + first).astype(np.int32), weights)


def _triangle(first: np.ndarray, count: np.ndarray, centre: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """The weights of Pillow's bilinear filter: they add up to 1 before they are rounded to 2^-BITS."""
    taps = np.arange(int(count.max()))[:, None]
    away = np.abs((taps + first[:, None] - centre[:, None] + 0.5) * (1.0 / reach)[:, None])
    weights = np.where(taps < count[:, None], np.maximum(1.0 - away, 0.0), 0.0)
    total = sum(weights[:, tap] for tap in range(len(taps)))  # in this order: another one might round otherwise
    fixed = (0.5 + weights / total[:, None] * (1 << BITS)).astype(np.int32)
    return fixed[:, : 1 + np.flatnonzero(fixed.any((0, 2)))[-1]]
