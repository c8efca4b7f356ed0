"""segmented_mean's Triton kernels against the float64 reference: ragged blocks, absent classes, all kinds of labels."""

import pytest
import torch

from kernels.segmented_mean import fused, segmented_mean
from kernels.segmented_mean.reference import segmented_mean as truth

pytest.importorskip("triton")
from kernels.segmented_mean import triton_

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# B, C, h, w, classes: several blocks with a ragged end, a block that fits, one pixel, one class, many classes
SHAPES = [(2, 3, 37, 61, 5), (1, 2, 32, 64, 3), (1, 4, 1, 1, 1), (3, 1, 1, 9, 2), (1, 2, 9, 11, 150)]


def drawn(shape, per_image=True, dtype=torch.float32, kind=torch.uint8):
    images, channels, h, w, classes = shape
    generator = torch.Generator().manual_seed(5)
    features = (torch.randn(images, channels, h, w, generator=generator) + 1).to(DEVICE, dtype)  # a mean far from 0: no cancelling
    labels = torch.randint(0, classes, (images, h, w), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = 255
    labels[labels == classes // 2] = 0  # one class is nowhere, where there are several
    rows = (images, classes) if per_image else (classes,)
    return features, labels.to(DEVICE, kind), torch.randn(*rows, channels, generator=generator).to(DEVICE), classes


def run(features, labels, upstream, classes):
    means, counts = triton_.forward(features, labels, classes, upstream.dim() == 3)
    return means, counts, triton_.backward(upstream, labels, counts, features.dtype)


def expected(features, labels, upstream, classes):
    features = features.double().requires_grad_()
    means, counts = truth(features, labels, classes, upstream.dim() == 3)
    return means.detach(), counts, torch.autograd.grad((means * upstream).sum(), features)[0]


def error(found, true):
    assert found.isfinite().all()
    return ((found.double() - true).norm() / true.norm().clamp(min=1e-12)).item()


@pytest.mark.parametrize("per_image", [True, False], ids=["per image", "over all"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_equal_the_float64_reference(shape, per_image, poisoned):
    case = drawn(shape, per_image)
    (means, counts, grad), (true_means, true_counts, true_grad) = run(*case), expected(*case)
    assert torch.equal(counts, true_counts)
    assert error(means, true_means) < 1e-6 and error(grad, true_grad) < 2e-6
    assert (means[counts == 0] == 0).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 5e-3), (torch.float16, 1e-3)], ids=str)
def test_half_precision_features_are_summed_in_float32_and_only_the_gradient_is_rounded(dtype, tolerance, poisoned):
    case = drawn((2, 3, 20, 21, 4), dtype=dtype)
    (means, _, grad), (true_means, _, true_grad) = run(*case), expected(*case)
    assert means.dtype == torch.float32 and grad.dtype == dtype
    assert error(means, true_means) < 1e-6 and error(grad, true_grad) < tolerance


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_every_kind_of_label_gives_the_same_bits(kind):
    case = drawn(SHAPES[3])
    for found, narrow in zip(run(*drawn(SHAPES[3], kind=kind)), run(*case), strict=True):
        assert torch.equal(found, narrow)


@pytest.mark.parametrize(("kind", "nothing"), [(torch.uint8, 255), (torch.int32, -1), (torch.int64, 2**32), (torch.int64, 5)])
def test_a_label_that_names_no_class_is_never_used_as_an_index_and_leaves_no_gradient(kind, nothing, poisoned):
    features, labels, upstream, classes = drawn((2, 3, 5, 7, 5), kind=kind)
    means, counts, grad = run(features, torch.full_like(labels, nothing), upstream, classes)
    assert (means == 0).all() and (counts == 0).all() and (grad == 0).all()


def test_every_run_gives_the_same_bits():
    case = drawn(SHAPES[0])
    first = run(*case)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(*case), strict=True))


def test_asked_for_by_name_it_is_differentiable_also_from_strided_features():
    features, labels, upstream, classes = drawn((2, 3, 5, 4, 3))
    features, labels = features.transpose(2, 3).requires_grad_(), labels.transpose(1, 2)
    found = segmented_mean(features, labels, classes, using="triton")
    (found.means * upstream).sum().backward()
    means, counts, grad = expected(features.detach(), labels, upstream, classes)
    assert torch.equal(found.counts, counts) and error(found.means.detach(), means) < 1e-6 and error(features.grad, grad) < 2e-6


@pytest.mark.parametrize("per_image", [True, False], ids=["per image", "over all"])
def test_the_operation_keeps_its_promises_to_torch(per_image):
    features, labels, _, classes = drawn((1, 2, 3, 4, 3), per_image)
    torch.library.opcheck(fused.forward, (features.requires_grad_(), labels, classes, per_image, "triton"))


def test_a_compiled_call_equals_an_eager_one():
    features, labels, upstream, classes = drawn((1, 2, 5, 4, 3))

    def grad(call):
        v = features.clone().requires_grad_()
        return torch.autograd.grad((call(v, labels, classes, using="triton").means * upstream).sum(), v)[0]

    assert torch.equal(grad(segmented_mean), grad(torch.compile(segmented_mean, fullgraph=True, backend="aot_eager")))
