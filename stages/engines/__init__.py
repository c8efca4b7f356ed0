"""Runtimes that turn images into class maps: one file per runtime, all of them behind one small session.

Nothing here touches a device or imports a runtime before `build` or `open` is called.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self

from pydantic import Field, model_validator

from pipeline.artifact import Artifact
from pipeline.errors import BadData, Missing, Stillhouse
from pipeline.stage import Later
from pipeline.table import Row, Table
from stages import machine

if TYPE_CHECKING:
    import numpy as np

TABLE = Table(__name__)


class Session(Protocol):
    """An opened engine. One that can gives logits, too: with_logits(images) -> class maps, float (B, C, h, w) as torch or numpy has it."""

    ran: dict[str, Any]  # what really runs, read back from the runtime: runtime, provider, precision, threads, argmax

    def __call__(self, images: "np.ndarray") -> "np.ndarray":
        """uint8 (B, H, W, 3) RGB -> uint8 (B, H, W) class numbers."""

    def bind(self, images: "np.ndarray") -> Callable[[], None]:
        """Puts the images where the engine reads them; each call of what is returned runs the engine alone, to its end."""


class Engine(Row):
    """The contract of a runtime. A subclass lives in stages/engines/<kind>.py."""

    takes: ClassVar[str]  # the artifact kind an engine is built from: OnnxModel | Checkpoint
    package: ClassVar[str]  # what pip installs
    reproducible: ClassVar[bool] = True  # whether two builds of one file on one machine are equally fast
    keeps_timing: ClassVar[bool] = False  # whether build leaves engine.timing, which another build can start from

    threads: int | None = None
    argmax: Annotated[Literal["graph", "native"], Later()] = Field(
        "graph",
        description="Who enlarges the logits and takes the argmax: the graph, or compiled C behind it that never writes them large.",
    )

    @model_validator(mode="after")
    def takes_the_argmax_where_it_can(self) -> Self:
        if self.argmax == "native" and (why := self.no_native()):
            raise ValueError(f"argmax: native is asked for, and {why}; write argmax: graph")
        return self

    def no_native(self) -> str:
        """Why this engine cannot leave enlarging and argmax to compiled C, or ""."""
        return f"an engine of kind {self.kind} takes the argmax by itself"

    @classmethod
    def installed(cls) -> tuple[str, ...]:
        """Names under which the runtime may be installed; the first that is found counts."""
        return (cls.package,)

    def needs(self) -> dict[str, Any]:
        """What opening the engine elsewhere takes, besides the runtime: the fields of stages/sidecar.py's Needs."""
        return {}

    def requirements(self, version: Callable[..., str] = machine.version) -> list[str]:
        """The lines of a requirements.txt that run this engine elsewhere, pinned to what `version` knows; [] if it needs this package."""
        return []

    def runtime(self, version: Callable[..., str]) -> str:
        """Its name and version where `version` was asked: that gives the first of some distributions there, as stages/machine.py's does."""
        return version(*self.installed())

    def environment(self) -> dict[str, str]:
        """What changes the engine's result besides its settings: runtime version and device. Found without importing the runtime."""
        raise TypeError(f"{type(self).__name__} does not define environment()")

    def build(self, source: Artifact, out: Path) -> dict[str, Any]:
        """Writes files named engine.* into `out` and returns facts about them; `open` is given these facts again."""
        raise TypeError(f"{type(self).__name__} does not define build()")

    def network(self, source: Artifact) -> bytes | None:
        """For argmax: graph: the ONNX file that is built here or on a target; None: as it was exported."""
        return None

    def cut(self, source: Artifact, out: Path) -> tuple[bytes, dict[str, Any]]:
        """For argmax: native: the network up to its logits, and what becomes of them; the rest as a graph lies in `out` (_tail.cut)."""
        raise TypeError(f"{type(self).__name__} does not define cut()")

    def open(self, folder: Path, facts: dict[str, Any]) -> Session:
        raise TypeError(f"{type(self).__name__} does not define open()")


def need(module: str, install: str) -> Any:
    """The imported module, or one line that says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Missing(f"{module} is asked for and cannot be imported here ({error}); install it: {install}") from None


@contextmanager
def opening(file: Path, runtime: str, size: int | None) -> Iterator[None]:
    """Around a runtime that reads a file of `size` bytes, which then bound its memory (None: not at all, as for drivers of GPUs).

    What a runtime says of a file it does not take becomes our error, in one line; its own kinds of error are known only to itself.
    """
    from stages.bounds import RATE, SECONDS, bounded

    try:
        with nullcontext() if size is None else bounded(f"{runtime}, opening {file},", size, SECONDS + size / RATE):
            yield
    except Stillhouse:
        raise
    except Exception as error:
        raise BadData(f"{runtime} does not take {file}: {first_line(error)}. Build it again from the network") from None


def answer(run: Callable[[], "np.ndarray"], images: "np.ndarray") -> "np.ndarray":
    """The class maps that `run` gives for these images; BadData when the engine does not take them or gives something else."""
    shape = images.shape[:3]
    try:
        found = run()
    except Exception as error:
        raise BadData(f"the engine does not take images of shape {list(images.shape)}: {first_line(error)}") from None
    if found.shape != shape or found.dtype.name != "uint8":
        raise BadData(f"the engine gives {found.dtype} {list(found.shape)}, not uint8 {list(shape)}: build it again")
    return found


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return "".join(c for c in lines[0][:300] if c.isprintable()) if lines else type(error).__name__
