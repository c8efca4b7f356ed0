"""channel_kl's Triton kernels against the float64 reference: rows in one piece and in parts, ragged ends, large logits."""

import pytest
import torch

from kernels.channel_kl import channel_kl, fused
from kernels.channel_kl.reference import channel_kl as truth

pytest.importorskip("triton")
from kernels.channel_kl import triton_

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy on lanes beyond a row's end, which are dropped
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# B, C, H, W and how many parts a row is cut into: one pixel, few pixels, ragged parts, parts that fit exactly
SHAPES = [((2, 3, 4, 5), 1), ((1, 2, 1, 1), 1), ((3, 1, 1, 9), 1), ((1, 2, 37, 61), 3), ((2, 1, 32, 128), 4)]


def drawn(shape, dtype=torch.float32, spread=4.0):
    generator = torch.Generator().manual_seed(3)
    z, t = (torch.randn(shape, generator=generator).mul(spread).to(DEVICE, dtype) for _ in range(2))
    return z, t, torch.randn(shape[:2], generator=generator).to(DEVICE)


def run(z, t, upstream, temperature):
    kl, ls, lt = triton_.forward(z, t, temperature)
    return kl, triton_.backward(z, t, ls, lt, upstream, temperature)


def expected(z, t, upstream, temperature):
    z = z.double().requires_grad_()
    kl = truth(z, t.double(), temperature)
    return kl.detach(), torch.autograd.grad((kl * upstream).sum(), z)[0]


def error(found, true):
    assert found.isfinite().all()
    return ((found.double() - true).norm() / true.norm().clamp(min=1e-12)).item()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("shape", "parts"), SHAPES, ids=str)
def test_values_and_gradients_equal_the_float64_reference(shape, parts, temperature, poisoned):
    z, t, upstream = drawn(shape)
    assert -(-shape[2] * shape[3] // triton_._part(shape[0] * shape[1], shape[2] * shape[3], torch.device("cpu"))) == parts
    (kl, grad), (true_kl, true_grad) = run(z, t, upstream, temperature), expected(z, t, upstream, temperature)
    assert error(kl, true_kl) < 1e-6 and error(grad, true_grad) < 2e-6


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 5e-3), (torch.float16, 1e-3)], ids=str)
def test_half_precision_maps_are_computed_in_float32_and_only_the_gradient_is_rounded(dtype, tolerance, poisoned):
    z, t, upstream = drawn((2, 2, 30, 41), dtype)
    (kl, grad), (true_kl, true_grad) = run(z, t, upstream, 2.0), expected(z, t, upstream, 2.0)
    assert grad.dtype == dtype
    assert error(kl, true_kl) < 1e-6 and error(grad, true_grad) < tolerance


@pytest.mark.parametrize(("rows", "pixels", "part"), [(4096, 8192, 8192), (4096, 10800, 16384), (4096, 40000, 16384), (152, 8192, 2048)])
def test_rows_are_cut_where_they_are_long_or_few(rows, pixels, part):
    assert triton_._part(rows, pixels, torch.device("cpu")) == part


def test_large_logits_and_probabilities_that_underflow_stay_finite(poisoned):
    z, t, upstream = drawn((1, 2, 37, 61), spread=60.0)
    z[0, 0, 36, 60], t[0, 1, 0, 0] = 1e4, 1e4  # one part of a row stands far above the others
    (kl, grad), (true_kl, true_grad) = run(z, t, upstream, 1.0), expected(z, t, upstream, 1.0)
    assert error(kl, true_kl) < 1e-6 and error(grad, true_grad) < 1e-5


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 2, 37, 61)], ids=str)
def test_equal_maps_give_exactly_zero(shape, poisoned):
    z, _, upstream = drawn(shape)
    kl, grad = run(z, z.clone(), upstream, 1.0)
    assert (kl == 0).all() and (grad == 0).all()


def test_every_run_gives_the_same_bits():
    z, t, upstream = drawn((1, 2, 37, 61))
    first = run(z, t, upstream, 4.0)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(z, t, upstream, 4.0), strict=True))


def test_asked_for_by_name_it_is_differentiable_also_from_strided_maps():
    z, t, upstream = drawn((2, 4, 5, 3))
    z, t = z.transpose(2, 3).requires_grad_(), t.transpose(2, 3)
    found = channel_kl(z, t, temperature=2.0, using="triton")
    (found * upstream).sum().backward()
    true_kl, true_grad = expected(z.detach(), t, upstream, 2.0)
    assert error(found.detach(), true_kl) < 1e-6 and error(z.grad, true_grad) < 2e-6


def test_the_operation_keeps_its_promises_to_torch():
    z, t, _ = drawn((1, 2, 3, 4))
    torch.library.opcheck(fused.forward, (z.requires_grad_(), t, 2.0, "triton"))


def test_a_compiled_call_equals_an_eager_one():
    z, t, upstream = drawn((1, 2, 5, 4))

    def grad(call):
        v = z.clone().requires_grad_()
        return torch.autograd.grad((call(v, t, temperature=3.0, using="triton") * upstream).sum(), v)[0]

    assert torch.equal(grad(channel_kl), grad(torch.compile(channel_kl, fullgraph=True, backend="aot_eager")))
