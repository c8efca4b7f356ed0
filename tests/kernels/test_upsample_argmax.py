"""upsample_argmax against float64: another class only where the two best are equal within a few ulp; and what argmax.c promises."""

import ctypes
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from kernels import upsample_argmax as here
from kernels.choose import unfit
from kernels.upsample_argmax import upsample_argmax

SOURCE = Path(here.__file__).with_name("argmax.c")
USING = [name for name in ("cpu", "reference") if not unfit(name, "cpu", torch.float32)]
# batch, classes, logits' grid, size, align_corners: whole, broken, downwards, one value, cells larger than a tile, columns beyond a block
CASES = [
    (2, 5, (3, 4), (12, 16), False),
    (1, 19, (9, 7), (61, 45), False),
    (2, 19, (9, 7), (61, 45), True),
    (1, 2, (5, 37), (11, 150), True),
    (1, 150, (6, 19), (24, 76), False),
    (3, 5, (1, 6), (7, 13), True),
    (2, 5, (6, 1), (13, 1), False),
    (1, 3, (1, 1), (3, 5), False),
    (1, 5, (2, 2), (40, 170), False),
    (2, 7, (13, 17), (5, 6), False),
    (2, 7, (13, 17), (5, 6), True),
    (1, 256, (4, 4), (4, 4), False),
    (2, 1, (3, 3), (8, 8), False),
]
KINDS = ("noise", "blobs", "coarse")


def drawn(case, kind):
    """float32 logits: noise; smooth maps; whole numbers, where exact ties are everywhere."""
    batch, classes, grid, _, _ = case
    g = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(batch, classes, *grid, generator=g)
    if kind == "coarse":
        return z.sign() * (z.abs() > 2)
    return z if kind == "noise" else interpolate(3 * torch.randn(batch, classes, 2, 2, generator=g), grid, mode="bilinear") + 0.05 * z


def along(n, to, align):
    """(to, n): how much of each of n values is in each pixel, from the definition of bilinear interpolation."""
    out = np.zeros((to, n))
    for y in range(to):
        at = (y * (n - 1) / (to - 1) if to > 1 else 0.0) if align else max((y + 0.5) * n / to - 0.5, 0.0)
        low = min(math.floor(at), n - 1)
        out[y, low] += 1 - (at - low)
        out[y, min(low + 1, n - 1)] += at - low
    return out


def enlarged(logits, size, align):
    """(B, C, H, W) in float64."""
    h, w = logits.shape[2:]
    return np.einsum("yi,bcij,xj->bcyx", along(h, size[0], align), logits.double().numpy(), along(w, size[1], align))


def lost(logits, found, case):
    """How much less than the best logit, in float64, the class that was found has: (B, H, W)."""
    wide = enlarged(logits, case[3], case[4])
    return wide.max(1) - np.take_along_axis(wide, found.numpy()[:, None].astype(np.int64), 1)[:, 0]


@pytest.mark.parametrize("using", USING)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_class_is_the_best_or_equal_to_it_within_a_few_ulp(case, kind, using):
    logits = drawn(case, kind)
    found = upsample_argmax(logits, case[3], case[4], using=using)
    assert found.dtype == torch.uint8 and found.shape == (case[0], *case[3])
    ulps = 4 if using == "cpu" else 4 * max(case[2])  # PyTorch's fractions are rounded at the size of the coordinate
    assert lost(logits, found, case).max() <= ulps * np.spacing(np.float32(logits.abs().max()))
    if kind != "coarse":
        assert (found.numpy() == enlarged(logits, case[3], case[4]).argmax(1)).mean() > 0.999


@pytest.mark.skipif("cpu" not in USING, reason="the library is not compiled")
@pytest.mark.parametrize("align", [False, True])
def test_an_exact_tie_goes_to_the_lowest_class(align):
    same = torch.full((2, 9, 3, 5), 1.25)
    assert not upsample_argmax(same, (8, 20), align, using="cpu").any()
    same[:, 4:6] += 1
    assert (upsample_argmax(same, (8, 20), align, using="cpu") == 4).all()
    case = (2, 5, (4, 6), (8, 12), False)  # at twice the size every product and sum of small whole numbers is exact
    whole = drawn(case, "coarse")
    assert (upsample_argmax(whole, case[3], using="cpu").numpy() == enlarged(whole, *case[3:]).argmax(1)).all()


@pytest.mark.skipif("cpu" not in USING, reason="the library is not compiled")
@pytest.mark.parametrize("kind", KINDS)
def test_the_logit_of_the_class_is_the_largest_in_float32_to_the_bit(kind):
    """What the shortcuts leave out never has a larger value in the arithmetic that is promised."""
    case = (1, 19, (9, 7), (61, 45), False)
    logits = drawn(case, kind)
    found = upsample_argmax(logits, case[3], using="cpu").numpy()
    wide = in_float32(logits.numpy(), case[3])
    assert (np.take_along_axis(wide, found[:, None].astype(np.int64), 1)[:, 0] == wide.max(1)).all()
    assert (found == wide.argmax(1)).mean() > 0.999


