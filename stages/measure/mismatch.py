"""Pixels on which a model differs from the reference, split by how sure the reference was: a tie that fell the other way is harmless.

How sure it was is the gap between the two best logits of a pixel, once they are enlarged: the log odds of the two classes.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from stages.measure.miou import IGNORE

if TYPE_CHECKING:
    from torch import Tensor

# Log odds from which a choice is clear: e^0.1 is 52.5 : 47.5. Below, the reference itself holds the two classes for equally likely within
# a twentieth: one for the other costs tanh(0.1 / 2) = 5 % of a pixel where its odds are right. A trained `tiny small` on CamVid (60 test
# images, 192x256, 2026-11-21), its best class there right on 41 % of the pixels, the second on 39 %: rounding moves logits by 7e-6 in
# float32 and by 0.02 at most in float16, so that neither crosses 0.1 anywhere; bfloat16 (0.3 at most) did on 0.006 % of all pixels, INT8
# after training (1.0) on 0.4 %, of 1.0 % that it changed.
CLEAR = 0.1


def clear(logits: "Tensor | np.ndarray", size: tuple[int, int], align_corners: bool) -> np.ndarray:
    """(B, C, h, w) -> bool (B, *size): whether the best logit is more than CLEAR above the second best there.

    One class after the other: the enlarged logits of all classes together may be gigabytes.
    """
    import torch
    import torch.nn.functional as F

    with torch.inference_mode():
        small = torch.as_tensor(logits).float()
        best = small.new_full((small.shape[0], 1, *size), -torch.inf)
        second = best.clone()
        for k in range(small.shape[1]):
            here = F.interpolate(small[:, k : k + 1], size, mode="bilinear", align_corners=align_corners)
            second = torch.maximum(second, torch.minimum(best, here))
            best = torch.maximum(best, here)
        return (best - second > CLEAR)[:, 0].cpu().numpy()


def mismatches(reference: np.ndarray, candidate: np.ndarray, label: np.ndarray, clear: np.ndarray | None) -> np.ndarray:
    """Of one image, all (H, W): int64 (3,) pixels not ignored, those that differ, and those of them where the reference's choice was clear.

    (2,) where that is not known.
    """
    valid = label != IGNORE
    differs = valid & (reference != candidate)
    found = [valid, differs] if clear is None else [valid, differs, differs & (clear != 0)]
    return np.array([np.count_nonzero(pixels) for pixels in found], np.int64)


def percents(counted: np.ndarray) -> dict[str, float | None]:
    """int64 (N, 3) or (N, 2) of all images -> the metrics, in % of the pixels not ignored."""
    valid, *found = (int(pixels) for pixels in counted.sum(axis=0))
    shares = [100 * pixels / valid if valid else None for pixels in found]
    return dict(zip(("mismatch", "clear_mismatch"), [*shares, None], strict=False))


def reader(session: Any, facts: dict[str, Any]) -> tuple[Any, str]:
    """images -> (class maps, where the choice was clear) of the reference's session, or None and what it lacks. `facts` of its artifact."""
    corners = session.module.align_corners if hasattr(session, "module") else facts.get("align_corners")
    both = getattr(session, "with_logits", None)
    if both is None or corners is None:
        return None, "gives no logits: take the checkpoint as reference, or an ONNX file exported with logits: true"

    def read(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        maps, logits = both(images)
        return maps, clear(logits, tuple(images.shape[1:3]), corners)

    return read, ""
