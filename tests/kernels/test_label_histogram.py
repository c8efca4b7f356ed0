"""label_histogram against a loop over pixels, the cell of each taken from PyTorch's own nearest upsampling of numbered cells."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from kernels.label_histogram import cell_sizes, label_histogram

# labels (B, H, W), classes, cells (h, w): whole ratios, broken ratios, one cell, a grid finer than the labels
CASES = [((2, 8, 12), 3, (2, 3)), ((1, 13, 7), 5, (5, 3)), ((2, 5, 9), 11, (1, 1)), ((1, 3, 4), 2, (5, 9)), ((1, 6, 11), 1, (6, 2))]
KINDS = [torch.uint8, torch.int32, torch.int64]


def by_hand(labels, classes, size, ignore=255):
    cell = interpolate(torch.arange(size[0] * size[1]).view(1, 1, *size).double(), labels.shape[1:], mode="nearest")[0, 0].long().numpy()
    counts = np.zeros((len(labels), classes, size[0] * size[1]), int)
    for image, y, x in np.ndindex(*labels.shape):
        if labels[image, y, x] != ignore and 0 <= labels[image, y, x] < classes:
            counts[image, labels[image, y, x], cell[y, x]] += 1
    return counts.reshape(len(labels), classes, *size), np.bincount(cell.ravel(), minlength=size[0] * size[1]).reshape(size)


def drawn(shape, classes):
    """Labels of all classes, one more that names none, and ignored ones."""
    rng = np.random.RandomState(0)
    return np.where(rng.rand(*shape) < 0.2, 255, rng.randint(0, classes + 1, shape))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "classes", "size"), CASES, ids=str)
def test_every_counted_pixel_is_in_the_cell_that_nearest_upsampling_takes_it_from(shape, classes, size, kind):
    labels = drawn(shape, classes)
    counts, sizes = by_hand(labels, classes, size)
    found = label_histogram(torch.tensor(labels).to(kind), classes, size)
    assert found.dtype == torch.int32 and found.tolist() == counts.tolist()
    assert cell_sizes(size, shape[1:]).tolist() == sizes.tolist()


@pytest.mark.parametrize(("n", "to"), [(3, 7), (9, 20), (65, 513), (6, 49), (129, 1000), (11, 768)])
def test_cells_are_those_of_the_framework_at_sizes_where_formulas_in_integers_go_wrong(n, to):
    found = label_histogram(torch.arange(to).clamp(max=254)[None, None].to(torch.uint8), 254, (1, n))[0, :, 0]  # one label per pixel
    cell = interpolate(torch.arange(n).view(1, 1, 1, n).double(), (1, to), mode="nearest").flatten()[:254]
    assert found.argmax(1)[: len(cell)].tolist() == cell.tolist()


def test_it_says_what_a_sum_over_upsampled_logits_would():
    labels, z = torch.randint(0, 4, (2, 11, 13)), torch.randn(2, 4, 3, 5, dtype=torch.float64)
    dense = interpolate(z, (11, 13), mode="nearest") * torch.nn.functional.one_hot(labels, 4).permute(0, 3, 1, 2)
    assert torch.allclose(dense.sum((2, 3)), (label_histogram(labels, 4, (3, 5)) * z).sum((2, 3)))


@pytest.mark.parametrize("ignore", [-1, 1, 300])
def test_ignored_and_impossible_labels_are_counted_nowhere(ignore):
    labels = torch.tensor([[[0, 1, 2, -1, 300, 2**32 + 1, -(2**40), 255]]])
    counts = label_histogram(labels, 3, (1, 1), ignore=ignore).flatten().tolist()
    assert counts == [1, 0 if ignore == 1 else 1, 1]


def test_cell_sizes_kept_from_inference_serve_training():
    with torch.inference_mode():
        cell_sizes((2, 2), (6, 5))
    weights = cell_sizes((2, 2), (6, 5))
    torch.ones(2, 2, requires_grad=True).mul(weights).sum().backward()


@pytest.mark.parametrize(
    ("labels", "classes", "size", "said"),
    [
        (torch.zeros(1, 4, 4), 3, (2, 2), r"labels must be uint8, int32 or int64 \(B, H, W\), found torch.float32 \(1, 4, 4\)"),
        (torch.zeros(4, 4).long(), 3, (2, 2), r"found torch.int64 \(4, 4\)"),
        (torch.zeros(1, 4, 4).long(), 0, (2, 2), "classes and size must be at least 1"),
        (torch.zeros(1, 4, 4).long(), 3, (0, 2), r"found 3 and \(0, 2\)"),
    ],
)
def test_a_wrong_call_is_told_what_was_expected(labels, classes, size, said):
    with pytest.raises(ValueError, match=said):
        label_histogram(labels, classes, size)
