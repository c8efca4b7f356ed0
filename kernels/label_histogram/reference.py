"""The truth about label_histogram, in plain PyTorch: what every fast variant must equal."""

import torch
from torch import Tensor

from kernels.label_histogram.cells import cell_of_pixel


def label_histogram(labels: Tensor, classes: int, size: list[int], ignore: int) -> Tensor:
    (batch, H, W), (h, w), device = labels.shape, size, str(labels.device)
    label = labels.long()
    label = torch.where((label != ignore) & (label >= 0) & (label < classes), label, classes)  # one bin more, for what is not counted
    bins = (label * h + cell_of_pixel(h, H, device)[:, None]) * w + cell_of_pixel(w, W, device)
    counts = torch.zeros(batch, (classes + 1) * h * w, dtype=torch.int32, device=labels.device)
    counts.scatter_add_(1, bins.flatten(1), torch.ones_like(bins.flatten(1), dtype=torch.int32))
    return counts.view(batch, classes + 1, h, w)[:, :classes]
