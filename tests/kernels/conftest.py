"""Without a GPU, Triton's kernels run in its interpreter, which must be asked for before triton is imported."""

import math
import os
from importlib.metadata import version
from importlib.util import find_spec

import pytest
import torch


def _release(package: str) -> tuple[int, ...]:
    return tuple(map(int, version(package).split(".")[:2]))


if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
if os.environ.get("TRITON_INTERPRET") and find_spec("triton") and _release("triton") < (3, 7) and _release("numpy") >= (2, 4):
    # it takes an array of one value for a number, which NumPy no longer does; compiled for a GPU, no kernel meets NumPy
    raise RuntimeError("Triton before 3.7 interprets kernels only with NumPy before 2.4: pip install 'numpy<2.4', or 'triton>=3.7'")


@pytest.fixture(autouse=True)
def seeded():
    """A test that fails fails again."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def shipped(tmp_path_factory):
    """No test launches what `python -m kernels.tune` once measured on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def guard(monkeypatch):
    """guard(module): what it takes by torch.empty is NaN until written, between guards that are looked at when the test is over."""
    made, width = [], 64

    class Guarded:
        def __getattr__(self, name):
            return getattr(torch, name)

        def empty(self, shape, dtype, device):
            size = torch.Size(shape).numel()
            memory = torch.full((size + 2 * width,), 7.0, dtype=dtype, device=device)
            memory[width : width + size] = float("nan")
            made.append(memory)
            return memory[width : width + size].view(shape)

    yield lambda module: monkeypatch.setattr(module, "torch", Guarded())
    for memory in made:
        assert (memory[:width] == 7).all() and (memory[-width:] == 7).all()


@pytest.fixture
def poisoned(monkeypatch):
    """torch.empty gives memory full of NaN (of -99 for integers, 99 for bytes) between two guards, whole when the test ends."""
    made, guard = [], 64

    def empty(*shape, dtype=torch.float32, device=None):
        shape = shape if isinstance(shape[0], int) else tuple(shape[0])
        poison = float("nan") if dtype.is_floating_point else 99 if dtype == torch.uint8 else -99
        memory = torch.full((math.prod(shape) + 2 * guard,), poison, dtype=dtype, device=device)
        memory[:guard] = memory[-guard:] = 7
        made.append(memory)
        return memory[guard:-guard].view(shape)

    monkeypatch.setattr(torch, "empty", empty)
    yield
    assert made and all((memory[:guard] == 7).all() and (memory[-guard:] == 7).all() for memory in made)
