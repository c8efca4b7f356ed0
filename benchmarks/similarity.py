"""CIRKD's mini-batch loss at its own size in one go: time and memory, where the dense form would take over 100 GiB.

python benchmarks/similarity.py [--batch 8 --grid 64 128 --width 256 --threads 2]
"""

import argparse
import ctypes
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kernels.similarity_kl import similarity_kl

LIMIT = 2**30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--grid", type=int, nargs=2, default=(64, 128))
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    student = torch.randn(asked.batch, asked.width, *asked.grid, requires_grad=True)
    teacher = torch.randn(asked.batch, asked.width, *asked.grid)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before, began = most(), time.perf_counter()
    loss = similarity_kl(student, teacher, temperature=0.1)
    between = time.perf_counter()
    loss.backward()
    seconds, extra = time.perf_counter() - began, most() - before
    good = bool(torch.isfinite(loss)) and bool(student.grad.isfinite().all()) and extra <= LIMIT
    print(
        f"{asked.batch} x {asked.width} x {asked.grid[0]} x {asked.grid[1]}: loss {loss.item():.6f}, forward {between - began:.0f} s,",
        end=" ",
    )
    print(f"with backward {seconds:.0f} s, {extra / 2**20:.0f} MiB beyond the features, at most {LIMIT / 2**20:.0f}")
    return 0 if good else 1


def most() -> int:
    """The most memory this process held, in bytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


if __name__ == "__main__":
    sys.exit(main())
