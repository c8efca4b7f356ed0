"""logit_tailoring's Triton kernels against the reference in float64, their memory filled with nonsense before."""

import pytest
import torch

pytest.importorskip("triton")

from kernels.label_histogram import cell_sizes, label_histogram
from kernels.logit_tailoring import fused, logit_tailoring

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# batch, classes, cells, labels' size: broken ratios, one cell, cells without pixels, a row of more than one block
CASES = [(2, 3, (3, 5), (13, 16)), (2, 2, (1, 1), (3, 5)), (1, 3, (6, 5), (4, 3)), (1, 2, (33, 35), (70, 99))]


def drawn(case, scale=3.0):
    batch, classes, cells, size = case
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(batch, classes, *cells, generator=g) * scale for _ in range(2))
    s[:, 0] = s[:, 0].clamp(max=0)  # a class that the student never says: mu is of nothing
    labels = torch.randint(0, max(classes - 1, 1), (batch, *size), generator=g)
    labels[torch.rand(labels.shape, generator=g) < 0.2] = 255
    upstream = torch.randn(batch, classes, generator=g)
    return (s, t, label_histogram(labels, classes, cells), cell_sizes(cells, size)), upstream


def run(tensors, upstream, using, temperature=4.0):
    """Values and the student's gradient of sum(upstream * values)."""
    s, *others = (v.to(DEVICE) for v in tensors)
    s = s.detach().requires_grad_()
    rows = logit_tailoring(s, *others, temperature=temperature, using=using)
    (rows * upstream.to(DEVICE)).sum().backward()
    return rows.detach(), s.grad


def off(found, expected, least=0.0):
    """|| found - expected || / || expected ||, or / `least`: what is small because large terms cancel has their absolute error."""
    return ((found.double() - expected).norm() / expected.norm().clamp(min=least)).item()


# the interpreter cuts the last bits off where a GPU rounds: at most one part in 2^7 of a bfloat16, 2^10 of a float16
@pytest.mark.parametrize(("dtype", "gradients"), [(torch.float32, 2e-6), (torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_equal_the_reference_in_float64(case, temperature, dtype, gradients, poisoned):
    (s, t, *counts), upstream = drawn(case)
    s, t = s.to(dtype), t.to(dtype)
    expected = run((s.double(), t.double(), *counts), upstream, "reference", temperature)
    rows, gradient = run((s, t, *counts), upstream, "triton", temperature)
    assert rows.dtype == torch.float32 and gradient.dtype == dtype
    assert off(rows, expected[0], least=1.0) < 1e-6 and off(gradient, expected[1]) < gradients


@pytest.mark.parametrize("label", [0, 255])
def test_labels_of_one_class_or_none_leave_no_nonsense(label, poisoned):
    (s, t, *_), upstream = drawn(CASES[0])
    labels = torch.full((2, 9, 9), label)
    counts = label_histogram(labels, 3, (3, 5)), cell_sizes((3, 5), (9, 9))
    expected = run((s.double(), t.double(), *counts), upstream, "reference")
    rows, gradient = run((s, t, *counts), upstream, "triton")
    assert off(rows, expected[0], least=1.0) < 1e-6 and off(gradient, expected[1]) < 2e-6


def test_large_logits_and_agreement():
    tensors, upstream = drawn(CASES[0], scale=60.0)
    expected = run([v.double() if v.is_floating_point() else v for v in tensors], upstream, "reference", 1.0)
    rows, gradient = run(tensors, upstream, "triton", 1.0)
    assert off(rows, expected[0], least=1.0) < 1e-5 and off(gradient, expected[1]) < 1e-5
    flat = torch.ones(2, 3, 3, 5)
    rows, gradient = run((flat, flat, *tensors[2:]), upstream, "triton", 1.0)
    assert rows.isfinite().all() and gradient.isfinite().all()


def test_repeated_runs_are_equal_to_the_bit():
    tensors, upstream = drawn(CASES[3])
    first = run(tensors, upstream, "triton")
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(first, run(tensors, upstream, "triton"), strict=True))


def test_the_operation_is_sound_for_pytorch_and_compiles_to_one_graph():
    tensors, upstream = drawn(CASES[1])
    s, *others = (v.to(DEVICE) for v in tensors)
    s.requires_grad_()
    torch.library.opcheck(fused.forward, (s, *others, 2.0, "triton"))
    whole = torch.compile(lambda z: logit_tailoring(z, *others, temperature=2.0, using="triton"), fullgraph=True, backend="aot_eager")
    rows = whole(s)
    (rows * upstream.to(DEVICE)).sum().backward()
    expected = run(tensors, upstream, "triton", 2.0)
    assert torch.equal(rows, expected[0]) and torch.equal(s.grad, expected[1])
