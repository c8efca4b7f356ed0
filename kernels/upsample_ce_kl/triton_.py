"""upsample_ce_kl in Triton: two kernels joined by per-pixel maps; no tensor of logits at label resolution, and no atomics.

Symbols of the package's docstring, in base 2: with x' = x log2(e) / T and u' likewise, softmax(x / T) = 2^(x' - ls),
softmax(u / T) = 2^(u' - lt) and softmax(x) = 2^(T x' - l1). Low-resolution values are scaled once, when they are loaded.

All pixels of a quad (kernels/tables.py) lie between the same four low-resolution values. The gradient g of a pixel at the fraction
(fy, fx) reaches the upper two of them with the weight 1 - fy and the lower two with fy; of that, the right ones get the share fx. So
four sums per quad are enough, and a low-resolution value is put together from the four quads around it: marching down, a lane carries
the sums weighted with fy to the next quad row, and what belongs to the column on its right it hands over once per quad row.

Tuples of one-dimensional tensors stand for two-dimensional tiles: for tiles Triton 3.6 picks a layout that it must change, with
barriers, at every pixel.
"""
# ruff: noqa: RUF005  (Triton's tuples are added, not unpacked)

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.tables import Axis, axis
from kernels.upsample_ce_kl import plan
from kernels.upsample_ce_kl.plan import SPACE as SPACE


def forward(
    student: Tensor, teacher: Tensor | None, labels: Tensor, temperature: float, align_corners: bool, ignore: int
) -> tuple[Tensor, ...]:
    B, C, h, w = student.shape
    H, W = labels.shape[1:]
    other, temperature = (student, 1.0) if teacher is None else (teacher, temperature)
    th, tw = other.shape[2:]
    device = str(student.device)
    ce, l1 = (torch.empty(labels.shape, dtype=torch.float32, device=device) for _ in range(2))
    kl, ls, lt = (torch.empty((0,) if teacher is None else labels.shape, dtype=torch.float32, device=device) for _ in range(3))
    (y, x), (ty, tx) = (_axes(logits, H, W, align_corners) for logits in (student, other))
    flags = {"KL": teacher is not None, "T1": temperature == 1}
    config = plan.forward(student, th, H, align_corners, flags)
    groups = plan.row_groups(h, th, H, align_corners, config["R"], device)
    with torch.cuda.device_of(student):  # Triton launches on the current device, which may be another
        upsample_ce_kl_forward[(triton.cdiv(W, config["BX"]), len(groups), B)](
            *(student, other, labels, groups),
            *(y.quad, y.fraction, x.quad, x.fraction, ty.quad, ty.fraction, tx.quad, tx.fraction),
            *(ce, kl, l1, ls, lt),
            *(C, h, w, th, tw, H, W, ignore, math.log2(math.e) / temperature, temperature),
            **flags,
            **config,
            enable_fp_fusion=True,  # no longer the default in Triton 3.10
        )
    return ce, kl, l1, ls, lt


def backward(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor,
    l1: Tensor,
    ls: Tensor,
    lt: Tensor,
    a: Tensor,
    b: Tensor,
    temperature: float,
    align_corners: bool,
    ignore: int,
) -> Tensor:
    B, C, h, w = student.shape
    H, W = labels.shape[1:]
    other, temperature = (student, 1.0) if teacher is None else (teacher, temperature)
    th, tw = other.shape[2:]
    a, b = a.contiguous(), b.contiguous()  # of a mean they are one number seen as a map
    grad = torch.empty(student.shape, dtype=student.dtype, device=student.device)
    foreign = (th, tw) != (h, w)
    (y, x), (ty, tx) = (_axes(logits, H, W, align_corners) for logits in (student, other))
    flags = {"KL": teacher is not None, "SAME": teacher is not None and not foreign, "T1": temperature == 1}
    config = plan.backward(student, x.most, flags)
    chunks = triton.cdiv(C, config["CC"])
    segments, rows = plan.marches(B, h, w, chunks, config["RS"], config["BL"])
    lanes = B * segments * (w + 1)
    with torch.cuda.device_of(student):
        upsample_ce_kl_backward[(chunks, triton.cdiv(lanes, config["BL"] - 1))](
            *(student, other, labels),
            *(y.start, y.fraction, x.start, x.fraction, ty.quad, ty.fraction, tx.quad, tx.fraction),
            *(l1, ls, lt, a, b, grad),
            *(C, h, w, th, tw, H, W, segments, lanes, rows, y.most, ignore, math.log2(math.e) / temperature, temperature),
            **flags,
            **{name: config[name] for name in ("CC", "BL", "num_warps")},
            MOST=x.most,
            RX=plan.unrolled(x.most, foreign),
            enable_fp_fusion=True,
        )
    return grad


