"""Text maps of both networks, and what they are compared by: pixels of a channel, and names of regions."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize

from kernels.channel_kl import channel_kl
from kernels.segmented_mean import segmented_mean
from kernels.upsample_ce_kl import upsample_ce_kl
from stages.kd import When
from stages.kd._meet import same_grid, unit
from stages.kd._step import IGNORE

SHARPNESS = 1 / 0.07  # of cosines before a softmax, as CLIP starts its training
PRIOR = 0.05  # temperature of the likeness of names: raw rows have cosines of 0.8, at 1 all names would be one
SHORTEST = 1e-6  # a vector no longer than this has no direction
UNSEEN = -1e4  # instead of a text map (within +-14.3) over its temperature, where there is no label: its exp is 0 in any type


class TextDistillation(nn.Module):
    """`row` is a Text."""

    def __init__(self, row, pair):
        super().__init__()
        self.row, self.on = row, When(start=row.when.start + row.warmup, rise=row.ramp)
        width = pair.text.shape[1]
        self.student, self.teacher = (nn.Conv2d(net["head"], width, 1, bias=False) for net in (pair.student, pair.teacher))
        self.register_buffer("names", directions(pair.text, row.center), persistent=False)  # (K, D)
        self.register_buffer("prior", log_softmax(pair.text @ pair.text.mT / PRIOR, 1), persistent=False)  # (K, K)

    def forward(self, step) -> dict[str, tuple[Tensor, float]]:
        row = self.row
        sides = [(step.student["head"], self.student.weight), (step.teacher["head"], self.teacher.weight)]
        read = [Read(f.to(weight.dtype), weight.flatten(1), self.names) for f, weight in sides]  # each on its own grid
        ys = [step.labels_at(one.map.shape[-2:]) for one in read]
        maps = [one.map for one in read]
        terms = {"text_align": (sum(map(align, maps, ys)), row.align_weight)}
        factor = self.on.factor(step.progress)  # 0: computed all the same, so that curves keep their names
        if row.channel_weight:
            terms["text_channel"] = (factor * self.channel(*maps, ys[1], step), row.channel_weight)
        if row.region_weight:
            terms["text_region"] = (factor * self.region(*read, *ys), row.region_weight)
        return terms

    def channel(self, student: Tensor, teacher: Tensor, y: Tensor, step) -> Tensor:
        """`y` (B, h, w) lies on the teacher's grid."""
        student, teacher = same_grid(student, teacher.detach(), step.align_corners)
        unseen, t = (y == IGNORE)[:, None], self.row.temperature
        kl = channel_kl(*(m.masked_fill(unseen, UNSEEN * t) for m in (student, teacher)), temperature=t)  # (B, K), 0 where all is unseen
        if self.row.absent != 1:
            shown = step.histogram((1, 1))[0][..., 0, 0] > 0
            kl = torch.where(shown, kl, self.row.absent * kl)
        return t**2 * kl.mean()

    def region(self, student: "Read", teacher: "Read", y_student: Tensor, y_teacher: Tensor) -> Tensor:
        t = self.row.region_temperature
        rho_s, n_s = student.regions(y_student)
        with torch.no_grad():
            rho_t, n_t = teacher.regions(y_teacher)
        log_q, log_p = (log_softmax(SHARPNESS * self.named(rho) / t, -1) for rho in (rho_s, rho_t))  # (B, K, K'), rows add up to 1
        if a := self.row.prior:
            log_p = torch.logaddexp(log_p + math.log(1 - a), self.prior.to(log_p.dtype) + math.log(a))
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)  # (B, K)
        there = (n_s >= self.row.least) & (n_t >= self.row.least)
        return t**2 * kl.masked_fill(~there, 0.0).sum() / there.sum().clamp(min=1)

    def named(self, rho: Tensor) -> Tensor:
        """(B, K, K') cosines of the regions' mean vectors (B, K, D) with all names."""
        return unit(rho, -1, SHORTEST) @ self.names.to(rho.dtype).mT


class Read:
    """What the features f (B, C, h, w) of a network say in the language: u = W f / |W f| in every cell, with W (D, C), E (K, D).

    Where the head is much narrower than the language, u (B, D, h, w) is never written. |W f|^2 = f' (W' W) f, so v = f / |W f| is known
    from C channels alone, E u = (E W) v, and the mean of u over a region is W times the mean of v.
    """

    def __init__(self, f: Tensor, weight: Tensor, names: Tensor):
        wide, narrow = weight.shape
        names = names.to(f.dtype)
        if 2 * narrow > wide:
            self.vectors, self.to_language = unit(torch.einsum("dc,bchw->bdhw", weight, f), 1, SHORTEST), None
        else:
            squared = (f * torch.einsum("cd,bdhw->bchw", weight.mT @ weight, f)).sum(1, keepdim=True)
            self.vectors = f * torch.where(squared > SHORTEST**2, squared, torch.inf).rsqrt()  # 0 without a direction, as unit has it
            self.to_language, names = weight, names @ weight
        self.map = SHARPNESS * torch.einsum("kc,bchw->bkhw", names, self.vectors)  # (B, K, h, w)
        self.classes = len(names)

    def regions(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean u of every class (B, K, D), and of how many cells."""
        rho, cells = segmented_mean(self.vectors, y, self.classes)
        return rho if self.to_language is None else rho @ self.to_language.to(rho.dtype).mT, cells


def directions(text: Tensor, center: bool) -> Tensor:
    """E: the rows of length 1, seen from their mean if asked."""
    return normalize(text - text.mean(0) if center else text, dim=1)


def align(maps: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy over the cells with a label, on the grid of both."""
    return upsample_ce_kl(maps, None, y, ignore=IGNORE).ce.sum() / (y != IGNORE).sum().clamp(min=1)
