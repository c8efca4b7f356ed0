"""What the losses add to a distillation step: SegFormer-B0 taught by B2, against both networks alone.

    python benchmarks/distill_step.py [--classes 19 150 --batch 4 --size 512 --rounds 5 --threads 2] [--profile]

Alone is the teacher forward, the student forward and the student backward from a given gradient of its logits. With losses is the
same step with cross-entropy and pixel KL (T = 4) at label resolution, through the compiled kernels, and through plain PyTorch.
The three take turns on the same images, in a new order every round; ratios are medians over rounds. --profile lists where the
time of a step goes, before (plain PyTorch) and after.
"""

import argparse
import random
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile, record_function

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kernels import choose
from stages.kd import TABLE as KD
from stages.kd import Pair
from stages.kd._step import Step
from stages.kd._terms import Terms
from stages.memory import keep_freed_memory
from stages.models import TABLE as MODELS

SIDES = {"alone": None, "kernels": "auto", "plain PyTorch": "reference"}


class Side:
    """One of the three: its step, and which variant its losses take."""

    def __init__(self, using, student, teacher, terms, images, labels, upstream):
        self.using, self.student, self.teacher, self.terms = using, student, teacher, terms
        self.images, self.labels, self.upstream = images, labels, upstream

    def step(self) -> float:
        """Milliseconds."""
        self.student.zero_grad(set_to_none=True)
        began = time.perf_counter()
        with torch.no_grad(), record_function("teacher forward"):
            taught = self.teacher(self.images)
        with record_function("student forward"):
            made = self.student(self.images)
        if self.using is None:
            with record_function("student backward"):
                made["logits"].backward(self.upstream)
        else:
            with record_function("losses forward"):
                step = Step(made, taught, self.labels, maps=self.terms.maps, align_corners=False)
                loss = sum(self.terms(step)[0].values())
            with record_function("losses and student backward"):
                loss.backward()
        return 1000 * (time.perf_counter() - began)


def sides(classes: int, options: argparse.Namespace) -> dict[str, Side]:
    torch.manual_seed(0)
    teacher, student = (MODELS.row("segformer").model_validate({"kind": "segformer", "size": size}).build(classes) for size in ("b2", "b0"))
    teacher.eval(), student.train()
    task = KD.row("ce").model_validate({"kind": "ce"})
    loss = KD.row("pixel").model_validate({"kind": "pixel", "temperature": 4.0, "at": "labels"})
    terms = Terms(task, [loss], Pair(student.widths, teacher.widths, classes), 0)
    images = torch.randint(0, 256, (options.batch, 3, options.size, options.size)).float()
    labels = torch.randint(0, classes, (options.batch, options.size, options.size), dtype=torch.uint8)
    upstream = torch.randn(options.batch, classes, options.size // 4, options.size // 4)
    return {name: Side(using, student, teacher, terms, images, labels, upstream) for name, using in SIDES.items()}


def timed(side: Side) -> float:
    plain = patch.object(choose, "variant", lambda *_: "reference")
    with plain if side.using == "reference" else nullcontext():
        return side.step()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[19, 150])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as training does
    good = True
    for classes in options.classes:
        racing, order = sides(classes, options), random.Random(0)
        rounds = [{name: timed(racing[name]) for name in order.sample(list(racing), len(racing))} for _ in range(options.rounds + 1)][1:]
        median = {name: statistics.median(r[name] for r in rounds) for name in racing}
        ratio = {name: statistics.median(r[name] / r["alone"] for r in rounds) for name in racing}
        target = 1.05 if classes <= 19 else 1.15
        print(
            f"{classes} classes, batch {options.batch}, {options.size}x{options.size}, {options.threads} threads, {options.rounds} rounds"
        )
        for name in racing:
            print(f"  {name:14} {median[name]:8.0f} ms   {ratio[name]:.3f} x alone")
        print(f"  judged: {ratio['kernels']:.3f}, target <= {target}")
        good &= ratio["kernels"] <= target
        if options.profile:
            for name in ("plain PyTorch", "kernels"):
                shown(name, racing[name])
    return 0 if good else 1


def shown(name: str, side: Side) -> None:
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as kept:
        timed(side)
    print(f"  {name}: where one step goes")
    print(kept.key_averages().table(sort_by="self_cpu_time_total", row_limit=14, max_name_column_width=40))


if __name__ == "__main__":
    sys.exit(main())
