"""upsample_ce_kl against a loop over pixels in float64 that shares no code with it."""

import math

import numpy as np
import pytest
import torch

from kernels.upsample_ce_kl import upsample_ce_kl

# B, C, student grid, teacher grid, label grid, temperature, align_corners: odd sizes, down-scaling, foreign grids, one class row
CASES = [
    (2, 5, (3, 4), (3, 4), (12, 16), 1.0, False),
    (1, 3, (5, 3), (2, 7), (7, 11), 4.0, False),
    (2, 4, (3, 5), (4, 3), (9, 13), 2.0, True),
    (1, 19, (1, 1), (1, 2), (3, 5), 0.5, False),
    (1, 2, (6, 7), (6, 7), (6, 7), 1.5, True),
    (1, 3, (8, 9), (4, 4), (5, 3), 1.0, False),
]


def weights(n: int, to: int, align: bool) -> np.ndarray:
    """Row y: how much of each of n source values is in output y, from the definition of bilinear interpolation."""
    out = np.zeros((to, n))
    for y in range(to):
        at = (y * (n - 1) / (to - 1) if to > 1 else 0.0) if align else max((y + 0.5) * n / to - 0.5, 0.0)
        low = min(math.floor(at), n - 1)
        high = min(low + 1, n - 1)
        out[y, low] += 1 - (at - low)
        out[y, high] += at - low
    return out


def up(maps: np.ndarray, size: tuple[int, int], align: bool) -> np.ndarray:
    return np.einsum("yi,bcij,xj->bcyx", weights(maps.shape[2], size[0], align), maps, weights(maps.shape[3], size[1], align))


def softmax(v: np.ndarray) -> np.ndarray:
    e = np.exp(v - v.max())
    return e / e.sum()


def by_hand(student, teacher, labels, a, b, temperature, align, ignore=255):
    """ce, kl (B, H, W) and the student's gradient of sum(a ce + b kl), in float64, pixel by pixel."""
    _batch, _, h, w = student.shape
    size = labels.shape[1:]
    x, u = up(student, size, align), up(teacher, size, align)
    ce, kl, g = np.zeros(labels.shape), np.zeros(labels.shape), np.zeros(x.shape)
    for i, y, c in np.ndindex(*labels.shape):
        s, q, p = softmax(x[i, :, y, c]), softmax(x[i, :, y, c] / temperature), softmax(u[i, :, y, c] / temperature)
        kl[i, y, c] = (p * np.log(p / q)).sum()
        g[i, :, y, c] = b[i, y, c] * (q - p) / temperature
        if labels[i, y, c] != ignore:
            ce[i, y, c] = -math.log(s[labels[i, y, c]])
            g[i, :, y, c] += a[i, y, c] * (s - np.eye(len(s))[labels[i, y, c]])
    grad = np.einsum("yi,bcyx,xj->bcij", weights(h, size[0], align), g, weights(w, size[1], align))
    return ce, kl, grad


def drawn(case, seed=0):
    b, c, hw, thw, size, *_ = case
    rng = np.random.RandomState(seed)
    labels = rng.randint(0, c, (b, *size))
    labels[rng.rand(*labels.shape) < 0.2] = 255
    return rng.randn(b, c, *hw) * 3, rng.randn(b, c, *thw) * 3, labels, rng.randn(*labels.shape), rng.randn(*labels.shape)


@pytest.mark.parametrize(
    ("using", "dtype", "tolerance"),
    [
        ("reference", torch.float64, 1e-12),
        ("reference", torch.float32, 2e-5),
        ("reference", torch.bfloat16, None),
        ("cpu", torch.float32, 5e-6),
        ("cpu", torch.bfloat16, None),
    ],
)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_equal_a_loop_over_pixels_under_any_upstream_gradient(case, dtype, tolerance, using):
    student, teacher, labels, a, b = drawn(case)
    temperature, align = case[5:]
    z = torch.tensor(student).to(dtype).requires_grad_()
    t = torch.tensor(teacher).to(dtype).requires_grad_()
    student, teacher = z.detach().double().numpy(), t.detach().double().numpy()  # as rounded to dtype
    maps = upsample_ce_kl(z, t, torch.tensor(labels).to(torch.uint8), temperature=temperature, align_corners=align, using=using)
    (maps.ce * torch.tensor(a) + maps.kl * torch.tensor(b)).sum().backward()
    ce, kl, grad = by_hand(student, teacher, labels, a, b, temperature, align)
    assert maps.ce.dtype == maps.kl.dtype == torch.promote_types(dtype, torch.float32)
    np.testing.assert_allclose(maps.ce.detach().numpy(), ce, atol=tolerance or 2e-5)
    np.testing.assert_allclose(maps.kl.detach().numpy(), kl, atol=tolerance or 2e-5)
    # one rounding of the gradient to bfloat16: 2^-8 of its size
    np.testing.assert_allclose(z.grad.double().numpy(), grad, atol=tolerance or 1e-4, rtol=0 if tolerance else 2**-8)
    assert t.grad is None


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
def test_an_ignored_label_is_never_used_as_an_index_and_leaves_no_gradient(kind):
    z = torch.randn(2, 3, 4, 4, requires_grad=True)
    maps = upsample_ce_kl(z, None, torch.full((2, 9, 7), 255, dtype=kind))
    assert maps.kl is None
    assert torch.equal(maps.ce, torch.zeros(2, 9, 7))
    maps.ce.sum().backward()
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_another_ignore_label_is_respected():
    z = torch.randn(1, 3, 2, 2)
    labels = torch.tensor([[[0, 7], [2, 7]]])
    assert (upsample_ce_kl(z, None, labels, ignore=7).ce == 0).tolist() == [[[False, True], [False, True]]]


