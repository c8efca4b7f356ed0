"""heteroakd_px on a GPU: a lane is a pixel, which walks over its classes twice forward and once backward; nothing between is stored.

Where softmax runs over logits they are scaled by log2(e) / T, and reliabilities by log2(e), so that exp is exp2.
"""

import math

import torch
import triton
import triton.language as tl

from kernels.heteroakd_px import FORMS

LANES, WARPS = 128, 4
LOG2E = math.log2(math.e)


def forward(student, teacher, labels, temperature, form):
    batch, classes, h, w = student.shape
    loss = torch.empty((batch, h, w), dtype=torch.float32, device=student.device)
    kept = torch.empty((4, batch, h, w), dtype=torch.float32, device=student.device)
    with torch.cuda.device_of(student):  # Triton launches on the current device, which may be another
        heteroakd_px_forward[(triton.cdiv(loss.numel(), LANES),)](
            student, teacher, labels, loss, kept, classes, h * w, loss.numel(), LOG2E / temperature, 1 / temperature, LOG2E,
            BL=LANES, SOFT=labels.is_floating_point(), FORM=form, num_warps=WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return loss, kept


def backward(student, teacher, labels, kept, upstream, temperature, form):
    _, classes, h, w = student.shape
    gradient = torch.empty(student.shape, dtype=student.dtype, device=student.device)
    with torch.cuda.device_of(student):
        heteroakd_px_backward[(triton.cdiv(upstream.numel(), LANES),)](
            student, teacher, labels, kept, upstream, gradient,
            classes, h * w, upstream.numel(), LOG2E / temperature, 1 / temperature, LOG2E,
            BL=LANES, SOFT=labels.is_floating_point(), FORM=form, num_warps=WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return gradient


@triton.jit
def heteroakd_px_forward(
    student, teacher, labels, loss, kept, C, P, pixels, k, per_t, log2e, BL: tl.constexpr, SOFT: tl.constexpr, FORM: tl.constexpr
):
    pixel = tl.program_id(0).to(tl.int64) * BL + tl.arange(0, BL)
    live = pixel < pixels
    place = pixel // P * C * P + pixel % P
    nothing, low = tl.zeros([BL], tl.float32), tl.full([BL], -1.0e38, tl.float32)
    o_most, o_sum, q_most, q_sum, p_most, p_sum = low, nothing, low, nothing, low, nothing
    targets = nothing
    for c in range(C):
        x, mixed, o, y = _mixture(student, teacher, labels, pixel, place + c * P, c, live, log2e, SOFT)
        o_most, o_sum = _more(o_most, o_sum, o)
        q_most, q_sum = _more(q_most, q_sum, mixed * k)
        p_most, p_sum = _more(p_most, p_sum, x * k)
        targets += tl.abs(y)
    if SOFT:
        valid = targets > 0
    else:
        valid = tl.load(labels + pixel, mask=live, other=255) != 255
    o_all = tl.where(valid, o_most + tl.log2(o_sum), float("inf"))
    q_all, p_all = q_most + tl.log2(q_sum), p_most + tl.log2(p_sum)
    found, both = nothing, nothing
    for c in range(C):
        x, mixed, o, _ = _mixture(student, teacher, labels, pixel, place + c * P, c, live, log2e, SOFT)
        omega = tl.exp2(o - o_all)
        if FORM == "bernoulli":
            a, b = mixed * per_t, x * per_t
            yes, no = _reliability(b, 1.0) - _reliability(a, 1.0), _reliability(b, 0.0) - _reliability(a, 0.0)
            found += omega * (tl.sigmoid(a) * yes + tl.sigmoid(-a) * no)
        else:
            log_q, log_p = mixed * k - q_all, x * k - p_all
            weight = omega * tl.exp2(log_q)
            both += weight
            if FORM == "wkl":
                found += weight * (log_q - log_p)
            else:
                found -= weight * log_p
    if FORM != "bernoulli":
        found = found * 0.6931471805599453  # ln 2: from base 2 to nats
    tl.store(loss + pixel, found, mask=live)
    tl.store(kept + pixel, o_all, mask=live)
    tl.store(kept + pixels + pixel, q_all, mask=live)
    tl.store(kept + 2 * pixels + pixel, p_all, mask=live)
    tl.store(kept + 3 * pixels + pixel, both, mask=live)


@triton.jit
def heteroakd_px_backward(
    student, teacher, labels, kept, upstream, gradient,
    C, P, pixels, k, per_t, log2e, BL: tl.constexpr, SOFT: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0).to(tl.int64) * BL + tl.arange(0, BL)
    live = pixel < pixels
    place = pixel // P * C * P + pixel % P
    o_all = tl.load(kept + pixel, mask=live, other=0.0)
    q_all = tl.load(kept + pixels + pixel, mask=live, other=0.0)
    p_all = tl.load(kept + 2 * pixels + pixel, mask=live, other=0.0)
    both = tl.load(kept + 3 * pixels + pixel, mask=live, other=0.0)
    scale = tl.load(upstream + pixel, mask=live, other=0.0).to(tl.float32) * per_t
    scale = tl.where(o_all < float("inf"), scale, 0.0)
    for c in range(C):
        x, mixed, o, _ = _mixture(student, teacher, labels, pixel, place + c * P, c, live, log2e, SOFT)
        omega = tl.exp2(o - o_all)
        if FORM == "bernoulli":
            g = omega * (tl.sigmoid(x * per_t) - tl.sigmoid(mixed * per_t))
        else:
            g = both * tl.exp2(x * k - p_all) - omega * tl.exp2(mixed * k - q_all)
        tl.store(gradient + place + c * P, (scale * g).to(gradient.dtype.element_ty), mask=live)


@triton.jit
def _mixture(student, teacher, labels, pixel, place, c, live, log2e, SOFT: tl.constexpr):
    """One class: the student's logit, the mixed one, log2 of Omega's numerator, the target."""
    x = tl.load(student + place, mask=live, other=0.0).to(tl.float32)
    u = tl.load(teacher + place, mask=live, other=0.0).to(tl.float32)
    if SOFT:
        y = tl.load(labels + place, mask=live, other=0.0).to(tl.float32)
    else:
        y = tl.where(tl.load(labels + pixel, mask=live, other=255) == c, 1.0, 0.0)
    own, theirs = _reliability(x, y), _reliability(u, y)
    share = tl.where(own + theirs > 0, own / (own + theirs + 1e-6), 0.5)
    mixed = share * u + (1 - share) * x
    return x, mixed, log2e * (own + tl.maximum(own - _reliability(mixed, y), 0.0)), y


@triton.jit
def _reliability(z, y):
    """softplus(z) - z y. log(1 + e) = 2 artanh(e / (2 + e)): the series keeps all digits where e is tiny; its next term is below 2e-8."""
    e = tl.exp(-tl.abs(z))
    r = e / (2 + e)  # 0 .. 1/3
    s = r * r
    tail = 1 / 7 + s * (1 / 9 + s * (1 / 11 + s * (1 / 13)))
    return tl.maximum(z, 0.0) - z * y + 2 * r * (1 + s * (1 / 3 + s * (1 / 5 + s * tail)))


@triton.jit
def _more(most, total, x):
    """One class more: the largest x, and the sum of 2^(x - largest)."""
    larger = tl.maximum(most, x)
    return larger, total * tl.exp2(most - larger) + tl.exp2(x - larger)


def ahead() -> list[tuple]:
    """(name, kernel, signature, constexprs, warps) of what is shipped, to compile without a GPU."""
    out = []
    numbers = dict.fromkeys(("C", "P", "pixels"), "i32") | dict.fromkeys(("k", "per_t", "log2e"), "fp32")
    for kind, label, form in (
        *((kind, "u8", form) for kind in ("bf16", "fp32", "fp16") for form in FORMS),
        *(("bf16", label, FORMS[0]) for label in ("i32", "i64", "fp32")),
    ):
        constants = {"BL": LANES, "SOFT": label == "fp32", "FORM": form}
        pointers = {"student": f"*{kind}", "teacher": f"*{kind}", "labels": f"*{label}"}
        rest = numbers | dict.fromkeys(constants, "constexpr")
        there = pointers | {"loss": "*fp32", "kept": "*fp32"} | rest
        out.append((f"forward {kind} {label} {form}", heteroakd_px_forward, there, constants, WARPS))
        back = pointers | {"kept": "*fp32", "upstream": "*fp32", "gradient": f"*{kind}"} | rest
        out.append((f"backward {kind} {label} {form}", heteroakd_px_backward, back, constants, WARPS))
    return out
