"""upsample_ce_kl's Triton kernels against the reference in float64: in Triton's interpreter, or on the GPU where there is one.

The interpreter takes about a second for a thousand pixels: every case is as small as what it asks.
"""

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("triton")

from kernels import tuned
from kernels.tables import axis
from kernels.upsample_ce_kl import fused, plan, triton_, upsample_ce_kl

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def guarded(guard):
    guard(triton_)


def drawn(b, c, grid, teacher_grid, size, dtype=torch.float32, sigma=3.0):
    """Student, teacher, labels with a fifth ignored, and signed gradients of ce and kl from above."""
    draw = torch.Generator().manual_seed(0)
    z = (torch.randn(b, c, *grid, generator=draw) * sigma).to(DEVICE, dtype)
    t = None if teacher_grid is None else (torch.randn(b, c, *teacher_grid, generator=draw) * sigma).to(DEVICE, dtype)
    labels = torch.randint(c, (b, *size), generator=draw)
    labels[torch.rand(labels.shape, generator=draw) < 0.2] = 255
    above = [torch.randn(labels.shape, generator=draw).to(DEVICE) for _ in range(2)]
    return z, t, labels.to(DEVICE, torch.uint8), *above


def run(z, t, labels, a, b, using="triton", **settings):
    """ce, kl or None, and the student's gradient of sum(a ce + b kl)."""
    z = z.detach().requires_grad_()
    ce, kl = upsample_ce_kl(z, t, labels, using=using, **settings)
    torch.autograd.backward([ce] if kl is None else [ce, kl], [a.to(ce.dtype)] if kl is None else [a.to(ce.dtype), b.to(ce.dtype)])
    return ce.detach(), None if kl is None else kl.detach(), z.grad


def truth(z, t, *rest, **settings):
    return run(z.double(), None if t is None else t.double(), *rest, using="reference", **settings)


def assert_near(found, wanted, tolerance, floor=0.0):
    """In the norm, and ten times as far at the worst place; what is smaller than `floor` is held to what the floor is held to."""
    assert found.isfinite().all()
    off, size = found.double() - wanted, wanted.abs().clamp(min=floor)
    assert off.norm() <= tolerance * size.norm() and off.abs().max() <= 10 * tolerance * size.max(), off.norm() / size.norm()


CASES = {
    "stride 4": ((2, 5, (2, 3), (2, 3), (8, 12)), 1.0, False),
    "one class at a time is left over": ((1, 6, (2, 2), (2, 2), (7, 5)), 3.0, False),
    "corners aligned, quads of five": ((1, 2, (3, 3), (3, 3), (10, 9)), 2.0, True),
    "fractional scales": ((1, 3, (5, 3), (5, 3), (13, 10)), 0.5, False),
    "stride 8, in two turns": ((1, 2, (2, 2), (2, 2), (16, 16)), 4.0, False),
    "a teacher at half the resolution": ((1, 3, (4, 4), (2, 2), (8, 9)), 4.0, False),
    "a teacher on an odd grid, corners aligned": ((1, 4, (2, 3), (3, 4), (6, 8)), 1.0, True),
    "no upsampling": ((2, 3, (4, 5), (4, 5), (4, 5)), 2.0, False),
    "downwards": ((1, 3, (7, 9), (4, 4), (4, 5)), 1.0, False),
    "a single value": ((1, 4, (1, 1), (1, 1), (3, 5)), 2.0, False),
    "a single label": ((3, 6, (3, 2), (3, 2), (1, 1)), 2.0, True),
    "one class": ((1, 1, (2, 2), (2, 2), (4, 4)), 2.0, False),
    "no teacher": ((2, 7, (2, 3), None, (8, 9)), 4.0, False),
}


@pytest.mark.parametrize(("shapes", "temperature", "align"), CASES.values(), ids=CASES)
def test_values_and_gradients_equal_the_reference_in_float64(shapes, temperature, align):
    given, settings = drawn(*shapes), {"temperature": temperature, "align_corners": align}
    ce, kl, grad = run(*given, **settings)
    wanted_ce, wanted_kl, wanted_grad = truth(*given, **settings)
    alone = 1.0 if shapes[1] == 1 else 0.0  # one class: all is 0, between logits of size 1
    assert_near(ce, wanted_ce, 1e-6, floor=1.0)  # a loss near 0 is a difference of logits: it cannot be nearer than they are
    assert_near(grad, wanted_grad, 2e-6, floor=alone)
    if shapes[3] is None:
        assert kl is wanted_kl is None
    else:
        assert_near(kl, wanted_kl, 1e-6, floor=alone)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 5e-3), (torch.float16, 1e-3)])  # the interpreter cuts bfloat16 off
