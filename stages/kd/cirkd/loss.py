"""Likeness of pixels across images, and to a memory that is part of the training state and the same in every process."""

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from torch.utils.checkpoint import checkpoint

from kernels.segmented_mean import segmented_mean
from kernels.similarity_kl import similarity_kl
from stages.kd._meet import BatchNorm, same_grid, unit
from stages.kd._step import IGNORE

CONTRAST = {"pixel": 4096, "region": 1024}  # remembered vectors a pixel is compared with, over all classes
PER_IMAGE = 16  # pixels of a class that one image adds at most
ROWS = 1024  # pixels compared at a time: (ROWS, CONTRAST) numbers are in memory, in backward again


class CrossImage(nn.Module):
    def __init__(self, weights: dict[str, float], temperature: float, pool: int, queue: int, c_s: int, c_t: int, classes: int):
        super().__init__()
        self.weights, self.temperature, self.pool = {name: w for name, w in weights.items() if w}, temperature, pool
        kept = [kind for kind in CONTRAST if f"cirkd_{kind}" in self.weights]
        self.memories = nn.ModuleDict({kind: Memory(classes, queue, c_t, CONTRAST[kind] // classes + 1) for kind in kept})
        if kept:
            first, second = (nn.Conv2d(width, c_t, 1, bias=False) for width in (c_s, c_t))
            self.project = nn.Sequential(first, BatchNorm(c_t), nn.ReLU(), second)

    def forward(self, step) -> dict[str, tuple[Tensor, float]]:
        student, teacher = same_grid(step.student["head"], step.teacher["head"], step.align_corners)
        terms = {}
        if "cirkd" in self.weights:
            side = min(self.pool, *teacher.shape[2:])
            pooled = [avg_pool2d(f, side) if side > 1 else f for f in (student, teacher)]
            terms["cirkd"] = similarity_kl(*pooled, temperature=self.temperature)
        if self.memories:
            labels, theirs = step.labels_at(teacher.shape[2:]), unit(teacher, 1)
            own, valid = unit(self.project(student), 1), (labels != IGNORE).flatten()
            for kind, memory in self.memories.items():
                memory.remember(*(pixels_of if kind == "pixel" else regions_of)(theirs, labels, memory.classes))
                terms[f"cirkd_{kind}"] = contrast(rows(own), rows(theirs), valid, *memory.drawn(), self.temperature)
        return {name: (terms[name], weight) for name, weight in self.weights.items()}


class Memory(nn.Module):
    """The newest vectors of each class."""

    def __init__(self, classes: int, length: int, width: int, drawn: int):
        super().__init__()
        self.classes, self.length, self.count = classes, length, min(drawn, length)
        self.register_buffer("vectors", torch.zeros(classes, length + 1, width))  # the last slot takes what is not to be kept
        # How many so far; once full, less a multiple of `length`. A float: stages/guard.py undoes a failed step in floats only.
        self.register_buffer("written", torch.zeros(classes))

    @torch.no_grad()
    def remember(self, vectors: Tensor, valid: Tensor) -> None:
        """vectors (N, K, C), valid (N, K): those of each class are added in their order, those of all processes alike."""
        vectors, valid = gathered(vectors.to(self.vectors.dtype).contiguous()), gathered(valid)
        order = valid.long().cumsum(0)
        fits = valid & (order > order[-1:] - self.length)  # of more than there is room for, the last
        slot = torch.where(fits, (self.written.long() + order - 1) % self.length, self.length)  # (N, K)
        self.vectors.scatter_(1, slot.T[..., None].expand(-1, -1, vectors.shape[2]), vectors.transpose(0, 1))
        written = self.written + order[-1]
        self.written.copy_(torch.where(written < self.length, written, self.length + written % self.length))

    def drawn(self) -> tuple[Tensor, Tensor]:
        """So many of each class, at random: (K * count, C), and which of them hold something."""
        filled = self.written.clamp(max=self.length)[:, None]
        slots = (torch.rand(self.count, device=filled.device) * filled).long().clamp(max=self.length - 1)  # (K, count)
        vectors = self.vectors.gather(1, slots[..., None].expand(-1, -1, self.vectors.shape[2]))
        return vectors.flatten(0, 1), (filled > 0).expand_as(slots).flatten()


def gathered(tensor: Tensor) -> Tensor:
    """That of every process, one after the other."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, tensor)
    return torch.cat(parts)


def regions_of(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The mean of each class in each image, as a unit vector: (B, K, C), and whether it is there."""
    means, counts = segmented_mean(features, labels, classes)
    return unit(means, 2), counts > 0


def pixels_of(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Random pixels of each class in each image: (B * PER_IMAGE, K, C), and whether they are there. Without waiting for the device."""
    y = labels.flatten(1).long()
    key = (y << 32) + torch.randint(2**32, y.shape, device=y.device)  # sorted: by class, within a class at random
    key, order = key.sort(1)
    ends = torch.searchsorted(key, torch.arange(classes + 1, device=y.device).expand(len(y), -1).contiguous() << 32)  # (B, K + 1)
    at = ends[:, None, :-1] + torch.arange(PER_IMAGE, device=y.device)[:, None]  # (B, PER_IMAGE, K)
    valid = at < ends[:, None, 1:]
    pixel = order.gather(1, at.clamp(max=y.shape[1] - 1).flatten(1)).view_as(at)
    b = torch.arange(len(y), device=y.device)[:, None, None]
    return features.flatten(2).mT[b, pixel].flatten(0, 1), valid.flatten(0, 1)


def rows(maps: Tensor) -> Tensor:
    """(B, C, h, w) -> (B * h * w, C)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def contrast(student: Tensor, teacher: Tensor, valid: Tensor, keys: Tensor, filled: Tensor, temperature: float) -> Tensor:
    """The mean over valid rows of the KL between their likenesses to the keys that are filled."""
    keys = torch.where(filled[:, None], keys, 0.0).to(student.dtype)
    away = torch.where(filled | ~filled.any(), 0.0, -1e4).to(student.dtype)  # nothing remembered: all alike, and the KL is 0

    def part(s: Tensor, t: Tensor, v: Tensor) -> Tensor:
        p, q = ((f @ keys.T / temperature + away).log_softmax(1) for f in (t, s))
        return ((p.exp() * (p - q)).sum(1) * v).sum()

    chunks = zip(*(rows.split(ROWS) for rows in (student, teacher, valid)), strict=True)
    parts = [checkpoint(part, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return torch.stack(parts).sum() / valid.sum().clamp(min=1)
