"""Intervals by drawing the images anew: no formula to trust, and fair to classes that few images hold.

Images are drawn, never pixels: pixels of one image are not independent. The intervals are bias-corrected and accelerated (BCa, Efron
1987), for what a class loses that is found in few images is skewed.
"""

from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from stages.measure.paired import require_pairs

MOST = 1 << 22  # numbers drawn at a time, 32 MiB


class Intervals(NamedTuple):
    """Of several figures (K,) in points; nan where the class was never seen."""

    figure: np.ndarray
    se: np.ndarray
    low: np.ndarray
    high: np.ndarray


def bootstrap(
    counts: Sequence[np.ndarray],
    figures: Callable[[np.ndarray], np.ndarray],
    *,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Intervals:
    """`counts`: int64 (N, C, 3) of M models on the same images. `figures`: IoU (..., M, C) in points, nan for a class not seen -> (..., K).

    The same seed gives the same intervals.
    """
    if len(counts) == 2:
        require_pairs(*counts)
    images = len(counts[0])
    # tp and union of each model: all that IoU needs. (N, M, 2, C)
    table = np.stack([np.stack([one[..., 0], one.sum(axis=-1)], axis=1) for one in counts], axis=1).astype(float)
    shape, flat = table.shape[1:], table.reshape(images, -1)
    found = figures(iou(table.sum(axis=0)))
    drawn = np.concatenate([figures(iou((times @ flat).reshape(-1, *shape))) for times in draws(images, resamples, seed)])  # (R, K)
    without = figures(iou(table.sum(axis=0) - table))  # (N, K): each image left out once
    low, high = bca(found, drawn, without, confidence)
    seen = np.isfinite(drawn)
    spread = np.where(seen, drawn - mean(drawn, seen), 0.0)
    return Intervals(found, np.sqrt((spread**2).sum(axis=0) / np.maximum(1, seen.sum(axis=0) - 1)), low, high)


def draws(images: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each image was drawn, (R, N) in blocks."""
    random, block = np.random.Generator(np.random.PCG64(seed)), max(1, MOST // images)
    for k in range(0, resamples, block):
        yield random.multinomial(images, np.full(images, 1 / images), min(block, resamples - k))


def iou(sums: np.ndarray) -> np.ndarray:
    """(..., M, 2, C) tp and union -> (..., M, C) points."""
    union = np.where(sums[..., 1, :] > 0, sums[..., 1, :], np.nan)
    return 100 * sums[..., 0, :] / union


def bca(found: np.ndarray, drawn: np.ndarray, without: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Both ends: quantiles of what was drawn (R, K), moved by the median's bias and by the skew of leaving images out (N, K)."""
    normal, seen = NormalDist(), np.isfinite(drawn)
    count = seen.sum(axis=0)
    below = ((drawn < found).sum(axis=0) + 0.5 * (drawn == found).sum(axis=0)) / np.maximum(1, count)
    bias = np.array([normal.inv_cdf(share) for share in np.clip(below, 1 / len(drawn), 1 - 1 / len(drawn))])
    there = np.isfinite(without)
    lean = np.where(there, mean(without, there) - without, 0.0)
    squares = (lean**2).sum(axis=0)
    skew = (lean**3).sum(axis=0) / (6 * np.where(squares > 0, squares, 1.0) ** 1.5)
    ordered = np.sort(drawn, axis=0)  # nan goes last
    ends = []
    for z in (normal.inv_cdf((1 - confidence) / 2), normal.inv_cdf((1 + confidence) / 2)):
        share = np.array([normal.cdf(b + (b + z) / (1 - a * (b + z))) for b, a in zip(bias, skew, strict=True)])
        place = np.clip((share * count).astype(int), 0, np.maximum(0, count - 1))
        ends.append(np.take_along_axis(ordered, place[None], axis=0)[0])
    return ends[0], ends[1]


def mean(values: np.ndarray, seen: np.ndarray) -> np.ndarray:
    return np.where(seen, values, 0.0).sum(axis=0) / np.maximum(1, seen.sum(axis=0))
