"""Watches a student while it learns: mIoU on the val split, a point of the validation curve."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

# Plain PyTorch: a curve that rounds otherwise would be another version of every training.
from kernels.upsample_argmax.reference import upsample_argmax as classmap
from stages.batches import whole_images
from stages.fit import Fit
from stages.measure.miou import counts, miou


def watched(module: nn.Module, val, settings: Fit, accelerator, workers: int, stop_if_asked: Callable[[], None]) -> dict[str, Any]:
    """{"miou": 0..100, "iou": per class, "split", "images"}; each process takes its share of the images."""
    picks = spread(len(val), settings.val_images)
    mine = picks[accelerator.process_index :: accelerator.num_processes]
    summed = np.zeros((len(val.classes), 3), np.int64)
    training = module.training
    module.eval()
    for images, labels in whole_images(val, mine, at_once(settings, val.size), workers):
        images = images.to(accelerator.device).permute(0, 3, 1, 2).float().contiguous()
        with torch.no_grad(), accelerator.autocast():
            maps = classmap(module(images)["logits"], labels.shape[-2:], module.align_corners).cpu().numpy()
        summed += sum(counts(guess, label, len(summed)) for guess, label in zip(maps, labels.numpy(), strict=True))
        if accelerator.num_processes == 1:
            stop_if_asked()
    module.train(training)
    total = accelerator.reduce(torch.from_numpy(summed).to(accelerator.device), "sum").cpu().numpy()
    score, per_class = miou(total)
    return {"miou": score, "iou": per_class, "split": "val", "images": len(picks)}


def at_once(settings: Fit, size: tuple[int, int] | None) -> int:
    """Images in one forward, where the steps of training show that there is room for them: without gradients an image takes less than half
    of what it takes there, whole ones are larger than crops."""
    if size is None:
        return 1
    height, width = settings.crop or size
    larger = size[0] * size[1] // (2 * height * width)
    return max(1, settings.batch // (settings.accumulate * settings.processes) // max(1, larger))


def spread(n: int, most: int | None) -> list[int]:
    """All indices, or `most` of them at even distances."""
    return list(range(n)) if most is None or most >= n else [i * n // most for i in range(most)]
