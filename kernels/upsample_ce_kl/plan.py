"""How upsample_ce_kl's kernels cut their work: what one thread, one block and one launch take of the maps and the classes.

What ships was chosen by instructions and registers counted in machine code for sm_90, none measured on a GPU.
"""

from functools import lru_cache

import torch
from torch import Tensor

from kernels import tuned
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

# What kernels.tune measures. CC classes and R label rows at a time, BX columns or BL lanes per block, RS low-resolution rows down. A
# thread takes one column or two, or one lane.
BLOCKS_AND_WARPS = ((64, 2), (128, 2), (128, 4), (256, 4), (256, 8))
SPACE = {
    "forward": [{"CC": c, "R": r, "BX": x, "num_warps": n} for c in (2, 4) for r in (2, 4, 8) for x, n in BLOCKS_AND_WARPS],
    "backward": [{"CC": c, "BL": n, "RS": r, "num_warps": n // 32} for c in (2, 3, 4) for n in (64, 128, 256) for r in (8, 16, 32)],
}


def forward(student: Tensor, th: int, H: int, align_corners: bool, flags: dict[str, bool]) -> dict[str, int]:
    """CC, R, BX, num_warps."""
    mean = rows_between(student.shape[2], th, H, align_corners)
    classes, rows = next(config for least, *config in FORWARD if mean >= least)
    shipped = {"CC": classes, "R": rows, "BX": COLUMNS, "num_warps": WARPS}
    return tuned.configuration(__package__, "forward", key(student, f"{rows} rows", flags), shipped, student.device)


def backward(student: Tensor, most: int, flags: dict[str, bool]) -> dict[str, int]:
    """CC, BL, RS, num_warps. `most` are the pixels of a quad's row."""
    C = student.shape[1]
    classes = min(BACKWARD, key=lambda n: cdiv(C, n) * n * BACKWARD[n])
    shipped = {"CC": classes, "BL": LANES, "RS": ROWS, "num_warps": WARPS}
    return tuned.configuration(__package__, "backward", key(student, f"{most} pixels", flags), shipped, student.device)


def key(student: Tensor, stride: str, flags: dict[str, bool]) -> tuple[str, ...]:
    """What decides which configuration is fastest. Classes up to the next power of two; not the batch."""
    classes = 1 << (student.shape[1] - 1).bit_length()
    return f"to {classes} classes", stride, str(student.dtype).removeprefix("torch."), *(name for name, on in flags.items() if on)


@lru_cache(maxsize=64)
def rows_between(h: int, th: int, H: int, align_corners: bool) -> float:
    """How many label rows lie between the same rows of both grids, on average."""
    return H / int(_new(h, th, H, align_corners).sum())


@lru_cache(maxsize=64)
def row_groups(h: int, th: int, H: int, align_corners: bool, most: int, device: str) -> Tensor:
    """(n, 2) int32, first label row and number of rows, at most `most`: groups that lie in one quad row of both grids."""
    row, new = torch.arange(H), _new(h, th, H, align_corners)
    into = row - torch.where(new, row, 0).cummax(0).values  # rows since the quads began
    first = row[into % most == 0]
    return torch.stack([first, torch.cat([first[1:], row[-1:] + 1]) - first], 1).to(device, torch.int32)


def _new(h: int, th: int, H: int, align_corners: bool) -> Tensor:
    """(H,) bool: where a label row is the first in its quad row of one grid."""
    quads = torch.stack([axis(n, H, align_corners).quad for n in (h, th)])
    return torch.cat([torch.ones(1, dtype=torch.bool), (quads[:, 1:] != quads[:, :-1]).any(0)])


def marches(B: int, h: int, w: int, chunks: int, most: int = ROWS, lanes: int = LANES) -> tuple[int, int]:
    """Into how many segments of how many low-resolution rows the backward kernel cuts a map. No cut changes a bit of the gradient."""
    rows = most
    while rows > FEWEST and B * cdiv(h, rows) * (w + 1) * chunks < BLOCKS * (lanes - 1):
        rows //= 2
    segments = cdiv(h, rows)
    return segments, cdiv(h, segments)


def unrolled(most: int, foreign: bool) -> int:
    """How many of at most `most` pixels of a quad's row the backward kernel takes at once, so that few are computed only to be masked."""
    sizes = PIXELS[1:] if foreign else PIXELS
    return most if most <= sizes[0] else min(sizes, key=lambda n: cdiv(most, n) * n)


def cdiv(a: int, b: int) -> int:
    return -(-a // b)
