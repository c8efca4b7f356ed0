"""What the tests of values share: small odd maps in float64 on two grids, and the comparison with a formula written out."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from stages.kd import Pair
from stages.kd._step import Step
from tests.stages.kd_cases import row_of

B = 2
GRIDS = {"one grid": ((5, 7), (5, 7)), "a finer teacher": ((4, 3), (7, 5)), "a coarser teacher": ((7, 9), (3, 5))}  # student, teacher


def maps(seed: int, width: int, size: tuple[int, int], positive: bool = False, b: int = B) -> Tensor:
    made = torch.randn(b, width, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made.abs() if positive else made


def labels(classes: int, size: tuple[int, int], b: int = B) -> Tensor:
    """Some are ignored, and the last class occurs nowhere in the first image."""
    g = torch.Generator().manual_seed(3)
    y = torch.randint(0, classes, (b, *size), generator=g, dtype=torch.uint8)
    y[0][y[0] == classes - 1] = 0
    y[torch.rand(y.shape, generator=g) < 0.2] = 255
    return y


def heads(widths=(3, 4), grids=GRIDS["one grid"]) -> tuple[Tensor, Tensor]:
    """Features of a student, with gradients, and of a teacher; above 0, so that all pixels have a direction and all maxima one place."""
    student, teacher = (maps(seed, width, size, positive=True) for seed, width, size in zip((1, 2), widths, grids, strict=True))
    return student.requires_grad_(), teacher


def module_for(settings: dict, widths: tuple[dict, dict], classes: int):
    row = row_of(settings)
    torch.manual_seed(5)
    return row.build(Pair(*widths, classes)).double()


def step_of(student: dict, teacher: dict, y: Tensor | None = None) -> Step:
    return Step(student, teacher, torch.zeros((B, 8, 8), dtype=torch.uint8) if y is None else y)


def resized(student: Tensor, teacher: Tensor) -> Tensor:
    return interpolate(student, teacher.shape[-2:], mode="bilinear", align_corners=False)


def agree(ours: Tensor, truth: Tensor, leaves: list[Tensor]) -> None:
    """In value, and in the gradient of every leaf."""
    assert ours.dtype == truth.dtype == torch.float64
    torch.testing.assert_close(ours, truth, rtol=1e-8, atol=1e-14)
    for mine, true in zip(
        torch.autograd.grad(ours, leaves, retain_graph=True), torch.autograd.grad(truth, leaves, retain_graph=True), strict=True
    ):
        assert true.abs().max() > 0
        torch.testing.assert_close(mine, true, rtol=1e-6, atol=1e-9 * float(true.abs().max()))
