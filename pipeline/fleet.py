"""Runs every variant of a sweep, several at a time where asked, and tells their figures in one table.

A variant is an ordinary run: stages that variants share are made once, for the store knows them, and what was stopped goes on with
the same command. Each runs in a process of its own, which writes to a log and dies with this one.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import finding, fsops, limits
from .errors import JUDGED, BadRecipe, GateFailed, Stopped, Undecided
from .plan import make
from .problems import meant_or_listed, visible
from .show import plain, tell
from .store import Store

LOOK = 0.2  # seconds between two looks at the processes


def sweep(asked: argparse.Namespace, parts: Any) -> int:
    """Runs every combination of a sweep file's axes, sharing what they share, and writes a table of their figures to OUT/<sweep>/."""
    from . import axes
    from .cli import profile_for

    if asked.jobs < 1:
        raise BadRecipe(f"--jobs {asked.jobs}: a number of runs at a time from 1 on was expected")
    chosen = axes.read(asked.file, parts.kinds, profile_for=lambda recipe: profile_for(asked, parts, recipe), sets=asked.set)
    Store(asked.store, asked.allow_network_fs).prepare()
    folder = asked.out / chosen.name
    folder.mkdir(parents=True, exist_ok=True)
    tell(f"{chosen.name}: {len(chosen.variants)} runs, {asked.jobs} at a time; logs in {folder}")
    results = Results(chosen, Store(asked.store), parts.machine(), folder)
    try:
        done = Fleet(chosen.variants, folder, asked, parts, results).run()
    finally:  # stopped, too: the table then tells what there is so far
        tell(results.write())
    failed = [variant.name for variant in chosen.variants if done[variant.name] not in JUDGED]
    if not failed:
        results.require_figures()
        return 0
    print(f"{len(failed)} of {len(chosen.variants)} runs did not end well, the first is {failed[0]}: see its log", file=sys.stderr)
    return done[failed[0]]


@dataclass
class Fleet:
    """The runs at work."""

    variants: list[Any]
    folder: Path
    asked: argparse.Namespace
    parts: Any
    results: "Results"
    ended: dict[str, int] = field(default_factory=dict)  # name -> exit code
    signals: list[int] = field(default_factory=list)

    def run(self) -> dict[str, int]:
        """{name: exit code} of all; Stopped if somebody asked for it."""
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        self.working: dict[str, tuple[Any, Any, float]] = {}  # name -> the variant, its process, and when it began
        waiting = list(self.variants)
        try:
            while self.working or (waiting and not self.signals):
                while waiting and len(self.working) < self.asked.jobs and not self.signals:
                    self._start(waiting.pop(0))
                time.sleep(LOOK)
                self._collect()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.signals:
            raise Stopped(f"stopped with {len(self.ended)} of {len(self.variants)} runs ended; the same command goes on", self.signals[0])
        return self.ended

    def _start(self, variant: Any) -> None:
        from multiprocessing import get_context

        # Forked, so that it has the same parts as this process, which holds no threads and nothing of machine learning.
        process = get_context("fork").Process(target=_one, args=(variant, self.folder, self.asked, self.parts, os.getpid()))
        process.start()
        self.working[variant.name] = (variant, process, time.monotonic())

    def _collect(self) -> None:
        for name, (variant, process, began) in list(self.working.items()):
            if process.exitcode is not None:
                process.join()
                del self.working[name]
                self.ended[name] = code = process.exitcode
                self.results.ended(variant, code)  # before it is said
                how = {0: "done", GateFailed.code: "done, gate failed", Undecided.code: "done, gate undecided"}.get(code, f"exit {code}")
                tell(f"  [{len(self.ended)}/{len(self.variants)}] {name}: {how}, {time.monotonic() - began:.0f} s")

    def _on_signal(self, number: int, frame: Any) -> None:
        """Passed on: the first asks every run to save its state, the second ends them."""
        self.signals.append(number)
        for _, process, _ in self.working.values():
            if process.is_alive():
                os.kill(process.pid, number)


