"""similarity_kl's Triton kernels against the float64 reference: ragged tiles, unlike channels, several chunks of channels."""

import pytest
import torch
from torch.nn.functional import normalize

from kernels.similarity_kl import fused, similarity_kl
from kernels.similarity_kl.reference import similarity_kl as truth

pytest.importorskip("triton")
from kernels.similarity_kl import triton_

# numpy on rows beyond the last pixel, which are dropped
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{words}:RuntimeWarning") for words in ("overflow encountered", "invalid value encountered")
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# B, M, Ds, Dt, temperature: two ragged tiles, tiles that fit, fewer pixels than a tile, channels that fill no tile
CASES = [(2, 70, 32, 48, 0.1), (1, 64, 16, 16, 0.5), (3, 5, 7, 33, 0.5), (1, 1, 40, 3, 0.1), (2, 33, 64, 20, 0.05)]


def drawn(case, dtype=torch.float32):
    """Rows of length 1, and an upstream gradient."""
    images, pixels, ds, dt, temperature = case
    generator = torch.Generator().manual_seed(6)
    student, teacher = (normalize(torch.randn(images, pixels, d, generator=generator) + 0.3, dim=-1).to(DEVICE, dtype) for d in (ds, dt))
    return student, teacher, torch.tensor(-2.3, device=DEVICE), temperature


def run(student, teacher, upstream, temperature):
    loss, zs, zt = triton_.forward(student, teacher, temperature)
    return loss, triton_.backward(student, teacher, zs, zt, upstream, temperature)


def expected(student, teacher, upstream, temperature):
    student = student.double().requires_grad_()
    loss = truth(student, teacher.double(), temperature)
    return loss.detach(), torch.autograd.grad(loss * upstream, student)[0]


def near(found, true, tolerance, scale=0.0):
    assert found.isfinite().all()
    return (found.double() - true).norm() <= tolerance * max(true.norm().item(), scale)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_equal_the_float64_reference(case, poisoned):
    given = drawn(case)
    (loss, grad), (true_loss, true_grad) = run(*given), expected(*given)
    assert near(loss, true_loss, 1e-6, scale=1.0)  # a small loss is a difference of logarithms near 10
    assert near(grad, true_grad, 2e-6, scale=1.0 if case[1] == 1 else 0.0)  # of one pixel the gradient is 0


def test_the_gradient_of_many_channels_is_made_in_chunks(poisoned, monkeypatch):
    given = drawn((2, 33, 40, 24, 0.1))
    monkeypatch.setattr(triton_, "MOST", 16)  # three chunks, the last of 8
    assert near(run(*given)[1], expected(*given)[1], 2e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 5e-3), (torch.float16, 1e-3)], ids=str)
def test_half_precision_features_have_float32_sums(dtype, tolerance, poisoned):
    given = drawn((2, 35, 20, 48, 0.1), dtype)
    (loss, grad), (true_loss, true_grad) = run(*given), expected(*given)
    assert loss.dtype == torch.float32 and grad.dtype == dtype
    assert near(loss, true_loss, 1e-6, scale=1.0) and near(grad, true_grad, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3)], ids=str)
def test_opposite_features_at_the_lowest_temperature_and_features_of_length_zero_stay_finite(dtype, tolerance, poisoned):
    student, teacher, upstream, _ = drawn((2, 5, 8, 8, 0.025), dtype)
    student[0], student[1], student[0, 0] = student[0, 1], -student[0, 1], 0.0
    (loss, grad), (true_loss, true_grad) = run(student, teacher, upstream, 0.025), expected(student, teacher, upstream, 0.025)
    assert near(loss, true_loss, 1e-6, scale=1.0) and near(grad, true_grad, tolerance)


def test_equal_networks_have_no_loss_and_no_gradient(poisoned):
    student, _, upstream, temperature = drawn(CASES[4])
    loss, grad = run(student, student.clone(), upstream, temperature)
    assert abs(loss.item()) < 1e-7 and grad.abs().max() < 1e-7


def test_every_run_gives_the_same_bits():
    given = drawn(CASES[2])
    assert all(torch.equal(a, b) for a, b in zip(run(*given), run(*given), strict=True))


def test_tiles_of_another_size_give_the_same_result(monkeypatch):
    given = drawn((2, 37, 20, 36, 0.1))
    for table in (triton_.FORWARD, triton_.BACKWARD):
        monkeypatch.setitem(table, 4, table[4] | {"BM": 16, "BN": 64, "BK": 16, "PRECISION": "tf32"})  # which the interpreter ignores
    true = expected(*given)
    tolerance = 2e-6 if DEVICE == "cpu" else 1e-2
    assert all(near(found, wanted, tolerance) for found, wanted in zip(run(*given), true, strict=True))


def test_asked_for_by_name_it_is_differentiable_also_from_maps_of_any_length():
    generator = torch.Generator().manual_seed(7)
    student, teacher = (torch.randn(2, c, 3, 5, generator=generator).mul(4).to(DEVICE) for c in (6, 9))
    grads = []
    for using in ("reference", "triton"):
        v = student.clone().requires_grad_()
        similarity_kl(v, teacher, temperature=0.1, using=using).backward()
        grads.append(v.grad.double())
    assert near(grads[1], grads[0], 5e-6)


def test_the_operation_keeps_its_promises_to_torch():
    student, teacher, _, temperature = drawn((1, 3, 4, 5, 0.1))
    torch.library.opcheck(fused.forward, (student.requires_grad_(), teacher, temperature, "triton"))


def test_a_compiled_call_equals_an_eager_one():
    student, teacher, upstream, temperature = drawn((1, 3, 4, 5, 0.1))

    def grad(call):
        v = student.clone().requires_grad_()
        return torch.autograd.grad(call(v, teacher, temperature=temperature, using="triton") * upstream, v)[0]

    assert torch.equal(grad(similarity_kl), grad(torch.compile(similarity_kl, fullgraph=True, backend="aot_eager")))
