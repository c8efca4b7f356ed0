"""Cross-entropy and distillation KL at label resolution, from logits at their own: the loss maps of nearly every training step.

Student and teacher logits (any two grids) are brought bilinearly to the labels' grid. Per pixel p, with student logits x,
teacher logits u, label y and temperature T:
    ce_p = logsumexp(x) - x_y                                   0 where y is ignored; the label is never used as an index there
    kl_p = KL(softmax(u / T) || softmax(x / T))                 at every pixel, without the usual factor T^2
Maps, not sums: any weighting of pixels is then plain torch on (B, H, W), with right gradients. None flows to the teacher.
Computed in float32 at least, whatever the logits' type.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.choose import choose
from kernels.upsample_ce_kl import fused, reference


class Maps(NamedTuple):
    ce: Tensor  # (B, H, W)
    kl: Tensor | None  # (B, H, W); None without a teacher


def upsample_ce_kl(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    align_corners: bool = False,
    ignore: int = 255,
    using: str = "auto",
) -> Maps:
    """student (B, C, h, w), teacher (B, C, h', w') or None, labels (B, H, W) uint8, int32 or int64."""
    _check(student, teacher, labels, temperature)
    using = choose(__name__, using, student)
    call = (student, None if teacher is None else teacher.detach(), labels, temperature, align_corners, ignore)
    return Maps(*(reference.upsample_ce_kl(*call) if using == "reference" else fused.upsample_ce_kl(*call, using)))


def _check(student: Tensor, teacher: Tensor | None, labels: Tensor, temperature: float) -> None:
    if student.dim() != 4 or not student.is_floating_point() or 0 in student.shape[1:]:
        raise ValueError(f"student must be float (B, C, h, w) with no side of 0, found {_of(student)}")
    if labels.dim() != 3 or labels.dtype not in (torch.uint8, torch.int32, torch.int64) or 0 in labels.shape[1:]:
        raise ValueError(f"labels must be uint8, int32 or int64 (B, H, W) with no side of 0, found {_of(labels)}")
    if labels.shape[0] != student.shape[0]:
        raise ValueError(f"student holds {student.shape[0]} images and labels {labels.shape[0]}: they must be the same batch")
    if teacher is not None and (teacher.dim() != 4 or teacher.shape[:2] != student.shape[:2] or not teacher.is_floating_point()):
        raise ValueError(f"teacher must be float with the student's batch and classes {tuple(student.shape[:2])}, found {_of(teacher)}")
    if teacher is not None and 0 in teacher.shape[2:]:
        raise ValueError(f"teacher must have no side of 0, found {_of(teacher)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, found {temperature}")


def _of(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
