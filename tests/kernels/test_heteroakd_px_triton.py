"""heteroakd_px's Triton kernels against the reference in float64, their memory filled with nonsense before."""

import pytest
import torch

pytest.importorskip("triton")

from kernels.heteroakd_px import FORMS, fused, heteroakd_px

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLOSE = 1e-6 if DEVICE == "cpu" else 2e-6  # of loss maps; on a GPU each exp2 and each division is up to 2 units in the last place off
SHAPES = [(2, 3, 4, 5), (1, 19, 3, 2), (1, 1, 2, 2), (2, 2, 9, 15)]  # the last: two blocks of pixels, the border inside a block


def drawn(shape, scale=3.0, soft=False):
    batch, classes, h, w = shape
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(shape, generator=g) * scale for _ in range(2))
    labels = torch.randint(0, classes, (batch, h, w), generator=g)
    labels[torch.rand(labels.shape, generator=g) < 0.3] = 255
    if soft:
        labels = torch.rand(shape, generator=g).softmax(1) * (labels != 255)[:, None]
    return [v.to(DEVICE) for v in (s, t, labels)], torch.randn(batch, h, w, generator=g).to(DEVICE)


def run(tensors, upstream, using, temperature=4.0, form="wce"):
    """The map and the student's gradient of sum(upstream * map)."""
    s, *others = tensors
    s = s.detach().requires_grad_()
    found = heteroakd_px(s, *others, temperature=temperature, form=form, using=using)
    (found * upstream).sum().backward()
    return found.detach(), s.grad


def off(found, expected, least=0.0):
    """|| found - expected || / || expected ||, or / `least`: what is small because large terms cancel has their absolute error."""
    return ((found.double() - expected).norm() / expected.norm().clamp(min=max(least, 1e-3))).item()


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "shares"])
@pytest.mark.parametrize(("form", "temperature"), [("wce", 4.0), ("wkl", 1.0), ("bernoulli", 2.0)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_equal_the_reference_in_float64(shape, form, temperature, soft, poisoned):
    tensors, upstream = drawn(shape, soft=soft)
    expected = run([v.double() if v.is_floating_point() else v for v in tensors], upstream, "reference", temperature, form)
    found, gradient = run(tensors, upstream, "triton", temperature, form)
    assert off(found, expected[0], least=form == "wkl") < CLOSE and off(gradient, expected[1]) < 2e-6


# the interpreter cuts the last bits off where a GPU rounds: at most one part in 2^7 of a bfloat16, 2^10 of a float16
@pytest.mark.parametrize(("dtype", "gradients"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
@pytest.mark.parametrize("form", FORMS)
def test_narrow_logits_are_computed_wide(form, dtype, gradients, poisoned):
    (s, t, labels), upstream = drawn(SHAPES[0])
    s, t = s.to(dtype), t.to(dtype)
    expected = run((s.double(), t.double(), labels), upstream, "reference", 2.0, form)
    found, gradient = run((s, t, labels), upstream, "triton", 2.0, form)
    assert found.dtype == torch.float32 and gradient.dtype == dtype
    assert off(found, expected[0], least=form == "wkl") < CLOSE and off(gradient, expected[1]) < gradients


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("form", FORMS)
def test_all_ignored_labels_leave_zeros_of_any_upstream_gradient(form, kind, poisoned):
    (s, t, labels), upstream = drawn(SHAPES[0])
    found, gradient = run((s, t, torch.full_like(labels, 255).to(kind)), upstream * float("inf"), "triton", form=form)
    assert not found.any() and not gradient.any()


@pytest.mark.parametrize("form", FORMS)
def test_large_logits(form, poisoned):
    tensors, upstream = drawn(SHAPES[0], scale=60.0)
    expected = run([v.double() if v.is_floating_point() else v for v in tensors], upstream, "reference", 1.0, form)
    found, gradient = run(tensors, upstream, "triton", 1.0, form)
    assert off(found, expected[0]) < 2e-5 and off(gradient, expected[1]) < 2e-5


def test_repeated_runs_and_other_memory_orders_are_equal_to_the_bit():
    (s, t, labels), upstream = drawn(SHAPES[0])
    first = run((s, t, labels), upstream, "triton")
    s, t = (v.to(memory_format=torch.channels_last) for v in (s, t))
    again = run((s, t, labels.mT.contiguous().mT), upstream.mT.contiguous().mT, "triton")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_the_operation_is_sound_for_pytorch_and_compiles_to_one_graph():
    (s, t, labels), upstream = drawn((1, 2, 2, 3))
    s.requires_grad_()
    torch.library.opcheck(fused.forward, (s, t, labels, 2.0, "wce", "triton"))
    whole = torch.compile(lambda z: heteroakd_px(z, t, labels, temperature=2.0, using="triton"), fullgraph=True, backend="aot_eager")
    found = whole(s)
    (found * upstream).sum().backward()
    expected = run((s, t, labels), upstream, "triton", 2.0)
    assert torch.equal(found, expected[0]) and torch.equal(s.grad, expected[1])
