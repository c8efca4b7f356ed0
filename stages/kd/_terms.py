"""All loss terms of one training run: the task loss and the methods beside it, each term with its name and weight."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.errors import BadRecipe
from stages.kd import Loss, Method, Pair, Task
from stages.kd._step import Step


class Terms(nn.Module):
    """Built from rows. Its modules draw their weights from their own seed: the student's start does not depend on them."""

    def __init__(self, task: Task, losses: Sequence[Loss], pair: Pair, seed: int):
        super().__init__()
        rows = (task, *losses)
        if wrong := [f"{row.kind}.{'.'.join(path)}: {text}" for row in rows for path, text in row.misfits(pair.classes)]:
            raise BadRecipe("; ".join(wrong))
        if lacking := [text for row in rows for text in _lacking(row, pair)]:
            raise BadRecipe("; ".join(lacking))
        self.maps = frozenset().union(*(row.maps() for row in rows))
        self.when = [None, *(row.when for row in losses)]
        kinds = [row.kind for row in rows]
        self.suffixes = [f"_{n}" if (n := kinds[:i].count(kind) + 1) > 1 else "" for i, kind in enumerate(kinds)]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.methods = nn.ModuleList(row.build(pair) for row in rows)

    def forward(self, step: Step) -> tuple[dict[str, Tensor], set[str]]:
        """{name: weight * term}, and which of the names belong to the task loss. The second method of one kind is called kind_2.

        A loss that is off by its schedule is computed all the same, and counts 0: curves keep their names, and processes that
        wait for each other's gradients the same weights.
        """
        # In float32, whatever the networks are in: differences of cosines and of sums of squares drown in half precision.
        with torch.autocast(step.labels.device.type, enabled=False):
            return self._weighted(step)

    def waiting(self, progress: float) -> list[nn.Parameter]:
        """Weights whose loss is off. Their gradients are 0, for processes wait for each, but no optimizer may count such steps."""
        found = []
        for method, when in zip(self.methods, self.when, strict=True):
            if when and not when.factor(progress):
                found += method.parameters()
            elif hasattr(method, "idle"):
                found += method.idle(progress)
        return found

    def _weighted(self, step: Step) -> tuple[dict[str, Tensor], set[str]]:
        terms, task = {}, set()
        for method, suffix, when in zip(self.methods, self.suffixes, self.when, strict=True):
            factor = when.factor(step.progress) if when else 1.0
            for name, (term, weight) in method(step).items():
                if name + suffix in terms:
                    raise KeyError(f"two methods give a term called {name + suffix}")
                scale = factor * weight
                terms[name + suffix] = term if scale == 1 else scale * term
                if when is None:
                    task.add(name)
        return terms, task


def _lacking(row: Method, pair: Pair) -> list[str]:
    """The taps that a method would ask a network for in vain: what an hf network has shows only once it is built."""
    nets = {"student": pair.student} | ({"teacher": pair.teacher} if row.needs_teacher else {})
    return [
        f"{row.kind} needs {tap} of the {net}, which has {', '.join(taps)}: take a method that reads one of these, or another network"
        for net, taps in nets.items()
        for tap in sorted(row.reads() - taps.keys())
    ]
