"""heteroakd_px against its equations in float64, pixel by pixel, and what those equations promise."""

import numpy as np
import pytest
import torch

from kernels.heteroakd_px import FORMS, heteroakd_px
from kernels.heteroakd_px.reference import loss, mixture

SHAPES = [(2, 3, 4, 5), (1, 19, 3, 2), (1, 1, 2, 2)]


def softmax(v):
    e = np.exp(v - v.max())
    return e / e.sum()


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def one_pixel(x, u, y, T, form):
    """The loss of a pixel and its gradient, S, mixed logits and Omega being constants."""

    def h(z):
        return -y * np.log(sigmoid(z)) - (1 - y) * np.log(sigmoid(-z))

    share = h(x) / (h(x) + h(u) + 1e-6)
    mixed = share * u + (1 - share) * x
    omega = softmax(h(x) + np.maximum(0, h(x) - h(mixed)))
    if form == "bernoulli":
        a, b = sigmoid(mixed / T), sigmoid(x / T)
        return (omega * (a * np.log(a / b) + (1 - a) * np.log((1 - a) / (1 - b)))).sum(), omega * (b - a) / T
    q, p = softmax(mixed / T), softmax(x / T)
    value = (omega * q * (np.log(q / p) if form == "wkl" else -np.log(p))).sum()
    return value, ((omega * q).sum() * p - omega * q) / T


def by_hand(student, teacher, labels, upstream, T, form):
    found, grad = np.zeros(upstream.shape), np.zeros(student.shape)
    for i, r, c in np.ndindex(*upstream.shape):
        if labels.ndim == 4:
            y, valid = labels[i, :, r, c], labels[i, :, r, c].any()
        else:
            y, valid = (np.arange(student.shape[1]) == labels[i, r, c]).astype(float), labels[i, r, c] != 255
        if valid:
            found[i, r, c], slope = one_pixel(student[i, :, r, c], teacher[i, :, r, c], y, T, form)
            grad[i, :, r, c] = upstream[i, r, c] * slope
    return found, grad


