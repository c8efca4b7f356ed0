"""Measures the operations beside plain PyTorch and torch.compile, after their tests: `python -m kernels.bench [OPERATION ...]`.

What an operation is measured on is in its sizes.py: SIZES, inputs() and loss(). All contenders take turns on the same inputs, in a
new order every round; figures are medians. Memory is the most that is held during forward and backward, beyond what was there
before; the gradient's error is ||g - truth|| / ||truth|| against the reference in float64, on the first image.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels import tuned
from kernels.choose import FILES, unfit, variants

ROOT = Path(__file__).resolve().parent.parent
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Contender(NamedTuple):
    name: str
    loss: Callable[..., Tensor]
    deterministic: bool = False  # under torch.use_deterministic_algorithms


def main() -> int:
    asked = _parser().parse_args()
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")  # of tables, which never change
    torch.set_num_threads(asked.threads or torch.get_num_threads())
    operations = asked.operations or measurable()
    if unknown := set(operations) - set(measurable()):
        print(f"nothing to measure is known of {', '.join(sorted(unknown))}; there is {', '.join(measurable())}", file=sys.stderr)
        return 2
    if not asked.untested and (red := failing(operations)):
        print(f"{red}\nno speed is told of what is wrong: the tests above fail", file=sys.stderr)
        return 1
    found = {"machine": machine(asked.device), "rounds": asked.rounds, "results": []}
    print(", ".join(str(v) for v in found["machine"].values()))
    ends = time.monotonic() + (asked.seconds or float("inf"))
    broken = []
    for operation in operations:
        for result in measured(operation, asked, ends):
            found["results"].append(result)
            print("\n".join(table(result)), flush=True)
            if asked.json:  # after each, so that what ends this process takes no figure with it
                asked.json.parent.mkdir(parents=True, exist_ok=True)
                asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            broken += [
                f"{operation}, {result['size']}: {name}" for name, v in result["contenders"].items() if name in FILES and v["failed"]
            ]
    if broken:
        print("\nvariants of our own that failed: " + "; ".join(broken), file=sys.stderr)
    return 1 if broken else 0


def measurable() -> list[str]:
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/sizes.py"))


def failing(operations: list[str]) -> str:
    """What pytest says where a test of these operations fails; "" where all pass."""
    files = sorted({str(path) for operation in operations for path in (ROOT / "tests/kernels").glob(f"test_{operation}*.py")})
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", *files, *map(str, (ROOT / "tests/kernels").glob("test_cpu.py"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def machine(device: str) -> dict[str, str]:
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{_processor()}, {torch.get_num_threads()} threads",
        "torch": f"torch {torch.__version__}",
        "python": f"Python {platform.python_version()}",
        "date": time.strftime("%Y-%m-%d"),
    }


def measured(operation: str, asked: argparse.Namespace, ends: float):
    """One result per size and type; none is begun after `ends`, which is said."""
    sizes, package = import_module(f"kernels.{operation}.sizes"), f"kernels.{operation}"
    absent = getattr(sizes, "absent", lambda device: {})(asked.device)  # {contender: why it cannot run}, told once
    for title, size in sizes.SIZES["tiny" if asked.tiny else asked.device].items():
        if asked.size and asked.size not in title:
            continue
        for kind in asked.dtypes or (("fp32",) if asked.tiny else sizes.DTYPES[asked.device]):
            if time.monotonic() > ends:
                print(f"\n{operation}, {title}, {kind}: left out, the time is used up")
                continue
            sets = [sizes.inputs(**size, device=asked.device, dtype=DTYPES[kind], seed=seed) for seed in range(2)]
            fast = [name for name in variants(package) if name != "reference" and not unfit(name, asked.device, DTYPES[kind])]
            contenders = [
                Contender("eager", lambda *given: sizes.loss(*given, using="reference")),
                Contender("torch.compile", torch.compile(lambda *given: sizes.loss(*given, using="reference"))),
                *(Contender(_called(package, name, sets[0]), lambda *given, name=name: sizes.loss(*given, using=name)) for name in fast),
                *(Contender(*other) for other in getattr(sizes, "OTHERS", {}).items() if other[0] not in absent),
            ]
            if asked.device == "cuda":
                contenders.append(Contender("eager, deterministic", contenders[0].loss, deterministic=True))
            torch._dynamo.reset()
            told = {c.name: _prepared(c, sizes, size, sets[0], asked.device, DTYPES[kind]) for c in contenders}
            _raced([c for c in contenders if not told[c.name]["failed"]], sets, asked, told)
            yield {"operation": operation, "size": title, "shapes": size, "dtype": kind, "contenders": told, "absent": absent}
            absent = {}


def _called(package: str, variant: str, given: list) -> str:
    """A contender's name: which configurations it is launched with is said where they are not the shipped ones."""
    of_triton = variant in ("triton", "cuda")  # the forward of a cuda variant may be Triton's
    return f"{variant}, tuned" if of_triton and tuned.used(package, given[0].device) == "tuned" else variant


