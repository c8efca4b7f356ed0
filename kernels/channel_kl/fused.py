"""channel_kl as one differentiable operation over its fast variants: what is saved between forward and backward, and shapes.

A variant gives `forward(student, teacher, temperature) -> (kl, ls, lt)` and `backward(student, teacher, ls, lt, upstream,
temperature) -> gradient of student`, where ls and lt (B, C) float32 are log2 sum exp2 over pixels of maps * log2(e) / T.
"""

import torch
from torch import Tensor
from torch.library import custom_op

from kernels.choose import module

HERE = __package__


def channel_kl(student: Tensor, teacher: Tensor, temperature: float, using: str) -> Tensor:
    return forward(student, teacher, temperature, using)[0]


@custom_op("stillhouse::channel_kl", mutates_args=())
def forward(student: Tensor, teacher: Tensor, temperature: float, using: str) -> tuple[Tensor, Tensor, Tensor]:
    return module(HERE, using).forward(student.contiguous(), teacher.contiguous(), temperature)


@forward.register_fake
def _(student, teacher, temperature, using):
    return tuple(student.new_empty(student.shape[:2], dtype=torch.float32) for _ in range(3))


@custom_op("stillhouse::channel_kl_backward", mutates_args=())
def backward(student: Tensor, teacher: Tensor, ls: Tensor, lt: Tensor, upstream: Tensor, temperature: float, using: str) -> Tensor:
    return module(HERE, using).backward(student.contiguous(), teacher.contiguous(), ls, lt, upstream.contiguous(), temperature)


@backward.register_fake
def _(student, teacher, ls, lt, upstream, temperature, using):
    return torch.empty_like(student, memory_format=torch.contiguous_format)


def _setup(ctx, inputs, output):
    student, teacher, ctx.temperature, ctx.using = inputs
    _, ls, lt = output
    ctx.mark_non_differentiable(ls, lt)
    ctx.save_for_backward(student, teacher, ls, lt)


def _backward(ctx, upstream, *_):
    return backward(*ctx.saved_tensors, upstream, ctx.temperature, ctx.using), None, None, None


forward.register_autograd(_backward, setup_context=_setup)
