"""Features generated from the student's, near the teacher's at their place and group of channels, and far from its other groups."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from pipeline.errors import BadRecipe
from stages.kd._meet import same_grid
from stages.kd.mgd.loss import Generator

SIDE, GROUPS = 4, 16  # of a patch, in cells; of the channels
CONVS = 4  # of the generator


class DenseContrast(nn.Module):
    def __init__(self, weight: float, contrast_weight: float, temperature: float, mask: float, c_s: int, c_t: int, hidden: int):
        super().__init__()
        self.weight, self.contrast_weight, self.temperature = weight, contrast_weight, temperature
        self.groups = math.gcd(GROUPS, c_t)
        if self.groups == 1 and contrast_weight:
            raise BadRecipe(f"afdcd: c4 of the teacher has {c_t} channels, an odd number, which make no groups: set contrast_weight: 0")
        self.generator = Generator(c_s, c_t, hidden, mask, CONVS)

    def forward(self, step) -> dict[str, tuple[Tensor, float]]:
        student, teacher = same_grid(step.student["c4"], step.teacher["c4"], step.align_corners)
        made = self.generator(student)
        terms = {"afdcd": ((made - teacher).square().sum() / len(teacher), self.weight)}
        if self.contrast_weight:
            made, teacher = (samples(maps, self.groups) for maps in (made, teacher))
            terms["afdcd_contrast"] = (contrast(made, teacher, self.temperature), self.contrast_weight)
        return terms


def samples(maps: Tensor, groups: int) -> Tensor:
    """(B, C, h, w) -> (patches, groups, positions, C / groups) of the max-pooled maps; what does not fill a patch is left out."""
    pool = max(1, min(SIDE, min(maps.shape[2:]) // SIDE))
    maps = max_pool2d(maps, pool) if pool > 1 else maps
    b, c, h, w = maps.shape
    ph, pw = min(SIDE, h), min(SIDE, w)
    maps = maps[:, :, : h // ph * ph, : w // pw * pw].reshape(b, groups, c // groups, h // ph, ph, w // pw, pw)
    return maps.permute(0, 3, 5, 1, 4, 6, 2).reshape(-1, groups, ph * pw, c // groups)


def contrast(made: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    _, groups, positions, _ = made.shape
    logits = -torch.cdist(made.flatten(1, 2), teacher.flatten(1, 2), p=1.0) / temperature  # (patches, samples, samples)
    group = torch.arange(groups, device=made.device).repeat_interleave(positions)
    same = (group[:, None] == group) & ~torch.eye(groups * positions, dtype=torch.bool, device=made.device)
    logits = logits.masked_fill(same, -math.inf)
    return (logits.logsumexp(2) - logits.diagonal(dim1=1, dim2=2)).mean()
