"""Without a GPU, Triton's kernels run in its interpreter, which must be asked for before triton is imported."""

import math
import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def seeded():
    """A test that fails fails again."""
    torch.manual_seed(0)


@pytest.fixture
def poisoned(monkeypatch):
    """torch.empty gives memory full of NaN (of -99 for integers) between two guards, which must be whole when the test ends."""
    made, guard = [], 64

    def empty(*shape, dtype=torch.float32, device=None):
        shape = shape if isinstance(shape[0], int) else tuple(shape[0])
        memory = torch.full((math.prod(shape) + 2 * guard,), float("nan") if dtype.is_floating_point else -99, dtype=dtype, device=device)
        memory[:guard] = memory[-guard:] = 7
        made.append(memory)
        return memory[guard:-guard].view(shape)

    monkeypatch.setattr(torch, "empty", empty)
    yield
    assert made and all((memory[:guard] == 7).all() and (memory[-guard:] == 7).all() for memory in made)
