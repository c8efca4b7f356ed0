"""The mean squared difference of all cosines between nodes of an image, through products of channels instead of pairs of nodes."""

from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from stages.kd._meet import same_grid, unit


class PairWise(nn.Module):
    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    def forward(self, step) -> dict[str, tuple[Tensor, float]]:
        student, teacher = (nodes(f) for f in same_grid(step.student["head"], step.teacher["head"], step.align_corners))
        images, n = len(student), student.shape[2]
        apart = squares(student, student) + squares(teacher, teacher) - 2 * squares(student, teacher)
        return {"skd": (apart / (images * n * n), self.weight)}


def nodes(features: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C, n), each node of length 1, or 0 where nothing is active."""
    return unit(max_pool2d(features, 2, ceil_mode=True).flatten(2), 1)


def squares(a: Tensor, b: Tensor) -> Tensor:
    """Of a (B, C, n) and b (B, D, n): the squared entries of a b' of every image, summed."""
    return (a @ b.mT).square().sum()
