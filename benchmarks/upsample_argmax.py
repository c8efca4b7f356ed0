"""Class maps from low-resolution logits, beside PyTorch's interpolate + argmax: `python benchmarks/upsample_argmax.py [--threads 2]`.

Smooth maps are what trained networks give; noise, where every cell lies between classes, is the worst there can be. A speed is told only
of maps that are the same but for pixels whose two best logits are equal within rounding; contenders take turns, figures are medians.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import interpolate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kernels import bench
from kernels.choose import unfit, variants
from kernels.upsample_argmax import upsample_argmax

SIZE, GRID = (512, 512), (128, 128)


def main() -> None:
    asked = parser().parse_args()
    torch.set_num_threads(asked.threads or torch.get_num_threads())
    print(", ".join(bench.machine(asked.device).values()))
    names = [name for name in variants("kernels.upsample_argmax") if not unfit(name, asked.device, torch.float32)]
    print(f"{asked.batch} x C x {GRID[0]} x {GRID[1]} to {SIZE[0]} x {SIZE[1]}, float32, ms\n")
    print(f"{'C':>5}  {'maps':8}" + "".join(f"{name:>12}" for name in names) + f"{'times':>9}")
    for classes in asked.classes:
        for kind in ("smooth", "noise"):
            logits = drawn(asked.batch, classes, kind).to(asked.device)
            plain = upsample_argmax(logits, SIZE, using="reference")
            for name in names:
                require_same(logits, upsample_argmax(logits, SIZE, using=name), plain, name)
            times = {name: [] for name in names}
            for _ in range(asked.rounds):
                for name in names:
                    times[name].append(milliseconds(logits, name))
            found = {name: statistics.median(each) for name, each in times.items()}
            gain = found["reference"] / found[names[0]]
            print(f"{classes:5}  {kind:8}" + "".join(f"{found[name]:12.2f}" for name in names) + f"{gain:8.1f}x", flush=True)


def drawn(batch: int, classes: int, kind: str) -> torch.Tensor:
    made = torch.Generator().manual_seed(0)
    noise = torch.randn(batch, classes, *GRID, generator=made)
    blobs = 3 * torch.randn(batch, classes, 12, 12, generator=made)
    return noise if kind == "noise" else interpolate(blobs, GRID, mode="bicubic") + 0.05 * noise


def require_same(logits: torch.Tensor, found: torch.Tensor, plain: torch.Tensor, name: str) -> None:
    other = (found != plain).nonzero()
    for image, y, x in other.tolist():
        wide = interpolate(logits[image : image + 1].double(), SIZE, mode="bilinear")[0, :, y, x]
        if wide[plain[image, y, x]] - wide[found[image, y, x]] > 1e-6 * logits.abs().max():
            raise SystemExit(f"{name} is wrong at image {image}, row {y}, column {x}: no speed is told of what is wrong")


def milliseconds(logits: torch.Tensor, name: str) -> float:
    began = time.perf_counter()
    upsample_argmax(logits, SIZE, using=name)
    if logits.is_cuda:
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - began)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--threads", type=int, help="threads on a CPU")
    made.add_argument("--batch", type=int, default=1)
    made.add_argument("--classes", type=int, nargs="+", default=[19, 150])
    made.add_argument("--rounds", type=int, default=15)
    return made


if __name__ == "__main__":
    main()
