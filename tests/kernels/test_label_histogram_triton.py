"""label_histogram's Triton kernel against the reference, its memory filled with nonsense before."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from kernels.label_histogram import fused, label_histogram

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# labels (B, H, W), classes, cells (h, w): two blocks of classes, one cell, a grid finer than the labels, two blocks of cells
CASES = [((2, 4, 9), 3, (2, 3)), ((1, 7, 4), 9, (5, 3)), ((1, 2, 3), 2, (1, 1)), ((1, 3, 4), 2, (5, 9)), ((1, 4, 90), 1, (2, 75))]


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize(("shape", "classes", "size"), CASES, ids=str)
def test_the_kernel_counts_what_the_reference_counts(shape, classes, size, kind, poisoned):
    rng = np.random.RandomState(1)
    labels = np.where(rng.rand(*shape) < 0.2, 255, rng.randint(0, classes + 1, shape))
    labels = torch.tensor(labels).to(DEVICE, kind)
    found = label_histogram(labels, classes, size, using="triton")
    assert torch.equal(found, label_histogram(labels, classes, size, using="reference"))
    assert torch.equal(found, label_histogram(labels.mT.contiguous().mT, classes, size, using="triton"))  # in any memory order


@pytest.mark.parametrize("ignore", [-1, 1, 300])
def test_ignored_and_impossible_labels_are_counted_nowhere(ignore):
    labels = torch.tensor([[[0, 1, 2, -1, 300, 2**32 + 1, -(2**40), 255]]], device=DEVICE)
    counts = label_histogram(labels, 3, (1, 1), ignore=ignore, using="triton").flatten().tolist()
    assert counts == [1, 0 if ignore == 1 else 1, 1]


def test_all_ignored_labels_give_zeros(poisoned):
    labels = torch.full((1, 3, 3), 15, dtype=torch.uint8, device=DEVICE)
    assert not label_histogram(labels, 17, (2, 2), ignore=15, using="triton").any()


def test_the_operation_is_sound_for_pytorch_and_compiles_to_one_graph():
    labels = torch.randint(0, 3, (1, 4, 5), device=DEVICE)
    torch.library.opcheck(fused.label_histogram, (labels, 2, [2, 3], 255, "triton"))
    compiled = torch.compile(lambda v: label_histogram(v, 2, (2, 3), using="triton"), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(labels), label_histogram(labels, 2, (2, 3), using="reference"))
