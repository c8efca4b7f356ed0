"""logit_tailoring against the released code's loss at the labels' size, with every pixel written out."""

import pytest
import torch

from kernels.label_histogram import cell_sizes, label_histogram
from kernels.logit_tailoring import logit_tailoring
from kernels.logit_tailoring.sizes import dense

# batch, classes, cells, labels' size: whole and broken ratios, one cell, cells without pixels
CASES = [(2, 5, (3, 4), (12, 16)), (1, 3, (5, 3), (13, 7)), (2, 2, (1, 1), (3, 5)), (1, 19, (2, 3), (5, 6)), (1, 3, (6, 5), (4, 3))]


def drawn(case, scale=3.0, seed=0):
    """Logits, labels with all classes but the last and a fifth ignored, and signed weights of the rows, in float64."""
    batch, classes, cells, size = case
    g = torch.Generator().manual_seed(seed)
    s, t = (torch.randn(batch, classes, *cells, generator=g, dtype=torch.float64) * scale for _ in range(2))
    labels = torch.randint(0, max(classes - 1, 1), (batch, *size), generator=g)
    labels[torch.rand(labels.shape, generator=g) < 0.2] = 255
    return s, t, labels.to(torch.uint8), torch.randn(batch, classes, generator=g, dtype=torch.float64)


def run(s, t, labels, **how):
    size = tuple(s.shape[2:])
    return logit_tailoring(s, t, label_histogram(labels, s.shape[1], size), cell_sizes(size, labels.shape[1:]), **how)


def off(found, expected, least=0.0):
    """|| found - expected || / || expected ||, or / `least`: what is small because large terms cancel has their absolute error."""
    return ((found.double() - expected).norm() / expected.norm().clamp(min=least)).item()


@pytest.mark.parametrize(("dtype", "values", "gradients"), [("float64", 1e-12, 1e-12), ("float32", 1e-6, 2e-6), ("bfloat16", 1e-6, 2**-8)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_sums_over_cells_equal_the_loss_on_maps_of_the_labels_size(case, temperature, dtype, values, gradients):
    s, t, labels, upstream = drawn(case)
    s, t = (z.to(getattr(torch, dtype)).requires_grad_() for z in (s, t))
    d = s.detach().double().requires_grad_()  # as rounded to dtype
    expected = dense(d, t.detach().double(), labels, temperature)
    (expected * upstream).sum().backward()
    found = run(s, t, labels, temperature=temperature)
    (found * upstream).sum().backward()
    assert off(found, expected, least=1.0) < values and off(s.grad, d.grad) < gradients
    assert t.grad is None


def test_what_the_code_does_with_a_class_that_is_absent_or_never_positive():
    s, t, labels, _ = drawn(CASES[0])
    s[:, 0], t[:, 0] = -s[:, 0].abs(), -t[:, 0].abs()  # nothing to take a mean of: no raise
    s.requires_grad_()
    found = run(s, t, labels, temperature=4.0)
    assert torch.allclose(found, dense(s, t, labels, 4.0), rtol=1e-12)
    found.sum().backward()
    assert s.grad.isfinite().all()
    absent = torch.full_like(labels, 255)
    assert torch.allclose(run(s, t, absent, temperature=4.0), dense(s, t, absent, 4.0), rtol=1e-12)


def test_terms_on_tailored_logits_vanish_where_student_and_teacher_agree():
    s, _, labels, _ = drawn(CASES[0])
    rows = run(s, s, labels, temperature=4.0)
    assert (rows >= 0).all() and rows.sum() > 0  # the first compares the raw student
    everywhere = torch.zeros_like(labels)
    flat = torch.ones(2, 5, 3, 4, dtype=torch.float64)
    assert run(flat, flat, everywhere, temperature=1.0).abs().max() < 1e-12


def test_autocast_around_the_call_changes_nothing_and_the_reference_compiles_to_one_graph():
    s, t, labels, _ = drawn(CASES[0])
    s, t = s.float(), t.float()
    plain = run(s, t, labels, temperature=4.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(s, t, labels, temperature=4.0), plain)
    compiled = torch.compile(lambda z: run(z, t, labels, temperature=4.0), fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(s), plain, atol=1e-6)


def test_huge_logits_stay_finite():
    s, t, labels, _ = drawn(CASES[1], scale=3000.0)
    s = s.float().requires_grad_()
    run(s, t.float(), labels, temperature=1.0).sum().backward()
    assert s.grad.isfinite().all()


def test_gradcheck():
    s, t, labels, _ = drawn((1, 3, (2, 3), (5, 7)), scale=1.0)
    assert torch.autograd.gradcheck(lambda z: run(z, t, labels, temperature=2.0), (s.requires_grad_(),))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"student": torch.zeros(3, 4, 4)}, r"student must be float \(B, C, h, w\), found torch.float32 \(3, 4, 4\)"),
        ({"teacher": torch.zeros(2, 3, 8, 8)}, "must have one shape"),
        ({"histogram": torch.zeros(2, 3, 4, 4)}, "histogram must be int32 of the student's shape"),
        ({"cell_sizes": torch.zeros(4, 5, dtype=torch.int32)}, r"cell_sizes must be int32 of the student's grid \(4, 4\)"),
        ({"temperature": 0.0}, "temperature must be above 0"),
    ],
)
def test_a_wrong_call_is_told_what_was_expected(change, said):
    call = {"student": torch.zeros(2, 3, 4, 4), "teacher": torch.zeros(2, 3, 4, 4), "temperature": 1.0}
    call |= {"histogram": torch.zeros(2, 3, 4, 4, dtype=torch.int32), "cell_sizes": torch.zeros(4, 4, dtype=torch.int32)} | change
    with pytest.raises(ValueError, match=said):
        logit_tailoring(**call)
