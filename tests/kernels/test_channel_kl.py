"""channel_kl against a loop over channels in float64, and the choice of variants."""

import logging

import numpy as np
import pytest
import torch

from kernels import choose
from kernels.channel_kl import channel_kl

SHAPES = [(2, 3, 4, 5), (1, 19, 7, 3), (3, 1, 1, 9), (1, 2, 1, 1)]


def by_hand(student, teacher, upstream, temperature):
    """kl (B, C) and the student's gradient of sum(upstream * kl), float64, channel by channel."""
    kl, grad = np.zeros(student.shape[:2]), np.zeros(student.shape)
    for i, c in np.ndindex(*kl.shape):
        q, p = (np.exp(v / temperature - (v / temperature).max()) for v in (student[i, c], teacher[i, c]))
        q, p = q / q.sum(), p / p.sum()
        kl[i, c] = (p * np.log(p / q)).sum()
        grad[i, c] = upstream[i, c] * (q - p) / temperature
    return kl, grad


@pytest.mark.parametrize(
    ("using", "dtype", "tolerance"),
    [
        ("reference", torch.float64, 1e-12),
        ("reference", torch.float32, 1e-5),
        ("reference", torch.bfloat16, None),
        ("cpu", torch.float32, 1e-6),
        ("cpu", torch.bfloat16, None),
    ],
)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_equal_a_loop_over_channels(shape, temperature, dtype, tolerance, using):
    rng = np.random.RandomState(1)
    z = torch.tensor(rng.randn(*shape) * 4).to(dtype).requires_grad_()
    t = torch.tensor(rng.randn(*shape) * 4).to(dtype).requires_grad_()
    upstream = rng.randn(*shape[:2])
    found = channel_kl(z, t, temperature=temperature, using=using)
    (found * torch.tensor(upstream)).sum().backward()
    kl, grad = by_hand(z.detach().double().numpy(), t.detach().double().numpy(), upstream, temperature)
    np.testing.assert_allclose(found.detach().numpy(), kl, atol=tolerance or 1e-5)
    np.testing.assert_allclose(z.grad.double().numpy(), grad, atol=tolerance or 1e-5, rtol=0 if tolerance else 2**-8)
    assert t.grad is None


def test_probabilities_that_underflow_give_no_nan():
    z, t = torch.zeros(1, 1, 64, 128, requires_grad=True), torch.zeros(1, 1, 64, 128)
    with torch.no_grad():
        z[0, 0, 0, 0], t[0, 0, 5, 5] = 1e4, 1e4
    found = channel_kl(z, t, temperature=1.0)
    found.sum().backward()
    assert found.item() == pytest.approx(1e4, rel=1e-3) and z.grad.isfinite().all()


def test_gradcheck():
    z, t = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True), torch.randn(2, 2, 3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: channel_kl(v, t, temperature=3.0), (z,))


@pytest.mark.parametrize(
    ("student", "teacher", "temperature", "said"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), 1.0, r"student must be float \(B, C, H, W\)"),
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 8, 8), 1.0, "must have one shape: bring one to the other's grid first"),
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), -1.0, "temperature must be above 0"),
    ],
)
def test_a_wrong_call_is_told_what_was_expected(student, teacher, temperature, said):
    with pytest.raises(ValueError, match=said):
        channel_kl(student, teacher, temperature=temperature)


@pytest.fixture
def operation(tmp_path, monkeypatch):
    """A package `fast_op` with a reference and two faster variants; there is a compiler and no GPU."""
    folder = tmp_path / "fast_op"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    for variant in ("reference", "triton_", "cpu"):
        (folder / f"{variant}.py").write_text("raise AssertionError('imported although only its name was asked for')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(choose.native, "why_not", lambda: "")
    choose._variant.cache_clear()
    yield "fast_op"
    choose._variant.cache_clear()


SINGLE, META = torch.zeros(1), torch.zeros(1, device="meta")


def test_auto_takes_the_fastest_variant_that_fits_and_says_so_once(operation, caplog):
    with caplog.at_level(logging.INFO, "kernels.choose"):
        assert [choose.choose(operation, "auto", SINGLE) for _ in range(3)] == ["cpu"] * 3
        assert choose.choose(operation, "auto", META) == "reference"
    assert [r.getMessage() for r in caplog.records] == ["fast_op on cpu: auto takes cpu", "fast_op on meta: auto takes reference"]


def test_auto_computes_in_float64_when_given_it(operation):
    assert choose.choose(operation, "auto", SINGLE.double()) == "reference"


def test_auto_takes_the_reference_where_nothing_was_compiled(operation, monkeypatch):
    monkeypatch.setattr(choose.native, "why_not", lambda: "it was not compiled")
    assert choose.choose(operation, "auto", SINGLE) == "reference"
    assert choose.slow("cpu") == "it was not compiled"
    with pytest.raises(ValueError, match="using='cpu' was asked for, but it was not compiled; using='auto' takes what runs here"):
        choose.choose(operation, "cpu", SINGLE)


def test_a_named_variant_runs_or_is_an_error_but_never_falls_back(operation):
    assert choose.choose(operation, "reference", SINGLE) == "reference"
    with pytest.raises(ValueError, match=r"using='triton' was asked for, but (the tensors are on cpu|triton is not installed)"):
        choose.choose(operation, "triton", SINGLE)
    with pytest.raises(ValueError, match=r"using='cpu' was asked for, but it computes in float32 and was given torch\.float64"):
        choose.choose(operation, "cpu", SINGLE.double())
    with pytest.raises(ValueError, match="using='cuda' was asked for; there is 'auto', 'triton', 'cpu', 'reference'"):
        choose.choose(operation, "cuda", SINGLE)


def test_what_runs_is_known_for_every_operation():
    found = choose.choices(torch.device("cpu"))
    assert {"upsample_ce_kl", "channel_kl"} <= set(found)
    assert set(found.values()) <= {"cpu", "blocks", "reference"}
