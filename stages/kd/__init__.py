"""Distillation methods and owners of the task loss: one row each, found by looking.

A method is a folder: `__init__.py` holds its settings, which import no torch, and `loss.py` its module. The module gets a
Step (stages/kd/_step.py: what both networks gave for one batch) and returns named terms. Modules it trains live in it: they
are optimised and saved with the student's training state, and never exported.
"""

from typing import TYPE_CHECKING, ClassVar

from pipeline.table import Row, Table

if TYPE_CHECKING:
    from torch.nn import Module

TABLE = Table(__name__)


class Method(Row):
    """The contract of a row."""

    role: ClassVar[str] = "loss"  # "task": owns the task loss, and a stage has exactly one; "loss": stands beside it

    def maps(self) -> set[tuple[str, float]]:
        """The shared maps its module will ask the Step for, e.g. {("kl", 4.0)}, so that none is computed twice."""
        return set()

    def build(self, student: dict[str, int], teacher: dict[str, int], classes: int) -> "Module":
        """A module: forward(step) -> {name: (term, weight)}, each term a 0-d tensor. Both dicts: channels of each tap."""
        raise TypeError(f"{type(self).__name__} does not define build()")
