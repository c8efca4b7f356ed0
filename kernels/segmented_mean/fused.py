"""segmented_mean as one differentiable operation over its fast variants: only labels and counts are kept for the backward.

A variant gives `forward(features, labels, classes, per_image) -> (means float32, counts int32)` and `backward(upstream, labels,
counts, dtype) -> gradient of features` in their dtype, where upstream is the gradient of means, (B, K, C) or (K, C).
"""

import torch
from torch import Tensor
from torch.library import custom_op

from kernels.choose import module

HERE = __package__


def segmented_mean(features: Tensor, labels: Tensor, classes: int, per_image: bool, using: str) -> tuple[Tensor, Tensor]:
    return forward(features, labels, classes, per_image, using)


@custom_op("stillhouse::segmented_mean", mutates_args=())
def forward(features: Tensor, labels: Tensor, classes: int, per_image: bool, using: str) -> tuple[Tensor, Tensor]:
    return module(HERE, using).forward(features.contiguous(), labels.contiguous(), classes, per_image)


@forward.register_fake
def _(features, labels, classes, per_image, using):
    rows = (features.shape[0], classes) if per_image else (classes,)
    means = features.new_empty((*rows, features.shape[1]), dtype=torch.float32)
    return means, labels.new_empty(rows, dtype=torch.int32)


@custom_op("stillhouse::segmented_mean_backward", mutates_args=())
def backward(upstream: Tensor, labels: Tensor, counts: Tensor, dtype: torch.dtype, using: str) -> Tensor:
    return module(HERE, using).backward(upstream, labels.contiguous(), counts, dtype)


@backward.register_fake
def _(upstream, labels, counts, dtype, using):
    images, h, w = labels.shape
    return upstream.new_empty((images, upstream.shape[-1], h, w), dtype=dtype)


def _setup(ctx, inputs, output):
    features, labels, _, _, ctx.using = inputs
    _, counts = output
    ctx.dtype = features.dtype
    ctx.mark_non_differentiable(counts)
    ctx.save_for_backward(labels, counts)


def _backward(ctx, upstream, _):
    return backward(upstream, *ctx.saved_tensors, ctx.dtype, ctx.using), None, None, None, None


forward.register_autograd(_backward, setup_context=_setup)
