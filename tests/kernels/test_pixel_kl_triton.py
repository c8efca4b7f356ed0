"""pixel_kl's Triton kernels against the reference in float64, their memory filled with nonsense before."""

import pytest
import torch

pytest.importorskip("triton")

from kernels.pixel_kl import fused, pixel_kl

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(2, 3, 4, 5), (1, 19, 3, 2), (2, 1, 2, 2), (2, 2, 9, 15)]  # the last: two blocks of pixels, the border inside a block


def drawn(shape, scale=4.0):
    g = torch.Generator().manual_seed(0)
    logits = [(torch.randn(shape, generator=g) * scale).to(DEVICE) for _ in range(3)]
    return logits, torch.randn(shape[0], *shape[2:], generator=g).to(DEVICE)


def run(logits, upstream, using, temperature=4.0, direction="aux_to_main"):
    """kl, the student's gradient of sum(upstream * kl), and the discrepancy where auxiliary logits are given."""
    s, *others = logits
    s = s.detach().requires_grad_()
    found = pixel_kl(s, *others, temperature=temperature, direction=direction, using=using)
    (found.kl * upstream).sum().backward()
    return found.kl.detach(), s.grad, found.discrepancy


def off(found, expected):
    return ((found.double() - expected).norm() / expected.norm().clamp(min=1e-3)).item()


@pytest.mark.parametrize(("temperature", "direction"), [(1.0, "aux_to_main"), (4.0, "main_to_aux")])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_equal_the_reference_in_float64(shape, temperature, direction, poisoned):
    logits, upstream = drawn(shape)
    expected = run([v.double() for v in logits], upstream, "reference", temperature, direction)
    kl, gradient, apart = run(logits, upstream, "triton", temperature, direction)
    assert off(kl, expected[0]) < 1e-6 and off(gradient, expected[1]) < 2e-6 and off(apart, expected[2]) < 1e-6


# the interpreter cuts the last bits off where a GPU rounds
@pytest.mark.parametrize(("dtype", "gradients"), [(torch.bfloat16, 5e-3), (torch.float16, 6e-4)])
def test_narrow_logits_are_computed_wide(dtype, gradients, poisoned):
    logits, upstream = drawn(SHAPES[0])
    logits = [v.to(dtype) for v in logits]
    expected = run([v.double() for v in logits], upstream, "reference", 4.0)
    kl, gradient, apart = run(logits, upstream, "triton", 4.0)
    assert kl.dtype == apart.dtype == torch.float32 and gradient.dtype == dtype and not apart.requires_grad
    assert off(kl, expected[0]) < 1e-6 and off(gradient, expected[1]) < gradients and off(apart, expected[2]) < 1e-6


@pytest.mark.parametrize(("scale", "tolerance"), [(60.0, 1e-5), (3000.0, 2e-4)])
def test_large_logits(scale, tolerance, poisoned):
    logits, upstream = drawn(SHAPES[0], scale)
    expected = run([v.double() for v in logits], upstream, "reference", 1.0)
    assert all(off(a, b) < tolerance for a, b in zip(run(logits, upstream, "triton", 1.0), expected, strict=True))


def test_agreement_is_exactly_zero_and_no_auxiliary_logits_no_discrepancy(poisoned):
    (s, *_), upstream = drawn(SHAPES[0])
    kl, gradient, apart = run((s, s), upstream, "triton")
    assert not kl.any() and not gradient.any() and apart is None


def test_repeated_runs_and_other_memory_orders_are_equal_to_the_bit():
    logits, upstream = drawn(SHAPES[0])
    first = run(logits, upstream, "triton")
    again = run([v.to(memory_format=torch.channels_last) for v in logits], upstream.mT.contiguous().mT, "triton")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("heads", [False, True])
def test_the_operation_is_sound_for_pytorch_and_compiles_to_one_graph(heads):
    (s, t, v), upstream = drawn((1, 2, 2, 3))
    s, v = s.requires_grad_(), v if heads else None
    torch.library.opcheck(fused.forward, (s, t, v, 2.0, "aux_to_main", "triton"))
    compiled = torch.compile(lambda z: pixel_kl(z, t, v, temperature=2.0, using="triton").kl, fullgraph=True, backend="aot_eager")
    kl = compiled(s)
    (kl * upstream).sum().backward()
    expected = run((s, t), upstream, "triton", 2.0)
    assert torch.equal(kl, expected[0]) and torch.equal(s.grad, expected[1])
