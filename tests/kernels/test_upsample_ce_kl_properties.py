"""What must hold for upsample_ce_kl whatever computes it, without knowing a single value."""

import pytest
import torch

from kernels.upsample_ce_kl import upsample_ce_kl

USING = ["reference", "cpu"]
TEMPERATURES = [1.0, 3.0, 4.0]


def drawn(scale=3.0, size=(13, 18), seed=0):
    made = torch.Generator().manual_seed(seed)
    z, t = (scale * torch.randn(2, 6, 4, 5, generator=made) for _ in range(2))
    labels = torch.randint(0, 6, (2, *size), generator=made)
    labels[torch.rand(labels.shape, generator=made) < 0.2] = 255
    return z, t, labels.to(torch.uint8), *(torch.randn(labels.shape, generator=made) for _ in range(2))


def gradient(z, t, labels, a, b, **how):
    """Of sum(a ce + b kl); without a teacher of sum(a ce)."""
    z = z.clone().requires_grad_()
    maps = upsample_ce_kl(z, t, labels, **how)
    loss = (a * maps.ce).sum() if t is None else (a * maps.ce + b * maps.kl).sum()
    loss.backward()
    return z.grad


def close(found, expected, share=5e-6):
    return (found - expected).norm() <= share * expected.norm()


pytestmark = pytest.mark.parametrize("using", USING)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_raising_all_classes_of_a_pixel_changes_nothing(using, temperature):
    z, t, labels, a, b = drawn()
    how = {"temperature": temperature, "using": using}
    assert gradient(z, t, labels, a, b, **how).sum(1).abs().max() < 1e-5, "the gradient over classes sums to zero"
    plain, raised = upsample_ce_kl(z, t, labels, **how), upsample_ce_kl(z + 7, t - 2, labels, **how)
    assert close(raised.ce, plain.ce) and close(raised.kl, plain.kl)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_student_equal_to_its_teacher_is_at_rest(using, temperature):
    z, _, labels, a, b = drawn()
    maps = upsample_ce_kl(z, z, labels, temperature=temperature, using=using)
    assert maps.kl.abs().max() < 1e-6
    assert gradient(z, z, labels, 0 * a, b, temperature=temperature, using=using).abs().max() < 1e-6


def test_where_all_labels_are_ignored_only_the_teacher_teaches(using):
    z, t, labels, a, b = drawn()
    ignored = torch.full_like(labels, 255)
    assert gradient(z, None, ignored, a, b, using=using).abs().max() == 0
    assert torch.equal(upsample_ce_kl(z, t, ignored, using=using).ce, torch.zeros(labels.shape))
    assert close(gradient(z, t, ignored, a, b, using=using), gradient(z, t, labels, 0 * a, b, using=using))


def test_no_weight_gives_no_gradient(using):
    z, t, labels, a, b = drawn()
    assert torch.equal(gradient(z, t, labels, 0 * a, 0 * b, temperature=2.0, using=using), torch.zeros_like(z))


def test_the_gradient_is_linear_in_the_weights(using):
    z, t, labels, a, b = drawn()
    how = {"temperature": 4.0, "using": using}
    both = gradient(z, t, labels, 3 * a, -2 * b, **how)
    apart = 3 * gradient(z, t, labels, a, 0 * b, **how) - 2 * gradient(z, t, labels, 0 * a, b, **how)
    assert close(both, apart)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("axis", [-1, -2])
def test_a_mirrored_image_has_the_mirrored_maps_and_gradient(using, axis, align):
    z, t, labels, a, b = drawn()
    how = {"temperature": 4.0, "align_corners": align, "using": using}
    mirrored = (v.flip(axis) for v in (z, t, labels, a, b))
    assert close(gradient(*mirrored, **how).flip(axis), gradient(z, t, labels, a, b, **how))


def test_the_order_of_classes_does_not_matter(using):
    z, t, labels, a, b = drawn()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    renamed = torch.where(labels == 255, 255, order.argsort()[labels.clamp(max=5).long()])
    found = gradient(z[:, order], t[:, order], renamed, a, b, temperature=2.0, using=using)
    assert close(found, gradient(z, t, labels, a, b, temperature=2.0, using=using)[:, order])


def test_a_temperature_is_a_division_of_both_logits(using):
    z, t, labels, *_ = drawn()
    assert close(upsample_ce_kl(z, t, labels, temperature=4.0, using=using).kl, upsample_ce_kl(z / 4, t / 4, labels, using=using).kl)


def test_an_upstream_gradient_that_is_one_number_equals_one_that_is_a_map(using):
    z, t, labels, *_ = drawn()
    ones = torch.ones(labels.shape)
    maps = upsample_ce_kl(z.requires_grad_(), t, labels, temperature=4.0, using=using)
    (0.5 * maps.ce.sum() + 2 * maps.kl.sum()).backward()
    assert close(z.grad, gradient(z.detach(), t, labels, 0.5 * ones, 2 * ones, temperature=4.0, using=using))


def test_any_weighting_of_pixels_has_its_gradient(using):
    """The hardest pixels of each network only (RDD), and a weighted mean: plain torch on the maps."""

    def loss(z, t, labels, using):
        maps = upsample_ce_kl(z, t, labels, temperature=2.0, using=using)
        hard = maps.ce.detach() >= maps.ce.detach().flatten().topk(40).values[-1]
        weight = (-maps.kl.detach()).exp()
        return (maps.ce * hard).sum() / hard.sum() + (weight * maps.kl).sum() / weight.sum()

    z, t, labels, *_ = drawn()
    found, truth = z.clone().requires_grad_(), z.double().requires_grad_()
    loss(found, t, labels, using).backward()
    loss(truth, t.double(), labels, "reference").backward()
    assert close(found.grad.double(), truth.grad)


def test_the_graph_may_be_walked_twice_and_joined_with_other_uses_of_the_logits(using):
    z, t, labels, a, b = drawn()
    z.requires_grad_()
    maps = upsample_ce_kl(z, t, labels, using=using)
    loss = (a * maps.ce + b * maps.kl).sum() + z.square().sum()
    loss.backward(retain_graph=True)
    once = z.grad.clone()
    loss.backward()
    assert close(z.grad, 2 * once) and close(once - 2 * z.detach(), gradient(z.detach(), t, labels, a, b, using=using), 2e-5)


def test_logits_in_any_layout_give_the_same(using):
    z, t, labels, a, b = drawn()
    plain = gradient(z, t, labels, a, b, using=using)
    last = gradient(z.to(memory_format=torch.channels_last), t.to(memory_format=torch.channels_last), labels, a, b, using=using)
    wider = torch.zeros(2, 6, 4, 10)
    wider[..., ::2] = z
    cut = wider[..., ::2].detach().requires_grad_()
    maps = upsample_ce_kl(cut, t, labels.transpose(1, 2).contiguous().transpose(1, 2), using=using)
    (a * maps.ce + b * maps.kl).sum().backward()
    assert close(last, plain) and close(cut.grad, plain)


def test_without_gradient_nothing_is_kept(using):
    z, t, labels, *_ = drawn()
    with torch.no_grad():
        assert upsample_ce_kl(z.requires_grad_(), t, labels, using=using).kl.grad_fn is None
