"""Knowledge Tailoring (Pattern Recognition 172, 112399), the part on logits: the teacher is raised inside the labels of each class
and capped outside before the student follows it. Matched is the released code's loss, in a form that never leaves low resolution.

The code upsamples logits z to the labels by nearest neighbours. Per image n and class c, over all pixels p with labels y:
    mu = mean of z_p over {y_p = c, z_p > 0}           (none: no raise)        nu = sum of z_p over {y_p != c} / all pixels
    z'_p = max(z_p, mu) where y_p = c, min(z_p, nu) elsewhere                  (ignored pixels are elsewhere for every class)
    L_nc = C(s, t') + C(s' 1[y = c], t' 1[y = c]) + C(s' 1[y != c], t' 1[y != c]),  C(a, b) = KL(softmax(b / T) || softmax(a / T))
with softmax over all pixels of the row (n, c), the masks' zeros included. A pixel's value is that of its cell, so sums over pixels
are sums over cells weighted by the label histogram: the same numbers, without a map at the labels' size.

Not included: the factor T^2 / (B C) of the code's loss. The gradient passes the student's max and min, mu and nu; the teacher has
none. At a tie of z with mu or nu it passes z. Computed in float32 at least, whatever the logits' type.
"""

import torch
from torch import Tensor

from kernels.choose import choose
from kernels.logit_tailoring import fused, reference


def logit_tailoring(
    student: Tensor, teacher: Tensor, histogram: Tensor, cell_sizes: Tensor, *, temperature: float, using: str = "auto"
) -> Tensor:
    """student, teacher (B, C, h, w); from kernels.label_histogram: histogram (B, C, h, w) and cell_sizes (h, w) int32 -> (B, C)."""
    for name, logits in (("student", student), ("teacher", teacher)):
        if logits.dim() != 4 or not logits.is_floating_point():
            raise ValueError(f"{name} must be float (B, C, h, w), found {_of(logits)}")
    if teacher.shape != student.shape:
        raise ValueError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must have one shape: bring one to the other's")
    if histogram.shape != student.shape or histogram.dtype != torch.int32:
        raise ValueError(f"histogram must be int32 of the student's shape {tuple(student.shape)}, found {_of(histogram)}")
    if cell_sizes.shape != student.shape[2:] or cell_sizes.dtype != torch.int32:
        raise ValueError(f"cell_sizes must be int32 of the student's grid {tuple(student.shape[2:])}, found {_of(cell_sizes)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, found {temperature}")
    using, call = choose(__name__, using, student), (student, teacher.detach(), histogram, cell_sizes, temperature)
    return reference.logit_tailoring(*call) if using == "reference" else fused.logit_tailoring(*call, using)


def _of(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
