"""Intervals of the drop in mIoU and in every class by drawing the images anew: no formula to trust, and fair to rare classes.

Images are drawn, never pixels: pixels of one image are not independent. The intervals are bias-corrected and accelerated (BCa, Efron
1987), for the drop of a class found in few images is skewed.
"""

from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from stages.measure.paired import require_pairs


class Intervals(NamedTuple):
    """The drop in mIoU, then of every class (1 + C,), in points; nan for a class never seen."""

    drop: np.ndarray
    se: np.ndarray
    low: np.ndarray
    high: np.ndarray


def bootstrap(reference: np.ndarray, candidate: np.ndarray, *, resamples: int = 2000, seed: int = 0, confidence: float = 0.95) -> Intervals:
    """Counts int64 (N, C, 3) of both models on the same images; the same seed gives the same intervals."""
    require_pairs(reference, candidate)
    images = len(reference)
    # tp and union of both models side by side: all that IoU needs. (N, 4, C)
    table = np.stack([part for counts in (reference, candidate) for part in (counts[..., 0], counts.sum(axis=-1))], axis=1).astype(float)
    times = np.random.Generator(np.random.PCG64(seed)).multinomial(images, np.full(images, 1 / images), resamples)  # (R, N)
    drop = drops(table.sum(axis=0))
    drawn = drops((times @ table.reshape(images, -1)).reshape(resamples, *table.shape[1:]))  # (R, 1 + C)
    without = drops(table.sum(axis=0) - table)  # (N, 1 + C): each image left out once
    low, high = bca(drop, drawn, without, confidence)
    seen = np.isfinite(drawn)
    spread = np.where(seen, drawn - mean(drawn, seen), 0.0)
    return Intervals(drop, np.sqrt((spread**2).sum(axis=0) / np.maximum(1, seen.sum(axis=0) - 1)), low, high)


def drops(sums: np.ndarray) -> np.ndarray:
    """(..., 4, C) tp and union of the reference, then of the candidate -> (..., 1 + C) points."""
    union = np.where(sums[..., 1::2, :] > 0, sums[..., 1::2, :], np.nan)
    iou = 100 * sums[..., 0::2, :] / union  # (..., 2, C)
    seen = ~np.isnan(iou)
    means = np.where(seen, iou, 0.0).sum(axis=-1) / np.maximum(1, seen.sum(axis=-1))  # (..., 2)
    return np.concatenate([means[..., :1] - means[..., 1:], iou[..., 0, :] - iou[..., 1, :]], axis=-1)


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
