"""Features of both networks as logits, what is reliable in them mixed, and the student's part taught by the mixture."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kernels.heteroakd_px import heteroakd_px
from kernels.pixel_kl import pixel_kl
from stages.kd import When
from stages.kd._meet import BatchNorm, on_grid, same_grid
from stages.kd._step import IGNORE


class HeteroAKD(nn.Module):
    def __init__(
        self,
        widths: tuple[int, int],  # of c4: the student's, the teacher's
        classes: int,
        *,
        weights: tuple[float, float, float],
        temperature: float,
        form: str,
        area: bool,
        relu: bool,
        mixes: When,  # from when on the mixture counts
    ):
        super().__init__()
        self.student, self.teacher = (_projector(width, classes, relu) for width in widths)
        self.weights, self.temperature, self.form, self.area, self.mixes = weights, temperature, form, area, mixes

    def forward(self, step) -> dict[str, tuple[Tensor, float]]:
        student = self.student(_wide(step.student["c4"]))  # (B, C, h, w)
        teacher = on_grid(self.teacher(_wide(step.teacher["c4"])), student.shape[-2:])
        labels, valid = self._labels(step, tuple(student.shape[-2:]), student.dtype)
        count = valid.sum().clamp(min=1)
        mixture = heteroakd_px(student, teacher, labels, temperature=self.temperature, form=self.form)  # 0 where no label
        proj = sum(_ce(logits, labels) for logits in (student, teacher))
        weight, proj_weight, pixel_weight = self.weights
        terms = {
            "heteroakd": (self.mixes.factor(step.progress) * self.temperature**2 * mixture.sum() / count, weight),
            "heteroakd_proj": (proj / count, proj_weight),
        }
        if pixel_weight:
            logits = same_grid(step.student["logits"], step.teacher["logits"], step.align_corners)
            terms["heteroakd_pixel"] = (pixel_kl(*logits, temperature=1.0).kl.mean(), pixel_weight)
        return terms

    def _labels(self, step, size: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(B, h, w) labels or (B, C, h, w) shares, and where there is one, (B, h, w)."""
        if not self.area:
            labels = step.labels_at(size)
            return labels, labels != IGNORE
        counts, _ = step.histogram(size)
        labelled = counts.sum(1, keepdim=True)  # not the cell's size: an ignored pixel speaks against no class
        return counts.to(dtype) / labelled.clamp(min=1), labelled[:, 0] > 0


def _projector(width: int, classes: int, relu: bool) -> nn.Sequential:
    layers = [nn.Conv2d(width, classes, 1, bias=False), BatchNorm(classes)]
    return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


def _wide(features: Tensor) -> Tensor:
    return features.to(torch.promote_types(features.dtype, torch.float32))


def _ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed over cells; 0 in one whose shares are all 0."""
    if labels.is_floating_point():
        return cross_entropy(logits, labels, reduction="sum")
    # Summed by itself: with indices the operation's own sum is in no fixed order on a GPU, and determinism: strict refuses it.
    return cross_entropy(logits, labels.long(), ignore_index=IGNORE, reduction="none").sum()
