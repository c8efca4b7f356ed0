"""What a candidate loses against its reference on the same images, with a standard error ten to a hundred times below that of one mIoU.

Both have seen the same images, so an image that is hard for one is hard for the other: what differs is the difference per image. Counts are
int64 (N, C, 3): tp, fp, fn of every image and class (miou.counts). IoU and mIoU are in points 0..100, over the classes seen, as in miou.py.
Standard errors come from influence functions: how much the figure would move if the image were drawn once more.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from pipeline.errors import BadData
from stages.measure.miou import IGNORE

Z95 = NormalDist().inv_cdf(0.95)  # 1.645, one-sided
FEW_IMAGES = 100  # below, the standard error of a drop is not to be trusted, and a verdict says so
SUPPORT = 10  # images that must hold a class before its drop is judged with a standard error
CLASS_LEVEL = 0.05  # of all classes together


class Drop(NamedTuple):
    points: float  # mIoU of the reference - mIoU of the candidate
    se: float | None  # of the drop, over images; None: one image says nothing about it


def drop(reference: np.ndarray, candidate: np.ndarray) -> Drop:
    """The drop in mIoU and its closed-form standard error: the spread of (influence on one - influence on the other) over images."""
    require_pairs(reference, candidate)
    one, other = influence(reference), influence(candidate)
    return Drop(float(mean_seen(one.iou) - mean_seen(other.iou)), error(mean_seen(one.image) - mean_seen(other.image)))


class Influence(NamedTuple):
    iou: np.ndarray  # (C,) points, nan where the class was never seen
    image: np.ndarray  # (N, C) points by which the IoU leans on each image; their mean is 0


def influence(counts: np.ndarray) -> Influence:
    """psi_ic = N (tp_ic - IoU_c u_ic) / U_c with u = tp + fp + fn of an image, U its sum: IoU_c is a ratio of sums over images."""
    tp, union = counts[..., 0].astype(float), counts.sum(axis=-1).astype(float)
    whole = np.where(union.sum(axis=0) > 0, union.sum(axis=0), np.nan)
    iou = tp.sum(axis=0) / whole
    return Influence(100 * iou, 100 * len(counts) * (tp - iou * union) / whole)


def error(influences: np.ndarray) -> float | None:
    """(N,) -> the standard error of the figure they belong to."""
    return float(np.std(influences, ddof=1)) / math.sqrt(len(influences)) if len(influences) > 1 else None


def mean_seen(values: np.ndarray) -> np.ndarray:
    """The mean over classes (last axis) without those never seen."""
    seen = ~np.isnan(values)
    return np.where(seen, values, 0.0).sum(axis=-1) / np.maximum(1, seen.sum(axis=-1))


def most_lost(touched: np.ndarray, reference: np.ndarray) -> float:
    """The certificate: points that the touched pixels (C,) can cost at most, whatever the labels hold. A bound, not an estimate.

    A pixel lost costs class c at most 1/U_c, a false one less, so its IoU falls by at most touched_c/U_c, and never below 0. A class that
    the reference never saw may enter the mean with 0.
    """
    iou, union = influence(reference).iou / 100, reference.sum(axis=(0, 2))
    seen = union > 0
    least = np.maximum(0.0, iou[seen] - touched[seen] / union[seen])
    classes = int(seen.sum() + (touched[~seen] > 0).sum())
    return 100 * float(iou[seen].mean() - least.sum() / classes) if seen.any() else 0.0


def touched(one: np.ndarray, other: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """Class maps and label of one image (H, W) -> int64 (C,): pixels not ignored on which the maps differ, counted for either class."""
    here = (label != IGNORE) & (one != other)
    return sum(np.bincount(side[here], minlength=256)[:classes] for side in (one, other))


def chance(points: float, se: float) -> float:
    """One-sided p-value of "no drop"; a drop without any spread is certain."""
    return NormalDist().cdf(-points / se) if se else float(points <= 0)


def holm(p: Sequence[float], level: float) -> list[bool]:
    """Which of several hypotheses are rejected so that none is rejected wrongly with chance 1 - level (Holm 1979)."""
    rejected = [False] * len(p)
    for k, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if p[i] > level / (len(p) - k):
            break
        rejected[i] = True
    return rejected


def known_or_worst(se: float | None) -> float:
    """An error that is not known is taken for the worst."""
    return math.inf if se is None else se


def require_pairs(reference: np.ndarray, candidate: np.ndarray) -> None:
    """tp + fn are the pixels of a label: where these differ, the labels did, and nothing here would mean anything."""
    if reference.shape != candidate.shape or reference.ndim != 3 or not len(reference):
        raise BadData(f"counts (images, classes, 3) of the same images are compared, not {reference.shape} with {candidate.shape}")
    other = np.flatnonzero((reference[..., [0, 2]].sum(axis=-1) != candidate[..., [0, 2]].sum(axis=-1)).any(axis=1))
    if len(other):
        raise BadData(
            f"the labels of {len(other)} of {len(reference)} images differ, the first is number {other[0]}: measure both on one list"
        )
