"""label_histogram on a GPU: every lane counts the pixels of one cell for a few classes, so that nothing is added by two at once."""

import torch
import triton
import triton.language as tl

from kernels.label_histogram.cells import starts

CLASSES, LANES, WARPS = 8, 128, 4  # classes that one program counts, cells, warps


def forward(labels: torch.Tensor, classes: int, size: list[int], ignore: int) -> torch.Tensor:
    (batch, height, width), (h, w), device = labels.shape, size, str(labels.device)
    tall, wide = (int(starts(n, to).diff().max()) for n, to in ((h, height), (w, width)))  # the largest cell; known on the CPU
    counts = torch.empty((batch, classes, h, w), dtype=torch.int32, device=labels.device)
    with torch.cuda.device_of(labels):  # Triton launches on the current device, which may be another
        label_histogram_forward[(triton.cdiv(h * w, LANES), triton.cdiv(classes, CLASSES), batch)](
            labels, starts(h, height, device), starts(w, width, device), counts,
            classes, h, w, height, width, tall, wide, ignore,
            CC=CLASSES, BL=LANES, num_warps=WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return counts


@triton.jit
def label_histogram_forward(labels, start_y, start_x, counts, C, h, w, H, W, tall, wide, ignore, CC: tl.constexpr, BL: tl.constexpr):
    cell = tl.program_id(0) * BL + tl.arange(0, BL)
    c0 = tl.program_id(1) * CC  # int32, to which smaller labels are promoted where they are compared
    image = tl.program_id(2).to(tl.int64)
    live = cell < h * w
    i = tl.where(live, cell // w, 0)
    j = tl.where(live, cell % w, 0)
    top, bottom = tl.load(start_y + i), tl.load(start_y + i + 1)
    left, right = tl.load(start_x + j), tl.load(start_x + j + 1)
    found = ()
    for _ in tl.static_range(CC):
        found += (tl.zeros([BL], tl.int32),)
    for dy in range(tall):
        for dx in range(wide):
            y, x = top + dy, left + dx
            inside = live & (y < bottom) & (x < right)
            label = tl.load(labels + image * H * W + y * W + x, mask=inside, other=0)
            more = ()
            for k in tl.static_range(CC):
                more += (found[k] + (inside & (label == c0 + k)).to(tl.int32),)
            found = more
    for k in tl.static_range(CC):
        c = c0 + k
        count = tl.where(c == ignore, 0, found[k])
        tl.store(counts + (image * C + c) * h * w + cell, count, mask=live & (c < C))


def ahead() -> list[tuple]:
    """(name, kernel, signature, constexprs, warps) of what is shipped, to compile without a GPU."""
    pointers = {"start_y": "*i32", "start_x": "*i32", "counts": "*i32"}
    numbers = dict.fromkeys(("C", "h", "w", "H", "W", "tall", "wide", "ignore"), "i32")
    constants = {"CC": CLASSES, "BL": LANES}
    rest = pointers | numbers | dict.fromkeys(constants, "constexpr")
    kinds = ("u8", "i32", "i64")
    return [(f"forward {kind}", label_histogram_forward, {"labels": f"*{kind}"} | rest, constants, WARPS) for kind in kinds]
