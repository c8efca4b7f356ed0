"""upsample_argmax on a GPU. The first kernel finds the best class of each low-resolution logit; in the second a lane is a column of
pixels of one quad of kernels/tables.py. Where the four corners of every lane agree, which is most often so, they are the answer; else
all classes pass through registers, and a few rows of the quad share their corners.
"""

import torch
import triton
import triton.language as tl

from kernels.tables import axis

ROWS, COLUMNS, WARPS = 4, 128, 4  # pixel rows that share corners, pixel columns, warps
LANES = 256  # low-resolution values of a program of the first kernel
LARGEST = tl.constexpr(1e38)  # as in argmax.c


def forward(logits: torch.Tensor, size: list[int], align_corners: bool) -> torch.Tensor:
    (batch, classes, h, w), (height, width), device = logits.shape, size, str(logits.device)
    rows, columns = axis(h, height, align_corners, device), axis(w, width, align_corners, device)
    best = torch.empty((batch, h, w), dtype=torch.uint8, device=logits.device)
    classmap = torch.empty((batch, height, width), dtype=torch.uint8, device=logits.device)
    with torch.cuda.device_of(logits):  # Triton launches on the current device, which may be another
        best_of_corners[(triton.cdiv(h * w, LANES), batch)](logits, best, classes, h * w, BL=LANES, num_warps=WARPS)
        best_of_pixels[(triton.cdiv(width, COLUMNS), h + 1, batch)](
            logits, best, rows.start, rows.fraction, columns.quad, columns.fraction, classmap, classes, h, w, height, width,
            R=ROWS, BX=COLUMNS, num_warps=WARPS, enable_fp_fusion=False,  # the bits of argmax.c
        )  # fmt: skip
    return classmap


@triton.jit
def best_of_corners(logits, best, C, pixels, BL: tl.constexpr):
    at = tl.program_id(0) * BL + tl.arange(0, BL)
    image = tl.program_id(1).to(tl.int64)
    live = at < pixels
    top = tl.full([BL], -2 * LARGEST, tl.float32)
    which = tl.zeros([BL], tl.int32)
    for c in range(C):
        v = _finite(tl.load(logits + (image * C + c) * pixels + at, mask=live, other=0.0))
        more = v > top
        which = tl.where(more, c, which)
        top = tl.where(more, v, top)
    tl.store(best + image * pixels + at, which.to(tl.uint8), mask=live)


@triton.jit
def best_of_pixels(
    logits, best, start_y, fraction_y, quad_x, fraction_x, classmap, C, h, w, H, W, R: tl.constexpr, BX: tl.constexpr,
):  # fmt: skip
    x = tl.program_id(0) * BX + tl.arange(0, BX)
    quad = tl.program_id(1) - 1
    image = tl.program_id(2).to(tl.int64)
    live = x < W
    left = tl.load(quad_x + x, mask=live, other=0)
    right_part = tl.load(fraction_x + x, mask=live, other=0.0)
    left_part = 1.0 - right_part
    above, below = tl.maximum(quad, 0) * w, tl.minimum(quad + 1, h - 1) * w
    left, right = tl.maximum(left, 0), tl.minimum(left + 1, w - 1)
    a, b, c, d = above + left, above + right, below + left, below + right
    corners = best + image * h * w
    winner = tl.load(corners + a, mask=live, other=0)
    same = (winner == tl.load(corners + b, mask=live, other=0)) & (winner == tl.load(corners + c, mask=live, other=0))
    same = same & (winner == tl.load(corners + d, mask=live, other=0))
    agree = tl.min(same.to(tl.int32), 0)
    one = logits + image * C * h * w
    last = tl.load(start_y + quad + 2)
    for y in range(tl.load(start_y + quad + 1), last, R):
        down = ()
        tops = ()
        whiches = ()
        for r in tl.static_range(R):
            down += (tl.load(fraction_y + tl.minimum(y + r, H - 1)),)
            tops += (tl.full([BX], -2 * LARGEST, tl.float32),)
            whiches += (winner.to(tl.int32),)
        for k in range(tl.where(agree == 1, 0, C)):
            plane = one + k * h * w
            va = _finite(tl.load(plane + a, mask=live, other=0.0))
            vb = _finite(tl.load(plane + b, mask=live, other=0.0))
            vc = _finite(tl.load(plane + c, mask=live, other=0.0))
            vd = _finite(tl.load(plane + d, mask=live, other=0.0))
            new_tops = ()
            new_whiches = ()
            for r in tl.static_range(R):
                up = 1.0 - down[r]
                v = (up * left_part) * va + (up * right_part) * vb + (down[r] * left_part) * vc + (down[r] * right_part) * vd
                more = v > tops[r]
                new_tops += (tl.where(more, v, tops[r]),)
                new_whiches += (tl.where(more, k, whiches[r]),)
            tops = new_tops
            whiches = new_whiches
        for r in tl.static_range(R):
            tl.store(classmap + (image * H + y + r) * W + x, whiches[r].to(tl.uint8), mask=live & (y + r < last))


@triton.jit
def _finite(v):
    v = v.to(tl.float32)
    v = tl.where(v > -LARGEST, v, -LARGEST)  # a NaN is larger than nothing
    return tl.where(v < LARGEST, v, LARGEST)


def ahead() -> list[tuple]:
    """(name, kernel, signature, constexprs, warps) of what is shipped, to compile without a GPU."""
    constants = {"R": ROWS, "BX": COLUMNS}
    tables = {"start_y": "*i32", "fraction_y": "*fp32", "quad_x": "*i32", "fraction_x": "*fp32"}
    numbers = dict.fromkeys(("C", "h", "w", "H", "W"), "i32")
    out = []
    for kind in ("fp32", "bf16", "fp16"):
        bytes_of = {"logits": f"*{kind}", "best": "*u8"}
        signature = bytes_of | tables | {"classmap": "*u8"} | numbers | dict.fromkeys(constants, "constexpr")
        out.append((f"pixels {kind}", best_of_pixels, signature, constants, WARPS))
        out.append((f"corners {kind}", best_of_corners, bytes_of | {"C": "i32", "pixels": "i32", "BL": "constexpr"}, {"BL": LANES}, WARPS))
    return out
