"""The mean squared difference of two maps of activity, each a unit vector per image."""

from torch import Tensor, nn
from torch.nn.functional import normalize

from stages.kd._meet import same_grid


class Attention(nn.Module):
    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    def forward(self, step) -> dict[str, tuple[Tensor, float]]:
        student, teacher = same_grid(step.student["head"], step.teacher["head"], step.align_corners)
        return {"at": ((activity(student) - activity(teacher)).square().mean(), self.weight)}


def activity(features: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h * w), of length 1, or 0 where no feature is active."""
    return normalize(features.square().mean(1).flatten(1), dim=1)