def _one(variant: Any, folder: Path, asked: argparse.Namespace, parts: Any, parent: int) -> None:
    """The process of one run. A session of its own: Ctrl-C at the terminal reaches it through its parent alone, and once."""
    from . import cli

    os.setsid()
    limits.die_with(parent)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    with open(folder / f"{variant.name}.log", "a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.stdout = sys.stderr = log
        recipe = variant.recipe
        words = ["run", str(recipe.path), "--profile", recipe.profile or "none", "--store", str(asked.store), "--out", str(asked.out)]
        words += ["--allow-network-fs"] if asked.allow_network_fs else []
        words += ["--targets", str(asked.targets)] if asked.targets else []
        code = cli.main([*words, *(w for text in recipe.sets for w in ("--set", text))], parts)
        log.flush()
    os._exit(code)


class Results:
    """What the runs of a sweep gave so far, as table.md and results.json: written after every run, so that a killed sweep leaves them."""

    def __init__(self, chosen: Any, store: Store, machine: Any, folder: Path):
        self.chosen, self.store, self.machine, self.folder = chosen, store, machine, folder
        self.found = {variant.name: _before(variant, store) for variant in chosen.variants}
        self.earlier = {variant.name: store.runs(variant.name) for variant in chosen.variants}
        self.told = False

    def ended(self, variant: Any, code: int) -> None:
        """Of a run that ended before it had a journal only what was there before is told."""
        new = [run for run in self.store.runs(variant.name) if run not in self.earlier[variant.name]]
        told = _told(variant, new[-1], finding.stages(self.store, new[-1]), self.store) if new else _before(variant, self.store)
        self.found[variant.name] = told | {"exit": code}
        self.write()
        if code in JUDGED and not self.told:
            self.told = True
            for path in self.chosen.figures:
                if path not in (known := self.found[variant.name]["figures"]):
                    said = f"{variant.name} has no figure {path}{meant_or_listed(path, sorted(known))}"
                    with contextlib.suppress(BrokenPipeError):
                        print(f"  {plain(said)} (the others run on: corrected, the same command keeps them)", file=sys.stderr, flush=True)

    def write(self) -> str:
        """Each file whole at every instant; the table is returned, too."""
        figures, results = self.chosen.figures, list(self.found.values())
        shown = [result | {"figures": {path: result["figures"].get(path) for path in figures}} for result in results]
        content = {"sweep": self.chosen.name, "machine": self.machine, "results": shown}
        fsops.replace(self.folder / "results.json", (json.dumps(content, indent=1) + "\n").encode())
        rows = [[*self.chosen.variants[0].values, *map(_cell, figures)]]
        rows += [[*r["values"].values(), *(_shown(r["figures"][path]) for path in figures)] for r in shown]
        text = "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])
        fsops.replace(self.folder / "table.md", (text + "\n").encode())
        return text

    def require_figures(self) -> None:
        """BadRecipe where a figure is in no run that gave any."""
        known = {path for result in self.found.values() for path in result["figures"]}
        if unknown := [path for path in self.chosen.figures if known and path not in known]:
            raise BadRecipe(f"no run has a figure {visible(unknown[0])}{meant_or_listed(unknown[0], sorted(known))}")


def _before(variant: Any, store: Store) -> dict[str, Any]:
    """What earlier sweeps made of a variant as it is now, by its keys, and the newest run with just that: settings may have changed."""
    from .released import with_committed

    steps = make(with_committed(variant.recipe, store).stages, store)
    stages = {step.name: {"id": step.artifact.id, "key": step.key} for step in steps if step.artifact}
    ids = {name: entry["id"] for name, entry in stages.items()}
    same = (r for r in reversed(store.runs(variant.name)) if ids == {name: entry["id"] for name, entry in finding.stages(store, r).items()})
    run = next(same, None) if ids else None
    return _told(variant, run, stages, store)


def _told(variant: Any, run: str | None, stages: dict[str, dict[str, Any]], store: Store) -> dict[str, Any]:
    from .report import figures

    found = figures(store, stages)
    for name, entry in stages.items():
        if artifact := store.find(entry["key"], name):
            found |= {f"{name}.{key}": value for key, value in artifact.beside.items() if isinstance(value, int | float)}
    return {
        "values": variant.values,
        "run": run,
        "exit": None,
        "artifacts": {name: entry["id"] for name, entry in stages.items()},
        "figures": found,
    }


def _cell(text: str) -> str:
    return visible(text).replace("|", "\\|")


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