def test_half_precision_is_rounded_once_when_the_gradient_is_written(dtype, tolerance):
    given, settings = drawn(1, 5, (3, 4), (3, 4), (6, 8), dtype), {"temperature": 2.0}
    ce, kl, grad = run(*given, **settings)
    wanted_ce, wanted_kl, wanted_grad = truth(*given, **settings)
    assert ce.dtype == kl.dtype == torch.float32 and grad.dtype == dtype
    assert_near(ce, wanted_ce, 1e-6)
    assert_near(kl, wanted_kl, 1e-6)
    assert_near(grad, wanted_grad, tolerance)


@pytest.mark.parametrize(("sigma", "tolerance"), [(60, 1e-5), (3000, 2e-4)])  # float32 holds a logit of 3000 to 1e-4
def test_large_logits_lose_no_more_than_their_own_rounding(sigma, tolerance):
    given = drawn(1, 4, (2, 2), (2, 2), (8, 7), sigma=sigma)
    for found, wanted in zip(run(*given, temperature=2.0), truth(*given, temperature=2.0), strict=True):
        assert_near(found, wanted, tolerance)


def test_no_cut_into_blocks_and_segments_changes_a_bit(monkeypatch):
    given = drawn(1, 3, (5, 3), (5, 3), (7, 7))
    whole = run(*given, temperature=2.0)
    again = run(*given, temperature=2.0)
    for name, small in {"COLUMNS": 4, "LANES": 16, "ROWS": 2, "FEWEST": 1}.items():
        monkeypatch.setattr(plan, name, small)
    for once, twice, cut in zip(whole, again, run(*given, temperature=2.0), strict=True):
        assert torch.equal(once, twice) and torch.equal(once, cut)


def test_an_ignored_label_costs_nothing_and_moves_nothing():
    z, t, labels, a, b = drawn(1, 3, (2, 2), None, (5, 6))
    ce, _, grad = run(z, t, torch.full_like(labels, 255), a, b)
    assert not ce.any() and not grad.any()


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_a_label_that_is_no_class_is_never_an_index(kind):
    z, t, labels, a, b = drawn(1, 3, (2, 2), None, (5, 6))
    expected = run(z, t, labels, a, b)[0]
    labels = torch.where(labels == 255, -100, labels.to(kind))
    labels[0, 0, :3] = torch.tensor([3, 2**30, -1])  # not ignored: where the reference raises, the loss is NaN
    ce = run(z, t, labels, a, b, ignore=-100)[0]
    assert ce[0, 0, :3].isnan().all() and torch.equal(ce[0, 1:], expected[0, 1:]) and torch.equal(ce[0, 0, 3:], expected[0, 0, 3:])


def test_nothing_is_to_be_learnt_from_an_equal_teacher():
    z, _, labels, a, b = drawn(1, 5, (3, 2), None, (7, 6))
    _, kl, grad = run(z, z.clone(), labels, torch.zeros_like(a), b, temperature=3.0)
    assert not kl.any() and not grad.any()


def test_the_gradient_sums_to_zero_over_classes_and_is_linear_in_what_comes_from_above():
    z, t, labels, a, b = drawn(1, 4, (2, 3), (2, 3), (6, 7))
    grad = run(z, t, labels, a, b)[2]
    assert grad.sum(1).norm() < 1e-6 * grad.norm()
    assert_close(run(z, t, labels, -2 * a, -2 * b)[2], -2 * grad, rtol=0, atol=0)
    assert not run(z, t, labels, 0 * a, 0 * b)[2].any()
    z.requires_grad_()
    upsample_ce_kl(z, t, labels, using="triton").ce.backward(a)  # and the other map may be left aside
    assert torch.equal(z.grad, run(z, t, labels, a, 0 * b)[2])


