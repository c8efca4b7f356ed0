"""upsample_confidence's Triton kernel against the reference in float64, its memory filled with nonsense before."""

import pytest
import torch

pytest.importorskip("triton")

from kernels.upsample_confidence import fused, upsample_confidence

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# batch, classes, logits' grid, labels' grid, align_corners: whole and broken ratios, downwards, one value, two blocks of columns
CASES = [
    (2, 5, (2, 3), (8, 12), False),
    (1, 3, (2, 3), (11, 7), True),
    (1, 9, (1, 1), (2, 5), False),
    (1, 1, (2, 2), (3, 3), False),
    (1, 4, (5, 6), (3, 2), False),
    (1, 2, (1, 30), (1, 131), False),
]


def drawn(case, scale=3.0):
    batch, classes, grid, size, _ = case
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes + 1, (batch, *size), generator=g)  # one names no class
    labels[torch.rand(labels.shape, generator=g) < 0.2] = 255
    return (torch.randn(batch, classes, *grid, generator=g) * scale).to(DEVICE), labels.to(DEVICE)


def worst(found, expected):
    """The largest || found - expected || / || expected || of the three maps, a map of zeros by its absolute error."""
    return max(((a.double() - b).norm() / b.norm().clamp(min=1e-3)).item() for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("dtype", "kind"), [(torch.float32, torch.uint8), (torch.bfloat16, torch.int64), (torch.float16, torch.int32)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_maps_equal_the_reference_in_float64(case, dtype, kind, poisoned):
    logits, labels = drawn(case)
    logits, labels = logits.to(dtype), labels.to(kind)
    expected = upsample_confidence(logits.double(), labels, align_corners=case[-1])
    found = upsample_confidence(logits, labels, align_corners=case[-1], using="triton")
    assert all(one.dtype == torch.float32 for one in found)
    assert worst(found, expected) < 1e-6


@pytest.mark.parametrize("ignore", [-1, 1])
def test_the_ignored_label_may_lie_outside_of_the_labels_type_or_be_a_class(ignore):
    logits, labels = drawn(CASES[0])
    expected = upsample_confidence(logits.double(), labels, ignore=ignore)
    assert worst(upsample_confidence(logits, labels.to(torch.uint8), ignore=ignore, using="triton"), expected) < 1e-6


def test_large_logits(poisoned):
    logits, labels = drawn(CASES[0], scale=3000.0)
    expected = upsample_confidence(logits.double(), labels)
    assert worst(upsample_confidence(logits, labels, using="triton"), expected) < 1e-4


def test_repeated_runs_and_other_memory_orders_are_equal_to_the_bit():
    logits, labels = drawn(CASES[1])
    first = upsample_confidence(logits, labels, using="triton")
    again = upsample_confidence(logits.to(memory_format=torch.channels_last), labels, using="triton")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_the_operation_is_sound_for_pytorch_and_compiles_to_one_graph():
    logits, labels = drawn(CASES[2])
    torch.library.opcheck(fused.upsample_confidence, (logits, labels, False, 255, "triton"))
    compiled = torch.compile(lambda z: upsample_confidence(z, labels, using="triton"), fullgraph=True, backend="aot_eager")
    expected = upsample_confidence(logits, labels, using="triton")
    assert all(torch.equal(a, b) for a, b in zip(compiled(logits), expected, strict=True))
