"""All loss terms of one training run: the task loss and the methods beside it, each term with its name and weight."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stages.kd import Method
from stages.kd._step import Step


class Terms(nn.Module):
    """Built from rows. Its modules draw their weights from their own seed: the student's start does not depend on them."""

    def __init__(self, task: Method, losses: Sequence[Method], student: dict, teacher: dict, classes: int, seed: int):
        super().__init__()
        rows = (task, *losses)
        self.maps = frozenset().union(*(row.maps() for row in rows))
        kinds = [row.kind for row in rows]
        self.suffixes = [f"_{n}" if (n := kinds[:i].count(kind) + 1) > 1 else "" for i, kind in enumerate(kinds)]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.methods = nn.ModuleList(row.build(student, teacher, classes) for row in rows)

    def forward(self, step: Step) -> tuple[dict[str, Tensor], set[str]]:
        """{name: weight * term}, and which of the names belong to the task loss. The second method of one kind is called kind_2."""
        terms, task = {}, set()
        for i, (method, suffix) in enumerate(zip(self.methods, self.suffixes, strict=True)):
            for name, (term, weight) in method(step).items():
                if name + suffix in terms:
                    raise KeyError(f"two methods give a term called {name + suffix}")
                terms[name + suffix] = term if weight == 1 else weight * term
                if i == 0:
                    task.add(name)
        return terms, task
