"""KL over the pixels of each channel, on the teacher's grid."""

from torch import Tensor, nn

from kernels.channel_kl import channel_kl
from stages.kd import Pair
from stages.kd._meet import projector, same_grid


class ChannelWise(nn.Module):
    def __init__(self, weight: float, temperature: float, at: str, pair: Pair):
        super().__init__()
        self.weight, self.temperature, self.at = weight, temperature, at
        self.projector = projector(pair.student[at], pair.teacher[at])

    def forward(self, step) -> dict[str, tuple[Tensor, float]]:
        student, teacher = same_grid(step.student[self.at], step.teacher[self.at], step.align_corners)
        kl = channel_kl(self.projector(student), teacher, temperature=self.temperature)  # (B, C)
        return {"cwd": (self.temperature**2 * kl.mean(), self.weight)}
