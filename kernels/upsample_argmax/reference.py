"""The truth about upsample_argmax, in plain PyTorch: what every fast variant must equal. It is also what an exported graph holds."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def upsample_argmax(logits: Tensor, size: list[int], align_corners: bool) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return interpolate(wide, size, mode="bilinear", align_corners=align_corners).argmax(1).to(torch.uint8)
