"""Class-balanced sampling for all images at once: fixed shapes, one sort, and no waiting for the device."""

from typing import NamedTuple

import torch
from torch import Tensor

from stages.kd.gskd import MOST


class Points(NamedTuple):
    """Those of an image's classes come first; what is left over is not valid and points anywhere."""

    index: Tensor  # (B, K, N) int64: pixels
    classes: Tensor  # (B, K) int64: for which class they were drawn
    valid: Tensor  # (B, K) bool: does the class have pixels, and are there others to fill up with?


def balanced(labels: Tensor, right: Tensor, classes: int, per_class: int) -> Points:
    """labels (B, P) int64, right (B, P) bool: where the teacher says the label; only there points are drawn.

    Of each class `per_class` of its pixels, without replacement; where it has fewer, all, then pixels of other classes, with it.
    """
    images, pixels = labels.shape
    device = labels.device
    key = torch.where(right, labels, classes) << 32  # a float of class + chance could not tell chances apart
    key, order = (key | torch.randint(2**32, key.shape, device=device)).sort(1)  # by class, by chance within it, the wrong ones last
    bounds = torch.searchsorted(key, (torch.arange(classes + 1, device=device) << 32).expand(images, -1).contiguous())  # (B, C + 1)
    found = bounds.diff()  # (B, C)
    chance = torch.rand(found.shape, device=device).masked_fill(found == 0, -1.0)
    chosen = chance.topk(min(classes, MOST), 1).indices  # (B, K)
    start, own = bounds.gather(1, chosen)[..., None], found.gather(1, chosen)[..., None]
    others = bounds[:, -1, None, None] - own  # (B, K, 1)

    slot = torch.arange(per_class, device=device)
    filler = (torch.rand((*chosen.shape, per_class), device=device) * others).long().minimum(others - 1)
    filler = filler + own * (filler >= start)  # steps over the class itself
    place = torch.where(slot < own, start + slot, filler).clamp(0, pixels - 1)
    index = order.gather(1, place.flatten(1)).view(place.shape)
    return Points(index, chosen, ((own > 0) & (others > 0))[..., 0])