def drawn(shape, soft):
    rng = np.random.RandomState(0)
    batch, classes, h, w = shape
    labels = rng.randint(0, classes, (batch, h, w))
    labels[rng.rand(*labels.shape) < 0.3] = 255
    if soft:  # shares of a cell's pixels, some of which are ignored
        labels = rng.dirichlet(np.ones(classes), labels.shape).transpose(0, 3, 1, 2) * rng.rand(batch, 1, h, w) * (labels != 255)[:, None]
    return rng.randn(*shape) * 3, rng.randn(*shape) * 3, labels, rng.randn(batch, h, w)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, None)])
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "shares"])
@pytest.mark.parametrize(("form", "temperature"), [("wce", 4.0), ("wkl", 1.0), ("bernoulli", 2.0)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_equal_the_equations_pixel_by_pixel(shape, form, temperature, soft, dtype, tolerance):
    student, teacher, labels, upstream = drawn(shape, soft)
    z, t = (torch.tensor(v).to(dtype).requires_grad_() for v in (student, teacher))
    y = torch.tensor(labels) if soft else torch.tensor(labels).to(torch.uint8)
    found = heteroakd_px(z, t, y, temperature=temperature, form=form)
    (found * torch.tensor(upstream)).sum().backward()
    values, grad = by_hand(z.detach().double().numpy(), t.detach().double().numpy(), labels, upstream, temperature, form)
    np.testing.assert_allclose(found.detach().numpy(), values, atol=tolerance or 1e-5)
    np.testing.assert_allclose(z.grad.double().numpy(), grad, atol=tolerance or 1e-5, rtol=0 if tolerance else 2**-8)
    assert found.dtype == torch.promote_types(dtype, torch.float32) and t.grad is None


@pytest.mark.parametrize("form", FORMS)
def test_an_ignored_label_is_never_an_index_and_leaves_no_gradient(form):
    z = torch.randn(1, 3, 2, 2, requires_grad=True)
    for labels in (torch.full((1, 2, 2), 255, dtype=torch.uint8), torch.zeros(1, 3, 2, 2)):
        found = heteroakd_px(z, torch.randn(1, 3, 2, 2), labels, temperature=4.0, form=form)
        (z.grad,) = torch.autograd.grad(found.sum(), z)
        assert not found.any() and not z.grad.any()


def test_one_hot_shares_are_labels():
    student, teacher, labels, _ = (torch.tensor(v) for v in drawn(SHAPES[0], False))
    shares = (labels[:, None] == torch.arange(3)[:, None, None]).double()
    assert torch.equal(*(heteroakd_px(student, teacher, y, temperature=4.0) for y in (labels, shares)))


def test_a_perfect_teacher_is_taken_whole_and_a_tie_of_perfection_is_split():
    x, u = torch.zeros(1, 2, 1, 1, dtype=torch.float64), torch.tensor([800.0, -800.0], dtype=torch.float64).view(1, 2, 1, 1)
    target = torch.tensor([1.0, 0.0], dtype=torch.float64).view(1, 2, 1, 1)
    assert torch.allclose(mixture(x, u, target)[0], u, rtol=1e-5)
    assert torch.equal(mixture(2 * u, u, target)[0], 1.5 * u)  # H is 0 for both: S is 1/2
    assert torch.equal(mixture(x, x, target)[0], x)


def test_the_bernoulli_form_is_least_where_the_student_says_the_mixture():
    student, teacher, labels, _ = (torch.tensor(v) for v in drawn(SHAPES[0], False))
    assert (heteroakd_px(student, teacher, labels, temperature=1.0, form="bernoulli") >= 0).all()
    z = student.requires_grad_()
    agreed = heteroakd_px(z, student.detach(), labels, temperature=1.0, form="bernoulli")
    agreed.sum().backward()
    assert agreed.abs().max() < 1e-14 and z.grad.abs().max() < 1e-14


@pytest.mark.parametrize("form", FORMS)
def test_huge_logits_stay_finite(form):
    z = (torch.randn(1, 4, 3, 3) * 3000).requires_grad_()
    found = heteroakd_px(z, torch.randn(1, 4, 3, 3) * 3000, torch.zeros(1, 3, 3).long(), temperature=1.0, form=form)
    found.sum().backward()
    assert found.isfinite().all() and z.grad.isfinite().all()


def test_autocast_around_the_call_changes_nothing():
    z, t = torch.randn(1, 5, 2, 2), torch.randn(1, 5, 2, 2)
    plain = heteroakd_px(z, t, torch.zeros(1, 2, 2).long(), temperature=4.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(heteroakd_px(z, t, torch.zeros(1, 2, 2).long(), temperature=4.0), plain)


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_with_the_mixture_held_still(form):
    g = torch.Generator().manual_seed(0)
    z, mixed, omega = (torch.randn(1, 3, 2, 2, dtype=torch.float64, generator=g) for _ in range(3))
    assert torch.autograd.gradcheck(lambda v: loss(v, mixed, omega.softmax(1), form), (z.requires_grad_(),))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"student": torch.zeros(3, 4, 4)}, r"student must be float \(B, C, h, w\), found torch.float32 \(3, 4, 4\)"),
        ({"teacher": torch.zeros(1, 3, 2, 2)}, "must have one shape"),
        ({"labels": torch.zeros(1, 8, 8).long()}, r"on the student's grid, found torch.int64 \(1, 8, 8\)"),
        ({"labels": torch.zeros(1, 4, 4)}, r"or float \(B, C, h, w\) on the student's grid"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"form": "kl"}, "form must be one of"),
    ],
)
def test_a_wrong_call_is_told_what_was_expected(change, said):
    call = {
        "student": torch.zeros(1, 3, 4, 4),
        "teacher": torch.zeros(1, 3, 4, 4),
        "labels": torch.zeros(1, 4, 4).long(),
        "temperature": 1.0,
    }
    with pytest.raises(ValueError, match=said):
        heteroakd_px(**call | change)
