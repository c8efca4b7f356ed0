"""The mean feature of each class's pixels: the prototypes of IFVD, and the regions of CIRKD and of text-region distillation.

With features f, labels y on the features' own grid and n_bk the number of pixels p of image b with y_p = k:
    mean_bk = sum over p with y_p = k of f_bp / n_bk            zeros where n_bk = 0
or, with per_image off, one mean over the pixels of all images. A label outside 0 .. classes - 1, such as 255, belongs to no class
and is never used as an index. Gradient flows to the features. Computed in float32 at least, whatever the features' type.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.choose import choose
from kernels.segmented_mean import fused, reference


class Means(NamedTuple):
    means: Tensor  # (B, K, C), or (K, C) over all images
    counts: Tensor  # (B, K) or (K,) int32: the pixels of each class


def segmented_mean(features: Tensor, labels: Tensor, classes: int, *, per_image: bool = True, using: str = "auto") -> Means:
    """features (B, C, h, w), labels (B, h, w) uint8, int32 or int64."""
    if features.dim() != 4 or not features.is_floating_point():
        raise ValueError(f"features must be float (B, C, h, w), found {features.dtype} {tuple(features.shape)}")
    if labels.dtype not in (torch.uint8, torch.int32, torch.int64):
        raise ValueError(f"labels must be uint8, int32 or int64, found {labels.dtype}")
    if labels.shape != (features.shape[0], *features.shape[2:]):
        raise ValueError(f"labels {tuple(labels.shape)} must lie on the grid of features {tuple(features.shape)}: bring them to it first")
    if not 1 <= classes <= 255:
        raise ValueError(f"classes must be 1 to 255, for label 255 is no class, found {classes}")
    using, call = choose(__name__, using, features), (features, labels, classes, per_image)
    return Means(*(reference.segmented_mean(*call) if using == "reference" else fused.segmented_mean(*call, using)))
