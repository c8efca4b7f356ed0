"""KL between two networks' classes at each pixel of their own grid, and how far a teacher's two heads disagree there.

With student logits x, teacher logits u and auxiliary teacher logits v, softmax over the classes of a pixel and temperature T:
    kl_p          = KL(softmax(u / T) || softmax(x / T))        without the usual factor T^2
    discrepancy_p = KL(softmax(v) || softmax(u))                "aux_to_main": the released code of RDD (Relative Difficulty
                  = KL(softmax(u) || softmax(v))                "main_to_aux": its paper, arXiv 2407.03719      Distillation)
RDD weighs pixels by exp(-discrepancy). Only kl has a gradient, and only to the student. Computed in float32 at least.
"""

from typing import NamedTuple

from torch import Tensor

from kernels.choose import choose
from kernels.pixel_kl import fused, reference

DIRECTIONS = ("aux_to_main", "main_to_aux")


class PixelKL(NamedTuple):
    kl: Tensor  # (B, h, w)
    discrepancy: Tensor | None  # (B, h, w); None without auxiliary logits


def pixel_kl(
    student: Tensor,
    teacher: Tensor,
    auxiliary: Tensor | None = None,
    *,
    temperature: float,
    direction: str = "aux_to_main",
    using: str = "auto",
) -> PixelKL:
    """student, teacher and the teacher's auxiliary logits, all (B, C, h, w)."""
    for name, logits in (("student", student), ("teacher", teacher), ("auxiliary", student if auxiliary is None else auxiliary)):
        if logits.dim() != 4 or not logits.is_floating_point():
            raise ValueError(f"{name} must be float (B, C, h, w), found {logits.dtype} {tuple(logits.shape)}")
        if logits.shape != student.shape:
            raise ValueError(f"{name} must have the student's shape {tuple(student.shape)}, found {tuple(logits.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, found {temperature}")
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {DIRECTIONS}, found {direction!r}")
    auxiliary = None if auxiliary is None else auxiliary.detach()
    using, call = choose(__name__, using, student), (student, teacher.detach(), auxiliary, temperature, direction)
    return PixelKL(*(reference.pixel_kl(*call) if using == "reference" else fused.pixel_kl(*call, using)))
