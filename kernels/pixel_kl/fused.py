"""pixel_kl as one differentiable operation over its fast variants: what is saved between forward and backward, and shapes.

A variant gives
    forward(student, teacher, auxiliary | None, temperature, direction) -> (kl, discrepancy, ls, lt), all (B, h, w) float32
    backward(student, teacher, ls, lt, upstream, temperature) -> gradient of student
where ls and lt are log2 sum exp2 over classes of logits * log2(e) / T. Without auxiliary logits discrepancy is empty.
"""

import torch
from torch import Tensor
from torch.library import custom_op

from kernels.choose import module

HERE = __package__


def pixel_kl(
    student: Tensor, teacher: Tensor, auxiliary: Tensor | None, temperature: float, direction: str, using: str
) -> tuple[Tensor, Tensor | None]:
    kl, discrepancy, *_ = forward(student, teacher, auxiliary, temperature, direction, using)
    return kl, None if auxiliary is None else discrepancy


@custom_op("stillhouse::pixel_kl", mutates_args=())
def forward(
    student: Tensor, teacher: Tensor, auxiliary: Tensor | None, temperature: float, direction: str, using: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    auxiliary = None if auxiliary is None else auxiliary.contiguous()
    return module(HERE, using).forward(student.contiguous(), teacher.contiguous(), auxiliary, temperature, direction)


@forward.register_fake
def _(student, teacher, auxiliary, temperature, direction, using):
    pixels = (student.shape[0], *student.shape[2:])
    return tuple(student.new_empty(shape, dtype=torch.float32) for shape in (pixels, (0,) if auxiliary is None else pixels, pixels, pixels))


@custom_op("stillhouse::pixel_kl_backward", mutates_args=())
def backward(student: Tensor, teacher: Tensor, ls: Tensor, lt: Tensor, upstream: Tensor, temperature: float, using: str) -> Tensor:
    return module(HERE, using).backward(student.contiguous(), teacher.contiguous(), ls, lt, upstream.contiguous(), temperature)


@backward.register_fake
def _(student, teacher, ls, lt, upstream, temperature, using):
    return torch.empty_like(student, memory_format=torch.contiguous_format)


def _setup(ctx, inputs, output):
    student, teacher, _, ctx.temperature, _, ctx.using = inputs
    _, discrepancy, ls, lt = output
    ctx.mark_non_differentiable(discrepancy, ls, lt)
    ctx.save_for_backward(student, teacher, ls, lt)


def _backward(ctx, upstream, *_):
    return backward(*ctx.saved_tensors, upstream, ctx.temperature, ctx.using), None, None, None, None, None


forward.register_autograd(_backward, setup_context=_setup)
