"""HeteroAKD (AAAI 2025, arXiv 2504.07691) per pixel: the student follows a mixture of both networks, entry by entry as far as the
teacher is the more reliable, and most where it is wrong itself. Matched are the equations of the paper as two independent
implementations of it agree on them, with softmax over the classes of a pixel; there is no released code.

Student logits x, teacher logits u (both projected to C classes), one-hot labels Y, per pixel and class:
    H(z) = softplus(z) - z Y = -log sigmoid's probability of Y                          reliability: small is good
    S = H(x) / (H(x) + H(u) + 1e-6), 0.5 where both are 0;  z = S u + (1 - S) x         knowledge mixing
    Omega = softmax_c(H(x) + max(0, H(x) - H(z)))                                       knowledge evaluation
    with q = softmax_c(z / T), p = softmax_c(x / T):
    "wce"        loss_p = -sum_c Omega q log p
    "wkl"        loss_p =  sum_c Omega q (log q - log p)             no divergence: may be negative
    "bernoulli"  loss_p =  sum_c Omega KL(sigmoid(z / T) || sigmoid(x / T))     never negative, least where x = z
Not included: the factor T^2 and the mean over valid pixels; the map is 0 at ignored ones. S, z and Omega are constants for the
gradient, which goes to the student alone. Computed in float32 at least, whatever the logits' type.
"""

import torch
from torch import Tensor

from kernels.choose import choose
from kernels.heteroakd_px import fused, reference

FORMS = ("wce", "wkl", "bernoulli")


def heteroakd_px(student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float, form: str = "wce", using: str = "auto") -> Tensor:
    """student, teacher (B, C, h, w) -> (B, h, w).

    labels (B, h, w) uint8, int32 or int64, ignored where 255; or, instead of one-hot, shares of the classes (B, C, h, w) float, such
    as label_histogram / cell_sizes, ignored where all are 0.
    """
    for name, logits in (("student", student), ("teacher", teacher)):
        if logits.dim() != 4 or not logits.is_floating_point():
            raise ValueError(f"{name} must be float (B, C, h, w), found {_of(logits)}")
    if teacher.shape != student.shape:
        raise ValueError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must have one shape: bring one to the other's")
    shape = student.shape if labels.is_floating_point() else (student.shape[0], *student.shape[2:])
    if labels.shape != shape or not (labels.is_floating_point() or labels.dtype in (torch.uint8, torch.int32, torch.int64)):
        raise ValueError(f"labels must be uint8, int32 or int64 (B, h, w) or float (B, C, h, w) on the student's grid, found {_of(labels)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, found {temperature}")
    if form not in FORMS:
        raise ValueError(f"form must be one of {FORMS}, found {form!r}")
    using, call = choose(__name__, using, student), (student, teacher.detach(), labels.detach(), temperature, form)
    return reference.heteroakd_px(*call) if using == "reference" else fused.heteroakd_px(*call, using)


def _of(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
