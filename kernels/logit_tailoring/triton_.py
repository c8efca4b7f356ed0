"""logit_tailoring on a GPU: one program per row (image, class), which walks over the cells twice forward and twice backward.

Logits are scaled by log2(e) / T where they are loaded: mu and nu scale with them, and exp is exp2. The largest value of each of the
six softmaxes follows from the largest logits inside and outside, because max and min with a level are monotone: no running maximum.
Of a small KL only the logarithm of a ratio of sums is left: there division is exact (div_rn), where that of a GPU is 2 units off.
"""

import math

import torch
import triton
import triton.language as tl

from kernels.logit_tailoring.fused import STATS

LANES, WARPS = 1024, 8


def forward(student, teacher, histogram, cell_sizes, temperature):
    rows, cells = student.shape[:2], cell_sizes.numel()
    kl = torch.empty(rows, dtype=torch.float32, device=student.device)
    stats = torch.empty((*rows, STATS), dtype=torch.float32, device=student.device)
    with torch.cuda.device_of(student):  # Triton launches on the current device, which may be another
        logit_tailoring_forward[(kl.numel(),)](
            student, teacher, histogram, cell_sizes, kl, stats, cells, math.log2(math.e) / temperature,
            BL=LANES, KEPT=STATS, num_warps=WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return kl, stats


def backward(student, teacher, histogram, cell_sizes, stats, upstream, temperature):
    gradient = torch.empty(student.shape, dtype=student.dtype, device=student.device)
    with torch.cuda.device_of(student):
        logit_tailoring_backward[(upstream.numel(),)](
            student, teacher, histogram, cell_sizes, stats, upstream, gradient, cell_sizes.numel(), math.log2(math.e) / temperature,
            1 / temperature, BL=LANES, KEPT=STATS, num_warps=WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return gradient


@triton.jit
def logit_tailoring_forward(student, teacher, histogram, sizes, kl, stats, P, k, BL: tl.constexpr, KEPT: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    nothing = tl.zeros([BL], tl.float32)
    s_seen = (nothing, nothing, nothing, nothing - float("inf"), nothing - float("inf"))
    t_seen = s_seen
    inside, outside = nothing, nothing
    for first in range(0, P, BL):
        s, t, n, o = _cells(student, teacher, histogram, sizes, row, first + tl.arange(0, BL), P, k)
        s_seen = _see(s_seen, s, n, o)
        t_seen = _see(t_seen, t, n, o)
        inside += n
        outside += o
    inside, outside = tl.sum(inside), tl.sum(outside)  # pixels of the class, and of the rest
    s_mu, s_nu, s_positive, s_raised, s_capped, s_most = _levels(s_seen, inside + outside)
    t_mu, t_nu, _, t_raised, t_capped, _ = _levels(t_seen, inside + outside)
    # the masks' zeros take part where the mask hides a pixel
    s_most2 = tl.maximum(s_raised, tl.where(outside > 0, 0.0, -float("inf")))
    t_most2 = tl.maximum(t_raised, tl.where(outside > 0, 0.0, -float("inf")))
    s_most3 = tl.maximum(s_capped, tl.where(inside > 0, 0.0, -float("inf")))
    t_most3 = tl.maximum(t_capped, tl.where(inside > 0, 0.0, -float("inf")))
    t_most = tl.maximum(t_raised, t_capped)
    zs1, zs2, zs3, zt1, zt2, zt3 = nothing, nothing, nothing, nothing, nothing, nothing
    a1, a2, a3 = nothing, nothing, nothing  # sums of teacher's mass * (teacher - student)
    for first in range(0, P, BL):
        s, t, n, o = _cells(student, teacher, histogram, sizes, row, first + tl.arange(0, BL), P, k)
        s_in, s_out = tl.maximum(s, s_mu), tl.minimum(s, s_nu)
        t_in, t_out = tl.maximum(t, t_mu), tl.minimum(t, t_nu)
        zs1 += _mass(n + o, s, s_most)
        zs2 += _mass(n, s_in, s_most2)
        zs3 += _mass(o, s_out, s_most3)
        p_in, p_out = _mass(n, t_in, t_most), _mass(o, t_out, t_most)
        zt1 += p_in + p_out
        a1 += p_in * (t_in - s) + p_out * (t_out - s)
        p = _mass(n, t_in, t_most2)
        zt2 += p
        a2 += p * (t_in - s_in)
        p = _mass(o, t_out, t_most3)
        zt3 += p
        a3 += p * (t_out - s_out)
    zs1, zt1 = tl.sum(zs1), tl.sum(zt1)
    zs2, zt2 = tl.sum(zs2) + _mass(outside, 0.0, s_most2), tl.sum(zt2) + _mass(outside, 0.0, t_most2)
    zs3, zt3 = tl.sum(zs3) + _mass(inside, 0.0, s_most3), tl.sum(zt3) + _mass(inside, 0.0, t_most3)
    found = tl.sum(a1) / zt1 + (s_most - t_most) + tl.log2(tl.div_rn(zs1, zt1))
    found += tl.sum(a2) / zt2 + (s_most2 - t_most2) + tl.log2(tl.div_rn(zs2, zt2))
    found += tl.sum(a3) / zt3 + (s_most3 - t_most3) + tl.log2(tl.div_rn(zs3, zt3))
    tl.store(kl + row, found * 0.6931471805599453)  # ln 2: from base 2 to nats
    keep = stats + row * KEPT
    _keep6(keep, s_mu, s_nu, t_mu, t_nu, tl.maximum(s_positive, 1.0), inside + outside)
    _keep6(keep + 6, s_most, 1 / zs1, s_most2, 1 / zs2, s_most3, 1 / zs3)
    _keep6(keep + 12, t_most, 1 / zt1, t_most2, 1 / zt2, t_most3, 1 / zt3)


@triton.jit
def logit_tailoring_backward(
    student, teacher, histogram, sizes, stats, upstream, gradient, P, k, per_t, BL: tl.constexpr, KEPT: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    kept = stats + row * KEPT
    mu, nu, t_mu, t_nu, positive, pixels = _kept6(kept)
    s1, s2, s3 = _pairs(_kept6(kept + 6))
    t1, t2, t3 = _pairs(_kept6(kept + 12))
    raised, capped = tl.zeros([BL], tl.float32), tl.zeros([BL], tl.float32)  # gradients that mu and nu take
    for first in range(0, P, BL):
        s, t, n, o = _cells(student, teacher, histogram, sizes, row, first + tl.arange(0, BL), P, k)
        d2 = _share(n, tl.maximum(s, mu), s2) - _share(n, tl.maximum(t, t_mu), t2)
        d3 = _share(o, tl.minimum(s, nu), s3) - _share(o, tl.minimum(t, t_nu), t3)
        raised += tl.where(s < mu, d2, 0.0)
        capped += tl.where(s > nu, d3, 0.0)
    to_mu, to_nu = tl.sum(raised) / positive, tl.sum(capped) / pixels
    scale = tl.load(upstream + row).to(tl.float32) * per_t
    for first in range(0, P, BL):
        i = first + tl.arange(0, BL)
        s, t, n, o = _cells(student, teacher, histogram, sizes, row, i, P, k)
        t_in, t_out = tl.maximum(t, t_mu), tl.minimum(t, t_nu)
        g = _share(n + o, s, s1) - _share(n, t_in, t1) - _share(o, t_out, t1)
        g += tl.where(s < mu, 0.0, _share(n, tl.maximum(s, mu), s2) - _share(n, t_in, t2))
        g += tl.where(s > nu, 0.0, _share(o, tl.minimum(s, nu), s3) - _share(o, t_out, t3))
        g += tl.where(s > 0, to_mu * n, 0.0) + to_nu * o
        tl.store(gradient + row * P + i, (scale * g).to(gradient.dtype.element_ty), mask=i < P)


@triton.jit
def _cells(student, teacher, histogram, sizes, row, i, P, k):
    """Scaled logits of a block of cells, and their pixels of the class and of the rest; behind the last cell all are 0."""
    s = tl.load(student + row * P + i, mask=i < P, other=0.0).to(tl.float32) * k
    t = tl.load(teacher + row * P + i, mask=i < P, other=0.0).to(tl.float32) * k
    n = tl.load(histogram + row * P + i, mask=i < P, other=0)
    o = tl.load(sizes + i, mask=i < P, other=0) - n
    return s, t, n.to(tl.float32), o.to(tl.float32)


@triton.jit
def _see(seen, z, n, o):
    count = seen[0] + tl.where(z > 0, n, 0.0)
    total = seen[1] + tl.where(z > 0, n * z, 0.0)
    most_in = tl.maximum(seen[3], tl.where(n > 0, z, -float("inf")))
    most_out = tl.maximum(seen[4], tl.where(o > 0, z, -float("inf")))
    return count, total, seen[2] + o * z, most_in, most_out


@triton.jit
def _levels(seen, pixels):
    """mu, nu, pixels with a positive logit inside, and the largest of: raised logits inside, capped ones outside, any as they are."""
    count, most_in, most_out = tl.sum(seen[0]), tl.max(seen[3]), tl.max(seen[4])
    mu = tl.where(count > 0, tl.sum(seen[1]) / tl.maximum(count, 1.0), -float("inf"))
    nu = tl.sum(seen[2]) / pixels
    return mu, nu, count, tl.maximum(most_in, mu), tl.minimum(most_out, nu), tl.maximum(most_in, most_out)


@triton.jit
def _mass(pixels, z, most):
    return tl.where(pixels > 0, pixels * tl.exp2(z - most), 0.0)


@triton.jit
def _share(pixels, z, softmax):
    return _mass(pixels, z, softmax[0]) * softmax[1]


@triton.jit
def _pairs(v):
    return (v[0], v[1]), (v[2], v[3]), (v[4], v[5])


@triton.jit
def _keep6(place, a, b, c, d, e, f):
    tl.store(place, a)
    tl.store(place + 1, b)
    tl.store(place + 2, c)
    tl.store(place + 3, d)
    tl.store(place + 4, e)
    tl.store(place + 5, f)


@triton.jit
def _kept6(place):
    return tl.load(place), tl.load(place + 1), tl.load(place + 2), tl.load(place + 3), tl.load(place + 4), tl.load(place + 5)


def ahead() -> list[tuple]:
    """(name, kernel, signature, constexprs, warps) of what is shipped, to compile without a GPU."""
    constants = {"BL": LANES, "KEPT": STATS}
    written = dict.fromkeys(constants, "constexpr")
    out = []
    for kind in ("bf16", "fp32", "fp16"):
        read = {"student": f"*{kind}", "teacher": f"*{kind}", "histogram": "*i32", "sizes": "*i32"}
        there = read | {"kl": "*fp32", "stats": "*fp32", "P": "i32", "k": "fp32"} | written
        back = read | {"stats": "*fp32", "upstream": "*fp32", "gradient": f"*{kind}", "P": "i32", "k": "fp32", "per_t": "fp32"} | written
        out += [
            (f"forward {kind}", logit_tailoring_forward, there, constants, WARPS),
            (f"backward {kind}", logit_tailoring_backward, back, constants, WARPS),
        ]
    return out
