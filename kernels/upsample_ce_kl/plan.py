"""How upsample_ce_kl's kernels cut their work: what one thread, one block and one launch take of the maps and the classes.

Chosen by instructions and registers counted in machine code for sm_90, none measured on a GPU.
"""

from functools import lru_cache

import torch
from torch import Tensor

from kernels.tables import axis

WARPS = 4
# Forward. Label rows between the same low-resolution rows, on average: at least, then classes and rows at a time. More rows share each
# load, but keep six numbers each in registers: 8 rows, for stride 8, leave room for 2 classes.
FORWARD = ((6.0, 2, 8), (2.5, 4, 4), (1.5, 4, 2), (0.0, 4, 1))
COLUMNS = 128  # label columns per block: one per thread
# Backward. Classes at a time: instructions per pixel and class. 8 at a time spill.
BACKWARD = {1: 60, 2: 38, 3: 32, 4: 29}
PIXELS = (5, 4, 3)  # of a quad's row at once: all nine of stride 8 spill and gain nothing; a teacher on a grid of its own leaves room for 4
LANES = 128  # quad columns per block: one per thread
ROWS, FEWEST, BLOCKS = 16, 4, 512  # low-resolution rows one lane marches down, and one more; fewer where blocks would be too few to share


@lru_cache(maxsize=64)
def row_groups(h: int, th: int, H: int, align_corners: bool, device: str) -> tuple[Tensor, int, int]:
    """(n, 2) int32, first label row and number of rows: groups that lie in one quad row of both grids; classes and rows at a time."""
    quads = torch.stack([axis(n, H, align_corners).quad for n in (h, th)])
    row = torch.arange(H)
    new = torch.cat([torch.ones(1, dtype=torch.bool), (quads[:, 1:] != quads[:, :-1]).any(0)])
    classes, rows = next(config for mean, *config in FORWARD if H / int(new.sum()) >= mean)
    into = row - torch.where(new, row, 0).cummax(0).values  # rows since the quads began
    first = row[into % rows == 0]
    return torch.stack([first, torch.cat([first[1:], row[-1:] + 1]) - first], 1).to(device, torch.int32), classes, rows


def together(C: int) -> int:
    """How many classes the backward kernel takes at once: those of the last turn that are none cost as much as the others."""
    return min(BACKWARD, key=lambda n: cdiv(C, n) * n * BACKWARD[n])


def marches(B: int, h: int, w: int, chunks: int) -> tuple[int, int]:
    """Into how many segments of how many low-resolution rows the backward kernel cuts a map. No cut changes a bit of the gradient."""
    rows = ROWS
    while rows > FEWEST and B * cdiv(h, rows) * (w + 1) * chunks < BLOCKS * (LANES - 1):
        rows //= 2
    segments = cdiv(h, rows)
    return segments, cdiv(h, segments)


def unrolled(most: int, foreign: bool) -> int:
    """How many of at most `most` pixels of a quad's row the backward kernel takes at once, so that few are computed only to be masked."""
    sizes = PIXELS[1:] if foreign else PIXELS
    return most if most <= sizes[0] else min(sizes, key=lambda n: cdiv(most, n) * n)


def cdiv(a: int, b: int) -> int:
    return -(-a // b)