def test_other_strides_in_memory_and_autocast_change_nothing():
    z, t, labels, a, b = drawn(1, 3, (2, 3), (2, 3), (5, 6))
    plain = run(z, t, labels, a, b)
    with torch.autocast(DEVICE, torch.bfloat16):
        last, above = z.contiguous(memory_format=torch.channels_last), a.mT.contiguous().mT
        strided = run(last, t.contiguous(memory_format=torch.channels_last), labels, above, b[:, :1, :1].expand_as(b))
    assert torch.equal(plain[0], strided[0]) and torch.equal(plain[1], strided[1])
    assert_near(strided[2], truth(z, t, labels, a, b[:, :1, :1].expand_as(b))[2], 2e-6)


@pytest.mark.parametrize("teacher", [(2, 2), None], ids=["teacher", "no teacher"])
def test_opcheck(teacher, monkeypatch):
    monkeypatch.setattr(triton_, "torch", torch)  # a guarded output begins inside its memory, which a fake one does not
    z, t, labels, a, b = drawn(1, 2, (2, 2), teacher, (3, 4))
    rest = (2.0, False, 255, "triton")
    torch.library.opcheck(fused.forward, (z.requires_grad_(), t, labels, *rest))
    _, _, *stats = (map_.detach() for map_ in fused.forward(z, t, labels, *rest))
    torch.library.opcheck(fused.backward, (z.detach(), t, labels, *stats, a, b if t is not None else b.new_empty(0), *rest))


def test_compiled_as_one_graph_it_gives_the_same_bits():
    z, t, labels, a, b = drawn(1, 3, (2, 2), (2, 2), (5, 4))

    def weighted(z):
        ce, kl = fused.upsample_ce_kl(z, t, labels, 2.0, False, 255, "triton")
        return (a * ce + b * kl).mean()

    losses, grads = [], []
    for function in (weighted, torch.compile(weighted, fullgraph=True, backend="aot_eager")):
        leaf = z.clone().requires_grad_()
        losses.append(function(leaf))
        grads.append(torch.autograd.grad(losses[-1], leaf)[0])
    assert torch.equal(*losses) and torch.equal(*grads)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize(("h", "th", "H"), [(128, 128, 512), (64, 64, 512), (128, 64, 512), (7, 5, 50), (9, 4, 5), (1, 1, 3), (4, 4, 4)])
def test_row_groups_hold_every_row_once_and_never_two_quads(h, th, H, align):
    groups = plan.row_groups(h, th, H, align, 4, "cpu").tolist()
    rows = [range(first, first + count) for first, count in groups]
    assert [row for group in rows for row in group] == list(range(H)) and max(map(len, rows)) <= 4
    for quad in (axis(h, H, align).quad.tolist(), axis(th, H, align).quad.tolist()):
        assert all(len({quad[row] for row in group}) == 1 for group in rows)


def test_configurations_are_the_ones_that_were_counted():
    found = [plan.forward(torch.empty(1, 19, h, 1), h, 512, False, {}) for h in (64, 128, 256, 512)]
    assert [(config["CC"], config["R"]) for config in found] == [(2, 8), (4, 4), (4, 2), (4, 1)]
    assert [plan.backward(torch.empty(1, C, 1, 1), 4, {})["CC"] for C in (1, 2, 3, 9, 19, 150)] == [1, 2, 3, 3, 4, 4]
    assert [plan.unrolled(most, False) for most in (1, 4, 5, 6, 7, 8, 9, 16, 33)] == [1, 4, 5, 3, 4, 4, 3, 4, 3]
    assert plan.unrolled(5, True) == 3
    assert plan.marches(8, 128, 256, 5) == (8, 16) and plan.marches(1, 3, 3, 1) == (1, 3)


@pytest.mark.parametrize("space", [{"CC": 2, "R": 8, "BX": 4}, {"CC": 4, "R": 2, "BX": 64}, {"CC": 3, "BL": 16, "RS": 2}], ids=str)
def test_every_kind_of_configuration_gives_the_numbers_of_the_reference(space, monkeypatch):
    ships = tuned.configuration
    monkeypatch.setattr(
        tuned, "configuration", lambda *asked: (config := ships(*asked)) | {name: space.get(name, config[name]) for name in config}
    )
    given = drawn(1, 5, (3, 3), (3, 3), (9, 10))
    for found, wanted, tolerance in zip(run(*given, temperature=2.0), truth(*given, temperature=2.0), (1e-6, 1e-6, 2e-6), strict=True):
        assert_near(found, wanted, tolerance, floor=1.0)
