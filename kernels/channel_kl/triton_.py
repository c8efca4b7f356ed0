"""channel_kl in one reading of both maps: a row, one channel of one image, is taken into registers whole or in parts.

A program takes up to LARGEST pixels of a row. Rows that fit, and are enough to fill the device, need one launch. Longer rows are
cut into parts, and so are few rows (Cityscapes logits are 8 * 19 = 152 rows for 132 multiprocessors), since a multiprocessor needs
several programs to hide the wait for memory. A second launch joins the parts of each row in their order: no atomics, the same bits
every time. Every part is shifted by its own maximum, so nothing overflows and identical maps give exactly 0.

Base-2 domain: x = student * log2(e) / T, u = teacher * log2(e) / T, and
    kl = ln 2 * (sum 2^u (u - x) / sum 2^u + log2 sum 2^x - log2 sum 2^u)
    gradient = upstream / T * (2^(x - ls) - 2^(u - lt))
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import tuned

SMALLEST, LARGEST = 1024, 16384  # pixels of a program: 16384 are 32 values of each map in each thread of 16 warps
WAVES = 4  # programs for each multiprocessor, at least, where rows can be cut
EACH = 512  # pixels of a warp
PROCESSORS = 132  # of an H100 or H200: what is assumed where no device can be asked
SPACE = {  # what kernels.tune measures
    "sums": [{"largest": p, "waves": w, "each": n} for p in (4096, 8192, 16384) for w in (2, 4, 8) for n in (256, 512, 1024)],
    "gradient": [{"largest": p, "each": n} for p in (1024, 2048, 4096, 8192) for n in (256, 512, 1024)],
}
LN2 = tl.constexpr(math.log(2))


def forward(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """kl, ls, lt, each (B, C)."""
    rows, pixels = student.shape[0] * student.shape[1], student.shape[2] * student.shape[3]
    kl, ls, lt = (torch.empty(student.shape[:2], dtype=torch.float32, device=student.device) for _ in range(3))
    config = _config("sums", student, {"largest": LARGEST, "waves": WAVES, "each": EACH})
    part = _part(rows, pixels, student.device, config["largest"], config["waves"])
    parts = triton.cdiv(pixels, part)
    sums = kl if parts == 1 else torch.empty((5, rows, parts), dtype=torch.float32, device=student.device)
    scale = math.log2(math.e) / temperature
    fixed = {"PART": part, "WHOLE": parts == 1, "num_warps": _warps(part, config["each"]), "enable_fp_fusion": True}
    with torch.cuda.device_of(student):  # Triton launches on the current device, which may be another
        _sums[(rows, parts)](student, teacher, sums, kl, ls, lt, pixels, scale, **fixed)
        if parts > 1:
            _join[(rows,)](sums, kl, ls, lt, parts, PARTS=triton.next_power_of_2(parts), num_warps=1, enable_fp_fusion=True)
    return kl, ls, lt


def backward(student: Tensor, teacher: Tensor, ls: Tensor, lt: Tensor, upstream: Tensor, temperature: float) -> Tensor:
    rows, pixels = student.shape[0] * student.shape[1], student.shape[2] * student.shape[3]
    grad = torch.empty(student.shape, dtype=student.dtype, device=student.device)
    config = _config("gradient", student, {"largest": 2 * SMALLEST, "each": EACH})
    part = min(triton.next_power_of_2(pixels), config["largest"])  # nothing is summed over a row: any part does
    fixed = {"PART": part, "num_warps": _warps(part, config["each"]), "enable_fp_fusion": True}
    scale = math.log2(math.e) / temperature
    grid = (rows, triton.cdiv(pixels, part))
    with torch.cuda.device_of(student):
        _gradient[grid](student, teacher, ls, lt, upstream, grad, pixels, scale, 1 / temperature, **fixed)
    return grad


def ahead() -> list[tuple]:
    """What is compiled ahead of time: (name, function, signature, constexprs, warps)."""
    stats = dict.fromkeys(("kl", "ls", "lt"), "*fp32")
    cases = []
    for kind in ("bf16", "fp16", "fp32"):
        maps = {"student": f"*{kind}", "teacher": f"*{kind}"}
        signature = {**maps, "sums": "*fp32", **stats, "pixels": "i32", "scale": "fp32", "PART": "constexpr", "WHOLE": "constexpr"}
        for part, whole in ((LARGEST, True), (LARGEST, False), (2 * SMALLEST, False), (SMALLEST, True)):
            name = f"sums {kind} {part} {'whole' if whole else 'part'}"
            cases.append((name, _sums, signature, {"PART": part, "WHOLE": whole}, _warps(part)))
        signature = {**maps, **dict.fromkeys(("ls", "lt", "upstream"), "*fp32"), "grad": f"*{kind}", "pixels": "i32"}
        signature |= {"scale": "fp32", "inverse": "fp32", "PART": "constexpr"}
        cases.append((f"gradient {kind}", _gradient, signature, {"PART": 2 * SMALLEST}, _warps(2 * SMALLEST)))
    cases.append(("join", _join, {"sums": "*fp32", **stats, "parts": "i32", "PARTS": "constexpr"}, {"PARTS": 16}, 1))
    return cases


def _config(kernel: str, student: Tensor, shipped: dict[str, int]) -> dict[str, int]:
    pixels = triton.next_power_of_2(student.shape[2] * student.shape[3])
    key = f"to {pixels} pixels", str(student.dtype).removeprefix("torch.")
    return tuned.configuration(__package__, kernel, key, shipped, student.device)


def _part(rows: int, pixels: int, device: torch.device, largest: int = LARGEST, waves: int = WAVES) -> int:
    """How many pixels of a row one program takes. It follows from the shape and the device alone, so sums keep their order."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else PROCESSORS
    part = min(triton.next_power_of_2(pixels), largest)
    while part > SMALLEST and rows * triton.cdiv(pixels, part) < waves * processors:
        part //= 2
    return part


