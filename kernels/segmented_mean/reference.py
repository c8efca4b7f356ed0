"""The truth about segmented_mean, in plain PyTorch: what every fast variant must equal.

A product with one-hot labels, not index_add: on a GPU index_add adds by atomics, in another order every time, while a matrix
product is repeatable and passes under torch.use_deterministic_algorithms (on a GPU with CUBLAS_WORKSPACE_CONFIG set, as for any
other product). The one-hot labels are smaller than the features: K maps beside C. Where TF32 is allowed, a GPU rounds by it here too.
"""

import torch
from torch import Tensor


def segmented_mean(features: Tensor, labels: Tensor, classes: int, per_image: bool) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(features.dtype, torch.float32)
    inside = labels.flatten(1)[:, None] == torch.arange(classes, device=labels.device)[:, None]  # (B, K, h * w)
    counts = inside.sum(-1)
    with torch.autocast(features.device.type, enabled=False):
        sums = inside.to(wide) @ features.to(wide).flatten(2).mT  # (B, K, C)
    if not per_image:
        sums, counts = sums.sum(0), counts.sum(0)
    return sums / counts.clamp(min=1)[..., None], counts.int()