def _axes(logits: Tensor, H: int, W: int, align_corners: bool) -> tuple[Axis, Axis]:
    h, w = logits.shape[2:]
    return axis(h, H, align_corners, str(logits.device)), axis(w, W, align_corners, str(logits.device))


def ahead() -> list[tuple]:
    """(name, kernel, signature, constants, warps) of what is launched, the most used first: to be compiled where there is no GPU."""
    forward = {"KL": True, "T1": False, "CC": 4, "R": 4, "BX": plan.COLUMNS}
    backward = {"KL": True, "SAME": True, "T1": False, "CC": 4, "BL": plan.LANES, "MOST": 4, "RX": 4}
    alone, five = {"KL": False, "T1": True}, {"MOST": 5, "RX": 5}
    return [
        _described("bf16", upsample_ce_kl_forward, forward),
        _described("fp32", upsample_ce_kl_backward, backward),
        _described("fp32", upsample_ce_kl_forward, forward),
        _described("bf16", upsample_ce_kl_backward, backward),
        _described("bf16, stride 8", upsample_ce_kl_forward, forward | {"CC": 2, "R": 8}),
        _described("bf16, stride 8", upsample_ce_kl_backward, backward | {"MOST": 9, "RX": plan.unrolled(9, False)}),
        _described("bf16, no teacher", upsample_ce_kl_forward, forward | alone),
        _described("bf16, no teacher", upsample_ce_kl_backward, backward | alone | {"SAME": False}),
        _described("bf16, five pixels", upsample_ce_kl_backward, backward | five),
        _described("fp32, five pixels, T = 1", upsample_ce_kl_backward, backward | five | {"T1": True}),
        _described("bf16, a teacher's own grid", upsample_ce_kl_backward, backward | {"SAME": False}),
        _described("bf16, a teacher's own grid, T = 1", upsample_ce_kl_backward, backward | {"SAME": False, "T1": True}),
        _described("bf16, three classes", upsample_ce_kl_backward, backward | {"CC": 3}),
        _described("fp16, no upsampling", upsample_ce_kl_forward, forward | {"R": 1}),
        _described("fp16, no upsampling", upsample_ce_kl_backward, backward | {"MOST": 1, "RX": 1}),
    ]


def _described(name: str, kernel, constants: dict) -> tuple:
    kinds = dict.fromkeys(SIZES, "i32") | dict.fromkeys(("scale", "temperature"), "fp32")
    kinds |= dict.fromkeys(("student", "teacher", "grad"), f"*{name[:4]}") | dict.fromkeys(("groups", "start_y", "start_x"), "*i32")
    kinds |= dict.fromkeys(("quad_y", "quad_x", "teacher_quad_y", "teacher_quad_x"), "*i32") | {"labels": "*u8"}
    signature = {argument: kinds.get(argument, "*fp32") for argument in kernel.arg_names if argument not in constants}
    return f"{kernel.__name__} {name}", kernel, signature, constants, plan.WARPS


LN2 = tl.constexpr(math.log(2))
SIZES = ("C", "h", "w", "th", "tw", "H", "W", "segments", "lanes", "rows", "tallest", "ignore")  # one kernel for all of them


@triton.jit
def _fill(n: tl.constexpr, BL: tl.constexpr, value):
    out = ()
    for _ in tl.static_range(n):
        out = out + (tl.full([BL], value, tl.float32),)
    return out


@triton.jit
def _between(left, right, fraction, scale):
    """What lies between two values in memory, in float32 and scaled."""
    a = tl.load(left).to(tl.float32) * scale
    return a + fraction * (tl.load(right).to(tl.float32) * scale - a)


@triton.jit
def _corners(quad_y, quad_x, Y, X, h, w):
    """Where the four low-resolution values around each pixel lie in their map: upper left and right, lower left and right."""
    i, j = tl.load(quad_y + Y), tl.load(quad_x + X)
    upper, lower = tl.maximum(i, 0) * w, tl.minimum(i + 1, h - 1) * w
    left, right = tl.maximum(j, 0), tl.minimum(j + 1, w - 1)
    return (upper + left, upper + right, lower + left, lower + right)


