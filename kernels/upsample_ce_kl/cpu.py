"""upsample_ce_kl in compiled C++ (cpu.cpp): float32 inside, no full-resolution logits, the same bits for any number of threads."""

from ctypes import Structure, byref, c_bool, c_float, c_int, c_void_p

import torch
from torch import Tensor

from kernels.native import library, pointer
from kernels.tables import Axis, axis

SLACK = 4096  # floats: what an allocator may add to a request


def forward(
    student: Tensor, teacher: Tensor | None, labels: Tensor, temperature: float, align_corners: bool, ignore: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """l1 stays empty: the backward takes it from ce. kl comes first and roomy: it is freed first, and the gradient takes its place."""
    problem = _Problem.of(student, teacher, labels, temperature, align_corners, ignore)
    kl = _floats(0)
    if teacher is not None:
        kl = _floats(max(labels.numel(), student.numel()) + SLACK)[: labels.numel()].view(labels.shape)
    ce, ls, lt = (_floats(shape) for shape in (labels.shape, kl.shape, kl.shape))
    good = library().upsample_ce_kl_forward(byref(problem), byref(_Maps(*map(pointer, (ce, kl, ls, lt)))), torch.get_num_threads())
    if not good:
        raise IndexError(f"labels hold values that are neither one of {student.shape[1]} classes nor the ignored {ignore}")
    return ce, kl, _floats(0), ls, lt


def backward(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor,
    ce: Tensor,
    ls: Tensor,
    lt: Tensor,
    a: Tensor,
    b: Tensor,
    temperature: float,
    align_corners: bool,
    ignore: int,
) -> Tensor:
    problem = _Problem.of(student, teacher, labels, temperature, align_corners, ignore)
    (a, a_stride), (b, b_stride) = map(_weights, (a, b))
    upstream = _Upstream(pointer(a), pointer(b), a_stride, b_stride)
    gradient = _floats(student.shape)
    maps = _Maps(pointer(ce), None, pointer(ls), pointer(lt))
    library().upsample_ce_kl_backward(byref(problem), byref(maps), byref(upstream), pointer(gradient), torch.get_num_threads())
    return gradient.to(student.dtype)


def _floats(shape) -> Tensor:
    """Whatever torch's default type and device are: the library writes float32."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _weights(of: Tensor) -> tuple[Tensor, int]:
    """The gradient of a sum or a mean is one number seen as a map: it is read as one."""
    return (of, 0) if of.numel() and not any(of.stride()) else (of.contiguous(), 1)


class _Axis(Structure):
    _fields_ = [("quad", c_void_p), ("start", c_void_p), ("fraction", c_void_p)]

    @classmethod
    def of(cls, axis: Axis) -> "_Axis":
        return cls(pointer(axis.quad), pointer(axis.start), pointer(axis.fraction))


class _Grid(Structure):
    _fields_ = [("values", c_void_p), ("h", c_int), ("w", c_int), ("rows", _Axis), ("columns", _Axis)]

    @classmethod
    def of(cls, logits: Tensor, size: tuple[int, int], align_corners: bool) -> "_Grid":
        axes = (axis(n, to, align_corners) for n, to in zip(logits.shape[-2:], size, strict=True))
        return cls(pointer(logits), *logits.shape[-2:], *map(_Axis.of, axes))


class _Labels(Structure):
    _fields_ = [("values", c_void_p), ("bytes", c_int), ("ignore", c_int), ("H", c_int), ("W", c_int)]


class _Problem(Structure):
    """As in cpu.cpp. Keeps the tensors it points to."""

    _fields_ = [
        ("student", _Grid),
        ("teacher", _Grid),
        ("labels", _Labels),
        ("B", c_int),
        ("C", c_int),
        ("temperature", c_float),
        ("same", c_bool),
    ]

    @classmethod
    def of(cls, student, teacher, labels, temperature, align_corners, ignore) -> "_Problem":
        size = tuple(labels.shape[1:])
        student = student.float()
        grid = _Grid.of(student, size, align_corners)
        other = _Grid() if teacher is None else _Grid.of(teacher := teacher.float(), size, align_corners)
        seen = _Labels(pointer(labels), labels.element_size(), ignore, *size)
        same = teacher is not None and teacher.shape == student.shape
        problem = cls(grid, other, seen, *student.shape[:2], temperature, same)
        problem.kept = student, teacher, labels
        return problem


class _Maps(Structure):
    _fields_ = [(name, c_void_p) for name in ("ce", "kl", "ls", "lt")]


class _Upstream(Structure):
    _fields_ = [("a", c_void_p), ("b", c_void_p), ("a_stride", c_int), ("b_stride", c_int)]
