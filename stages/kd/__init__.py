"""Distillation methods and owners of the task loss: one row each, found by looking.

A method is a folder: `__init__.py` holds its settings, which import no torch, and `loss.py` its module. The module gets a
Step (stages/kd/_step.py: what both networks gave for one batch) and returns named terms. Modules it trains live in it: they
are optimised and saved with the student's training state, and never exported.
"""

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.table import Row, Table

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

TABLE = Table(__name__)


class Pair(NamedTuple):
    """The two networks a method is built for."""

    student: dict[str, int]  # channels of each tap
    teacher: dict[str, int]  # the same; empty where nobody teaches
    classes: int
    text: "Tensor | None" = None  # (classes, D): a unit vector of language per class


class Need(NamedTuple):
    """A tap that not every network has, and that a method cannot do without as it is set."""

    net: str  # "student" or "teacher"
    tap: str
    otherwise: str  # what to write instead, e.g. "set difficulty: entropy"


class Method(Row):
    """The contract of a row: either a Task or a Loss."""

    role: ClassVar[str]
    needs_teacher: ClassVar[bool] = True
    needs_text: ClassVar[bool] = False  # does it ask for Pair.text?

    def maps(self) -> set[tuple[str, float]]:
        """The shared maps its module will ask the Step for, e.g. {("kl", 4.0)}, so that none is computed twice."""
        return set()

    def reads(self) -> set[str]:
        """The taps it asks both networks for (the student alone where it needs no teacher), beyond `logits`, which every network has.

        Our own networks have `head` and `c1` to `c4` as well; what an hf network has shows only when it is built. `aux` is not among them:
        a method does without, or `needs` it.
        """
        return set()

    def needs(self) -> list[Need]:
        """Taps that a network has or lacks by its settings, so that `check` can tell."""
        return []

    def misfits(self, classes: int | None) -> list[tuple[tuple, str]]:
        """What is wrong in view of the number of classes (None: only known once the data was read): (path of the field, message)."""
        return []

    def build(self, pair: Pair) -> "Module":
        """A module: forward(step) -> {name: (term, weight)}, each term a 0-d tensor. It may have idle(progress): weights without a use."""
        raise TypeError(f"{type(self).__name__} does not define build()")


class Task(Method):
    """Owns the loss on the labels: a stage has exactly one."""

    role: ClassVar[str] = "task"


class When(BaseModel):
    """The part of the training a loss belongs to: off, rising, full, falling, off again. All are fractions of the steps."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    start: float = Field(0.0, ge=0, lt=1, description="Before this fraction of the steps the loss is off.")
    rise: float = Field(0.0, ge=0, le=1, description="Over so much after `start` its weight grows from 0 to full.")
    fall: float = Field(0.0, ge=0, le=1, description="Over so much before `end` its weight falls to 0.")
    end: float = Field(1.0, gt=0, le=1, description="From this fraction of the steps on the loss is off.")

    @model_validator(mode="after")
    def ordered(self) -> Self:
        if self.start + self.rise > self.end - self.fall:
            raise ValueError(
                f"start {self.start} + rise {self.rise} must not lie after end {self.end} - fall {self.fall}, "
                "for the weight would fall before it has risen: lower rise or fall, or let start and end lie further apart"
            )
        return self

    def factor(self, progress: float) -> float:
        """0 .. 1, to multiply the weight with at this fraction of the steps."""
        if not self.start <= progress < self.end:
            return 0.0
        up = (progress - self.start) / self.rise if self.rise else 1.0
        down = (self.end - progress) / self.fall if self.fall else 1.0
        return min(1.0, up, down)


class Loss(Method):
    """Stands beside the task loss, as one of any number."""

    role: ClassVar[str] = "loss"

    when: When = Field(When(), description="The part of the training in which it counts; all of it unless said otherwise.")


def filled(given: Any, presets: dict[str, dict], default: str) -> Any:
    """Settings as written, with what they leave out taken from the preset they name: for a row's `model_validator(mode="before")`."""
    if not isinstance(given, dict) or given.get("preset", default) not in presets:
        return given  # pydantic will say what is wrong
    return presets[given.get("preset", default)] | given
