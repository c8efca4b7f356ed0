"""Measures which launch configurations are fastest on this device, and remembers them: `python -m kernels.tune [OPERATION ...]`.

For every size of the benchmark (an operation's sizes.py) and every kernel that is launched there, each configuration of the
operation's SPACE is held to the reference's loss and gradient in float64, on two images, and then timed: a few steps each, and the
fastest few and the shipped one once more, in turns. One that gains less than MARGIN leaves the shipped one in its place. The result is
written after each kernel (kernels/tuned.py says where, and when it is used), so that nothing is lost when this is stopped.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from kernels import bench, tuned
from kernels.choose import unfit, variants

MARGIN = 0.02  # of the time of a step: less is noise
ROUNDS, LEFT = (3, 20), 3  # steps of each, then of those that are left; how many are left, beside the shipped one
NEAR = {"fp32": 1e-5, "fp16": 1e-3, "bf16": 5e-3}  # of the gradient's norm: a thousandth of the pixels gone wrong is more
LOSS = 1e-4  # of the loss, which every kernel sums in float32

Step = Callable[[bench.Contender, list, str], tuple[float, float, Tensor]]  # milliseconds forward and backward, and the gradient


def main() -> int:
    asked = _parser().parse_args()
    if why := unfit("triton", asked.device, torch.float32):
        print(f"nothing can be measured here: {why}", file=sys.stderr)
        return 2
    if unknown := set(asked.operations) - set(tunable()):
        print(f"no configurations are known of {', '.join(sorted(unknown))}; there is {', '.join(tunable())}", file=sys.stderr)
        return 2
    device = torch.device("cuda:0" if asked.device == "cuda" else "cpu")
    ends = time.monotonic() + (asked.seconds or float("inf"))
    print(", ".join(bench.machine(asked.device).values()))
    for operation in asked.operations or tunable():
        less = {"rounds": (1, 1), "most": 2} if asked.tiny else {}
        for record in search(operation, device, "tiny" if asked.tiny else asked.device, asked.dtypes, ends, **less):
            print(line(record), flush=True)
            try:
                tuned.store(device, [record])
            except OSError as error:
                print(f"what was measured cannot be written: {error}", file=sys.stderr)
                return 1
    print(f"written to {tuned.file(device)}" if time.monotonic() < ends else "the rest is left out: the time is used up")
    return 0


def tunable() -> list[str]:
    """Operations with Triton kernels, of which some configurations are named."""
    with_triton = (name for name in bench.measurable() if "triton" in variants(f"kernels.{name}"))
    return [name for name in with_triton if hasattr(import_module(f"kernels.{name}.triton_"), "SPACE")]


def search(
    operation: str,
    device: torch.device,
    at: str,
    kinds: list[str] | None = None,
    ends: float = float("inf"),
    rounds: tuple[int, int] = ROUNDS,
    most: int | None = None,
    step: Step = bench.step,
) -> Iterator[dict[str, Any]]:
    """One record for each kernel and key that the benchmark's sizes for `at` lead to, of at most `most` configurations each."""
    package, sizes = f"kernels.{operation}", import_module(f"kernels.{operation}.sizes")
    space, table, done = import_module(f"{package}.triton_").SPACE, tuned.measured(package, device), set()
    table.clear()
    for title, size in sizes.SIZES[at].items():
        for kind in kinds or (("fp32",) if at == "tiny" else sizes.DTYPES[at]):
            try:
                race = Race(sizes, size, kind, device, rounds, step)
                tuned.asked(package).clear()
                if off := race.off():
                    raise SystemExit(f"{operation}, {title}, {kind}: what ships is wrong here ({off}); nothing is measured against it")
                for place in sorted(tuned.asked(package) - done, key=lambda place: list(space).index(place[0])):
                    if time.monotonic() > ends:
                        return
                    of = {"operation": operation, "source": tuned.digest(package), "kernel": place[0], "key": place[1]}
                    yield of | race.best(table, place, space[place[0]][:most], ends) | {"on": f"{title}, {kind}"}
                    done.add(place)
            except torch.OutOfMemoryError:
                print(f"{operation}, {title}, {kind}: left out, the device has too little memory", flush=True)


