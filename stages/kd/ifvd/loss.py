"""The mean squared difference between the cosines of pixels to the centre of their class, in two networks."""

import torch
from torch import Tensor, nn

from kernels.segmented_mean import segmented_mean
from stages.kd._meet import same_grid, unit


class Variation(nn.Module):
    def __init__(self, weight: float, classes: int):
        super().__init__()
        self.weight, self.classes = weight, classes

    def forward(self, step) -> dict[str, tuple[Tensor, float]]:
        student, teacher = same_grid(step.student["head"], step.teacher["head"], step.align_corners)
        labels = step.labels_at(tuple(teacher.shape[-2:]))
        likeness = typical(student, labels, self.classes) - typical(teacher, labels, self.classes)
        return {"ifvd": (likeness.square().mean(), self.weight)}


def typical(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(B, C, h, w) and (B, h, w) -> (B, h * w): the cosine of each pixel to the centre of its class; 0, for both networks, if ignored.

    The cosines to all centres, of which one is taken by a mask: indexing would add up gradients in another order every time on a GPU.
    """
    centres = segmented_mean(features, labels, classes).means  # (B, K, C)
    own = labels.flatten(1)[:, None] == torch.arange(classes, device=labels.device)[:, None]  # (B, K, h * w)
    cosines = unit(centres, 2) @ unit(features.flatten(2), 1)
    return (cosines * own).sum(1)
