"""How well the boundaries of classes lie, which mIoU hardly sees: a map shifted by two pixels keeps its areas and loses its edges.

Boundary F after Csurka, Larlus and Perronnin, "What is a good evaluation measure for semantic segmentation?" (BMVC 2013): per class,
precision is the share of predicted boundary pixels that have a boundary pixel of that class in the label within a tolerance of 0.75 %
of the image's diagonal (theirs), recall the same the other way round, F their harmonic mean. They average over images; here pixels are
summed over all images first, as for mIoU. A pixel is on the boundary of its class when one of its four neighbours has another class;
pixels whose label is ignored are left out of both maps, and what borders on them is no boundary.
"""

import math

import numpy as np

from stages.measure.miou import IGNORE

TOLERANCE = 0.0075  # of the diagonal


def tolerance(shape: tuple[int, int]) -> int:
    """In pixels, at least one."""
    return max(1, round(TOLERANCE * math.hypot(*shape)))


def boundaries(pred: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """pred, label uint8 (H, W) of one shape -> int64 (C, 4): boundary pixels predicted, those of them near the label's boundary of
    their class, boundary pixels of the label, those of them near the predicted boundary."""
    radius, ignored = tolerance(label.shape), label == IGNORE
    maps = [np.where(ignored, IGNORE, pred), label]
    edges = [edge(one) & (one < classes) for one in maps]
    near = [dilated(planes(one, on, classes), radius) for one, on in zip(maps, edges, strict=True)]
    columns = []
    for one, on, other in ((maps[0], edges[0], near[1]), (maps[1], edges[1], near[0])):
        kinds = one[on].astype(np.int64)
        bits = 8 * other.dtype.itemsize
        hit = other[kinds // bits, *np.nonzero(on)] >> (kinds % bits).astype(other.dtype) & other.dtype.type(1)
        columns += [np.bincount(kinds, minlength=classes), np.bincount(kinds[hit.astype(bool)], minlength=classes)]
    return np.stack(columns, axis=1).astype(np.int64)


def boundary_f(summed: np.ndarray) -> tuple[float, list[float | None]]:
    """(C, 4) summed over images -> mean F in points 0..100 over the classes that have a boundary, and that of each class (None: none)."""
    found: list[float | None] = []
    for predicted, right, labelled, met in summed.tolist():
        precision, recall = right / predicted if predicted else 0.0, met / labelled if labelled else 0.0
        mean = 200 * precision * recall / (precision + recall) if precision + recall else 0.0
        found.append(mean if predicted or labelled else None)
    seen = [value for value in found if value is not None]
    return (sum(seen) / len(seen) if seen else 0.0), found


def edge(one: np.ndarray) -> np.ndarray:
    """bool (H, W): pixels with a neighbour of another class; ignored ones are no neighbours."""
    on, kept = np.zeros(one.shape, bool), one != IGNORE
    across = (one[:, 1:] != one[:, :-1]) & kept[:, 1:] & kept[:, :-1]
    down = (one[1:] != one[:-1]) & kept[1:] & kept[:-1]
    on[:, 1:] |= across
    on[:, :-1] |= across
    on[1:] |= down
    on[:-1] |= down
    return on


def planes(one: np.ndarray, on: np.ndarray, classes: int) -> np.ndarray:
    """(P, H, W): bit k of plane p says that the pixel is on the boundary of class p * bits + k. All classes are then dilated at once."""
    dtype = next((t for t in (np.uint8, np.uint16, np.uint32) if classes <= 8 * np.dtype(t).itemsize), np.uint64)
    bits = 8 * np.dtype(dtype).itemsize
    found = np.zeros((-(-classes // bits), *one.shape), dtype)
    for p, plane in enumerate(found):
        here = on & (one // bits == p)
        plane[here] = dtype(1) << (one[here] % bits).astype(dtype)
    return found


def dilated(masks: np.ndarray, radius: int) -> np.ndarray:
    """Every bit spread over a disk of that radius (Euclidean distance, in pixels). masks: (P, H, W)."""
    spread, wide, reach = np.zeros_like(masks), masks.copy(), 0
    height, width = masks.shape[1:]
    for dy in range(radius, -1, -1):  # the rows of a disk become wider towards its middle
        while reach < math.isqrt(radius**2 - dy**2):
            reach += 1
            wide[..., reach:] |= masks[..., : max(width - reach, 0)]
            wide[..., : max(width - reach, 0)] |= masks[..., reach:]
        if dy < height:
            spread[:, dy:] |= wide[:, : height - dy]
            spread[:, : height - dy] |= wide[:, dy:]
    return spread
