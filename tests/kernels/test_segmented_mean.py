"""segmented_mean against a loop over pixels in float64 that shares no code with it."""

import numpy as np
import pytest
import torch

from kernels.segmented_mean import segmented_mean

# B, C, h, w, classes
SHAPES = [(2, 3, 4, 5, 6), (1, 7, 5, 3, 19), (3, 1, 1, 9, 2), (1, 4, 1, 1, 1)]


def by_hand(features, labels, upstream, classes, per_image):
    """means, counts and the features' gradient of sum(upstream * means), float64, pixel by pixel."""
    images, channels, h, w = features.shape
    owner = list(range(images)) if per_image else [0] * images
    sums, counts = np.zeros((max(owner) + 1, classes, channels)), np.zeros((max(owner) + 1, classes), int)
    pixels = [(b, y, x, labels[b, y, x]) for b, y, x in np.ndindex(images, h, w) if 0 <= labels[b, y, x] < classes]
    for b, y, x, k in pixels:
        sums[owner[b], k] += features[b, :, y, x]
        counts[owner[b], k] += 1
    upstream, grad = upstream.reshape(sums.shape), np.zeros(features.shape)
    for b, y, x, k in pixels:
        grad[b, :, y, x] = upstream[owner[b], k] / counts[owner[b], k]
    means = sums / np.maximum(counts, 1)[..., None]
    return (means, counts, grad) if per_image else (means[0], counts[0], grad)


def drawn(shape, per_image, kind=torch.uint8):
    *shape, classes = shape
    rng = np.random.RandomState(2)
    labels = rng.randint(0, classes, (shape[0], *shape[2:]))
    labels[rng.rand(*labels.shape) < 0.3] = 255
    labels[labels == classes // 2] = 0  # one class is nowhere, where there are several
    upstream = rng.randn(*((shape[0], classes, shape[1]) if per_image else (classes, shape[1])))
    return torch.tensor(rng.randn(*shape)), torch.tensor(labels).to(kind), torch.tensor(upstream), classes


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, None)], ids=str)
@pytest.mark.parametrize("per_image", [True, False], ids=["per image", "over all"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_equal_a_loop_over_pixels(shape, per_image, dtype, tolerance):
    features, labels, upstream, classes = drawn(shape, per_image)
    features = features.to(dtype).requires_grad_()
    found = segmented_mean(features, labels, classes, per_image=per_image, using="reference")
    (found.means * upstream).sum().backward()
    means, counts, grad = by_hand(features.detach().double().numpy(), labels.numpy().astype(int), upstream.numpy(), classes, per_image)
    assert found.means.dtype == torch.promote_types(dtype, torch.float32) and found.counts.dtype == torch.int32
    assert found.counts.tolist() == counts.tolist()
    np.testing.assert_allclose(found.means.detach().numpy(), means, atol=tolerance or 1e-6)
    np.testing.assert_allclose(features.grad.double().numpy(), grad, atol=tolerance or 1e-6, rtol=0 if tolerance else 2**-8)


@pytest.mark.parametrize(("kind", "nothing"), [(torch.uint8, 255), (torch.int32, -1), (torch.int64, 255), (torch.int64, 19)])
def test_a_label_that_names_no_class_is_never_used_as_an_index_and_leaves_no_gradient(kind, nothing):
    features = torch.randn(2, 3, 4, 5, requires_grad=True)
    found = segmented_mean(features, torch.full((2, 4, 5), nothing, dtype=kind), 19)
    found.means.sum().backward()
    assert (found.counts == 0).all() and (found.means == 0).all() and (features.grad == 0).all()


def test_autocast_around_the_call_changes_nothing():
    features, labels, _, classes = drawn(SHAPES[0], True)
    plain = segmented_mean(features.float(), labels, classes).means
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(segmented_mean(features.float(), labels, classes).means, plain)


def test_it_passes_where_only_repeatable_algorithms_are_allowed():
    features, labels, _, classes = drawn(SHAPES[0], True)
    torch.use_deterministic_algorithms(True)
    try:
        segmented_mean(features.requires_grad_(), labels, classes).means.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("per_image", [True, False], ids=["per image", "over all"])
def test_gradcheck(per_image):
    features, labels, _, classes = drawn(SHAPES[0], per_image)
    mean = lambda v: segmented_mean(v, labels, classes, per_image=per_image).means  # noqa: E731
    assert torch.autograd.gradcheck(mean, (features.requires_grad_(),))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"features": torch.zeros(3, 4, 4)}, r"features must be float \(B, C, h, w\)"),
        ({"labels": torch.zeros(2, 4, 4)}, "labels must be uint8, int32 or int64"),
        ({"labels": torch.zeros(2, 8, 8, dtype=torch.uint8)}, "must lie on the grid of features"),
        ({"classes": 256}, "classes must be 1 to 255, for label 255 is no class"),
    ],
)
def test_a_wrong_call_is_told_what_was_expected(change, said):
    call = {"features": torch.zeros(2, 3, 4, 4), "labels": torch.zeros(2, 4, 4, dtype=torch.uint8), "classes": 5} | change
    with pytest.raises(ValueError, match=said):
        segmented_mean(**call)
