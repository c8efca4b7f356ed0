"""What may be written after `python -m pipeline`: the words every command takes, and what a mistake in them is answered.

It knows commands by name only; cli.py says what they do.
"""

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from . import finding
from .errors import BadRecipe
from .problems import meant

Command = Callable[..., Any]
COMMANDS: dict[str, tuple[str, ...]] = {
    "run": ("recipe", "--set", "--profile", "--targets", "--out", "--rehearse", "--no-wait", "--allow-network-fs"),
    "sweep": ("file", "--set", "--profile", "--targets", "--out", "--jobs", "--allow-network-fs"),
    "check": ("recipe", "--set", "--targets"),
    "plan": ("recipe", "--set", "--profile"),
    "why": ("stage", "recipe?", "--set", "--profile"),
    "ls": ("run?",),
    "show": ("what",),
    "diff": ("one", "two", "--out"),
    "gate": ("run?", "--baseline", "--accept", "--replay", "--out"),
    "report": ("run?", "--out"),
    "schema": (),
    "doctor": ("engine?",),
    "init": ("recipe", "--answer"),
}
STORE: dict[str, tuple[str, ...]] = {
    "fsck": ("--subset", "--repair", "--allow-network-fs"),
    "gc": ("--keep", "--dry-run", "--allow-network-fs"),
    "pin": ("what?", "--off", "--allow-network-fs"),
    "size": ("--allow-network-fs",),
    "push": ("dir", "what", "--allow-network-fs"),
    "pull": ("dir", "what", "--allow-network-fs"),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "--set": {"action": "append", "default": [], "metavar": "PATH=VALUE", "help": "e.g. stages.teacher.fit.steps=2000; repeatable"},
    "--profile": {"default": "auto", "metavar": "NAME", "help": "a profile, `none`, or `auto` (default): cpu without a device"},
    "--targets": {"type": Path, "metavar": "FILE", "help": "hosts of the targets that stages name (targets.yaml)"},
    "--out": {"type": Path, "default": Path("runs"), "metavar": "DIR", "help": "where pages, bundles and what CI reads are written (runs)"},
    "--store": {"type": Path, "default": Path(".stillhouse"), "metavar": "DIR", "help": "where artifacts live (.stillhouse)"},
    "--rehearse": {"action": "store_true", "help": "only try every stage with 2 steps and 4 images, keep nothing"},
    "--jobs": {"type": int, "default": 1, "metavar": "N", "help": "how many runs at a time (1)"},
    "--no-wait": {"action": "store_true", "help": "give up (exit 8) where another run is making the same artifact"},
    "--allow-network-fs": {"action": "store_true", "help": "accept a store on a network file system, with what it lacks"},
    "--answer": {"action": "append", "default": [], "metavar": "KEY=VALUE", "help": "answers a question beforehand"},
    "--subset": {"default": "1/1", "metavar": "N/T", "help": "only the N-th of T parts of the artifacts"},
    "--repair": {"action": "store_true", "help": "move what is damaged to quarantine/"},
    "--keep": {"type": int, "metavar": "N", "help": "only the newest N runs of each recipe count (default: all)"},
    "--dry-run": {"action": "store_true", "help": "only say what would go"},
    "--baseline": {"type": Path, "metavar": "FILE", "help": "the committed baseline (baselines/RECIPE.PROFILE.json beside the recipe)"},
    "--accept": {"action": "store_true", "help": "make the run the baseline: writes that file"},
    "--replay": {"action": "store_true", "help": "only recompute the stored verdict, with the baseline of that day"},
    "--off": {"action": "store_true", "help": "end the pin"},
}


def parser(commands: Mapping[str, Command], store: Mapping[str, Command]) -> argparse.ArgumentParser:
    """Of every name in COMMANDS and STORE, with what it does."""
    whole = Parser(prog="python -m pipeline", description="From a large segmentation network to a small measured engine.")
    group = _group(whole)
    for name, takes in COMMANDS.items():
        _add(group, name, takes, commands[name])
    about = f"Looks after a store: {', '.join(STORE)}."
    group = _group(group.add_parser("store", help=about, description=about))
    for name, takes in STORE.items():
        _add(group, name, takes, store[name])
    return whole


class Parser(argparse.ArgumentParser):
    """Exit code 2 with one line and a suggestion, not a page of usage."""

    def error(self, message: str) -> NoReturn:
        if found := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            names = re.findall(r"[a-z]+", found[2])
            message = f"there is no command {found[1]!r}{finding.meant(found[1], names)}"
        elif found := re.match(r"unrecognized arguments: (--[^ =]+)", message):
            takers = [name for name, takes in (COMMANDS | {f"store {n}": t for n, t in STORE.items()}).items() if found[1] in takes]
            message += f"; {found[1]} is for {', '.join(takers)}" if takers else meant(found[1], OPTIONS)
        raise BadRecipe(f"{self.prog}: {message}\ntry: {self.prog} --help")


def _group(of: argparse.ArgumentParser) -> Any:
    return of.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)


def _add(group: Any, name: str, takes: tuple[str, ...], command: Command) -> None:
    one = group.add_parser(name, help=command.__doc__.splitlines()[0], description=command.__doc__)
    one.set_defaults(command=command)
    for word in (*takes, "--store"):
        if word in OPTIONS:
            one.add_argument(word, **OPTIONS[word])
        else:
            bare = word.rstrip("?")
            kind = Path if bare in ("recipe", "file", "dir") else str
            one.add_argument(bare, type=kind, nargs="?" if word.endswith("?") else None, metavar=bare.upper())
