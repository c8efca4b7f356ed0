"""How many label pixels of each class lie in each cell of a smaller grid: what losses at low resolution need to know of labels.

The cell of a pixel is the value that PyTorch's nearest upsampling of the small grid would put there, so that for any logits z
    sum over label pixels of class c of nearest_upsampled(z)[c]  =  sum over cells of histogram[c] * z[c]         exactly
for every ratio of sizes, also a broken one; a grid finer than the labels has cells without pixels. Ignored labels, and labels that
name no class, are counted nowhere: the classes of a cell may add up to less than its size. No gradient.
"""

import torch
from torch import Tensor

from kernels.choose import choose
from kernels.label_histogram import fused, reference
from kernels.label_histogram.cells import cell_sizes

__all__ = ["cell_sizes", "label_histogram"]


def label_histogram(labels: Tensor, classes: int, size: tuple[int, int], *, ignore: int = 255, using: str = "auto") -> Tensor:
    """labels (B, H, W) uint8, int32 or int64 -> (B, classes, *size) int32."""
    if labels.dim() != 3 or labels.dtype not in (torch.uint8, torch.int32, torch.int64):
        raise ValueError(f"labels must be uint8, int32 or int64 (B, H, W), found {labels.dtype} {tuple(labels.shape)}")
    if classes < 1 or len(size) != 2 or min(size) < 1:
        raise ValueError(f"classes and size must be at least 1 and (1, 1), found {classes} and {tuple(size)}")
    using, call = choose(__name__, using, labels), (labels, classes, list(size), ignore)
    return reference.label_histogram(*call) if using == "reference" else fused.label_histogram(*call, using)
