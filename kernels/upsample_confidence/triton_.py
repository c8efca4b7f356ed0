"""upsample_confidence on a GPU: no logits at the labels' size. A lane is a column of pixels of one quad of kernels/tables.py; a few
rows of the quad share the four corners of each class, and softmax runs along the classes in registers.
"""

import math

import torch
import triton
import triton.language as tl

from kernels.tables import axis

CLASSES, ROWS, COLUMNS, WARPS = 4, 4, 128, 4  # classes per step, pixel rows that share corners, pixel columns, warps
LOG2E = math.log2(math.e)


def forward(logits, labels, align_corners, ignore):
    (batch, classes, h, w), (_, height, width), device = logits.shape, labels.shape, str(logits.device)
    rows, columns = axis(h, height, align_corners, device), axis(w, width, align_corners, device)
    confidence, entropy, label_probability = (torch.empty(labels.shape, dtype=torch.float32, device=logits.device) for _ in range(3))
    with torch.cuda.device_of(logits):  # Triton launches on the current device, which may be another
        upsample_confidence_forward[(triton.cdiv(width, COLUMNS), h + 1, batch)](
            logits, labels, rows.start, rows.fraction, columns.quad, columns.fraction, confidence, entropy, label_probability,
            classes, h, w, height, width, ignore, LOG2E,
            CC=CLASSES, R=ROWS, BX=COLUMNS, num_warps=WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return confidence, entropy, label_probability


@triton.jit
def upsample_confidence_forward(
    logits, labels, start_y, fraction_y, quad_x, fraction_x, confidence, entropy, label_probability,
    C, h, w, H, W, ignore, log2e, CC: tl.constexpr, R: tl.constexpr, BX: tl.constexpr,
):  # fmt: skip
    x = tl.program_id(0) * BX + tl.arange(0, BX)
    quad = tl.program_id(1) - 1
    image = tl.program_id(2).to(tl.int64)
    live = x < W
    left = tl.load(quad_x + x, mask=live, other=0)
    fx = tl.load(fraction_x + x, mask=live, other=0.0)
    above, below = tl.maximum(quad, 0) * w, tl.minimum(quad + 1, h - 1) * w
    left, right = tl.maximum(left, 0), tl.minimum(left + 1, w - 1)
    corners = (above + left, above + right, below + left, below + right)
    one = logits + image * C * h * w
    last = tl.load(start_y + quad + 2)
    for y in range(tl.load(start_y + quad + 1), last, R):
        fy = ()
        states = ()  # per row: largest logit m, sum of e = 2^(logit - m), sum of e (logit - m)
        for r in tl.static_range(R):
            fy += (tl.load(fraction_y + tl.minimum(y + r, H - 1)),)
            states += (tl.full([BX], -1.0e38, tl.float32), tl.zeros([BX], tl.float32), tl.zeros([BX], tl.float32))
        whole = C // CC * CC
        for c in range(0, whole, CC):
            states = _classes(states, one, c, h * w, corners, fx, fy, log2e, live, CC, R)
        for c in range(whole, C):
            states = _classes(states, one, c, h * w, corners, fx, fy, log2e, live, 1, R)
        for r in tl.static_range(R):
            here = live & (y + r < last)
            m, total, spread = states[3 * r], states[3 * r + 1], states[3 * r + 2]
            at = (image * H + y + r) * W + x
            tl.store(confidence + at, 1 / total, mask=here)
            tl.store(entropy + at, 0.6931471805599453 * (tl.log2(total) - spread / total), mask=here)
            label = tl.load(labels + at, mask=here, other=0)
            known = here & (label != ignore) & (label >= 0) & (label < C)
            top, fall = _corners(one + tl.where(known, label, 0).to(tl.int64) * h * w, corners, fx, log2e, known)
            p = tl.exp2(top + fy[r] * fall - m) / total
            tl.store(label_probability + at, tl.where(known, p, 1.0), mask=here)


@triton.jit
def _classes(states, one, c, plane, corners, fx, fy, log2e, live, CC: tl.constexpr, R: tl.constexpr):
    top, fall = (), ()
    for k in tl.static_range(CC):
        a, b = _corners(one + (c + k) * plane, corners, fx, log2e, live)
        top += (a,)
        fall += (b,)
    out = ()
    for r in tl.static_range(R):
        m, total, spread = states[3 * r], states[3 * r + 1], states[3 * r + 2]
        most = m
        for k in tl.static_range(CC):
            most = tl.maximum(most, top[k] + fy[r] * fall[k])
        shrink = tl.exp2(m - most)
        spread = (spread + total * (m - most)) * shrink
        total = total * shrink
        for k in tl.static_range(CC):
            below = top[k] + fy[r] * fall[k] - most
            e = tl.exp2(below)
            total += e
            spread += e * below
        out += (most, total, spread)
    return out


@triton.jit
def _corners(plane, corners, fx, log2e, mask):
    """Along the columns: a class's logit, times log2(e), at the quad's upper row, and how it changes towards the lower one."""
    a = tl.load(plane + corners[0], mask=mask, other=0.0).to(tl.float32) * log2e
    b = tl.load(plane + corners[1], mask=mask, other=0.0).to(tl.float32) * log2e
    c = tl.load(plane + corners[2], mask=mask, other=0.0).to(tl.float32) * log2e
    d = tl.load(plane + corners[3], mask=mask, other=0.0).to(tl.float32) * log2e
    top = a + fx * (b - a)
    return top, c + fx * (d - c) - top


def ahead() -> list[tuple]:
    """(name, kernel, signature, constexprs, warps) of what is shipped, to compile without a GPU."""
    constants = {"CC": CLASSES, "R": ROWS, "BX": COLUMNS}
    tables = {"start_y": "*i32", "fraction_y": "*fp32", "quad_x": "*i32", "fraction_x": "*fp32"}
    maps = dict.fromkeys(("confidence", "entropy", "label_probability"), "*fp32")
    numbers = dict.fromkeys(("C", "h", "w", "H", "W", "ignore"), "i32") | {"log2e": "fp32"}
    out = []
    for kind, label in (("bf16", "u8"), ("fp32", "u8"), ("fp16", "u8"), ("bf16", "i32"), ("bf16", "i64")):
        signature = {"logits": f"*{kind}", "labels": f"*{label}"} | tables | maps | numbers | dict.fromkeys(constants, "constexpr")
        out.append((f"forward {kind} {label}", upsample_confidence_forward, signature, constants, WARPS))
    return out
