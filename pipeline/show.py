"""What a person sees while a run goes on: one clear line per stage; bars on a terminal, plain lines in a log."""

import os
import sys
import time
from typing import Any, Protocol

MARKS = {"made": "made", "kept": "kept", "failed": "FAILED", "stopped": "stopped"}


class Show(Protocol):
    def say(self, text: str, stage: str | None = None) -> None: ...
    def begin(self, name: str, kind: str) -> None: ...
    def progress(self, name: str, done: int, total: int, figures: dict[str, float]) -> None: ...
    def end(self, name: str, kind: str, state: str, seconds: float, id: str | None) -> None: ...
    def close(self) -> None: ...


def choose() -> Show:
    return Bars() if sys.stdout.isatty() else Lines()


class Lines:
    """For logs and pipes: no control characters; a line about progress at most every ten seconds."""

    EVERY = 10.0  # seconds

    def __init__(self) -> None:
        self._told = time.monotonic()

    def say(self, text: str, stage: str | None = None) -> None:
        tell(f"  {stage}: {plain(text)}" if stage else plain(text))

    def begin(self, name: str, kind: str) -> None:
        self._told = time.monotonic()

    def progress(self, name: str, done: int, total: int, figures: dict[str, float]) -> None:
        if time.monotonic() - self._told >= self.EVERY:
            self._told = time.monotonic()
            tell(f"  {name}: {done}/{total}{_figures(figures)}")

    def end(self, name: str, kind: str, state: str, seconds: float, id: str | None) -> None:
        tell(line(name, kind, state, seconds, id))

    def close(self) -> None:
        pass


class Bars:
    """For a terminal: one bar for the stage at work, finished stages as lines above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._console = Console(highlight=False)
        left = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
        columns = (*left, TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[figures]}"))
        self._bars = Progress(*columns, console=self._console, transient=True)
        self._task: Any = None
        self._bars.start()

    def say(self, text: str, stage: str | None = None) -> None:
        self._console.print(f"  {stage}: {plain(text)}" if stage else plain(text), markup=False)

    def begin(self, name: str, kind: str) -> None:
        self._task = self._bars.add_task(name, total=None, figures="")

    def progress(self, name: str, done: int, total: int, figures: dict[str, float]) -> None:
        self._bars.update(self._task, completed=done, total=total, figures=_figures(figures))

    def end(self, name: str, kind: str, state: str, seconds: float, id: str | None) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
        style = {"kept": "dim", "failed": "bold red", "stopped": "yellow"}.get(state)
        self._console.print(line(name, kind, state, seconds, id), markup=False, style=style)

    def close(self) -> None:
        self._bars.stop()


def line(name: str, kind: str, state: str, seconds: float, id: str | None) -> str:
    took = "" if state == "kept" else duration(seconds)
    return f"{name:<12} {kind:<9} {MARKS[state]:<8} {took:>8}  {id[:12] if id else ''}".rstrip()


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def plain(text: str) -> str:
    """Without control characters: names and messages from outside must not steer the terminal."""
    return "".join(c for c in text if c.isprintable() or c == "\n")


def tell(text: str) -> None:
    """A run outlives whoever reads along: Ctrl-C in `run ... | tee log` ends `tee` first, and the stage must still save its state."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the rest of this process)


def _figures(figures: dict[str, float]) -> str:
    return "".join(f"  {name} {value:.4g}" for name, value in figures.items())
