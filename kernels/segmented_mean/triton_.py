"""segmented_mean in one reading of the features: a program sums one channel of one image for all classes, block after block.

Per block of pixels the class sums are taken one after another from registers, so the features are read once and every sum has a
fixed order: no atomics, the same bits every time, and float32 exactly (a product on tensor cores would round to TF32). Two
instructions per pixel and class: about as fast as memory up to a few dozen classes. One more channel, of ones, counts the pixels
(exact in float32 up to 2^24 of a class in an image). The backward only looks a class's value up for each pixel.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 2048, 4  # pixels at a time: 16 in each thread


def forward(features: Tensor, labels: Tensor, classes: int, per_image: bool) -> tuple[Tensor, Tensor]:
    images, channels, h, w = features.shape
    sums = torch.empty((images, channels + 1, classes), dtype=torch.float32, device=features.device)
    width = triton.next_power_of_2(classes)
    fixed = {"BLOCK": BLOCK, "WIDTH": width, "num_warps": WARPS, "enable_fp_fusion": True}
    with torch.cuda.device_of(features):  # Triton launches on the current device, which may be another
        _sums[(channels + 1, images)](features, _narrow(labels), sums, channels, classes, h * w, **fixed)
    if not per_image:
        sums = sums.sum(0)
    counts = sums[..., -1, :]  # whole numbers
    return (sums[..., :-1, :] / counts.clamp(min=1)[..., None, :]).mT.contiguous(), counts.int()


def backward(upstream: Tensor, labels: Tensor, counts: Tensor, dtype: torch.dtype) -> Tensor:
    images, h, w = labels.shape
    classes, channels = upstream.shape[-2:]
    grad = torch.empty((images, channels, h, w), dtype=dtype, device=labels.device)
    table = (upstream / counts.clamp(min=1)[..., None]).mT.contiguous()  # (B, C, K) or (C, K): what a pixel of each class receives
    stride = channels * classes if upstream.dim() == 3 else 0
    fixed = {"BLOCK": BLOCK, "num_warps": WARPS, "enable_fp_fusion": True}
    grid = (channels, images, triton.cdiv(h * w, BLOCK))
    with torch.cuda.device_of(labels):
        _look_up[grid](table, _narrow(labels), grad, channels, classes, h * w, stride, **fixed)
    return grad


def ahead() -> list[tuple]:
    """What is compiled ahead of time: (name, function, signature, constexprs, warps)."""
    sizes = dict.fromkeys(("channels", "classes", "pixels"), "i32")
    cases = []
    for kind in ("bf16", "fp16", "fp32"):
        for label in ("u8", "i32"):
            pointers = {"features": f"*{kind}", "labels": f"*{label}", "sums": "*fp32"}
            fixed = {"BLOCK": BLOCK, "WIDTH": 32}
            cases.append((f"sums {kind} {label}", _sums, {**pointers, **sizes, **dict.fromkeys(fixed, "constexpr")}, fixed, WARPS))
            pointers = {"table": "*fp32", "labels": f"*{label}", "grad": f"*{kind}"}
            signature = {**pointers, **sizes, "stride": "i32", "BLOCK": "constexpr"}
            cases.append((f"look up {kind} {label}", _look_up, signature, {"BLOCK": BLOCK}, WARPS))
    return cases


def _narrow(labels: Tensor) -> Tensor:
    """int64 would be read once for every channel; cut to -1 .. 255 first, so that nothing wraps round into a class."""
    return labels.clamp(-1, 255).int() if labels.dtype == torch.int64 else labels


@triton.jit
def _sums(features, labels, sums, channels, classes, pixels, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    channel, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = features + (image * channels + channel) * pixels
    kinds = tl.arange(0, WIDTH)
    total = tl.zeros([WIDTH], tl.float32)
    for start in range(0, pixels, BLOCK):
        at = start + tl.arange(0, BLOCK)
        ok = at < pixels
        label = tl.where(ok, tl.load(labels + image * pixels + at, mask=ok, other=255).to(tl.int32), -1)
        x = tl.load(row + at, mask=ok & (channel < channels), other=1.0).to(tl.float32)
        for k in range(classes):
            total += tl.where(kinds == k, tl.sum(tl.where(label == k, x, 0.0), 0), 0.0)
    tl.store(sums + (image * (channels + 1) + channel) * classes + kinds, total, mask=kinds < classes)


@triton.jit
def _look_up(table, labels, grad, channels, classes, pixels, stride, BLOCK: tl.constexpr):
    channel, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    at = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    ok = at < pixels
    label = tl.load(labels + image * pixels + at, mask=ok, other=255).to(tl.int32)
    named = (label >= 0) & (label < classes)
    value = tl.load(table + image * stride + channel * classes + label, mask=ok & named, other=0.0)
    tl.store(grad + (image * channels + channel) * pixels + at, value.to(grad.dtype.element_ty), mask=ok)
