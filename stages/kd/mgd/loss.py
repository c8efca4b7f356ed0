"""The teacher's features, generated from a masked part of the student's."""

import torch
from torch import Tensor, nn

from stages.kd._meet import projector, same_grid


class Generator(nn.Module):
    """Student features (B, C_s, h, w) -> (B, C_t, h, w), some pixels unseen."""

    def __init__(self, c_s: int, c_t: int, hidden: int, mask: float, convs: int = 2):
        super().__init__()
        self.mask, self.align = mask, projector(c_s, c_t)
        widths = [c_t, *[hidden] * (convs - 1), c_t]
        layers = [layer for n in range(convs) for layer in (nn.Conv2d(widths[n], widths[n + 1], 3, padding=1), nn.ReLU())]
        self.generate = nn.Sequential(*layers[:-1])

    def forward(self, student: Tensor) -> Tensor:
        b, _, h, w = student.shape
        seen = torch.rand(b, 1, h, w, device=student.device) >= self.mask
        return self.generate(self.align(student) * seen)


class Masked(nn.Module):
    def __init__(self, weight: float, mask: float, c_s: int, c_t: int, hidden: int):
        super().__init__()
        self.weight, self.generator = weight, Generator(c_s, c_t, hidden, mask)

    def forward(self, step) -> dict[str, tuple[Tensor, float]]:
        student, teacher = same_grid(step.student["c4"], step.teacher["c4"], step.align_corners)
        return {"mgd": ((self.generator(student) - teacher).square().sum() / len(teacher), self.weight)}
