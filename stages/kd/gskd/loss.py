"""The likeness of sampled pixels in both networks, compared in random descriptors by KL."""

import torch
from torch import Tensor, nn

from stages.kd._meet import on_grid, same_grid, unit

from . import MOST
from .balanced import balanced

SHORTEST = 1e-6  # a feature no longer than this has no direction


class Structure(nn.Module):
    def __init__(
        self,
        widths: tuple[int, int],  # of head: the student's, the teacher's
        classes: int,
        *,
        weight: float,
        temperature: float,
        per_class: int,
        group: int | None,
        mask_diagonal: bool,
    ):
        super().__init__()
        given, wanted = widths
        layers = nn.Linear(given, wanted, bias=False), nn.LayerNorm(wanted), nn.ReLU(), nn.Linear(wanted, wanted, bias=False)
        self.project = nn.Sequential(*layers)
        self.classes, self.per_class, self.group, self.mask_diagonal = classes, per_class, group, mask_diagonal
        self.weight, self.temperature = weight, temperature
        points = per_class * min(classes, MOST)
        self.groups = per_class if group is None else -(-points // group) if group else 1  # at most

    def forward(self, step) -> dict[str, tuple[Tensor, float]]:
        student, teacher = same_grid(step.student["head"], step.teacher["head"], step.align_corners)  # (B, D, h, w)
        points = self._points(step, tuple(teacher.shape[-2:]))
        index, valid = points.index.flatten(1), points.valid.repeat_interleave(self.per_class, 1)  # (B, M)
        live = valid[:, :, None] & valid[:, None, :]  # (B, M, M)
        if self.mask_diagonal:
            live = live & ~torch.eye(live.shape[-1], dtype=torch.bool, device=live.device)
        count = points.valid.sum(1)  # (B,): classes of each image
        size = count.clamp(min=1) if self.group is None else torch.full_like(count, self.group)
        group = dealt(live, size) if self.group != 0 else torch.zeros_like(live, dtype=torch.long)
        own, theirs = cosines(self.project(rows_at(student, index))), cosines(rows_at(teacher, index))
        kl = descriptor_kl(own, theirs, live, group, self.groups, self.temperature)
        enough = (count >= 2) & (count * self.per_class >= 2 * size)
        return {"gskd": (self.temperature**2 * (kl * enough).mean(), self.weight)}

    def _points(self, step, size: tuple[int, int]):
        labels = step.labels_at(size).flatten(1).long()
        said = on_grid(step.teacher["logits"], size, step.teacher_align_corners).argmax(1).flatten(1)
        return balanced(labels, said == labels, self.classes, self.per_class)  # an ignored label is never what a teacher says


def rows_at(features: Tensor, index: Tensor) -> Tensor:
    """(B, D, h, w) at pixels (B, M) -> (B, M, D)."""
    return features.flatten(2).gather(2, index[:, None].expand(-1, features.shape[1], -1)).mT


def cosines(rows: Tensor) -> Tensor:
    """(B, M, D) -> (B, M, M)."""
    rows = unit(rows, 2, SHORTEST)
    return rows @ rows.mT


def dealt(live: Tensor, size: Tensor) -> Tensor:
    """(B, M, M): the descriptor of each relation, by one random order of each row's live ones; size (B,) of them in each."""
    chance = torch.rand(live.shape, device=live.device).masked_fill(~live, 2.0)
    return chance.argsort(2).argsort(2) // size[:, None, None]


def descriptor_kl(student: Tensor, teacher: Tensor, live: Tensor, group: Tensor, groups: int, temperature: float) -> Tensor:
    """Cosines (B, M, M) -> (B,): the mean over an image's descriptors of KL(teacher || student); 0 without any."""
    index = group.clamp(max=groups - 1)  # what is not live lies behind the last, and counts 0

    def per_descriptor(values: Tensor) -> Tensor:
        return values.new_zeros((*values.shape[:2], groups)).scatter_add(2, index, values).sum(1)  # (B, G)

    t, s = (((v - 1) / temperature).exp() * live for v in (teacher, student))  # cosines end at 1
    z_t, z_s, a = (per_descriptor(values) for values in (t, s, t * (teacher - student)))
    there = z_t > 0
    z_t, z_s = (torch.where(there, z, 1.0) for z in (z_t, z_s))
    kl = a / (temperature * z_t) - z_t.log() + z_s.log()
    return kl.sum(1) / there.sum(1).clamp(min=1)
