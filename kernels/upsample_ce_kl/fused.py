"""upsample_ce_kl as one differentiable operation over its fast variants: a forward to per-pixel maps, a backward from them.

A variant gives
    forward(student, teacher | None, labels, temperature, align_corners, ignore) -> (ce, kl, l1, ls, lt), all (B, H, W) float32
    backward(student, teacher | None, labels, l1, ls, lt, a, b, temperature, align_corners, ignore) -> gradient of student
where a and b are the gradients of ce and kl. Kept between them per pixel, in the base-2 domain: l1 = log2 sum exp2(x log2 e),
ls and lt the same of x / T and u / T. Without a teacher kl, ls, lt and b are empty. The cpu variant leaves l1 empty as well, and is
given ce in its place.
"""

import torch
from torch import Tensor
from torch.library import custom_op

from kernels.choose import module

HERE = __package__


def upsample_ce_kl(
    student: Tensor, teacher: Tensor | None, labels: Tensor, temperature: float, align_corners: bool, ignore: int, using: str
) -> tuple[Tensor, Tensor | None]:
    ce, kl, *_ = forward(student, teacher, labels, temperature, align_corners, ignore, using)
    return ce, None if teacher is None else kl


@custom_op("stillhouse::upsample_ce_kl", mutates_args=())
def forward(
    student: Tensor, teacher: Tensor | None, labels: Tensor, temperature: float, align_corners: bool, ignore: int, using: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return module(HERE, using).forward(*_plain(student, teacher, labels), temperature, align_corners, ignore)


@forward.register_fake
def _(student, teacher, labels, temperature, align_corners, ignore, using):
    full, none = labels.shape, (0,)
    of_teacher = none if teacher is None else full
    shapes = (full, of_teacher, none if using == "cpu" else full, of_teacher, of_teacher)
    return tuple(student.new_empty(shape, dtype=torch.float32) for shape in shapes)


@custom_op("stillhouse::upsample_ce_kl_backward", mutates_args=())
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
    using: str,
) -> Tensor:
    tensors = (*_plain(student, teacher, labels), l1, ls, lt, a, b)
    return module(HERE, using).backward(*tensors, temperature, align_corners, ignore)


@backward.register_fake
def _(student, teacher, labels, l1, ls, lt, a, b, temperature, align_corners, ignore, using):
    return torch.empty_like(student, memory_format=torch.contiguous_format)


def _plain(student: Tensor, teacher: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    return student.contiguous(), None if teacher is None else teacher.contiguous(), labels.contiguous()


def _setup(ctx, inputs, output):
    student, teacher, labels, *ctx.settings = inputs
    ce, _, l1, ls, lt = output
    ctx.mark_non_differentiable(l1, ls, lt)
    ctx.set_materialize_grads(False)  # no zeros of their size for those
    ctx.save_for_backward(student, teacher, labels, l1 if ctx.settings[-1] != "cpu" else ce, ls, lt)


def _backward(ctx, a, b, *_):
    student, teacher, labels, *kept = ctx.saved_tensors
    none = student.new_zeros((), dtype=torch.float32).expand(labels.shape)  # the gradient of a map that nobody used
    a, b = (none if weights is None else weights for weights in (a, b))
    return backward(student, teacher, labels, *kept, a, b, *ctx.settings), None, None, None, None, None, None


forward.register_autograd(_backward, setup_context=_setup)