def test_kl_is_zero_where_student_and_teacher_agree():
    z = torch.randn(1, 6, 3, 5, dtype=torch.float64, requires_grad=True)
    maps = upsample_ce_kl(z, z.detach() + 3.0, torch.zeros(1, 8, 8, dtype=torch.uint8), temperature=2.0)  # a constant changes nothing
    assert maps.kl.abs().max() < 1e-15
    maps.kl.sum().backward()
    assert z.grad.abs().max() < 1e-14


def test_huge_logits_stay_finite():
    z = torch.randn(1, 5, 4, 4) * 3000
    maps = upsample_ce_kl(z.requires_grad_(), torch.randn(1, 5, 4, 4) * 3000, torch.zeros(1, 8, 8, dtype=torch.uint8))
    (maps.ce.sum() + maps.kl.sum()).backward()
    assert maps.ce.isfinite().all() and maps.kl.isfinite().all() and z.grad.isfinite().all()


def test_autocast_around_the_call_changes_nothing():
    z, t, labels = torch.randn(1, 5, 4, 4), torch.randn(1, 5, 4, 4), torch.randint(0, 5, (1, 8, 8))
    plain = upsample_ce_kl(z, t, labels)
    with torch.autocast("cpu", torch.bfloat16):
        inside = upsample_ce_kl(z, t, labels)
    assert torch.equal(plain.ce, inside.ce) and torch.equal(plain.kl, inside.kl)


@pytest.mark.parametrize("align", [False, True])
def test_gradcheck(align):
    z = torch.randn(1, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    t, labels = torch.randn(1, 3, 2, 3, dtype=torch.float64), torch.randint(0, 3, (1, 5, 7))
    labels[0, 2] = 255
    assert torch.autograd.gradcheck(lambda v: tuple(upsample_ce_kl(v, t, labels, temperature=1.7, align_corners=align)), (z,))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"student": torch.zeros(3, 4, 4)}, r"student must be float \(B, C, h, w\) with no side of 0, found torch.float32 \(3, 4, 4\)"),
        ({"student": torch.zeros(2, 0, 4, 4)}, r"with no side of 0, found torch.float32 \(2, 0, 4, 4\)"),
        ({"student": torch.zeros(2, 3, 0, 4)}, r"with no side of 0, found torch.float32 \(2, 3, 0, 4\)"),
        ({"labels": torch.zeros(2, 8, 0, dtype=torch.uint8)}, r"with no side of 0, found torch.uint8 \(2, 8, 0\)"),
        ({"teacher": torch.zeros(2, 3, 4, 0)}, "teacher must have no side of 0"),
        ({"labels": torch.zeros(2, 8, 8)}, "labels must be uint8, int32 or int64"),
        ({"labels": torch.zeros(1, 8, 8, dtype=torch.uint8)}, "student holds 2 images and labels 1"),
        ({"teacher": torch.zeros(2, 4, 4, 4)}, r"the student's batch and classes \(2, 3\)"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"using": "tritn"}, "using='tritn' was asked for; there is 'auto', .*'reference'"),
    ],
)
def test_a_wrong_call_is_told_what_was_expected(change, said):
    call = {"student": torch.zeros(2, 3, 4, 4), "teacher": None, "labels": torch.zeros(2, 8, 8, dtype=torch.uint8)} | change
    with pytest.raises(ValueError, match=said):
        upsample_ce_kl(call.pop("student"), call.pop("teacher"), call.pop("labels"), **call)