class Race:
    """Configurations at one size, each tried by putting it where a launch looks for it."""

    def __init__(self, sizes, size: dict, kind: str, device: torch.device, rounds: tuple[int, int], step: Step):
        self.kind, self.device, self.rounds, self.step, dtype = kind, device.type, rounds, step, bench.DTYPES[kind]
        self.fast = bench.Contender("triton", lambda *given: sizes.loss(*given, using="triton"))
        truth = bench.Contender("truth", lambda *given: sizes.loss(*given, using="reference"))
        self.given = sizes.inputs(**size, device=self.device, dtype=dtype, seed=0)
        self.few = sizes.inputs(**size | {"batch": min(size["batch"], 2)}, device=self.device, dtype=dtype, seed=7)
        self.truth = numbers(truth, bench.exact(self.few))

    def off(self) -> str:
        """What is wrong with the numbers of the configurations that are launched now, or ""."""
        loss, gradient = numbers(self.fast, self.few)
        near, true_loss, true = NEAR[self.kind], *self.truth
        error, worst = (gradient - true).norm() / true.norm(), (gradient - true).abs().max() / true.abs().max()
        if not (loss - true_loss).abs() <= LOSS * true_loss.abs():
            return f"the loss is {loss:.6g} and should be {true_loss:.6g}"
        return "" if error <= near and worst <= 10 * near else f"the gradient is off by {error:.1e}, at one place by {worst:.1e}"

    def best(self, table: dict, place: tuple[str, str], space: list[dict], ends: float) -> dict[str, Any]:
        """The fastest configuration of a kernel, or None for the shipped one, with both times; it is left in the table. When the time
        is up, no further one is tried."""
        near, wrong = [], []
        for config in (None, *space):
            if near and time.monotonic() > ends:
                break
            _put(table, place, config)
            try:
                if off := self.off():
                    wrong.append(f"{config}: {off}")
                    continue
                self.step(self.fast, self.given, self.device)
            except Exception as error:  # too many registers or too much shared memory: it is none
                wrong.append(f"{config}: {type(error).__name__}: {str(error).partition(chr(10))[0][:120]}")
                continue
            near.append(config)
        first = self.times(table, place, near, self.rounds[0])
        left = [None, *sorted(filter(None, near), key=lambda config: first[near.index(config)])[:LEFT]]
        last = self.times(table, place, left, self.rounds[1])
        best = min(range(len(left)), key=last.__getitem__)
        best = best if last[best] < (1 - MARGIN) * last[0] else 0
        _put(table, place, left[best])
        return {"config": left[best], "ms": last[best], "shipped_ms": last[0], "tried": len(near) + len(wrong) - 1, "wrong": wrong}

    def times(self, table: dict, place: tuple[str, str], configs: list, rounds: int) -> list[float]:
        """Median milliseconds of a step with each, in turns, in a new order every round."""
        times, order = [[] for _ in configs], random.Random(0)
        for _ in range(rounds):
            for i in order.sample(range(len(configs)), len(configs)):
                _put(table, place, configs[i])
                times[i].append(sum(self.step(self.fast, self.given, self.device)[:2]))
        return [round(statistics.median(each), 4) for each in times]


def numbers(contender: bench.Contender, given: list) -> tuple[Tensor, Tensor]:
    """Loss and gradient."""
    given[0].grad = None
    loss = contender.loss(*given)
    loss.backward()
    return loss.detach().double(), given[0].grad.double()


def line(record: dict[str, Any]) -> str:
    gain = f"{record['shipped_ms']:.3f} ms shipped, " + (
        f"{record['ms']:.3f} ms with {record['config']}" if record["config"] else "none better"
    )
    wrong = "".join(f"\n  left out: {said}" for said in record["wrong"])
    return f"{record['operation']} {record['kernel']} ({record['key']}; {record['on']}), {record['tried']} tried: {gain}{wrong}"


def _put(table: dict, place: tuple[str, str], config: dict | None) -> None:
    if config is None:
        table.pop(place, None)
    else:
        table[place] = config


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kernels.tune", description=__doc__.splitlines()[0])
    parser.add_argument("operations", nargs="*", metavar="OPERATION", help="all that name configurations when none is named")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtypes", nargs="+", choices=bench.DTYPES)
    parser.add_argument("--seconds", type=float, help="begin with no further kernel after so many")
    parser.add_argument("--tiny", action="store_true", help="sizes that prove the command and tell nothing about speed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
