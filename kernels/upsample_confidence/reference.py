"""The truth about upsample_confidence, in plain PyTorch: what every fast variant must equal. One image at a time, so that never more
than one image's logits lie there at the labels' size (C = 150, 512 x 512: 150 MiB, three times).
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate, log_softmax


def upsample_confidence(logits: Tensor, labels: Tensor, align_corners: bool, ignore: int) -> tuple[Tensor, Tensor, Tensor]:
    wide, classes = torch.promote_types(logits.dtype, torch.float32), logits.shape[1]
    maps = logits.new_empty((3, *labels.shape), dtype=wide)
    for image, label, (confidence, entropy, label_probability) in zip(logits, labels.long(), maps.unbind(1), strict=True):
        log_p = log_softmax(interpolate(image[None].to(wide), label.shape, mode="bilinear", align_corners=align_corners)[0], 0)
        p = log_p.exp()
        confidence.copy_(p.amax(0))
        entropy.copy_(-(p * log_p).sum(0))
        known = (label != ignore) & (label >= 0) & (label < classes)
        label_probability.copy_(torch.where(known, p.gather(0, torch.where(known, label, 0)[None])[0], 1.0))
    return tuple(maps)
