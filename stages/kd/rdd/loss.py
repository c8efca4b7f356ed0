"""The two stages of Relative Difficulty Distillation, for each head of the student."""

import math

import torch
from torch import Tensor, nn

from kernels.pixel_kl import pixel_kl
from stages.kd._meet import on_grid

HARDEST = 30.0  # D above this weighs a pixel with 0 all the same
COMBINED = {"xor": torch.logical_xor, "or": torch.logical_or, "and": torch.logical_and}


class RelativeDifficulty(nn.Module):
    """`settings` is the row. [RECON] Where the teacher has no auxiliary head its main one stands in for it in the second stage: a
    student's auxiliary head that lost its loss would stop learning there."""

    def __init__(self, settings, pair):
        super().__init__()
        self.settings, self.classes = settings, pair.classes
        self.heads = {"rdd": ("logits", "logits", 1.0)}  # name: (student's tap, teacher's, weight)
        if settings.aux_weight and "aux" in pair.student:
            self.heads["rdd_aux"] = ("aux", "aux" if "aux" in pair.teacher else "logits", settings.aux_weight)
        given = settings.class_weights
        self.register_buffer("class_weights", torch.tensor(given) if given else None, persistent=False)

    def forward(self, step) -> dict[str, tuple[Tensor, float]]:
        first = self._first(step.progress)
        easy = self._easiness(step) if first else None
        return {name: (self._loss(step, first, easy, *taps), weight) for name, (*taps, weight) in self.heads.items()}

    def _first(self, progress: float) -> float:
        """The share of the first stage, 1 .. 0."""
        if progress < self.settings.tfe:
            return 1.0
        return (1 - progress) / (1 - self.settings.tfe) if self.settings.switch == "linear" else 0.0

    def _loss(self, step, first: float, easy: Tensor | None, tap: str, teachers: str) -> Tensor:
        ce = step.ce if tap == "logits" else step.aux_ce  # (B, H, W), 0 at ignored pixels
        if first == 1:
            return (easy * ce).mean()
        second = self._selected(step, ce, self._mask(step, tap, teachers))
        return first * (easy * ce).mean() + (1 - first) * second if first else second

    def _easiness(self, step) -> Tensor:
        """R (B, H, W): near 1 where the teacher is of one mind."""
        if self.settings.difficulty == "entropy":
            return (-step.sureness("teacher").entropy / math.log(max(2, self.classes))).exp()
        main, align = step.teacher["logits"], step.teacher_align_corners
        heads = [on_grid(step.teacher["aux"], main.shape[-2:], align), on_grid(main, main.shape[-2:])]
        target, of = heads if self.settings.direction == "aux_to_main" else heads[::-1]
        d = pixel_kl(of, target, temperature=1.0).kl  # (B, h, w), KL(target || of)
        return on_grid(d.clamp(max=HARDEST).neg().exp()[:, None], step.labels.shape[-2:], align)[:, 0]

    def _mask(self, step, tap: str, teachers: str) -> Tensor:
        """(B, H, W) bool: the pixels of the second stage."""
        student = self._hard(step, "student", tap)
        return student if self.settings.mode == "ohem" else COMBINED[self.settings.mode](student, self._hard(step, "teacher", teachers))

    def _hard(self, step, net: str, tap: str) -> Tensor:
        """(B, H, W) bool: labelled pixels that a network is not sure of."""
        sure = step.sureness(net, tap)
        found = sure.label_probability if self.settings.confidence == "gt_prob" else sure.confidence
        found = found.masked_fill(~step.valid, torch.inf)  # comes last, so that K needs no look at how many pixels have a label
        return step.valid & (found <= self._limit(found))

    def _limit(self, confidence: Tensor) -> Tensor | float:
        """max(threshold, K-th smallest); it is infinite, and every labelled pixel hard, where fewer than K have a label."""
        kept = round(self.settings.min_kept_frac * confidence.numel())
        if not kept:
            return self.settings.threshold
        return confidence.flatten().topk(kept, largest=False, sorted=False).values.amax().clamp(min=self.settings.threshold)

    def _selected(self, step, ce: Tensor, selected: Tensor) -> Tensor:
        """The second stage's loss; 0 where nothing is selected."""
        weight = selected.to(ce.dtype)
        if self.class_weights is not None:
            weight = weight * self.class_weights.to(ce.dtype)[step.labels.long().masked_fill(~step.valid, 0)]
        if self.settings.norm == "all_pixels":
            return (weight * ce).mean()
        whole = weight.sum()
        return (weight * ce).sum() / torch.where(whole > 0, whole, 1.0)
