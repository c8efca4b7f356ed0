"""similarity_kl on a GPU: tiles of cosines live in registers between two matrix products, in the manner of flash attention.

Cosines are at most 1, so 1 is the shift of every softmax: no running maximum, no rescaling. Forward: a program takes BM pixels of
image i against all pixels of image j. Backward: a program takes BM pixels of image i against all pixels of all images and writes
their gradient alone. S_ji is S_ij turned over, so a tile serves both roles of its pixels, row and column, by one product:
    G = es (zs_ij[row] + zs_ji[column]) - et (zt_ij[row] + zt_ji[column]),      es = 2^((S - 1) log2(e) / T), et of the teacher
    gradient of f_i = upstream / (T M B^2) * sum_j G f_j
No atomics, a fixed order: the same bits every time. Of a pair of images the work is 5 products of 2 M^2 D operations. Sums are
float32; G is rounded to the features' type before its product, having been raised by 2^14 (|G| <= 2), for float16 has no small numbers.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

# Tiles by bytes of a number. PRECISION is for float32: "ieee", or "tf32" for tensor cores and an error of 1e-3 in a cosine
FORWARD = {
    2: {"BM": 64, "BN": 64, "BK": 32, "PRECISION": "ieee", "num_warps": 4},
    4: {"BM": 64, "BN": 32, "BK": 32, "PRECISION": "ieee", "num_warps": 8},
}
# With Triton 3.6 and 3.7 ptxas spills nothing in the forward on sm_80, sm_90 and sm_120. In the backward it spills nothing for 16 bits on
# sm_80 and sm_90, and at most 24 bytes otherwise. Not yet tuned on a device.
BACKWARD = {size: tiles | {"num_warps": 8} for size, tiles in FORWARD.items()}
MOST = 256  # channels of the gradient that one program keeps in registers; with more, each chunk makes the tiles anew
RAISED = tl.constexpr(2.0**14)
LN2 = tl.constexpr(math.log(2))


def forward(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    images, pixels, _ = student.shape
    kl, zs, zt = (torch.empty((images, images, pixels), dtype=torch.float32, device=student.device) for _ in range(3))
    launch = _constants(student, teacher) | FORWARD[student.element_size()]
    grid = (triton.cdiv(pixels, launch["BM"]), images, images)
    with torch.cuda.device_of(student):  # Triton launches on the current device, which may be another
        _divergence[grid](student, teacher, kl, zs, zt, pixels, math.log2(math.e) / temperature, **launch, enable_fp_fusion=True)
    return kl.mean(), zs, zt


def backward(student: Tensor, teacher: Tensor, zs: Tensor, zt: Tensor, upstream: Tensor, temperature: float) -> Tensor:
    images, pixels, channels = student.shape
    grad = torch.empty(student.shape, dtype=student.dtype, device=student.device)
    launch = _constants(student, teacher) | {"CHUNK": _chunk(channels)} | BACKWARD[student.element_size()]
    grid = (triton.cdiv(pixels, launch["BM"]), triton.cdiv(channels, launch["CHUNK"]), images)
    scale, factor = math.log2(math.e) / temperature, 1 / (temperature * pixels * images**2)
    tensors = (student, teacher, zs, zt, upstream, grad)
    with torch.cuda.device_of(student):
        _gradient[grid](*tensors, images, pixels, scale, factor, **launch, enable_fp_fusion=True)
    return grad


def ahead() -> list[tuple]:
    """What is compiled ahead of time: (name, function, signature, constexprs, warps)."""
    numbers = {"pixels": "i32", "scale": "fp32"}
    cases = []
    for kind, size, precision in (("bf16", 2, "ieee"), ("fp16", 2, "ieee"), ("fp32", 4, "ieee"), ("fp32", 4, "tf32")):
        features, sums = dict.fromkeys(("student", "teacher"), f"*{kind}"), dict.fromkeys(("zs", "zt"), "*fp32")
        for ds, dt in ((128, 256), (256, 512)):
            name = f"{kind} {precision} {ds} {dt}"
            fixed = {"DS": ds, "DT": dt, "WIDE": False} | FORWARD[size] | {"PRECISION": precision}
            warps = fixed.pop("num_warps")
            signature = {**features, "kl": "*fp32", **sums, **numbers, **dict.fromkeys(fixed, "constexpr")}
            cases.append((f"divergence {name}", _divergence, signature, fixed, warps))
            fixed = {"DS": ds, "DT": dt, "WIDE": False, "CHUNK": _chunk(ds)} | BACKWARD[size] | {"PRECISION": precision}
            warps = fixed.pop("num_warps")
            signature = {**features, **sums, "upstream": "*fp32", "grad": f"*{kind}", "images": "i32", **numbers, "factor": "fp32"}
            cases.append((f"gradient {name}", _gradient, signature | dict.fromkeys(fixed, "constexpr"), fixed, warps))
    return cases


def _constants(student: Tensor, teacher: Tensor) -> dict:
    """WIDE: only the interpreter runs on a CPU, and its products of bfloat16 are wrong (triton issue 11584), so they are float32."""
    wide = student.device.type == "cpu" and student.dtype == torch.bfloat16
    return {"DS": student.shape[-1], "DT": teacher.shape[-1], "WIDE": wide}


def _chunk(channels: int) -> int:
    return max(16, min(triton.next_power_of_2(channels), MOST))


@triton.jit
def _divergence(
    student, teacher, kl, zs, zt, pixels, scale,
    DS: tl.constexpr, DT: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    i, j, images = tl.program_id(2), tl.program_id(1), tl.num_programs(1)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    sum_s = tl.zeros([BM], tl.float32)
    sum_t = tl.zeros([BM], tl.float32)
    apart = tl.zeros([BM], tl.float32)
    for start in range(0, pixels, BN):
        columns = start + tl.arange(0, BN)
        s = _cosines(student, i, j, rows, columns, pixels, DS, WIDE, BM, BN, BK, PRECISION)
        t = _cosines(teacher, i, j, rows, columns, pixels, DT, WIDE, BM, BN, BK, PRECISION)
        ok = (columns < pixels)[None, :]
        et = tl.where(ok, tl.exp2(t * scale - scale), 0.0)
        sum_s += tl.sum(tl.where(ok, tl.exp2(s * scale - scale), 0.0), 1)
        sum_t += tl.sum(et, 1)
        apart += tl.sum(et * (t - s), 1)
    at = (i * images + j).to(tl.int64) * pixels + rows
    tl.store(kl + at, (apart / sum_t * scale + tl.log2(sum_s) - tl.log2(sum_t)) * LN2, mask=rows < pixels)
    tl.store(zs + at, 1.0 / sum_s, mask=rows < pixels)
    tl.store(zt + at, 1.0 / sum_t, mask=rows < pixels)


@triton.jit
def _gradient(
    student, teacher, zs, zt, upstream, grad, images, pixels, scale, factor,
    DS: tl.constexpr, DT: tl.constexpr, WIDE: tl.constexpr, CHUNK: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    channels = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    total = tl.zeros([BM, CHUNK], tl.float32)
    for j in range(images):
        row_s = tl.load(zs + (i * images + j) * pixels + rows, mask=rows < pixels, other=0.0)
        row_t = tl.load(zt + (i * images + j) * pixels + rows, mask=rows < pixels, other=0.0)
        for start in range(0, pixels, BN):
            columns = start + tl.arange(0, BN)
            ok = columns < pixels
            s = _cosines(student, i, j, rows, columns, pixels, DS, WIDE, BM, BN, BK, PRECISION)
            t = _cosines(teacher, i, j, rows, columns, pixels, DT, WIDE, BM, BN, BK, PRECISION)
            column_s = tl.load(zs + (j * images + i) * pixels + columns, mask=ok, other=0.0)
            column_t = tl.load(zt + (j * images + i) * pixels + columns, mask=ok, other=0.0)
            g = tl.exp2(s * scale - scale) * (row_s[:, None] + column_s[None, :])
            g -= tl.exp2(t * scale - scale) * (row_t[:, None] + column_t[None, :])
            g = tl.where(ok[None, :], g * RAISED, 0.0)
            f = _rows(student, j, columns, channels, pixels, DS, WIDE)
            total = tl.dot(g.to(f.dtype), f, total, input_precision=PRECISION)
    out = grad + i * pixels * DS + rows[:, None] * DS + channels[None, :]
    total *= tl.load(upstream) * factor / RAISED
    tl.store(out, total.to(grad.dtype.element_ty), mask=(rows < pixels)[:, None] & (channels < DS)[None, :])


@triton.jit
def _cosines(
    features, i, j, rows, columns, pixels,
    D: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(BM, BN): some pixels of image i with some of image j."""
    total = tl.zeros([BM, BN], tl.float32)
    for start in range(0, D, BK):
        channels = start + tl.arange(0, BK)
        a = _rows(features, i, rows, channels, pixels, D, WIDE)
        b = _rows(features, j, columns, channels, pixels, D, WIDE)
        total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
    return total


@triton.jit
def _rows(features, image, rows, channels, pixels, D: tl.constexpr, WIDE: tl.constexpr):
    at = features + tl.cast(image, tl.int64) * pixels * D + rows[:, None] * D + channels[None, :]
    f = tl.load(at, mask=(rows < pixels)[:, None] & (channels < D)[None, :], other=0.0)
    return f.to(tl.float32) if WIDE else f
