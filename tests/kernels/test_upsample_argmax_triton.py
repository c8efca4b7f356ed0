"""upsample_argmax's Triton kernels against compiled C to the bit, or the reference, their memory filled with nonsense before."""

import pytest
import torch

pytest.importorskip("triton")

from kernels.choose import unfit
from kernels.upsample_argmax import fused, upsample_argmax

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# batch, classes, logits' grid, size, align_corners: whole and broken ratios, downwards, one value, two blocks of columns
CASES = [
    (2, 5, (2, 3), (8, 12), False),
    (1, 3, (2, 3), (11, 7), True),
    (1, 9, (1, 1), (2, 5), False),
    (1, 1, (2, 2), (3, 3), False),
    (1, 4, (5, 6), (3, 2), False),
    (1, 2, (1, 30), (1, 131), False),
]


def drawn(case):
    g = torch.Generator().manual_seed(0)
    return torch.randn(case[0], case[1], *case[2], generator=g)


def expected(logits, case):
    using = "reference" if unfit("cpu", "cpu", torch.float32) else "cpu"
    return upsample_argmax(logits.float(), case[3], case[4], using=using)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_class_maps_are_those_of_the_cpu(case, dtype, poisoned):
    logits = drawn(case).to(dtype)
    found = upsample_argmax(logits.to(DEVICE), case[3], case[4], using="triton")
    assert found.dtype == torch.uint8 and torch.equal(found.cpu(), expected(logits, case))


def test_where_all_corners_agree_and_where_they_are_equal(poisoned):
    logits = drawn(CASES[0])
    logits[:, 3] += 20
    assert (upsample_argmax(logits.to(DEVICE), (8, 12), using="triton") == 3).all()
    assert not upsample_argmax(torch.ones(1, 5, 2, 3, device=DEVICE), (8, 12), using="triton").any()


@pytest.mark.skipif(bool(unfit("cpu", "cpu", torch.float32)), reason="the library is not compiled")
def test_what_is_not_finite_is_taken_as_on_the_cpu(poisoned):
    logits = drawn(CASES[0])
    logits[0, 2], logits[1, 3, 1], logits[1, 0, 0, 1] = float("nan"), float("-inf"), float("inf")
    found = upsample_argmax(logits.to(DEVICE), (8, 12), using="triton")
    assert torch.equal(found.cpu(), expected(logits, CASES[0]))


def test_the_operation_is_sound_for_pytorch():
    torch.library.opcheck(fused.upsample_argmax, (drawn(CASES[1]).to(DEVICE), [5, 4], True, "triton"))
