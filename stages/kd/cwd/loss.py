"""KL over the pixels of each class channel, on the teacher's logit grid."""

from torch import Tensor, nn

from kernels.channel_kl import channel_kl
from stages.kd._meet import same_grid


class ChannelWise(nn.Module):
    def __init__(self, weight: float, temperature: float):
        super().__init__()
        self.weight, self.temperature = weight, temperature

    def forward(self, step) -> dict[str, tuple[Tensor, float]]:
        student, teacher = same_grid(step.student["logits"], step.teacher["logits"], step.align_corners)
        kl = channel_kl(student, teacher, temperature=self.temperature)  # (B, C)
        return {"cwd": (self.temperature**2 * kl.mean(), self.weight)}
