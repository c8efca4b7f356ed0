"""What a person sees while a run goes on: one clear line per stage; bars on a terminal, plain lines in a log."""

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, TextIO

from .secrets import redact

ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)?")  # what a terminal obeys: colours, cursor, its title
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
        tell(_said(text, stage))

    def begin(self, name: str, kind: str) -> None:
        self._told = time.monotonic()

    def progress(self, name: str, done: int, total: int, figures: dict[str, float]) -> None:
        if time.monotonic() - self._told >= self.EVERY:
            self._told = time.monotonic()
            tell(f"  {_word(name)}: {done}/{total}{_figures(figures)}")

    def end(self, name: str, kind: str, state: str, seconds: float, id: str | None) -> None:
        tell(line(name, kind, state, seconds, id))

    def close(self) -> None:
        pass


class Bars:
    """For a terminal: one bar for the stage at work, finished stages as lines above it."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.table import Column

        self._console = _console()
        fields = ("{task.description}", "{task.fields[left]}", "{task.fields[figures]}")
        name, left, figures = (TextColumn(text, markup=False) for text in fields)
        of, took, more = (  # whole on a narrow terminal, too: the bar alone gives way
            column(table_column=Column(no_wrap=True)) for column in (MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn)
        )
        columns = (name, BarColumn(bar_width=24), of, took, left, more, figures)
        self._bars = Progress(*columns, console=self._console, transient=True)
        self._task: Any = None
        self._bars.start()

    def say(self, text: str, stage: str | None = None) -> None:
        self._console.print(_said(text, stage), markup=False)

    def begin(self, name: str, kind: str) -> None:
        self._task = self._bars.add_task(_word(name), total=None, left="", figures="")

    def progress(self, name: str, done: int, total: int, figures: dict[str, float]) -> None:
        self._bars.update(self._task, completed=done, total=total, left="left", figures=_figures(figures))

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
    return _word(f"{name:<12} {kind:<9} {MARKS[state]:<8} {took:>8}  {id[:12] if id else ''}".rstrip())


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def plain(text: str) -> str:
    """Without control characters: names and messages from outside must not steer the terminal."""
    return "".join(c for c in ESCAPES.sub("", text) if c.isprintable() or c == "\n")


@contextlib.contextmanager
def discreet(secrets: Mapping[str, str]) -> Iterator[None]:
    """Whatever is printed meanwhile holds none of these secrets and no control characters. Bars draw past it, with texts made plain."""
    before = sys.stdout, sys.stderr
    ours = tuple(_Discreet(stream, secrets) for stream in before)
    sys.stdout, sys.stderr = ours
    try:
        yield
    finally:  # unless somebody else has put a stream in their place meanwhile
        sys.stdout, sys.stderr = (b if now is o else now for now, o, b in zip((sys.stdout, sys.stderr), ours, before, strict=True))


class _Discreet:
    def __init__(self, bare: TextIO, secrets: Mapping[str, str]):
        self.bare, self._secrets = bare, secrets

    def write(self, text: str) -> int:
        self.bare.write(plain(redact(text, self._secrets)))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bare, name)


def tell(text: str) -> None:
    """A run outlives whoever reads along: Ctrl-C in `run ... | tee log` ends `tee` first, and the stage must still save its state."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the rest of this process)


def tell_styled(lines: Iterable[tuple[str, str]]) -> None:
    """Lines with a style of rich each ("": none), which only a terminal shows."""
    console = _console() if sys.stdout.isatty() else None
    for text, style in lines:
        if console:
            console.print(plain(text), style=style or None, markup=False, soft_wrap=True)
        else:
            tell(text)


def _console() -> Any:
    """Past the filter that takes escapes out: what is printed on it must be plain."""
    from rich.console import Console

    return Console(file=getattr(sys.stdout, "bare", sys.stdout), highlight=False, emoji=False)


def _word(text: str) -> str:
    return plain(text).replace("\n", " ")


def _said(text: str, stage: str | None) -> str:
    """Further lines stand indented, so that no message looks like the line of a stage."""
    return (f"  {_word(stage)}: " if stage else "") + plain(text).replace("\n", "\n    ")


def _figures(figures: dict[str, float]) -> str:
    return "".join(f"  {_word(name)} {value:.4g}" for name, value in figures.items())
