"""The class of every pixel at the labels' size, from logits at their own size: argmax over classes of bilinear interpolation.

Within one cell of the logits' grid interpolated logits are convex combinations of its four corners. A class that is the largest at all
four corners is the largest in all of the cell; elsewhere only classes whose largest corner reaches the largest smallest corner can be.
So the enlarged logits are never written, and full work is left for cells between classes. No gradient.

The fast variants compute ((w00 a + w01 b) + w10 c) + w11 d in float32, every product and sum rounded, with weights from float64: CPU and
GPU give the same bits. Among classes that are equal there the lowest wins, as in PyTorch, but for one thing: a class that lies below
another at all four corners and is equal to it only by rounding may be passed over. PyTorch rounds otherwise, and takes fractions from
float32 where the scale is no power of two: its map can differ where the two largest logits of a pixel are equal within that rounding.

Not finite: in the fast variants a NaN counts as -1e38 and an infinity as +-1e38, so that a class that is NaN or -inf loses, and where all
are the class is 0. The reference does what PyTorch does: a NaN, also one of 0 times infinity, wins.
"""

from torch import Tensor

from kernels.choose import choose
from kernels.upsample_argmax import fused, reference

MOST = 256  # classes that a byte can name


def upsample_argmax(logits: Tensor, size: tuple[int, int], align_corners: bool = False, using: str = "auto") -> Tensor:
    """logits (B, C, h, w), size (H, W) -> uint8 (B, H, W)."""
    if logits.dim() != 4 or not logits.is_floating_point():
        raise ValueError(f"logits must be float (B, C, h, w), found {logits.dtype} {tuple(logits.shape)}")
    if not 1 <= logits.shape[1] <= MOST:
        raise ValueError(f"logits hold {logits.shape[1]} classes; a class map of bytes can name 1 to {MOST}")
    if 0 in logits.shape[2:] or min(size) < 1:
        raise ValueError(f"logits {tuple(logits.shape)} cannot become {tuple(size)}: no side may be 0")
    using, call = choose(__name__, using, logits), (logits.detach(), list(size), align_corners)
    return reference.upsample_argmax(*call) if using == "reference" else fused.upsample_argmax(*call, using)