@triton.jit(do_not_specialize=SIZES[:7] + SIZES[-1:])
def upsample_ce_kl_forward(
    student, teacher, labels, groups,
    quad_y, fraction_y, quad_x, fraction_x, teacher_quad_y, teacher_fraction_y, teacher_quad_x, teacher_fraction_x,
    ce, kl, l1, ls, lt,
    C, h, w, th, tw, H, W, ignore, scale, temperature,
    KL: tl.constexpr, T1: tl.constexpr, CC: tl.constexpr, R: tl.constexpr, BX: tl.constexpr,
):  # fmt: skip
    """All maps of one group of label rows, BX columns wide. A lane is a column: its rows share the corners of each class."""
    first, rows = tl.load(groups + 2 * tl.program_id(1)), tl.load(groups + 2 * tl.program_id(1) + 1)
    image = tl.program_id(2).to(tl.int64)
    X = tl.program_id(0) * BX + tl.arange(0, BX)
    wanted = X < W
    X = tl.minimum(X, W - 1)  # the lanes beyond compute the last column, and store nothing
    z = student + image * C * h * w
    z_at = _corners(quad_y, quad_x, first, X, h, w)
    fx = tl.load(fraction_x + X)
    t, t_at, tfx = z, z_at, fx
    if KL:
        t = teacher + image * C * th * tw
        t_at = _corners(teacher_quad_y, teacher_quad_x, first, X, th, tw)
        tfx = tl.load(teacher_fraction_x + X)
    fy, tfy, sums = (), (), ()
    for r in tl.static_range(R):
        Y = tl.minimum(first + r, H - 1)
        fy = fy + (tl.load(fraction_y + Y),)
        tfy = tfy + (tl.load(teacher_fraction_y + Y),)
        sums = sums + _fill(1, BX, float("-inf")) + _fill(2, BX, 0.0) + _fill(1, BX, float("-inf")) + _fill(2, BX, 0.0)
    whole = C // CC * CC
    for c in range(0, whole, CC):
        sums = _add(sums, z + c * h * w, t + c * th * tw, z_at, t_at, fx, tfx, fy, tfy, h * w, th * tw, scale, temperature, KL, T1, CC, R)
    for c in range(whole, C):  # one by one, so that none is computed only to be masked
        sums = _add(sums, z + c * h * w, t + c * th * tw, z_at, t_at, fx, tfx, fy, tfy, h * w, th * tw, scale, temperature, KL, T1, 1, R)
    for r in tl.static_range(R):
        if r < rows:
            p = image * H * W + (first + r) * W + X
            log_s = sums[6 * r] + tl.log2(sums[6 * r + 1])
            log_1 = log_s
            if not T1:
                log_1 = sums[6 * r] * temperature + tl.log2(sums[6 * r + 2])
            tl.store(l1 + p, log_1, mask=wanted)
            if KL:
                log_t = sums[6 * r + 3] + tl.log2(sums[6 * r + 4])
                tl.store(ls + p, log_s, mask=wanted)
                tl.store(lt + p, log_t, mask=wanted)
                tl.store(kl + p, (sums[6 * r + 5] / sums[6 * r + 4] + log_s - log_t) * LN2, mask=wanted)
            y = tl.load(labels + p).to(tl.int32)
            there = (y >= 0) & (y < C)  # a label that is no class and not ignored gives NaN: the reference raises
            of = z + tl.where(there, y, 0) * h * w
            upper = _between(of + z_at[0], of + z_at[1], fx, 1.0)
            lower = _between(of + z_at[2], of + z_at[3], fx, 1.0)
            loss = tl.where(there, log_1 * LN2 - (upper + fy[r] * (lower - upper)), float("nan"))
            tl.store(ce + p, tl.where(y == ignore, 0.0, loss), mask=wanted)


