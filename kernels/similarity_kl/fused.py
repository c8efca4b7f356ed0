"""similarity_kl as one differentiable operation over its fast variants: what is saved between forward and backward, and shapes.

A variant gives `forward(student, teacher, temperature) -> (loss, zs, zt)` and `backward(student, teacher, zs, zt, upstream,
temperature) -> gradient of student`, on rows of length 1, (B, M, D). zs and zt (B, B, M) float32 are what every softmax was divided
by, as its inverse: zs[i, j, m] = 1 / sum over n of exp((S_ij[m, n] - 1) / T). The constant 1, the greatest cosine there is,
stands in the place of a row's maximum.
"""

import torch
from torch import Tensor
from torch.library import custom_op

from kernels.choose import module

HERE = __package__


def similarity_kl(student: Tensor, teacher: Tensor, temperature: float, using: str) -> Tensor:
    return forward(student, teacher, temperature, using)[0]


@custom_op("stillhouse::similarity_kl", mutates_args=())
def forward(student: Tensor, teacher: Tensor, temperature: float, using: str) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(student.device.type, enabled=False):
        return module(HERE, using).forward(student.contiguous(), teacher.contiguous(), temperature)


@forward.register_fake
def _(student, teacher, temperature, using):
    images, pixels, _ = student.shape
    return tuple(student.new_empty(shape, dtype=torch.float32) for shape in ((), *((images, images, pixels),) * 2))


@custom_op("stillhouse::similarity_kl_backward", mutates_args=())
def backward(student: Tensor, teacher: Tensor, zs: Tensor, zt: Tensor, upstream: Tensor, temperature: float, using: str) -> Tensor:
    with torch.autocast(student.device.type, enabled=False):
        return module(HERE, using).backward(student.contiguous(), teacher.contiguous(), zs, zt, upstream, temperature)


@backward.register_fake
def _(student, teacher, zs, zt, upstream, temperature, using):
    return torch.empty_like(student, memory_format=torch.contiguous_format)


def _setup(ctx, inputs, output):
    student, teacher, ctx.temperature, ctx.using = inputs
    _, zs, zt = output
    ctx.mark_non_differentiable(zs, zt)
    ctx.save_for_backward(student, teacher, zs, zt)


def _backward(ctx, upstream, *_):
    return backward(*ctx.saved_tensors, upstream, ctx.temperature, ctx.using), None, None, None


forward.register_autograd(_backward, setup_context=_setup)
