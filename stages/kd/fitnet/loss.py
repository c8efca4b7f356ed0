"""The mean squared difference of features, on the teacher's grid and in its width."""

from torch import Tensor, nn

from stages.kd import Pair
from stages.kd._meet import projector, same_grid


class Hints(nn.Module):
    def __init__(self, weight: float, pair: Pair):
        super().__init__()
        self.weight = weight
        self.projector = projector(pair.student["head"], pair.teacher["head"])

    def forward(self, step) -> dict[str, tuple[Tensor, float]]:
        student, teacher = same_grid(step.student["head"], step.teacher["head"], step.align_corners)
        return {"fitnet": ((self.projector(student) - teacher).square().mean(), self.weight)}
