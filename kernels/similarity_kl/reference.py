"""The truth about similarity_kl, in plain PyTorch with all matrices of cosines at once: what every fast variant must equal.

At 64 x 128 pixels one matrix takes 256 MiB and a batch of 8 has 64 pairs: this is for small maps and for tests.
"""

import torch
from torch import Tensor
from torch.nn.functional import log_softmax


def similarity_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """student (B, M, Ds), teacher (B, M, Dt), rows of length 1."""
    wide = torch.promote_types(student.dtype, torch.float32)
    with torch.autocast(student.device.type, enabled=False):
        cosines = [torch.einsum("imd,jnd->ijmn", f, f) for f in (student.to(wide), teacher.to(wide))]
    q, p = (log_softmax(s / temperature, -1) for s in cosines)
    return (p.exp() * (p - q)).sum(-1).mean()
