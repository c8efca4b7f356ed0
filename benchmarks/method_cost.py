"""What each distillation method adds to a training step: milliseconds, times the step without it, and weights trained along.

    python benchmarks/method_cost.py [KIND ...] [--model tiny segformer] [--rounds 9 --threads 1] [--json FILE]

Every row of stages/kd runs with its defaults, and once more for every other word that one of its settings takes (preset, at, ...).
"adds" is the time of its losses beside cross-entropy, forward and backward to the taps, less that of cross-entropy alone: shared maps
that cross-entropy computes anyway cost nothing twice. A row that owns the task loss stands in place of cross-entropy. "step" is
(step + adds) / step, where step is the teacher forward, the student forward, cross-entropy and the backward of both; the optimizer
is left out on both sides. All take turns, in a new order every round; figures are medians over rounds of differences and ratios in
one round. On a CPU time is that of the processor, which hardly sees other processes: with one thread it is what a clock shows on a
quiet machine, with more it counts them all. Images are noise, labels patches, networks untrained, vectors of language random.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
from pydantic import ValidationError
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from stages.kd import TABLE as KD
from stages.kd import Method, Pair
from stages.kd._step import IGNORE, Step
from stages.kd._terms import Terms
from stages.machine import cpu_name
from stages.memory import keep_freed_memory
from stages.models import TABLE as MODELS

# kind of model: sizes of student and teacher, images in a batch, their size, classes
PAIRS = {"tiny": ("small", "large", 8, (96, 192), 12), "segformer": ("b0", "b2", 2, (512, 512), 19)}
LANGUAGE, PATCH, WARM = 512, 16, 2  # width of the vectors of language, pixels of one label, rounds that are not counted
PROGRESS = 0.5  # of the training: past the first phase of every method that has two


class Bench:
    """Two networks, one batch, and what both made of it."""

    def __init__(self, kind: str, device: str):
        small, large, self.batch, self.size, self.classes = PAIRS[kind]
        torch.manual_seed(0)
        nets = (MODELS.row(kind).model_validate({"kind": kind, "size": size}).build(self.classes).to(device) for size in (small, large))
        self.student, self.teacher = (net.train(learns) for net, learns in zip(nets, (True, False), strict=True))
        self.device, self.name = device, f"{kind} {large} teaches {small}"
        self.pair = Pair(self.student.widths, self.teacher.widths, self.classes, normalize(torch.randn(self.classes, LANGUAGE), dim=1))
        self.images = torch.randint(0, 256, (self.batch, 3, *self.size), device=device).float()
        self.labels = patches(self.batch, self.size, self.classes).to(device)
        with torch.no_grad():
            self.made, self.taught = self.student(self.images), self.teacher(self.images)

    def terms(self, row: Method) -> Terms:
        task, losses = (row, []) if row.role == "task" else (row_of({"kind": "ce"}), [row])
        return Terms(task, losses, self.pair, 0).to(self.device).train()

    def missing(self, row: Method) -> list[str]:
        """The taps that these networks do not have and the row cannot do without."""
        return [f"{need.tap} of the {need.net}" for need in row.needs() if need.tap not in getattr(self.pair, need.net)]

    def losses(self, terms: Terms) -> float:
        """Milliseconds from taps to the gradient of taps."""
        made = {tap: value.clone().requires_grad_() for tap, value in self.made.items()}
        terms.zero_grad(set_to_none=True)
        began = self._now()
        self._loss(terms, made, self.taught).backward()
        return self._now() - began

    def step(self, terms: Terms) -> float:
        """Milliseconds from images to the gradient of weights."""
        self.student.zero_grad(set_to_none=True)
        began = self._now()
        with torch.no_grad():
            taught = self.teacher(self.images)
        self._loss(terms, self.student(self.images), taught).backward()
        return self._now() - began

    def require_sound(self, terms: Terms, name: str) -> None:
        """A method that is wrong is not measured."""
        made = {tap: value.clone().requires_grad_() for tap, value in self.made.items()}
        loss = self._loss(terms, made, self.taught)
        loss.backward()
        gradients = [v.grad for v in made.values() if v.grad is not None]
        if not (loss.isfinite() and gradients and all(g.isfinite().all() for g in gradients) and any(g.any() for g in gradients)):
            raise SystemExit(f"{name}: its loss or its gradients are not finite, or there are none; nothing is measured")

    def _loss(self, terms: Terms, made: dict, taught: dict):
        student, teacher = self.student.align_corners, self.teacher.align_corners
        step = Step(made, taught, self.labels, maps=terms.maps, progress=PROGRESS, align_corners=student, teacher_align_corners=teacher)
        return sum(terms(step)[0].values())

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
            return 1000 * time.perf_counter()
        return 1000 * time.process_time()


def patches(batch: int, size: tuple[int, int], classes: int) -> torch.Tensor:
    """(B, H, W) uint8: squares of one class each, or ignored."""
    small = torch.randint(0, classes, (batch, size[0] // PATCH, size[1] // PATCH), dtype=torch.uint8)
    small[torch.rand(small.shape) < 0.05] = IGNORE
    return small.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)


def row_of(settings: dict[str, Any]) -> Method:
    return KD.row(settings["kind"]).model_validate(settings)


def variants(kinds: list[str]) -> Iterator[dict[str, Any]]:
    """The settings of every row as it is, and with each of its words changed."""
    for kind in kinds:
        yield {"kind": kind}
        for field, info in KD.row(kind).model_fields.items():
            words = get_args(info.annotation) if field != "kind" and get_origin(info.annotation) is Literal else ()
            default = getattr(row_of({"kind": kind}), field)
            yield from ({"kind": kind, field: word} for word in words if word != default)


def measured(bench: Bench, kinds: list[str], rounds: int) -> dict[str, Any]:
    racing, left_out = {"ce": bench.terms(row_of({"kind": "ce"}))}, {}
    for settings in variants(kinds):
        name = " ".join([settings["kind"], *(f"{k}={v}" for k, v in settings.items() if k != "kind")])
        try:
            row = row_of(settings)
        except ValidationError as error:
            left_out[name] = error.errors()[0]["msg"]
            continue
        if missing := bench.missing(row):
            left_out[name] = f"needs {', '.join(missing)}"
        elif name != "ce":
            racing[name] = bench.terms(row)
    for name, terms in racing.items():
        bench.require_sound(terms, name)
    order, kept = random.Random(0), []
    for _ in range(rounds + WARM):
        took = {}
        for name in order.sample(["the step", *racing], len(racing) + 1):
            torch.manual_seed(0)
            took[name] = bench.step(racing["ce"]) if name == "the step" else bench.losses(racing[name])
        kept.append(took)
    methods = [figures(name, racing[name], kept[WARM:]) for name in racing if name != "ce"]
    step, ce = (statistics.median(took[name] for took in kept[WARM:]) for name in ("the step", "ce"))
    return {"networks": bench.name, "step_ms": step, "ce_ms": ce, "methods": methods, "left_out": left_out}


def figures(name: str, terms: Terms, rounds: list[dict[str, float]]) -> dict[str, Any]:
    added = sorted(took[name] - took["ce"] for took in rounds)
    quarter = len(added) // 4
    return {
        "method": name,
        "adds_ms": statistics.median(added),
        "middle_half_ms": [added[quarter], added[-quarter - 1]],
        "ratio": statistics.median(1 + (took[name] - took["ce"]) / took["the step"] for took in rounds),
        "parameters": sum(p.numel() for p in terms.parameters() if p.requires_grad),
    }


def told(found: dict[str, Any]) -> None:
    print(f"{found['networks']}: a step with cross-entropy alone takes {found['step_ms']:.1f} ms, {found['ce_ms']:.1f} of them the loss")
    width = max(map(len, ["method", *(m["method"] for m in found["methods"]), *found["left_out"]]))
    print(f"  {'method':{width}}  adds, ms  middle half         step   train-only parameters")
    for m in sorted(found["methods"], key=lambda m: m["adds_ms"]):
        half = "{:.1f} to {:.1f}".format(*m["middle_half_ms"])
        print(f"  {m['method']:{width}}  {m['adds_ms']:8.1f}  {half:18}  {m['ratio']:.3f}  {m['parameters']:10,}")
    for name, why in found["left_out"].items():
        print(f"  {name:{width}}  left out: {why}")


def machine(device: str, threads: int) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"{cpu_name()}, {threads} threads"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="rows of stages/kd; all of them if none is named")
    parser.add_argument("--model", nargs="+", choices=PAIRS, default=["tiny"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if unknown := [kind for kind in options.kinds if kind not in KD.names()]:
        parser.error(f"no row of stages/kd is called {unknown[0]}; there are {', '.join(KD.names())}")
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as training does
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where, found = machine(device, options.threads), []
    for kind in options.model:
        bench = Bench(kind, device)
        print(f"{where}, {options.rounds} rounds, batch {bench.batch}, {bench.size[0]} x {bench.size[1]}, {bench.classes} classes")
        found.append(measured(bench, options.kinds or list(KD.names()), options.rounds))
        told(found[-1])
        found[-1] |= {"batch": bench.batch, "size": bench.size, "classes": bench.classes}
    if options.json:
        facts = {"machine": where, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), "rounds": options.rounds}
        facts["clock"] = "wall" if device == "cuda" else "processor"
        options.json.write_text(json.dumps(facts | {"found": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
