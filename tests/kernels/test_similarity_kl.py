"""similarity_kl against a loop over pixels in float64 that shares no code with it, and what its form for CPUs holds in memory."""

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import kl_div, normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels import choose
from kernels.similarity_kl import blocks, fused, similarity_kl

# B, M, Ds, Dt, temperature
CASES = [(2, 7, 5, 9, 0.1), (3, 5, 4, 4, 1.0), (1, 6, 3, 8, 0.05), (2, 1, 4, 2, 0.1), (4, 3, 1, 3, 0.5)]
FORMS = ["reference", "blocks"]


def by_hand(student, teacher, temperature):
    """The loss and its gradient for the student's features, float64, pixel by pixel."""
    images, pixels, _ = student.shape
    length = np.linalg.norm(student, axis=-1, keepdims=True)
    f, u = student / length, teacher / np.linalg.norm(teacher, axis=-1, keepdims=True)
    loss, grad = 0.0, np.zeros(f.shape)
    for i, j, m in np.ndindex(images, images, pixels):
        q, p = (np.exp(rows[j] @ rows[i, m] / temperature) for rows in (f, u))
        q, p = q / q.sum(), p / p.sum()
        loss += (p * np.log(p / q)).sum() / (images**2 * pixels)
        g = (q - p) / (temperature * images**2 * pixels)  # of the cosines of pixel m of image i with image j
        grad[i, m] += g @ f[j]
        grad[j] += g[:, None] * f[i, m]
    return loss, (grad - (grad * f).sum(-1, keepdims=True) * f) / length  # through the division by the length


def drawn(case, dtype=torch.float64):
    images, pixels, ds, dt, temperature = case
    rng = np.random.RandomState(4)
    student, teacher = (torch.tensor(rng.randn(images, pixels, d) * 3 + 0.5).to(dtype) for d in (ds, dt))
    return student.requires_grad_(), teacher, temperature


@pytest.mark.parametrize(("using", "dtype", "tolerance"), [("reference", torch.float64, 1e-12), *((v, torch.float32, 2e-6) for v in FORMS)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_equal_a_loop_over_pixels_under_any_upstream_gradient(case, using, dtype, tolerance):
    student, teacher, temperature = drawn(case, dtype)
    found = similarity_kl(student, teacher.requires_grad_(), temperature=temperature, using=using)
    (-3.7 * found).backward()
    loss, grad = by_hand(student.detach().double().numpy(), teacher.detach().double().numpy(), temperature)
    assert found.shape == () and found.dtype == dtype
    assert found.item() == pytest.approx(loss, rel=tolerance, abs=tolerance)
    assert np.linalg.norm(student.grad.numpy() + 3.7 * grad) <= tolerance * max(np.linalg.norm(3.7 * grad), 1.0)
    assert teacher.grad is None


@pytest.mark.parametrize("using", FORMS)
def test_maps_are_taken_as_rows_of_pixels(using):
    student, teacher = torch.randn(2, 4, 3, 5), torch.randn(2, 6, 3, 5)
    rows = [maps.permute(0, 2, 3, 1).reshape(2, 15, -1) for maps in (student, teacher)]
    torch.testing.assert_close(similarity_kl(student, teacher, temperature=0.1, using=using), similarity_kl(*rows, temperature=0.1))


@pytest.mark.parametrize("block", [1, 40, 1000], ids="{} cosines at once".format)
def test_the_size_of_the_blocks_changes_nothing(block, monkeypatch):
    student, teacher, temperature = drawn((3, 11, 6, 4, 0.1), torch.float32)

    def run(using):
        loss = similarity_kl(student, teacher, temperature=temperature, using=using)
        return loss.detach(), torch.autograd.grad(loss, student)[0]

    true = run("reference")
    monkeypatch.setattr(blocks, "BLOCK", block)
    torch.testing.assert_close(run("blocks"), true, rtol=2e-6, atol=1e-8)
    assert all(torch.equal(a, b) for a, b in zip(run("blocks"), run("blocks"), strict=True))


class Memory(TorchDispatchMode):
    """Bytes of the largest storage that was made, and of all that were alive at one time."""

    def __init__(self):
        super().__init__()
        self.alive, self.largest, self.peak = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)}
        made = {t.untyped_storage()._cdata: t.untyped_storage() for t in tree_leaves(out) if isinstance(t, torch.Tensor)}
        self.alive = {key: kept for key, kept in self.alive.items() if not kept[0].expired()}
        self.alive |= {key: (StorageWeakRef(s), s.nbytes()) for key, s in made.items() if key not in given}
        self.largest = max([self.largest, *(size for _, size in self.alive.values())])
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return out


def memory(call):
    with Memory() as seen:
        call()
    return seen