@triton.jit
def _add(
    sums, z, t, z_at, t_at, fx, tfx, fy, tfy, z_step, t_step, scale, temperature,
    KL: tl.constexpr, T1: tl.constexpr, CC: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """CC classes more in the sums of R rows. Per row: max x', sum 2^(x' - max), sum 2^(T (x' - max)); max u', sum 2^(u' - max),
    and that sum weighted by u' - x'."""
    x_top, x_step, u_top, u_step = (), (), (), ()
    for i in tl.static_range(CC):
        of = z + i * z_step
        top = _between(of + z_at[0], of + z_at[1], fx, scale)
        x_top, x_step = x_top + (top,), x_step + (_between(of + z_at[2], of + z_at[3], fx, scale) - top,)
        if KL:
            of = t + i * t_step
            top = _between(of + t_at[0], of + t_at[1], tfx, scale)
            u_top, u_step = u_top + (top,), u_step + (_between(of + t_at[2], of + t_at[3], tfx, scale) - top,)
    out = ()
    for r in tl.static_range(R):
        x_max, s, s1, u_max, p, d = sums[6 * r], sums[6 * r + 1], sums[6 * r + 2], sums[6 * r + 3], sums[6 * r + 4], sums[6 * r + 5]
        x, u = (), ()
        peak = x_max
        for i in tl.static_range(CC):
            x = x + (x_top[i] + fy[r] * x_step[i],)
            peak = tl.maximum(peak, x[i])
        s = s * tl.exp2(x_max - peak)
        if not T1:
            s1 = s1 * tl.exp2((x_max - peak) * temperature)
        for i in tl.static_range(CC):
            s += tl.exp2(x[i] - peak)
            if not T1:
                s1 += tl.exp2((x[i] - peak) * temperature)
        x_max = peak
        if KL:
            peak = u_max
            for i in tl.static_range(CC):
                u = u + (u_top[i] + tfy[r] * u_step[i],)
                peak = tl.maximum(peak, u[i])
            p, d = p * tl.exp2(u_max - peak), d * tl.exp2(u_max - peak)
            for i in tl.static_range(CC):
                e = tl.exp2(u[i] - peak)
                p += e
                d += e * (u[i] - x[i])
            u_max = peak
        out = out + (x_max, s, s1, u_max, p, d)
    return out


@triton.jit(do_not_specialize=SIZES)
def upsample_ce_kl_backward(
    student, teacher, labels,
    start_y, fraction_y, start_x, fraction_x, teacher_quad_y, teacher_fraction_y, teacher_quad_x, teacher_fraction_x,
    l1, ls, lt, a, b, grad,
    C, h, w, th, tw, H, W, segments, lanes, rows, tallest, ignore, scale, temperature,
    KL: tl.constexpr, SAME: tl.constexpr, T1: tl.constexpr, CC: tl.constexpr, BL: tl.constexpr, MOST: tl.constexpr, RX: tl.constexpr,
):  # fmt: skip
    """The gradient of CC classes. A lane is one quad column (-1 .. w-1) of one segment of `rows` low-resolution rows of one image; it
    marches down the quad rows, from the one above its segment, and writes the low-resolution value at its upper left."""
    first = tl.program_id(0) * CC
    lane = tl.arange(0, BL)
    q = tl.program_id(1) * (BL - 1) + lane - 1  # lane 0 is the last of the block before, again: lane 1 needs its left neighbour
    q = tl.where((q >= 0) & (q < lanes), q, 0)  # a lane too many is another column -1, which writes nothing
    column = q % (w + 1) - 1
    top = q // (w + 1) % segments * rows
    image = (q // (w + 1) // segments).to(tl.int64)
    left, right = tl.maximum(column, 0), tl.minimum(column + 1, w - 1)
    x_start, x_end = tl.load(start_x + column + 1), tl.load(start_x + column + 2)
    z = student + image * C * h * w
    t = teacher + image * C * th * tw
    column = tl.where(lane > 0, column, -1)  # where the lane writes, or -1
    at = tl.minimum(tl.maximum(top - 1, 0), h - 1) * w
    z_lower = _taps(z, at + left, at + right, first, C, h * w, scale, CC)
    t_lower = _taps(t, at + left, at + right, first, C, h * w, scale, CC * SAME)
    upper = _fill(2 * CC, BL, 0.0)  # per class sum (1 - fy) g and sum (1 - fy) fx g, with what comes from the quad row above
    for step in range(rows + 1):
        k = top - 1 + step
        y_start, y_end = tl.load(start_y + tl.minimum(k, h) + 1), tl.load(start_y + tl.minimum(k, h - 1) + 2)  # below the map: none
        at = tl.minimum(k + 1, h - 1) * w
        z_upper, t_upper = z_lower, t_lower
        z_lower = _taps(z, at + left, at + right, first, C, h * w, scale, CC)
        t_lower = _taps(t, at + left, at + right, first, C, h * w, scale, CC * SAME)
        lower = _fill(2 * CC, BL, 0.0)  # per class sum fy g and sum fy fx g
        for ry in range(tallest):
            Y = y_start + ry
            in_y = y_end > Y
            fy = tl.load(fraction_y + Y, mask=in_y, other=0.0)
            x_line = _line(z_upper, z_lower, fy, CC)
            u_line = _line(t_upper, t_lower, fy, CC * SAME)
            line = _fill(2 * CC, BL, 0.0)  # sum g and sum fx g of this label row, per class
            for turn in range(0, MOST, RX):  # one turn, and then no loop at all, unless the quad is wide
                for rx in tl.static_range(RX):
                    X = x_start + turn + rx
                    inside = in_y & (x_end > X)
                    p = image * H * W + Y * W + X
                    fx = tl.load(fraction_x + X, mask=inside, other=0.0)
                    # what is not there weighs 0 and has probability 2^(x - inf) = 0: no inf * 0 however large x is
                    log_1 = tl.load(l1 + p, mask=inside, other=float("inf"))
                    y = tl.load(labels + p, mask=inside, other=0).to(tl.int32)
                    ga = tl.where(y == ignore, 0.0, tl.load(a + p, mask=inside, other=0.0))
                    if KL:
                        log_t = tl.load(lt + p, mask=inside, other=float("inf"))
                        gb = tl.load(b + p, mask=inside, other=0.0) * (scale * LN2)  # d kl / d x = (softmax(x / T) - softmax(u / T)) / T
                        log_s = log_1
                        if not T1:
                            log_s = tl.load(ls + p, mask=inside, other=float("inf"))
                        if not SAME:
                            t_at = _corners(teacher_quad_y, teacher_quad_x, tl.where(inside, Y, 0), tl.where(inside, X, 0), th, tw)
                            tfy = tl.load(teacher_fraction_y + Y, mask=inside, other=0.0)
                            tfx = tl.load(teacher_fraction_x + X, mask=inside, other=0.0)
                    out = ()
                    for i in tl.static_range(CC):
                        x = x_line[2 * i] + fx * x_line[2 * i + 1]
                        s = tl.exp2(x * temperature - log_1)
                        c = tl.minimum(first + i, C - 1)
                        g = ga * (s - tl.where(y == c, 1.0, 0.0))
                        if KL:
                            if SAME:
                                u = u_line[2 * i] + fx * u_line[2 * i + 1]
                            else:
                                of = t + c * th * tw
                                u = _between(of + t_at[0], of + t_at[1], tfx, scale)
                                u += tfy * (_between(of + t_at[2], of + t_at[3], tfx, scale) - u)
                            if T1:
                                g += gb * (s - tl.exp2(u - log_t))
                            else:
                                g += gb * (tl.exp2(x - log_s) - tl.exp2(u - log_t))
                        out = out + (line[2 * i] + g, line[2 * i + 1] + fx * g)
                    line = out
            up, down = (), ()
            for i in tl.static_range(2 * CC):
                up, down = up + (upper[i] + (1 - fy) * line[i],), down + (lower[i] + fy * line[i],)
            upper, lower = up, down
        for i in tl.static_range(CC):
            handed = tl.gather(upper[2 * i + 1], tl.maximum(lane - 1, 0), 0)  # the one exchange between lanes
            value = upper[2 * i] - upper[2 * i + 1] + handed
            write = (k < h) & (step > 0) & (column >= 0) & (first + i < C)
            tl.store(grad + image * C * h * w + (first + i) * h * w + k * w + column, value.to(grad.dtype.element_ty), mask=write)
        upper = lower


@triton.jit
def _taps(base, left, right, first, C, step, scale, n: tl.constexpr):
    """Left and right value of n classes in one low-resolution row; the last class again where there are no more."""
    out = ()
    for i in tl.static_range(n):
        of = base + tl.minimum(first + i, C - 1) * step
        out = out + (tl.load(of + left).to(tl.float32) * scale, tl.load(of + right).to(tl.float32) * scale)
    return out


@triton.jit
def _line(upper, lower, fy, n: tl.constexpr):
    """Per class, the value at the left end of a label row in its quad and the step to the right end."""
    out = ()
    for i in tl.static_range(n):
        left = upper[2 * i] + fy * (lower[2 * i] - upper[2 * i])
        right = upper[2 * i + 1] + fy * (lower[2 * i + 1] - upper[2 * i + 1])
        out = out + (left, right - left)
    return out