def in_float32(logits, size):
    from kernels.tables import axis

    (h, w), parts = logits.shape[2:], []
    for n, to in zip((h, w), size, strict=True):
        quad, far = axis(n, to, False).quad.numpy(), axis(n, to, False).fraction.numpy()
        parts.append((quad.clip(0), (quad + 1).clip(max=n - 1), np.float32(1) - far, far))
    (i0, i1, up, down), (j0, j1, left, right) = parts
    at = lambda i, j, v, u: (v[:, None] * u) * logits[:, :, i][..., j]  # noqa: E731
    return ((at(i0, j0, up, left) + at(i0, j1, up, right)) + at(i1, j0, down, left)) + at(i1, j1, down, right)


@pytest.mark.skipif("cpu" not in USING, reason="the library is not compiled")
def test_one_two_and_five_threads_give_the_same_bits_and_nothing_is_written_beside_them(poisoned):
    logits, before = drawn((2, 19, (65, 67), None, None), "noise"), torch.get_num_threads()
    try:
        maps = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            maps.append(upsample_argmax(logits, (130, 101), using="cpu"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(maps[0], maps[1]) and torch.equal(maps[0], maps[2]) and maps[0].max() < 19


@pytest.mark.skipif("cpu" not in USING, reason="the library is not compiled")
def test_what_is_not_finite_loses_or_wins_and_never_crashes():
    logits = drawn((1, 5, (6, 6), None, None), "noise")
    clean = upsample_argmax(logits[:, :4], (24, 30), using="cpu")
    for value in (float("nan"), float("-inf")):
        logits[:, 4] = value
        assert torch.equal(upsample_argmax(logits, (24, 30), using="cpu"), clean), value
    logits[:, 3] = float("inf")
    assert (upsample_argmax(logits, (24, 30), using="cpu") == 3).all()
    logits[:] = float("nan")
    assert (upsample_argmax(logits, (24, 30), using="cpu") == 0).all()
    logits[0, ::2, ::3], logits[0, 1::2, 1::2], logits[0, 1] = float("inf"), float("-inf"), 1.0
    assert upsample_argmax(logits, (24, 30), using="cpu").max() < 5


@pytest.mark.parametrize("using", USING)
def test_other_types_are_converted_and_other_memory_orders_read(using):
    logits = drawn(CASES[0], "noise")
    for dtype in (torch.float16, torch.bfloat16):
        found = upsample_argmax(logits.to(dtype), CASES[0][3], using=using)
        assert torch.equal(found, upsample_argmax(logits.to(dtype).float(), CASES[0][3], using=using))
    other = logits.to(memory_format=torch.channels_last)
    assert torch.equal(upsample_argmax(other, CASES[0][3], using=using), upsample_argmax(logits, CASES[0][3], using=using))


def test_what_cannot_be_asked_for_is_said():
    with pytest.raises(ValueError, match=r"float \(B, C, h, w\)"):
        upsample_argmax(torch.zeros(5, 3, 3), (6, 6))
    with pytest.raises(ValueError, match="257 classes"):
        upsample_argmax(torch.zeros(1, 257, 2, 2), (6, 6))
    for shape, size in (((1, 3, 0, 2), (6, 6)), ((1, 3, 2, 2), (6, 0))):
        with pytest.raises(ValueError, match="no side may be 0"):
            upsample_argmax(torch.zeros(shape), size)


@pytest.mark.skipif("cpu" not in USING, reason="the library is not compiled")
def test_the_operation_is_sound_for_pytorch():
    torch.library.opcheck(here.fused.upsample_argmax, (drawn(CASES[0], "noise"), list(CASES[0][3]), False, "cpu"))


@pytest.mark.skipif(not shutil.which("cc") or "cpu" not in USING, reason="there is no C compiler, or the library is not compiled")
def test_the_file_compiled_alone_on_a_device_gives_the_same_bits(tmp_path):
    flags = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, SOURCE, "-o", tmp_path / "argmax.so"], check=True)
    alone = ctypes.CDLL(str(tmp_path / "argmax.so")).upsample_argmax
    for case in CASES:
        for kind in KINDS:
            logits, found = drawn(case, kind), torch.full((case[0], *case[3]), 99, dtype=torch.uint8)
            for part in range(3):
                pointers = ctypes.c_void_p(logits.data_ptr()), ctypes.c_void_p(found.data_ptr())
                assert alone(pointers[0], *case[:2], *case[2], *case[3], int(case[4]), part, 3, pointers[1]) == 0
            assert torch.equal(found, upsample_argmax(logits, case[3], case[4], using="cpu"))
