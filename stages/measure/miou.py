"""Mean intersection over union, from counts that add up: one table per image, summed before anything is divided.

IoU of a class is tp / (tp + fp + fn) over all pixels of all images together, never a mean over images.
"""

import numpy as np

from pipeline.errors import BadData

IGNORE = 255


def counts(pred: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """pred, label uint8 (H, W) -> int64 (C, 3): tp, fp, fn of every class over the pixels whose label is not ignored."""
    if pred.shape != label.shape:
        raise BadData(f"a class map of {pred.shape} pixels cannot be judged by a label of {label.shape}: bring both to one size first")
    valid = label != IGNORE
    # One extra column takes predictions outside the class table: a miss for the true class, nobody's false positive.
    cell = label[valid].astype(np.int64) * (classes + 1) + np.minimum(pred[valid], classes)
    table = np.bincount(cell, minlength=classes * (classes + 1))
    if len(table) > classes * (classes + 1):
        raise BadData(
            f"a label holds class {int(label[valid].max())}, but there are {classes} classes (0 to {classes - 1}, {IGNORE} is ignored)"
        )
    table = table.reshape(classes, classes + 1)  # rows: label, columns: prediction
    tp = table.diagonal()
    fp = table[:, :classes].sum(axis=0) - tp
    fn = table.sum(axis=1) - tp
    return np.stack([tp, fp, fn], axis=1)


def miou(summed: np.ndarray) -> tuple[float, list[float | None]]:
    """(C, 3) summed over images -> mIoU in points 0..100 over the classes seen, and the IoU of each class (None: never seen).

    A class is seen when it has pixels in the union: in the labels or in the predictions.
    """
    union = summed.sum(axis=1)
    iou = [100 * float(tp) / float(u) if u else None for tp, u in zip(summed[:, 0], union, strict=True)]
    seen = [value for value in iou if value is not None]
    return (sum(seen) / len(seen) if seen else 0.0), iou
