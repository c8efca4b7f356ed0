"""pixel_kl against a loop over pixels in float64."""

import numpy as np
import pytest
import torch

from kernels.pixel_kl import pixel_kl

SHAPES = [(2, 3, 4, 5), (1, 19, 3, 2), (2, 1, 2, 2), (1, 4, 1, 1)]


def softmax(v):
    e = np.exp(v - v.max())
    return e / e.sum()


def by_hand(student, teacher, auxiliary, upstream, temperature, direction):
    """kl, discrepancy (B, h, w) and the student's gradient of sum(upstream * kl)."""
    kl, apart, grad = np.zeros(upstream.shape), np.zeros(upstream.shape), np.zeros(student.shape)
    for i, y, x in np.ndindex(*upstream.shape):
        q, p = softmax(student[i, :, y, x] / temperature), softmax(teacher[i, :, y, x] / temperature)
        kl[i, y, x] = (p * np.log(p / q)).sum()
        grad[i, :, y, x] = upstream[i, y, x] * (q - p) / temperature
        main, aux = softmax(teacher[i, :, y, x]), softmax(auxiliary[i, :, y, x])
        apart[i, y, x] = (aux * np.log(aux / main)).sum() if direction == "aux_to_main" else (main * np.log(main / aux)).sum()
    return kl, apart, grad


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, None)])
@pytest.mark.parametrize(("temperature", "direction"), [(1.0, "aux_to_main"), (4.0, "main_to_aux")])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_equal_a_loop_over_pixels(shape, temperature, direction, dtype, tolerance):
    rng = np.random.RandomState(0)
    logits = [torch.tensor(rng.randn(*shape) * 4).to(dtype).requires_grad_() for _ in range(3)]
    upstream = rng.randn(shape[0], *shape[2:])
    found = pixel_kl(*logits, temperature=temperature, direction=direction)
    (found.kl * torch.tensor(upstream)).sum().backward()
    kl, apart, grad = by_hand(*(v.detach().double().numpy() for v in logits), upstream, temperature, direction)
    np.testing.assert_allclose(found.kl.detach().numpy(), kl, atol=tolerance or 1e-5)
    np.testing.assert_allclose(found.discrepancy.numpy(), apart, atol=tolerance or 1e-5)
    np.testing.assert_allclose(logits[0].grad.double().numpy(), grad, atol=tolerance or 1e-5, rtol=0 if tolerance else 2**-8)
    assert not found.discrepancy.requires_grad and logits[1].grad is None and logits[2].grad is None


def test_without_auxiliary_logits_there_is_no_discrepancy():
    assert pixel_kl(torch.randn(1, 3, 2, 2), torch.randn(1, 3, 2, 2), temperature=1.0).discrepancy is None


def test_agreement_is_zero():
    z = torch.randn(1, 5, 3, 2, dtype=torch.float64, requires_grad=True)
    found = pixel_kl(z, z + 7.0, z - 5.0, temperature=3.0)  # a constant per pixel changes nothing
    found.kl.sum().backward()
    assert max(found.kl.abs().max(), found.discrepancy.abs().max(), z.grad.abs().max()) < 1e-14


def test_autocast_around_the_call_changes_nothing():
    z, t = torch.randn(1, 5, 2, 2), torch.randn(1, 5, 2, 2)
    plain = pixel_kl(z, t, temperature=4.0).kl
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pixel_kl(z, t, temperature=4.0).kl, plain)


def test_gradcheck():
    z, t = torch.randn(1, 3, 2, 3, dtype=torch.float64, requires_grad=True), torch.randn(1, 3, 2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: pixel_kl(v, t, temperature=2.5).kl, (z,))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"student": torch.zeros(3, 4, 4)}, r"student must be float \(B, C, h, w\), found torch.float32 \(3, 4, 4\)"),
        ({"teacher": torch.zeros(1, 3, 2, 2)}, r"teacher must have the student's shape \(1, 3, 4, 4\), found \(1, 3, 2, 2\)"),
        ({"auxiliary": torch.zeros(1, 2, 4, 4)}, "auxiliary must have the student's shape"),
        ({"temperature": -1.0}, "temperature must be above 0"),
        ({"direction": "both"}, r"direction must be one of \('aux_to_main', 'main_to_aux'\), found 'both'"),
    ],
)
def test_a_wrong_call_is_told_what_was_expected(change, said):
    call = {"student": torch.zeros(1, 3, 4, 4), "teacher": torch.zeros(1, 3, 4, 4), "temperature": 1.0} | change
    with pytest.raises(ValueError, match=said):
        pixel_kl(**call)
