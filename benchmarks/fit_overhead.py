"""What the training loop costs beside a bare PyTorch loop: the same model, batch, crops and optimiser, step by step in one process.

    python benchmarks/fit_overhead.py [--model tiny --size large --batch 8 --crop 64 128 --rounds 60]

Both loops take turns in blocks of a few steps, in random order, so that what else the machine does hits both alike. The figure
is the median over rounds of (time of the loop / time of the bare one); the target is at most 1.03. On a CPU the processor time
of the process is judged, for it hardly sees other processes; the wall clock is printed beside it. The bare loop does what one
would write by hand: forward, cross-entropy at label size, backward, fused AdamW, a look at the loss every 10 steps. On a CPU it
profits from stages/memory.py as well, being in the same process: what that saves is not counted.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy, interpolate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from stages.batches import crops
from stages.fit import Fit
from stages.kd import TABLE as KD
from stages.kd import Pair
from stages.kd._terms import Terms
from stages.loop import Loop
from stages.models import TABLE as MODELS

CLASSES, BLOCK, TARGET = 12, 5, 1.03


class Noise:
    """Random pixels in memory, of the crop's size: loading costs nothing, augmenting what it always costs."""

    classes, colours = [f"class {i}" for i in range(CLASSES)], [[i, i, i] for i in range(CLASSES)]

    def __init__(self, size: tuple[int, int], n: int = 16):
        rng = np.random.RandomState(0)
        self.size, self.images = size, rng.randint(0, 256, (n, *size, 3), np.uint8)
        self.labels = rng.randint(0, CLASSES, (n, *size), np.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int):
        return self.images[i], self.labels[i]

    def name(self, i: int) -> str:
        return str(i)


class Job:
    rehearsing = False

    def __init__(self, folder: Path):
        self.out = self.state = folder / "state"

    def say(self, text: str) -> None:
        print(text)

    def progress(self, done: int, total: int, **figures: float) -> None:
        pass

    def stop_asked(self) -> int:
        return 0


def bare_steps(net, samples, settings: Fit, device: str):
    """A generator: every next() is one step."""
    net = net.to(device).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    for step, (images, labels) in enumerate(crops(samples, settings, settings.crop, workers=settings.workers, pin=device == "cuda")):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * (1 - step / settings.steps)
        images = images.to(device, non_blocking=True).permute(0, 3, 1, 2).float().contiguous()
        labels = labels.to(device, non_blocking=True)
        logits = interpolate(net(images)["logits"], labels.shape[-2:], mode="bilinear", align_corners=False)
        loss = cross_entropy(logits, labels.long(), ignore_index=255)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0:
            loss.item()
        yield


def loop_steps(net, samples, settings: Fit, folder: Path):
    task = KD.row("ce").model_validate({"kind": "ce"})
    loop = Loop(net, Terms(task, [], Pair(net.widths, {}, CLASSES), 0), samples, None, settings, Job(folder), None, ())
    while True:  # as stages.loop.fit does
        loop.validate_if_due()
        loop.save_or_stop_if_due()
        loop.learn()
        loop.report_if_due()
        yield


def block(steps, device: str) -> tuple[float, float]:
    """Milliseconds per step: wall clock, processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(BLOCK):
        next(steps)
    if device == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - wall) / BLOCK, 1000 * (time.process_time() - cpu) / BLOCK


def measured(options: argparse.Namespace, device: str) -> list[dict[str, tuple[float, float]]]:
    """{"loop" | "bare": (wall, processor)} of every round, after three rounds of warm-up."""
    settings = Fit(steps=10**6, batch=options.batch, crop=tuple(options.crop), lr=1e-4, workers=options.workers, save_every=1e9)
    row = MODELS.row(options.model).model_validate({"kind": options.model, "size": options.size})
    samples, nets = Noise(tuple(options.crop)), []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(row.build(CLASSES))
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        sides = {"loop": loop_steps(nets[0], samples, settings, Path(folder)), "bare": bare_steps(nets[1], samples, settings, device)}
        rounds = [{name: block(sides[name], device) for name in rng.sample(sorted(sides), 2)} for _ in range(options.rounds + 3)]
    return rounds[3:]


def told(rounds: list[dict[str, tuple[float, float]]], clock: int, name: str) -> float:
    """Prints one clock's figures; returns the median ratio."""
    loop, bare = ([r[side][clock] for r in rounds] for side in ("loop", "bare"))
    ratios = sorted(a / b for a, b in zip(loop, bare, strict=True))
    quarter, ratio = len(ratios) // 4, statistics.median(ratios)
    print(f"{name}: bare loop {statistics.median(bare):.2f} ms per step, stages.loop {statistics.median(loop):.2f} ms,", end=" ")
    print(f"ratio {ratio:.3f} (middle half {ratios[quarter]:.3f} to {ratios[-quarter - 1]:.3f})")
    return ratio


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--size", default="large")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, nargs=2, default=[64, 128])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.cuda.get_device_name() if device == "cuda" else f"cpu, {options.threads} threads"
    rounds = measured(options, device)
    print(f"{options.model} {options.size}, batch {options.batch}, crop {options.crop}, {where}, {len(rounds)} rounds of {BLOCK} steps")
    wall, processor = told(rounds, 0, "wall clock"), told(rounds, 1, "processor time")
    ratio = wall if device == "cuda" else processor
    print(f"judged: {ratio:.3f}, target <= {TARGET}")
    return 0 if ratio <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
