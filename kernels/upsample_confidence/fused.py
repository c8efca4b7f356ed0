"""upsample_confidence as one operation over its fast variants, which give `forward(logits, labels, align_corners, ignore) ->
(confidence, entropy, label_probability)`, all (B, H, W) float32.
"""

import torch
from torch import Tensor
from torch.library import custom_op

from kernels.choose import module

HERE = __package__


@custom_op("stillhouse::upsample_confidence", mutates_args=())
def upsample_confidence(logits: Tensor, labels: Tensor, align_corners: bool, ignore: int, using: str) -> tuple[Tensor, Tensor, Tensor]:
    return module(HERE, using).forward(logits.contiguous(), labels.contiguous(), align_corners, ignore)


@upsample_confidence.register_fake
def _(logits, labels, align_corners, ignore, using):
    return tuple(logits.new_empty(labels.shape, dtype=torch.float32) for _ in range(3))
