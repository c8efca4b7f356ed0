"""logit_tailoring as one differentiable operation over its fast variants: what is saved between forward and backward, and shapes.

A variant gives `forward(student, teacher, histogram, cell_sizes, temperature) -> (kl, stats)` and `backward(student, teacher,
histogram, cell_sizes, stats, upstream, temperature) -> gradient of student`, where stats (B, C, STATS) float32 holds what the variant
knows of each row after forward.
"""

import torch
from torch import Tensor
from torch.library import custom_op

from kernels.choose import module

HERE = __package__
STATS = 18


def logit_tailoring(student: Tensor, teacher: Tensor, histogram: Tensor, cell_sizes: Tensor, temperature: float, using: str) -> Tensor:
    return forward(student, teacher, histogram, cell_sizes, temperature, using)[0]


@custom_op("stillhouse::logit_tailoring", mutates_args=())
def forward(
    student: Tensor, teacher: Tensor, histogram: Tensor, cell_sizes: Tensor, temperature: float, using: str
) -> tuple[Tensor, Tensor]:
    return module(HERE, using).forward(*_plain(student, teacher, histogram, cell_sizes), temperature)


@forward.register_fake
def _(student, teacher, histogram, cell_sizes, temperature, using):
    rows = student.shape[:2]
    return student.new_empty(rows, dtype=torch.float32), student.new_empty((*rows, STATS), dtype=torch.float32)


@custom_op("stillhouse::logit_tailoring_backward", mutates_args=())
def backward(
    student: Tensor,
    teacher: Tensor,
    histogram: Tensor,
    cell_sizes: Tensor,
    stats: Tensor,
    upstream: Tensor,
    temperature: float,
    using: str,
) -> Tensor:
    tensors = _plain(student, teacher, histogram, cell_sizes, stats, upstream)
    return module(HERE, using).backward(*tensors, temperature)


@backward.register_fake
def _(student, teacher, histogram, cell_sizes, stats, upstream, temperature, using):
    return torch.empty_like(student, memory_format=torch.contiguous_format)


def _plain(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.contiguous() for tensor in tensors)


def _setup(ctx, inputs, output):
    *tensors, ctx.temperature, ctx.using = inputs
    _, stats = output
    ctx.mark_non_differentiable(stats)
    ctx.save_for_backward(*tensors, stats)


def _backward(ctx, upstream, _):
    return backward(*ctx.saved_tensors, upstream, ctx.temperature, ctx.using), None, None, None, None, None


forward.register_autograd(_backward, setup_context=_setup)
