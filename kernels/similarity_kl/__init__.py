"""KL between how two networks see the likeness of pixels, within and across the images of a batch: CIRKD's mini-batch loss.

After Yang et al. 2022 (Cross-Image Relational Knowledge Distillation), the pixel-to-pixel term. With rows f_im = feature / |feature|
of the M pixels of image i, here and not by the caller, and cosines S_ij = f_i f_j^T (M, M) for all ordered pairs of B images:
    loss = 1 / (B^2 M) * sum over i, j, m of KL(softmax(S^teacher_ij[m] / T) || softmax(S^student_ij[m] / T))
without a factor T^2, as there. Only cosines meet, so the two networks may differ in channels. CIRKD takes T = 0.1.
No gradient flows to the teacher. Unit rows are rounded to the student's type, as AMP does before a product; the rest is computed in
float32 at least. The fast variants keep O(B^2 M) numbers, never an M x M matrix; the reference keeps B^2 of these.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kernels.choose import choose
from kernels.similarity_kl import fused, reference

COLDEST = 0.025  # a cosine lies at most 2 below the greatest: exp2 of -2 log2(e) / T must not underflow in float32, which ends at 2^-126


def similarity_kl(student: Tensor, teacher: Tensor, *, temperature: float, using: str = "auto") -> Tensor:
    """student (B, M, Ds) or (B, Ds, h, w), teacher (B, M, Dt) or (B, Dt, h, w) -> a number."""
    student, teacher = _rows("student", student), _rows("teacher", teacher.detach())
    if student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"student has {student.shape[1]} pixels in each of {student.shape[0]} images and teacher {teacher.shape[1]} in each of "
            f"{teacher.shape[0]}: bring one to the other's grid first"
        )
    if not temperature >= COLDEST:
        raise ValueError(f"temperature must be at least {COLDEST}, below which float32 holds no exp(-2 / T), found {temperature}")
    using, call = choose(__name__, using, student), (_unit(student, student.dtype), _unit(teacher, student.dtype), temperature)
    return reference.similarity_kl(*call) if using == "reference" else fused.similarity_kl(*call, using)


def _rows(name: str, features: Tensor) -> Tensor:
    """(B, M, D)."""
    if features.dim() not in (3, 4) or not features.is_floating_point() or not features.numel():
        raise ValueError(f"{name} must be float (B, M, D) or (B, D, h, w), found {features.dtype} {tuple(features.shape)}")
    return features if features.dim() == 3 else features.flatten(2).mT


def _unit(rows: Tensor, dtype: torch.dtype) -> Tensor:
    return normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=-1).to(dtype)
