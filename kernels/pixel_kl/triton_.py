"""pixel_kl on a GPU: a lane is a pixel, its softmaxes run along the classes in registers, every logit is read once each way.

Logits are scaled by log2(e) / T where they are loaded, so that exp is exp2. A KL in base 2, of teacher u and student x, is
sum 2^(u - m) (u - x) / sum 2^(u - m) + log2 sum 2^x - log2 sum 2^u. Sums are divided exactly (div_rn), since the fast division of a GPU
may find x / x a little beside 1: where teacher and student agree, the loss is 0.
"""

import math

import torch
import triton
import triton.language as tl

LANES, WARPS = 128, 4
LOG2E = math.log2(math.e)


def forward(student, teacher, auxiliary, temperature, direction):
    batch, classes, h, w = student.shape
    heads = auxiliary is not None
    kl, discrepancy, ls, lt = (
        torch.empty((batch, h, w) if there else (0,), dtype=torch.float32, device=student.device) for there in (True, heads, True, True)
    )
    with torch.cuda.device_of(student):  # Triton launches on the current device, which may be another
        pixel_kl_forward[(triton.cdiv(kl.numel(), LANES),)](
            student, teacher, auxiliary if heads else teacher, kl, discrepancy, ls, lt,
            classes, h * w, kl.numel(), LOG2E / temperature, LOG2E,
            BL=LANES, HEADS=heads, FROM_AUX=direction == "aux_to_main", num_warps=WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return kl, discrepancy, ls, lt


def backward(student, teacher, ls, lt, upstream, temperature):
    classes, cells = student.shape[1], student.shape[2] * student.shape[3]
    gradient = torch.empty(student.shape, dtype=student.dtype, device=student.device)
    with torch.cuda.device_of(student):
        pixel_kl_backward[(triton.cdiv(ls.numel(), LANES),)](
            student, teacher, ls, lt, upstream, gradient, classes, cells, ls.numel(), LOG2E / temperature, 1 / temperature,
            BL=LANES, num_warps=WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return gradient


@triton.jit
def pixel_kl_forward(
    student, teacher, auxiliary, kl, discrepancy, ls, lt,
    C, P, pixels, k, k1, BL: tl.constexpr, HEADS: tl.constexpr, FROM_AUX: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0).to(tl.int64) * BL + tl.arange(0, BL)
    live = pixel < pixels
    place = pixel // P * C * P + pixel % P
    nothing, low = tl.zeros([BL], tl.float32), tl.full([BL], -1.0e38, tl.float32)
    s_most, s_sum, t_most, t_sum, gap = low, nothing, low, nothing, nothing
    main_most, main_sum, aux_most, aux_sum, heads_gap = low, nothing, low, nothing, nothing
    for c in range(C):
        x = tl.load(student + place + c * P, mask=live, other=0.0).to(tl.float32) * k
        raw = tl.load(teacher + place + c * P, mask=live, other=0.0).to(tl.float32)
        u = raw * k
        s_most, s_sum, _ = _more(s_most, s_sum, s_sum, x, x)
        t_most, t_sum, gap = _more(t_most, t_sum, gap, u, u - x)
        if HEADS:
            main = raw * k1
            aux = tl.load(auxiliary + place + c * P, mask=live, other=0.0).to(tl.float32) * k1
            if FROM_AUX:
                main_most, main_sum, _ = _more(main_most, main_sum, main_sum, main, main)
                aux_most, aux_sum, heads_gap = _more(aux_most, aux_sum, heads_gap, aux, aux - main)
            else:
                main_most, main_sum, heads_gap = _more(main_most, main_sum, heads_gap, main, main - aux)
                aux_most, aux_sum, _ = _more(aux_most, aux_sum, aux_sum, aux, aux)
    s_all, t_all = s_most + tl.log2(s_sum), t_most + tl.log2(t_sum)
    tl.store(ls + pixel, s_all, mask=live)
    tl.store(lt + pixel, t_all, mask=live)
    ln2: tl.constexpr = 0.6931471805599453
    tl.store(kl + pixel, ln2 * (gap / t_sum + (s_most - t_most) + tl.log2(tl.div_rn(s_sum, t_sum))), mask=live)
    if HEADS:
        apart = main_most - aux_most + tl.log2(tl.div_rn(main_sum, aux_sum))
        if FROM_AUX:
            tl.store(discrepancy + pixel, ln2 * (heads_gap / aux_sum + apart), mask=live)
        else:
            tl.store(discrepancy + pixel, ln2 * (heads_gap / main_sum - apart), mask=live)


@triton.jit
def _more(most, total, weighted, x, value):
    """One class more: the largest x, the sum of e = 2^(x - largest), the sum of e * value."""
    larger = tl.maximum(most, x)
    shrink, e = tl.exp2(most - larger), tl.exp2(x - larger)
    return larger, total * shrink + e, weighted * shrink + e * value


@triton.jit
def pixel_kl_backward(student, teacher, ls, lt, upstream, gradient, C, P, pixels, k, per_t, BL: tl.constexpr):
    pixel = tl.program_id(0).to(tl.int64) * BL + tl.arange(0, BL)
    live = pixel < pixels
    place = pixel // P * C * P + pixel % P
    s_all = tl.load(ls + pixel, mask=live, other=0.0)
    t_all = tl.load(lt + pixel, mask=live, other=0.0)
    scale = tl.load(upstream + pixel, mask=live, other=0.0).to(tl.float32) * per_t
    for c in range(C):
        x = tl.load(student + place + c * P, mask=live, other=0.0).to(tl.float32) * k
        u = tl.load(teacher + place + c * P, mask=live, other=0.0).to(tl.float32) * k
        g = scale * (tl.exp2(x - s_all) - tl.exp2(u - t_all))
        tl.store(gradient + place + c * P, g.to(gradient.dtype.element_ty), mask=live)


def ahead() -> list[tuple]:
    """(name, kernel, signature, constexprs, warps) of what is shipped, to compile without a GPU."""
    out = []
    numbers = {"C": "i32", "P": "i32", "pixels": "i32", "k": "fp32"}
    for kind in ("bf16", "fp32", "fp16"):
        pair = {"student": f"*{kind}", "teacher": f"*{kind}"}
        back = pair | dict.fromkeys(("ls", "lt", "upstream"), "*fp32") | {"gradient": f"*{kind}"} | numbers | {"per_t": "fp32"}
        out.append((f"backward {kind}", pixel_kl_backward, back | {"BL": "constexpr"}, {"BL": LANES}, WARPS))
        there = pair | {"auxiliary": f"*{kind}"} | dict.fromkeys(("kl", "discrepancy", "ls", "lt"), "*fp32") | numbers | {"k1": "fp32"}
        for heads, from_aux in ((True, True), (True, False), (False, True)):
            constants = {"BL": LANES, "HEADS": heads, "FROM_AUX": from_aux}
            name = f"forward {kind}" + heads * f" {'aux_to_main' if from_aux else 'main_to_aux'}"
            out.append((name, pixel_kl_forward, there | dict.fromkeys(constants, "constexpr"), constants, WARPS))
    return out
