"""Whether a limit on accuracy would be kept on other images of this kind, too: from counts per image, not from two figures.

Every limit on mIoU or on the IoU of a class is one sum, of - ratio * against - limit, whose standard error over images is known in closed
form (paired.py). Pixels on which two models differ bound what one can have lost on these images whatever their labels: the certificate.
"""

from typing import NamedTuple

import numpy as np

from stages.measure.paired import SUPPORT, Z95, chance, error, influence, known_or_worst, mean_seen, most_lost, require_pairs


class Counted(NamedTuple):
    """What is known of the two models of a rule."""

    of: np.ndarray  # int64 (N, C, 3)
    against: np.ndarray | None
    touched: np.ndarray | None = None  # int64 (C,): pixels on which they differ, of either class; None: was not counted


class Margin(NamedTuple):
    """How far a limit is kept, in points of IoU; below 0 it is broken."""

    points: float
    se: float | None
    certain: float | None  # the least that it can be on these images; None: no certificate
    edge: float  # the figure in the rule's own terms (a difference, a ratio) that it keeps with 95 % confidence, one-sided
    chance: float | None  # of so large a loss if there were none; None: too few images show the class
    shown: bool  # a loss beyond three standard errors

    @property
    def sure(self) -> bool:
        return self.points - Z95 * known_or_worst(self.se) >= 0 or self.certified

    @property
    def certified(self) -> bool:
        return self.certain is not None and self.certain >= 0

    @property
    def detectable(self) -> float:
        """The loss that so many images of this kind find in 95 of 100 cases, at 5 % false alarms."""
        return 2 * Z95 * known_or_worst(self.se)


def margin(counted: Counted, limit: str, bound: float, class_number: int | None = None) -> Margin:
    """`limit` is one of rules.LIMITS; `class_number` None: of mIoU. A model against another is compared on the same images, or BadData."""
    of, against, touched = counted
    sign = 1 if limit.startswith("at_least") else -1
    ratio, bound = (bound, 0.0) if limit.endswith("_ratio") else (0.0 if against is None else 1.0, bound)
    value, leans = figure(of, class_number)
    other, others = 0.0, 0.0
    if against is not None:
        require_pairs(against, of)
        other, others = figure(against, class_number)
    se = error(leans - ratio * others)
    points = sign * (value - ratio * other - bound)
    certain = None
    if touched is not None and class_number is None:
        worst = most_lost(touched, against if sign > 0 else of)
        certain = sign * ((1 - ratio) * other - bound) - worst
    loss, loss_se = -points, se  # against the limit, where it asks for a figure or for a gain
    if against is not None and sign * ((ratio - 1) * other + bound) <= 0:  # it allows a loss: against none
        loss, loss_se = -sign * (value - other), error(leans - others)
    enough = class_number is None or int((of[:, class_number, 0] + of[:, class_number, 2] > 0).sum()) >= SUPPORT
    step = known_or_worst(se) * Z95 * sign
    told = (value - step) / other if limit.endswith("_ratio") and other else value - (other if ratio else 0.0) - step
    by_chance = chance(loss, loss_se) if enough and loss_se is not None else None
    return Margin(points, se, certain, told, by_chance, loss_se is not None and loss > 3 * loss_se)


def figure(counts: np.ndarray, class_number: int | None) -> tuple[float, np.ndarray]:
    """mIoU or the IoU of a class in points, and how it leans on each image (N,). nan for a class never seen."""
    found = influence(counts if class_number is None else counts[:, [class_number]])
    if class_number is None:
        return float(mean_seen(found.iou)), mean_seen(found.image)
    return float(found.iou[0]), found.image[:, 0]


def parts(of: np.ndarray, against: np.ndarray) -> np.ndarray:
    """Counts (N, C, 3) of both -> (N, C): what each image adds to the difference of a class, in points; an unchanged image adds 0.

    With T, U the sums of tp and union over images, the difference in IoU is sum_i (tp_i - tp'_i - T'/U' (u_i - u'_i)) / U, exactly. nan for
    a class that one of the two never saw.
    """
    (tp, union), (other_tp, other_union) = ((one[..., 0].astype(float), one.sum(axis=-1).astype(float)) for one in (of, against))
    whole, other_whole = (np.where(u.sum(axis=0) > 0, u.sum(axis=0), np.nan) for u in (union, other_union))
    return 100 * (tp - other_tp - other_tp.sum(axis=0) / other_whole * (union - other_union)) / whole
