"""How sure a network is of each label pixel, from logits at their own size: for weights and masks (RDD, HeteroAKD, hard examples).

Logits are brought bilinearly to the labels' grid, as upsample_ce_kl does. Per pixel, with p = softmax(logits) at temperature 1:
    confidence = max_c p_c          entropy = -sum_c p_c log p_c  in nats          label_probability = p_y
A pixel whose label is ignored, or names no class, has a label probability of 1: it is nobody's hard example. No gradient.
Computed in float32 at least, whatever the logits' type.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.choose import choose
from kernels.upsample_confidence import fused, reference


class Sureness(NamedTuple):
    confidence: Tensor  # (B, H, W), 1 / C .. 1
    entropy: Tensor  # (B, H, W), 0 .. log C
    label_probability: Tensor  # (B, H, W), 0 .. 1


def upsample_confidence(logits: Tensor, labels: Tensor, *, align_corners: bool = False, ignore: int = 255, using: str = "auto") -> Sureness:
    """logits (B, C, h, w), labels (B, H, W) uint8, int32 or int64."""
    if logits.dim() != 4 or not logits.is_floating_point() or 0 in logits.shape[1:]:
        raise ValueError(f"logits must be float (B, C, h, w) with no side of 0, found {logits.dtype} {tuple(logits.shape)}")
    if labels.dim() != 3 or labels.dtype not in (torch.uint8, torch.int32, torch.int64) or 0 in labels.shape[1:]:
        raise ValueError(f"labels must be uint8, int32 or int64 (B, H, W) with no side of 0, found {labels.dtype} {tuple(labels.shape)}")
    if labels.shape[0] != logits.shape[0]:
        raise ValueError(f"logits hold {logits.shape[0]} images and labels {labels.shape[0]}: they must be the same batch")
    using, call = choose(__name__, using, logits), (logits.detach(), labels, align_corners, ignore)
    return Sureness(*(reference.upsample_confidence(*call) if using == "reference" else fused.upsample_confidence(*call, using)))
