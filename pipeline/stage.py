"""The contract of a stage: its settings, what it takes and makes, and how it runs in a process of its own."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, Self

from pydantic import Field, PrivateAttr

from .artifact import Artifact
from .table import Row


@dataclass(frozen=True)
class Takes:
    """Marks a field that names earlier stages, and the artifact kinds it accepts.

    `named`: the names themselves appear in the result (a Measurement speaks of "student"), so they belong to the key.
    """

    kinds: tuple[str, ...]
    named: bool = False


class Aside:
    """Marks a field that cannot change the result (how often to save, how many helpers): it stays out of the key."""


class Later:
    """Marks a field that came when artifacts had already been made without it: at its default it stays out of the key.

    So the default must do what was done before the field was there, for good: to change the default, raise the stage's version.
    """


Dataset = Annotated[str, Takes(("Dataset",)), Field(description="The stage whose data set is used.")]


@dataclass(frozen=True)
class Made:
    """What a run returns, besides the files it wrote: reproducible facts, and what may differ from one making to the next."""

    facts: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, Any] = field(default_factory=dict)


class Job(Protocol):
    """What the runner lends to a running stage."""

    out: Path  # an empty folder; every file in it becomes part of the artifact (flat: no folders inside)
    state: Path  # a folder that survives interruption and is deleted once the artifact is published
    lineage: dict[str, dict[str, list[str]]]  # every stage of the recipe -> its fields that name stages; ids of inputs stand for it in keys
    released: Any  # released.Released, the committed baseline, for a stage that speaks of it; None for all others
    rehearsing: bool  # untrained weights and four images: measure little, judge nothing

    def say(self, text: str) -> None:
        """One line for the person who watches and for the log."""

    def progress(self, done: int, total: int, **figures: float) -> None:
        """How far the stage is; figures (loss=..., ms=...) are shown beside the bar."""

    target: Any  # targets.Asked, the machine on which a stage with the field `target` works; None for all others

    def stop_asked(self) -> int:
        """0, or the number of the signal that asks this stage to save its state and raise errors.Stopped."""


class Stage(Row):
    """One stage of a recipe. A subclass lives in stages/<kind>.py and imports torch, numpy and the like inside run() only."""

    makes: ClassVar[str]
    reproducible: ClassVar[bool] = True  # the same key gives the same bytes (on one machine)
    _there: Any = PrivateAttr(None)
    _released: Any = PrivateAttr(None)

    @property
    def there(self) -> Any:
        """targets.Asked of the machine in the field `target`, once that was asked what it is; only a run does so."""
        return self._there

    def at(self, there: Any) -> Self:
        """The same stage, knowing the machine on which it will work."""
        stage = self.model_copy()
        stage._there = there
        return stage

    @property
    def released(self) -> Any:
        """released.Released, once it was read; only for a stage that speaks of it."""
        return self._released

    def knowing(self, released: Any) -> Self:
        """The same stage, knowing the committed baseline."""
        stage = self.model_copy()
        stage._released = released
        return stage

    def names_released(self) -> bool:
        """Whether its settings speak of the committed baseline: that belongs to its key then."""
        return False

    def outside(self) -> dict[str, str]:
        """What lies outside the store and is read by run(): name -> digest. It belongs to the key."""
        return {}

    def environment(self) -> dict[str, str]:
        """Facts of this machine that change the result (runtime versions, device). They belong to the key."""
        return {}

    def unsettled(self, facts: dict[str, Any]) -> tuple[str, ...]:
        """Fields whose artifacts left this one open, for a reason that may be gone: the next run makes them anew. `facts`: its own."""
        return ()

    def problems(self, earlier: dict[str, "Stage"]) -> list[tuple[tuple, str]]:
        """What is wrong in view of the other stages: (path of the field inside this stage, message)."""
        return []

    def rehearsed(self) -> Self:
        """The same stage for a rehearsal: 2 steps, 4 images."""
        return self

    def run(self, inputs: dict[str, Artifact | list[Artifact]], job: Job) -> Made:
        """`inputs` is keyed by field name; a field that lists stages gives a list."""
        raise TypeError(f"{type(self).__name__} does not define run()")