def test_no_matrix_of_cosines_is_kept(monkeypatch):
    images, pixels = 2, 400
    student, teacher = torch.randn(images, pixels, 8, requires_grad=True), torch.randn(images, pixels, 12)
    matrix = 4 * pixels**2
    monkeypatch.setattr(blocks, "BLOCK", pixels**2 // 10)
    assert memory(lambda: similarity_kl(student, teacher, temperature=0.1, using="reference").backward()).largest >= matrix
    seen = memory(lambda: similarity_kl(student, teacher, temperature=0.1, using="blocks").backward())
    assert 0 < seen.largest < matrix / 5 and seen.peak < matrix


def test_a_batch_of_8_at_64_x_128_stays_within_half_a_gibibyte():
    student, teacher = (torch.empty(8, 8192, 256, dtype=torch.bfloat16, device="meta") for _ in range(2))
    kept = [torch.empty(8, 8, 8192, device="meta") for _ in range(2)]
    upstream = torch.empty((), device="meta")
    assert memory(lambda: blocks.forward(student, teacher, 0.1)).peak < 2**29
    assert memory(lambda: blocks.backward(student, teacher, *kept, upstream, 0.1)).peak < 2**29


def test_without_a_compiler_it_still_computes_in_blocks(monkeypatch):
    monkeypatch.setattr(choose.native, "why_not", lambda: "it was not compiled")
    choose._variant.cache_clear()
    assert choose.choose("kernels.similarity_kl", "auto", torch.zeros(1)) == "blocks"
    choose._variant.cache_clear()


@pytest.mark.parametrize("using", FORMS)
def test_equal_networks_have_no_loss_and_no_gradient(using):
    student = torch.randn(2, 9, 5, requires_grad=True)
    loss = similarity_kl(student, 3 * student.detach(), temperature=0.1, using=using)
    loss.backward()
    assert abs(loss.item()) < 1e-6 and student.grad.abs().max() < 1e-6


@pytest.mark.parametrize("using", FORMS)
def test_opposite_features_at_the_lowest_temperature_and_features_of_length_zero_stay_finite(using):
    student, teacher = torch.ones(2, 3, 4), torch.randn(2, 3, 4)
    student[1], student[0, 0] = -1.0, 0.0
    loss = similarity_kl(student.requires_grad_(), teacher, temperature=0.025, using=using)
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


@pytest.mark.parametrize("using", FORMS)
def test_half_precision_rounds_the_unit_rows_and_the_gradient_and_nothing_else(using):
    student, teacher, temperature = drawn((2, 7, 5, 9, 0.1), torch.bfloat16)
    rounded = [normalize(v.detach().float(), dim=-1).bfloat16() for v in (student, teacher)]
    loss = similarity_kl(student, teacher, temperature=temperature, using=using)
    loss.backward()
    _, grad = by_hand(student.detach().double().numpy(), teacher.double().numpy(), temperature)
    assert loss.dtype == torch.float32 and student.grad.dtype == torch.bfloat16
    with torch.no_grad():
        cosines = [torch.einsum("imd,jnd->ijmn", f.double(), f.double()) / temperature for f in rounded]
        true = kl_div(*(c.log_softmax(-1) for c in cosines), reduction="sum", log_target=True) / (2 * 2 * 7)
    assert loss.item() == pytest.approx(true.item(), rel=1e-5)
    assert np.linalg.norm(student.grad.double().numpy() - grad) < 0.05 * np.linalg.norm(grad)  # the cosines' rounding, over T


@pytest.mark.parametrize("using", FORMS)
def test_autocast_around_the_call_changes_nothing(using):
    student, teacher, temperature = drawn(CASES[0], torch.float32)

    plain = similarity_kl(student, teacher, temperature=temperature, using=using)
    with torch.autocast("cpu", torch.bfloat16):
        inside = similarity_kl(student, teacher, temperature=temperature, using=using)
    assert torch.equal(plain, inside)
    assert torch.equal(*(torch.autograd.grad(loss, student)[0] for loss in (plain, inside)))


def test_gradcheck():
    student, teacher, temperature = drawn((2, 3, 4, 2, 0.3))
    assert torch.autograd.gradcheck(lambda v: similarity_kl(v, teacher, temperature=temperature), (student,))


def test_the_operation_keeps_its_promises_to_torch_and_compiles():
    student, teacher = (normalize(torch.randn(2, 7, d), dim=-1) for d in (5, 9))
    student, temperature = student.requires_grad_(), 0.1
    torch.library.opcheck(fused.forward, (student, teacher, temperature, "blocks"))
    compiled = torch.compile(similarity_kl, fullgraph=True, backend="aot_eager")
    grads = [torch.autograd.grad(f(student, teacher, temperature=0.1, using="blocks"), student)[0] for f in (similarity_kl, compiled)]
    assert torch.equal(*grads)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"student": torch.zeros(3, 4)}, r"student must be float \(B, M, D\) or \(B, D, h, w\)"),
        ({"teacher": torch.zeros(2, 5, 8, 8)}, "16 pixels in each of 2 images and teacher 64 in each of 2: bring one to the other's grid"),
        ({"temperature": 0.01}, "temperature must be at least 0.025"),
    ],
)
def test_a_wrong_call_is_told_what_was_expected(change, said):
    call = {"student": torch.zeros(2, 3, 4, 4), "teacher": torch.zeros(2, 5, 4, 4), "temperature": 0.1} | change
    with pytest.raises(ValueError, match=said):
        similarity_kl(**call)
