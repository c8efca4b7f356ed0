"""Operations on numpy arrays: the bits of the operation on tensors, read where they lie, in a process without torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels import arrays
from kernels.upsample_argmax import upsample_argmax

ROOT = Path(__file__).resolve().parents[2]


def drawn(*shape):
    return np.random.default_rng(0).normal(0, 3, shape).astype(np.float32)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(("shape", "size"), [((3, 19, 65, 67), (130, 101)), ((1, 150, 6, 19), (24, 76)), ((2, 1, 3, 3), (8, 8))], ids=str)
def test_they_give_the_bits_of_the_operation_on_tensors(shape, size, threads, align):
    logits, found = drawn(*shape), np.full((shape[0], *size), 99, np.uint8)
    arrays.upsample_argmax(logits, found, align, threads)
    assert (found == upsample_argmax(torch.from_numpy(logits), size, align, using="cpu").numpy()).all()


def test_nothing_is_written_beside_the_class_map():
    whole = np.full((5, 20, 30), 77, np.uint8)
    arrays.upsample_argmax(drawn(3, 4, 5, 7), whole[1:4], False, 2)
    assert (whole[[0, 4]] == 77).all() and whole[1:4].max() < 4


def test_what_cannot_be_read_where_it_lies_is_said():
    logits, room = drawn(2, 5, 4, 6), np.empty((2, 8, 12), np.uint8)
    for wrong in (logits.astype(np.float64), logits[..., ::2], logits[0]):
        with pytest.raises(ValueError, match=r"float32 \(B, C, h, w\) without gaps"):
            arrays.upsample_argmax(wrong, room, False, 1)
    for wrong in (room[:1], room[..., ::2], room.astype(np.int32)):
        with pytest.raises(ValueError, match=r"uint8 \(2, H, W\) without gaps"):
            arrays.upsample_argmax(logits, wrong, False, 1)
    with pytest.raises(ValueError, match="1 to 256 classes"):
        arrays.upsample_argmax(drawn(2, 257, 1, 1), room, False, 1)


def test_torch_is_not_needed_for_them():
    code = """
import sys
import numpy as np
from kernels import arrays
assert arrays.why_not() == "", arrays.why_not()
found = np.empty((1, 8, 12), np.uint8)
arrays.upsample_argmax(np.eye(5, 24, dtype=np.float32).reshape(1, 5, 4, 6), found, False, 2)
assert found.max() == 4 and "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
