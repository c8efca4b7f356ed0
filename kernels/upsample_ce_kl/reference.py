"""The truth about upsample_ce_kl, in plain PyTorch: what every fast variant must equal."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate, log_softmax


def upsample_ce_kl(
    student: Tensor, teacher: Tensor | None, labels: Tensor, temperature: float, align_corners: bool, ignore: int
) -> tuple[Tensor, Tensor | None]:
    def at_labels(logits: Tensor) -> Tensor:  # (B, C, H, W)
        return interpolate(logits.to(wide), labels.shape[-2:], mode="bilinear", align_corners=align_corners)

    wide = torch.promote_types(student.dtype, torch.float32)
    x = at_labels(student)
    ce = cross_entropy(x, labels.long(), ignore_index=ignore, reduction="none")
    if teacher is None:
        return ce, None
    p, q = log_softmax(at_labels(teacher) / temperature, 1), log_softmax(x / temperature, 1)
    return ce, (p.exp() * (p - q)).sum(1)
