"""Pixel-wise KL to the teacher, at the labels' grid or at the logits'."""

from torch import Tensor, nn

from kernels.pixel_kl import pixel_kl
from stages.kd._meet import same_grid


class AtLabels(nn.Module):
    def __init__(self, weight: float, temperature: float):
        super().__init__()
        self.weight, self.temperature = weight, temperature

    def forward(self, step) -> dict[str, tuple[Tensor, float]]:
        return {"pixel": (self.temperature**2 * step.mean(step.kl(self.temperature)), self.weight)}


class AtLogits(nn.Module):
    def __init__(self, weight: float, temperature: float):
        super().__init__()
        self.weight, self.temperature = weight, temperature

    def forward(self, step) -> dict[str, tuple[Tensor, float]]:
        student, teacher = same_grid(step.student["logits"], step.teacher["logits"], step.align_corners)
        kl = pixel_kl(student, teacher, temperature=self.temperature).kl  # (B, h, w)
        return {"pixel": (self.temperature**2 * kl.mean(), self.weight)}