def _warps(part: int, each: int = EACH) -> int:
    return max(1, min(16, part // each))


@triton.jit
def _sums(student, teacher, sums, kl, ls, lt, pixels, scale, PART: tl.constexpr, WHOLE: tl.constexpr):
    row, part = tl.program_id(0), tl.program_id(1)
    at = part * PART + tl.arange(0, PART)
    ok = at < pixels
    start = row.to(tl.int64) * pixels
    x = tl.load(student + start + at, mask=ok, other=-float("inf")).to(tl.float32) * scale
    u = tl.load(teacher + start + at, mask=ok, other=-float("inf")).to(tl.float32) * scale
    most_x, most_u = tl.max(x, 0), tl.max(u, 0)
    x -= most_x
    u -= most_u
    p = tl.exp2(u)
    sum_x, sum_u = tl.sum(tl.exp2(x), 0), tl.sum(p, 0)
    apart = tl.sum(tl.where(ok, p * (u - x), 0.0), 0)
    if WHOLE:
        _close(row, most_x, sum_x, most_u, sum_u, apart, kl, ls, lt)
    else:
        rows, parts = tl.num_programs(0), tl.num_programs(1)
        here = sums + row * parts + part
        tl.store(here, most_x)
        tl.store(here + rows * parts, sum_x)
        tl.store(here + 2 * rows * parts, most_u)
        tl.store(here + 3 * rows * parts, sum_u)
        tl.store(here + 4 * rows * parts, apart)


@triton.jit
def _join(sums, kl, ls, lt, parts, PARTS: tl.constexpr):
    row, rows = tl.program_id(0), tl.num_programs(0)
    at = tl.arange(0, PARTS)
    ok = at < parts
    here = sums + row * parts + at
    most_x = tl.load(here, mask=ok, other=-float("inf"))
    sum_x = tl.load(here + rows * parts, mask=ok, other=0.0)
    most_u = tl.load(here + 2 * rows * parts, mask=ok, other=-float("inf"))
    sum_u = tl.load(here + 3 * rows * parts, mask=ok, other=0.0)
    apart = tl.load(here + 4 * rows * parts, mask=ok, other=0.0)
    top_x, top_u = tl.max(most_x, 0), tl.max(most_u, 0)
    x, u = most_x - top_x, most_u - top_u  # how far each part's shift lies below the row's
    apart = tl.sum(tl.where(ok, tl.exp2(u) * (apart + sum_u * (u - x)), 0.0), 0)
    _close(row, top_x, tl.sum(sum_x * tl.exp2(x), 0), top_u, tl.sum(sum_u * tl.exp2(u), 0), apart, kl, ls, lt)


@triton.jit
def _close(row, most_x, sum_x, most_u, sum_u, apart, kl, ls, lt):
    log_x, log_u = tl.log2(sum_x), tl.log2(sum_u)
    tl.store(kl + row, (apart / sum_u + log_x - log_u) * LN2)
    tl.store(ls + row, most_x + log_x)
    tl.store(lt + row, most_u + log_u)


@triton.jit
def _gradient(student, teacher, ls, lt, upstream, grad, pixels, scale, inverse, PART: tl.constexpr):
    row = tl.program_id(0)
    at = tl.program_id(1) * PART + tl.arange(0, PART)
    ok = at < pixels
    start = row.to(tl.int64) * pixels
    x = tl.load(student + start + at, mask=ok, other=0.0).to(tl.float32) * scale
    u = tl.load(teacher + start + at, mask=ok, other=0.0).to(tl.float32) * scale
    gap = tl.exp2(x - tl.load(ls + row)) - tl.exp2(u - tl.load(lt + row))
    tl.store(grad + start + at, (tl.load(upstream + row) * inverse * gap).to(grad.dtype.element_ty), mask=ok)
