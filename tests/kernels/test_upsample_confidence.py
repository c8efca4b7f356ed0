"""upsample_confidence against a loop over pixels in float64, and its numbers at the ends of their ranges."""

import math

import numpy as np
import pytest
import torch

from kernels.upsample_ce_kl import upsample_ce_kl
from kernels.upsample_confidence import upsample_confidence

# batch, classes, logits' grid, labels' grid, align_corners
CASES = [
    (2, 5, (3, 4), (12, 16), False),
    (1, 3, (5, 3), (7, 11), True),
    (1, 19, (1, 1), (3, 5), False),
    (1, 1, (2, 3), (5, 7), False),
    (1, 4, (8, 9), (5, 3), False),
]


def along(n, to, align):
    """(to, n): how much of each of n values is in each pixel, from the definition of bilinear interpolation."""
    out = np.zeros((to, n))
    for y in range(to):
        at = (y * (n - 1) / (to - 1) if to > 1 else 0.0) if align else max((y + 0.5) * n / to - 0.5, 0.0)
        low = min(math.floor(at), n - 1)
        out[y, low] += 1 - (at - low)
        out[y, min(low + 1, n - 1)] += at - low
    return out


def by_hand(logits, labels, align, ignore=255):
    h, w = logits.shape[2:]
    x = np.einsum("yi,bcij,xj->bcyx", along(h, labels.shape[1], align), logits, along(w, labels.shape[2], align))
    maps = np.zeros((3, *labels.shape))
    for i, y, c in np.ndindex(*labels.shape):
        p = np.exp(x[i, :, y, c] - x[i, :, y, c].max())
        p = p / p.sum()
        label = labels[i, y, c]
        maps[:, i, y, c] = p.max(), -(p * np.log(p)).sum(), p[label] if label != ignore and 0 <= label < len(p) else 1.0
    return maps


def drawn(case, scale=3.0):
    batch, classes, grid, size, _ = case
    rng = np.random.RandomState(0)
    labels = np.where(rng.rand(batch, *size) < 0.2, 255, rng.randint(0, classes + 1, (batch, *size)))  # one names no class
    return rng.randn(batch, classes, *grid) * scale, labels


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 2e-6)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_maps_equal_a_loop_over_pixels(case, dtype, tolerance):
    logits, labels = drawn(case)
    z = torch.tensor(logits).to(dtype)
    found = upsample_confidence(z.requires_grad_(), torch.tensor(labels), align_corners=case[-1])
    for name, one, expected in zip(found._fields, found, by_hand(z.detach().double().numpy(), labels, case[-1]), strict=True):
        assert one.dtype == torch.promote_types(dtype, torch.float32) and not one.requires_grad
        np.testing.assert_allclose(one.numpy(), expected, atol=tolerance, err_msg=name)


def test_the_label_probability_is_that_of_cross_entropy():
    logits, labels = (torch.tensor(v) for v in drawn(CASES[0]))
    labels[labels == 5] = 255
    found = upsample_confidence(logits, labels).label_probability
    assert torch.allclose(found, (-upsample_ce_kl(logits, None, labels).ce).exp())


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
def test_an_ignored_label_is_certain_and_never_an_index(kind):
    assert (upsample_confidence(torch.randn(1, 3, 2, 2), torch.full((1, 4, 4), 255, dtype=kind)).label_probability == 1).all()
    labels = torch.tensor([[[0, 1], [2, 1]]]).to(kind)  # a class, were it not ignored
    found = upsample_confidence(torch.randn(1, 3, 2, 2), labels, ignore=1).label_probability
    assert (found == 1).tolist() == [[[False, True], [False, True]]]


def test_autocast_around_the_call_changes_nothing():
    logits, labels = torch.randn(1, 5, 4, 4), torch.randint(0, 5, (1, 8, 8))
    plain = upsample_confidence(logits, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(plain, upsample_confidence(logits, labels), strict=True))


def test_even_and_certain_pixels_lie_at_the_ends_of_the_ranges():
    even = upsample_confidence(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 4).long())
    assert torch.allclose(even.confidence, torch.tensor(0.25)) and torch.allclose(even.entropy, torch.tensor(math.log(4)))
    certain = upsample_confidence(torch.eye(4)[None, :, :, None] * 1e4, torch.zeros(1, 4, 1).long())
    assert (certain.confidence == 1).all() and (certain.entropy == 0).all()
    assert certain.label_probability.flatten().tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("logits", "labels", "said"),
    [
        (torch.zeros(3, 4, 4), torch.zeros(1, 4, 4).long(), r"logits must be float \(B, C, h, w\) .*found torch.float32 \(3, 4, 4\)"),
        (torch.zeros(2, 3, 0, 4), torch.zeros(2, 4, 4).long(), r"with no side of 0, found torch.float32 \(2, 3, 0, 4\)"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4), "labels must be uint8, int32 or int64"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(1, 4, 4).long(), "logits hold 2 images and labels 1"),
    ],
)
def test_a_wrong_call_is_told_what_was_expected(logits, labels, said):
    with pytest.raises(ValueError, match=said):
        upsample_confidence(logits, labels)