def _prepared(contender: Contender, sizes, size: dict, given: list, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Warm, and what need not be timed: memory, the error of the gradient, whether it repeats bit for bit."""
    try:
        began = time.perf_counter()
        step(contender, given, device)
        first = time.perf_counter() - began
        step(contender, given, device)
        before = _memory(device, reset=True)
        gradient = step(contender, given, device)[2]
        extra = (_memory(device) - before) / 2**20
        repeats = torch.equal(gradient, step(contender, given, device)[2])
        del gradient
        told = {"failed": None, "first_s": round(first, 2), "extra_mib": round(extra, 1), "repeats": repeats}
        return told | {"gradient_error": _error(contender, sizes, size, device, dtype)}
    except Exception as error:  # out of memory, not deterministic, does not compile, and what others' code raises: that is its result
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"}


def _error(contender: Contender, sizes, size: dict, device: str, dtype: torch.dtype) -> float:
    given = sizes.inputs(**size | {"batch": 1}, device=device, dtype=dtype, seed=7)
    found = step(contender, given, device)[2].double()
    truth = step(Contender("truth", lambda *g: sizes.loss(*g, using="reference")), exact(given), device)[2]
    return float((found - truth).norm() / truth.norm())


def exact(given: list) -> list:
    """The same in float64."""
    return [v.detach().double().requires_grad_(v.requires_grad) if isinstance(v, Tensor) and v.is_floating_point() else v for v in given]


def _raced(contenders: list[Contender], sets: list, asked: argparse.Namespace, told: dict) -> None:
    times: dict[str, list] = {c.name: [] for c in contenders}
    order = random.Random(0)
    for i in range(asked.rounds):
        for contender in order.sample(contenders, len(contenders)):
            times[contender.name].append(step(contender, sets[i % len(sets)], asked.device)[:2])
    for name, steps in times.items():
        forward, backward = (statistics.median(part) for part in zip(*steps, strict=True))
        both = [f + b for f, b in steps]
        told[name] |= {"forward_ms": forward, "backward_ms": backward, "ms": statistics.median(both), "all_ms": [round(v, 4) for v in both]}


def step(contender: Contender, given: list, device: str) -> tuple[float, float, Tensor]:
    """Milliseconds forward and backward, and the gradient."""
    given[0].grad = None
    torch.use_deterministic_algorithms(contender.deterministic)
    try:
        if device == "cpu":
            began = time.perf_counter()
            loss = contender.loss(*given)
            between = time.perf_counter()
            loss.backward()
            return 1e3 * (between - began), 1e3 * (time.perf_counter() - between), given[0].grad
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
        torch.cuda.synchronize()
        marks[0].record()
        loss = contender.loss(*given)
        marks[1].record()
        loss.backward()
        marks[2].record()
        torch.cuda.synchronize()
        return marks[0].elapsed_time(marks[1]), marks[1].elapsed_time(marks[2]), given[0].grad
    finally:
        torch.use_deterministic_algorithms(False)


def _memory(device: str, reset: bool = False) -> int:
    """Bytes: now, with `reset`; else the most since then."""
    if device == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    if reset:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before is no longer held
        Path("/proc/self/clear_refs").write_text("5")
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def table(result: dict[str, Any]) -> list[str]:
    told = result["contenders"]
    heads = (("forward", 10), ("backward", 10), ("both ms", 10), ("beside eager", 14), ("beside compile", 16), ("MiB", 9), ("error", 10))
    lines = ["", f"{result['operation']}, {result['size']}, {result['dtype']}: {result['shapes']}"]
    lines.append(" " * 24 + "".join(f"{head:>{width}}" for head, width in heads) + "  repeats")
    for name, v in told.items():
        if v["failed"]:
            lines.append(f"  {name:22}{v['failed']}")
            continue
        beside = [f"{told[other]['ms'] / v['ms']:.2f} x" if "ms" in told.get(other, {}) else "" for other in ("eager", "torch.compile")]
        times = "".join(f"{v[key]:10.2f}" for key in ("forward_ms", "backward_ms", "ms"))
        lines.append(f"  {name:22}{times}{beside[0]:>14}{beside[1]:>16}{v['extra_mib']:9.1f}{v['gradient_error']:10.1e}  {v['repeats']}")
    return lines + [f"  {name}: {why}" for name, why in result["absent"].items()]


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if os.path.exists("/proc/cpuinfo") else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or "unknown")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__.splitlines()[0])
    parser.add_argument("operations", nargs="*", metavar="OPERATION", help=f"{', '.join(measurable())}; all when none is named")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="threads on a CPU")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", help="only sizes whose title holds this")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--tiny", action="store_true", help="sizes that prove the command and tell nothing about speed")
    parser.add_argument("--seconds", type=float, help="begin no further size after so many")
    parser.add_argument("--untested", action="store_true", help="do not run the tests first (they have just been run)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
