"""How many images per second either way of preparing training data makes: by the host's worker processes, or by the device.

    python benchmarks/data_path.py [--size 360 480 --crop 352 352 --batch 8 --images 64 --workers 0 2 --rounds 5]

Nothing is trained: a round takes batches one after the other and waits for the last. The ways take turns, so that what else the
machine does hits all alike; the figures are medians over rounds. Pixels are random and lie in memory: reading and decoding files,
which the host does anew in every epoch and the device path once, is not counted. Before that, both ways are compared.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fit_overhead import Noise

from stages.batches import crops
from stages.fit import Fit
from stages.resident import Resident


def resident_of(samples: Noise, device: torch.device) -> Resident:
    resident = Resident(samples, device)
    resident.put(0, torch.from_numpy(samples.images), torch.from_numpy(samples.labels))
    return resident


def agree(samples: Noise, resident: Resident, settings: Fit) -> str:
    """How far apart the two ways are over one epoch of images."""
    pairs = zip(crops(samples, settings, settings.crop), crops(resident, settings, settings.crop), range(8), strict=False)
    most, differ, labels, count = 0, 0, 0, 0
    for (images, masks), (there, masks_there), _ in pairs:
        apart = (images.int() - there.cpu().int()).abs()
        most, differ = max(most, int(apart.max())), differ + int((apart > 0).sum())
        labels, count = labels + int((masks != masks_there.cpu()).sum()), count + images.numel()
    return f"{differ / count:.4%} of the values differ, by at most {most} of 255; labels: {labels} pixels"


def rate(batches, settings: Fit, seconds: float, device: torch.device) -> float:
    """Images per second over about that time."""
    began, made = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        images, labels = next(batches)
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        made += len(images)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return made / (time.perf_counter() - began)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=[360, 480])
    parser.add_argument("--crop", type=int, nargs=2, default=[352, 352])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="per way and round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = Fit(steps=10**6, batch=options.batch, crop=tuple(options.crop))
    samples = Noise(tuple(options.size), options.images)
    resident, pin = resident_of(samples, device), device.type == "cuda"
    print(f"device against host: {agree(samples, resident, settings)}")

    ways = {f"host, {n} workers": crops(samples, settings, settings.crop, workers=n, pin=pin) for n in options.workers}
    ways["device"] = crops(resident, settings, settings.crop)
    found = {name: [] for name in ways}
    for turn in range(options.rounds + 1):
        for name, batches in ways.items():
            figure = rate(batches, settings, options.seconds, device)
            if turn:  # the first one is for warming up
                found[name].append(figure)
    where = torch.cuda.get_device_name() if pin else f"cpu, {options.threads} threads"
    print(f"batch {options.batch}, crops of {options.crop} from {options.size}, {where}, {options.rounds} rounds\n")
    print("| way | images/s | middle half |\n|---|---|---|")
    for name, figures in found.items():
        low, _, high = statistics.quantiles(figures, n=4)
        print(f"| {name} | {statistics.median(figures):,.0f} | {low:,.0f} to {high:,.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
