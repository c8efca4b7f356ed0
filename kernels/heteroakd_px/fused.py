"""heteroakd_px as one differentiable operation over its fast variants: what is saved between forward and backward, and shapes.

A variant gives
    forward(student, teacher, labels, temperature, form) -> (loss (B, h, w), kept (4, B, h, w)), float32
    backward(student, teacher, labels, kept, upstream, temperature, form) -> gradient of student
where kept are per pixel, in the base-2 domain: log2 of the sums over classes in Omega (+inf where the label is ignored: Omega is 0),
in q and in p, and the sum of Omega q.
"""

import torch
from torch import Tensor
from torch.library import custom_op

from kernels.choose import module

HERE = __package__


def heteroakd_px(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, form: str, using: str) -> Tensor:
    return forward(student, teacher, labels, temperature, form, using)[0]


@custom_op("stillhouse::heteroakd_px", mutates_args=())
def forward(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, form: str, using: str) -> tuple[Tensor, Tensor]:
    return module(HERE, using).forward(student.contiguous(), teacher.contiguous(), labels.contiguous(), temperature, form)


@forward.register_fake
def _(student, teacher, labels, temperature, form, using):
    pixels = (student.shape[0], *student.shape[2:])
    return student.new_empty(pixels, dtype=torch.float32), student.new_empty((4, *pixels), dtype=torch.float32)


@custom_op("stillhouse::heteroakd_px_backward", mutates_args=())
def backward(
    student: Tensor, teacher: Tensor, labels: Tensor, kept: Tensor, upstream: Tensor, temperature: float, form: str, using: str
) -> Tensor:
    tensors = (tensor.contiguous() for tensor in (student, teacher, labels, kept, upstream))
    return module(HERE, using).backward(*tensors, temperature, form)


@backward.register_fake
def _(student, teacher, labels, kept, upstream, temperature, form, using):
    return torch.empty_like(student, memory_format=torch.contiguous_format)


def _setup(ctx, inputs, output):
    student, teacher, labels, *ctx.settings = inputs
    _, kept = output
    ctx.mark_non_differentiable(kept)
    ctx.save_for_backward(student, teacher, labels, kept)


def _backward(ctx, upstream, _):
    return backward(*ctx.saved_tensors, upstream, *ctx.settings), None, None, None, None, None


forward.register_autograd(_backward, setup_context=_setup)
