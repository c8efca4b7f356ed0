"""The truth about pixel_kl, in plain PyTorch: what every fast variant must equal."""

import torch
from torch import Tensor
from torch.nn.functional import log_softmax


def pixel_kl(
    student: Tensor, teacher: Tensor, auxiliary: Tensor | None, temperature: float, direction: str
) -> tuple[Tensor, Tensor | None]:
    wide = torch.promote_types(student.dtype, torch.float32)
    found = kl(teacher.to(wide) / temperature, student.to(wide) / temperature)
    if auxiliary is None:
        return found, None
    heads = auxiliary.to(wide), teacher.to(wide)
    return found, kl(*(heads if direction == "aux_to_main" else heads[::-1]))


def kl(target: Tensor, of: Tensor) -> Tensor:
    p, q = log_softmax(target, 1), log_softmax(of, 1)
    return (p.exp() * (p - q)).sum(1)
