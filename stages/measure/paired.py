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

# Points of mIoU that may be lost, and the share that must be kept, by precision of the candidate.
TOLERANCES = {"f32": 0.05, "fp16": 0.2, "int8": 1.0}
SHARES = {"f32": 0.999, "fp16": 0.999, "int8": 0.99}
Z95 = NormalDist().inv_cdf(0.95)  # 1.645, one-sided
FEW_IMAGES = 100  # below, the standard error of a drop is not to be trusted, and a verdict says so
SUPPORT = 10  # images that must hold a class before its drop is judged with a standard error
CLASS_LEVEL = 0.05  # of all classes together


class Drop(NamedTuple):
    points: float  # mIoU of the reference - mIoU of the candidate
    se: float | None  # of the drop, over images; None: one image says nothing about it

    @property
    def high(self) -> float:
        """The upper end of the one-sided 95 % interval."""
        return self.points + Z95 * known_or_worst(self.se)

    @property
    def detectable(self) -> float:
        """The drop that so many images of this kind would find in 95 of 100 cases, at 5 % false alarms."""
        return 2 * Z95 * known_or_worst(self.se)


class ClassDrop(NamedTuple):
    points: float  # IoU of the reference - IoU of the candidate
    se: float | None
    images: int  # whose labels hold the class
    p: float | None  # how likely a drop this large is if the class lost nothing; None: too few images to say
    lost: bool  # more than is allowed


class Judgement(NamedTuple):
    passed: bool
    drop: Drop
    certificate: float | None
    classes: list[ClassDrop | None]  # in the order of the class table; None: never seen
    low_power: bool
    text: str


def judge(
    reference: np.ndarray,
    candidate: np.ndarray,
    *,
    tolerance: float,
    share: float = 0.0,
    class_limit: float = 2.0,
    touched: np.ndarray | None = None,
    names: Sequence[str] | None = None,
) -> Judgement:
    """All that counts can say: the drop below `tolerance` points for certain or with 95 % confidence, no class that lost more than
    `class_limit`, and `share` of the reference's mIoU kept (0.99 or 0.999 as in MLPerf). `touched` gives the certificate, `names` are
    those of the classes.
    """
    loss = drop(reference, candidate)
    sure = None if touched is None else most_lost(touched, reference)
    classes = class_drops(reference, candidate, class_limit)
    kept = share_kept(reference, candidate)
    held = loss.high <= tolerance or (sure is not None and sure <= tolerance)
    rules = {drop_in_words(loss, sure, tolerance, len(reference)): held}
    if share:
        rules[f"{kept:.2%} of the reference's mIoU is kept, {share:.2%} was asked"] = kept >= share
    for name, found in zip(names or [f"class {c}" for c in range(len(classes))], classes, strict=True):
        if found and found.lost:
            rules[class_in_words(name, found, class_limit)] = False
    low = len(reference) < FEW_IMAGES or loss.detectable > tolerance
    said = [text for text, held in rules.items() if not held] or list(rules)
    said += [f"low power: {len(reference)} images find a drop of {loss.detectable:.2g} points, not a smaller one"] if low else []
    return Judgement(all(rules.values()), loss, sure, classes, low, "; ".join(said))


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


def class_drops(reference: np.ndarray, candidate: np.ndarray, limit: float = 2.0) -> list[ClassDrop | None]:
    """What every class lost. A class in ten images or more lost too much if its drop is above `limit` and three standard errors, and
    significant at 5 % over all such classes together (Holm); one in fewer images if its drop is above `limit`.
    """
    require_pairs(reference, candidate)
    one, other = influence(reference), influence(candidate)
    support = (reference[..., 0] + reference[..., 2] > 0).sum(axis=0)
    drops = one.iou - other.iou
    errors = [error(difference) for difference in (one.image - other.image).T]
    p = [chance(d, se) if n >= SUPPORT else None for d, se, n in zip(drops, errors, support, strict=True)]
    judged = [c for c in range(len(drops)) if p[c] is not None]
    significant = dict(zip(judged, holm([p[c] for c in judged], CLASS_LEVEL), strict=True))
    found = []
    for c, (d, se) in enumerate(zip(drops, errors, strict=True)):
        above = d > limit and (c not in significant or (significant[c] and d > 3 * se))
        found.append(None if math.isnan(d) else ClassDrop(float(d), se, int(support[c]), p[c], bool(above)))
    return found


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


def below_floor(counts: np.ndarray, floors: dict[int, float], strict: bool = False) -> dict[int, float]:
    """Classes whose IoU is under its floor, with the figure held against it: the IoU, or where `strict` its lower 95 % bound."""
    found = influence(counts)
    held = {c: float(found.iou[c]) - (Z95 * known_or_worst(error(found.image[:, c])) if strict else 0.0) for c in floors}
    return {c: value for c, value in held.items() if not value >= floors[c]}  # a class never seen is under any floor


def known_or_worst(se: float | None) -> float:
    """An error that is not known is taken for the worst."""
    return math.inf if se is None else se


def share_kept(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Candidate's mIoU / reference's, as MLPerf asks of reduced precision: 0.99, or 0.999 in its high-accuracy variants."""
    one, other = mean_seen(influence(reference).iou), mean_seen(influence(candidate).iou)
    return float(other / one) if one else 1.0


def require_pairs(reference: np.ndarray, candidate: np.ndarray) -> None:
    """tp + fn are the pixels of a label: where these differ, the labels did, and nothing here would mean anything."""
    if reference.shape != candidate.shape or reference.ndim != 3 or not len(reference):
        raise BadData(f"counts (images, classes, 3) of the same images are compared, not {reference.shape} with {candidate.shape}")
    other = np.flatnonzero((reference[..., [0, 2]].sum(axis=-1) != candidate[..., [0, 2]].sum(axis=-1)).any(axis=1))
    if len(other):
        raise BadData(
            f"the labels of {len(other)} of {len(reference)} images differ, the first is number {other[0]}: measure both on one list"
        )


def drop_in_words(loss: Drop, sure: float | None, tolerance: float, images: int) -> str:
    sampled = "with no error known" if loss.se is None else f"below {loss.high:.3f} with 95 % confidence"
    text = f"mIoU drops by {loss.points:+.3f} points on {images} images, {sampled}"
    text += "" if sure is None else f", by at most {sure:.3f} on these whatever their labels"
    return f"{text}; {tolerance:g} was allowed"


def class_in_words(name: str, found: ClassDrop, limit: float) -> str:
    evidence = "low evidence" if found.p is None else f"standard error {found.se:.2f}, p {found.p:.2g}"
    return f"{name} lost {found.points:.2f} points in {found.images} images ({evidence}); {limit:g} was allowed"
