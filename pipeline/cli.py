"""The command line: `python -m pipeline COMMAND`. Every command is a function below; pipeline/errors.py lists the exit codes."""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from . import exchange, finding, fleet, gating, room, starter, targets, upkeep
from .errors import BadRecipe, Missing, Stillhouse
from .store import Store


@dataclass(frozen=True)
class Parts:
    """What the command line is given by __main__, so that this package knows no machine learning."""

    kinds: Mapping[str, str]
    has_device: Callable[[], bool]
    machine: Callable[[], dict[str, Any]]
    page: Callable[[dict[str, Any], dict[str, Any]], tuple[str, dict[str, Any]]]
    engine: Callable[[Path], list[Any]] | None = None  # a folder with engine.json -> doctor.Finding
    judge: Callable[..., dict[str, Any]] | None = None  # settings of a gate, its inputs, released.Released or None -> a verdict
    baseline: Callable[..., dict[str, Any]] | None = None  # the same settings and inputs, artifacts, lineage -> what is committed
    ask: Callable[[str, Any], dict[str, Any]] | None = None  # a target's name and entry -> what it says of itself, over the network


def main(arguments: list[str], parts: Parts) -> int:
    from . import secrets
    from .show import discreet

    with discreet(secrets.known(arguments)):
        return _main(arguments, parts)


def _main(arguments: list[str], parts: Parts) -> int:
    try:
        asked = parser().parse_args(arguments)
        return asked.command(asked, parts) or 0
    except Stillhouse as error:
        from .show import plain

        print(plain(str(error)), file=sys.stderr)
        return error.code
    except BrokenPipeError:  # `... | head` closed its end
        sys.stderr.close()
        return 0
    except OSError as error:  # a stage's are told by the runner; these are of the store, of where pages go, or of a path in a recipe
        explained = room.explained(error, asked.store.absolute())
        print(explained, file=sys.stderr)
        return explained.code


# -- commands


def run(asked: argparse.Namespace, parts: Parts) -> int:
    """Runs what must run, then writes the page and the bundle to OUT/<run>/."""
    recipe = _recipe(asked, parts)
    recipe = replace(recipe, stages=targets.reached(recipe.stages, asked.targets, parts.ask))
    if asked.rehearse:
        return _rehearse(recipe, asked, parts)
    return _run(recipe, Store(asked.store, asked.allow_network_fs).prepare(), asked, parts)


def check(asked: argparse.Namespace, parts: Parts) -> None:
    """Checks the recipe and every profile of it, or all runs of a sweep, without running anything."""
    from . import axes
    from .recipe import check as check_recipe

    if axes.is_sweep(asked.recipe):
        runs, profiles = axes.check(asked.recipe, parts.kinds, asked.set)
        print(f"{asked.recipe}: {runs} runs, good, as written" + (f" and with profile {', '.join(profiles)}" if profiles else ""))
        return
    recipes = check_recipe(asked.recipe, parts.kinds, asked.set)
    if asked.targets or targets.FILE.exists():  # a recipe is good without: its hosts are known only where it runs
        for recipe in recipes:
            targets.chosen(recipe.stages, asked.targets)
    profiles = ", ".join(recipes[0].profiles)
    print(f"{asked.recipe}: {len(recipes[0].stages)} stages, good" + (f"; profiles: {profiles}, good" if profiles else ""))


def plan(asked: argparse.Namespace, parts: Parts) -> None:
    """Shows which stages are kept, which would run, and why."""
    from .plan import last_keys, make

    store = Store(asked.store)
    recipe = _with_released(_recipe(asked, parts), store)
    for step in make(recipe.stages, store, last_keys(store, recipe.name)):
        verb = f"kept  {step.artifact.id[:12]}" if step.artifact else "runs  " + "; ".join(step.why)
        print(f"{step.name:<12} {step.stage.kind:<9} {verb}")


def why(asked: argparse.Namespace, parts: Parts) -> None:
    """Says why a stage would run, field by field, against the last time it was made."""
    from .plan import last_keys, make

    store = Store(asked.store)
    if asked.recipe is None:
        asked.recipe = Path(finding.begin(store, finding.newest(store))["file"])
    recipe = _with_released(_recipe(asked, parts), store)
    if asked.stage not in recipe.stages:
        raise BadRecipe(f"{asked.recipe} has no stage {asked.stage!r}{finding.meant(asked.stage, recipe.stages)}")
    steps = {step.name: step for step in make(recipe.stages, store, last_keys(store, recipe.name))}
    _explain(asked.stage, steps, "")


def ls(asked: argparse.Namespace, parts: Parts) -> None:
    """Lists the runs of the store, or the stages of one run."""
    from .show import line

    store = Store(asked.store)
    if asked.run:
        for entry in finding.stages(store, finding.run_named(store, asked.run)).values():
            print(line(entry["stage"], "", entry["state"], entry["seconds"], entry["id"]))
        return
    for name in sorted(store.runs(), key=store.sequence):
        entries = store.journal(name).read()
        if not entries:
            continue
        end = entries[-1] if entries[-1]["event"] == "end" else None
        code = "unfinished" if end is None else {0: "passed", 3: "gate failed", 4: "undecided"}.get(end["code"], f"exit {end['code']}")
        profile = f"  [{entries[0]['profile']}]" if entries[0].get("profile") else ""
        print(f"{name:<28} {entries[0]['at']}  {code}{profile}")


def show(asked: argparse.Namespace, parts: Parts) -> None:
    """Prints what is known of an artifact: kind, facts, files, where it lies. WHAT is an id, or RUN/STAGE."""
    store = Store(asked.store)
    id = finding.artifact(store, asked.what)
    manifest = store.manifest(id)
    print(json.dumps({"id": id, "folder": str(store.folder(id)), **manifest}, indent=2))


def diff(asked: argparse.Namespace, parts: Parts) -> None:
    """What differs between two runs: recipe fields, artifacts, figures."""
    from .keys import differences
    from .report import figures

    store = Store(asked.store)
    one, two = (finding.run_named(store, r) for r in (asked.one, asked.two))
    found = differences(finding.begin(store, one)["resolved"], finding.begin(store, two)["resolved"])
    print("recipe:" if found else "recipe: the same")
    for path, before, after in found:
        print(f"  {path}: {json.dumps(before)} -> {json.dumps(after)}")
    stages = [finding.stages(store, r) for r in (one, two)]
    print("artifacts:")
    for name in dict.fromkeys((*stages[0], *stages[1])):
        ids = [(s.get(name) or {}).get("id") for s in stages]
        print(f"  {name:<12} " + ("the same" if ids[0] == ids[1] else f"{(ids[0] or 'none')[:12]} -> {(ids[1] or 'none')[:12]}"))
    print("figures:")
    before, after = (figures(store, s) for s in stages)
    for path in dict.fromkeys((*before, *after)):
        a, b = before.get(path), after.get(path)
        if a != b:
            change = f"  ({b - a:+.4g})" if isinstance(a, int | float) and isinstance(b, int | float) else ""
            print(f"  {path}: {_figure(a)} -> {_figure(b)}{change}")


def report(asked: argparse.Namespace, parts: Parts) -> None:
    """Writes the page of a run again."""
    from .report import write

    store = Store(asked.store)
    print(write(store, finding.run_named(store, asked.run or finding.newest(store)), asked.out, parts))


def schema(asked: argparse.Namespace, parts: Parts) -> None:
    """Prints the JSON schema of recipes, for editors."""
    from .schema import schema as recipe_schema

    print(json.dumps(recipe_schema(parts.kinds), indent=2))


def doctor(asked: argparse.Namespace, parts: Parts) -> int:
    """Says what this machine has and lacks. ENGINE (RUN/STAGE, an id, engine.json, a bundle's folder): whether that would run here."""
    from . import doctor

    return doctor.engine(asked.engine, Store(asked.store), parts) if asked.engine else doctor.examine(asked.store, parts)


# -- running


def _run(recipe: Any, store: Store, asked: argparse.Namespace, parts: Parts) -> int:
    from .runner import Runner
    from .show import choose, tell

    show = choose()
    began = time.monotonic()
    recipe = _with_released(recipe, store)
    runner = Runner(store, parts.kinds, show, wait=not asked.no_wait)
    with runner.held:
        try:
            outcome = runner.run(recipe)
            if not outcome.changed:
                for step in outcome.steps:
                    show.end(step.name, step.stage.kind, "kept", 0.0, step.artifact.id)
        finally:
            show.close()
        tell(f"{outcome.run or recipe.name}: {time.monotonic() - began:.1f} s" + ("" if outcome.changed else ", every stage kept"))
        if outcome.run:
            _leave(outcome, store, asked.out, parts)
    if outcome.error:
        raise outcome.error
    return _judge(outcome, f" ({recipe.profile} profile)" if recipe.profile else "")


def _leave(outcome: Any, store: Store, out: Path, parts: Parts) -> None:
    """The page and the bundles of a run."""
    from .report import write
    from .show import tell

    page = out / outcome.run / "page.html"
    if outcome.changed or not page.exists():
        try:
            write(store, outcome.run, out, parts)
        except OSError as error:
            if outcome.error is None:
                raise
            tell(f"page:   not written, {room.explained(error, out)}")
            return
    tell(f"page:   {page}")
    for bundle in (s.name for s in outcome.steps if s.artifact and s.artifact.kind == "Bundle"):
        tell(f"bundle: {page.parent / bundle}")


def _judge(outcome: Any, suffix: str) -> int:
    from .runner import verdict
    from .show import tell

    for step in outcome.steps:
        if step.artifact and step.artifact.kind == "Verdict":
            tell(f"{step.name}{suffix}: " + gating.WORDS[step.artifact.facts["passed"]])
    return verdict(outcome.steps)


def _rehearse(recipe: Any, asked: argparse.Namespace, parts: Parts) -> int:
    """The whole line with 2 steps and 4 images, in a store that is thrown away."""
    from .runner import Runner
    from .show import choose

    began, show = time.monotonic(), choose()
    print(f"rehearsing {recipe.name}: 2 steps, 4 images, every stage; nothing is kept")
    try:
        with tempfile.TemporaryDirectory(prefix="stillhouse-") as folder:
            store = Store(Path(folder) / "store", network=True).prepare()
            runner = Runner(store, parts.kinds, show, rehearsing=True)
            with runner.held:
                outcome = runner.run(recipe)
            if outcome.error:
                _keep_logs(store, outcome.run, asked.out)
                raise outcome.error
    finally:
        show.close()
    print(f"rehearsed in {time.monotonic() - began:.0f} s: every stage of {recipe.name} works on this machine")
    return 0


def _keep_logs(store: Store, run_name: str, out: Path) -> None:
    """A rehearsal's store goes away; the log of what failed stays."""
    folder = out / "rehearsal"
    folder.mkdir(parents=True, exist_ok=True)
    for log in (store.root / "refs/runs" / run_name).glob("*.log"):
        (folder / log.name).write_bytes(log.read_bytes())
    print(f"logs of the rehearsal: {folder}")


def _recipe(asked: argparse.Namespace, parts: Parts) -> Any:
    """The recipe with its overrides."""
    from .recipe import read

    return read(asked.recipe, parts.kinds, profile=profile_for(asked, parts, asked.recipe), sets=asked.set)


def _with_released(recipe: Any, store: Store) -> Any:
    """The recipe whose stages know the committed baseline, where they speak of it."""
    from . import released

    return replace(recipe, stages=released.known(recipe.stages, released.place(recipe.path, recipe.name, recipe.profile), store))


def profile_for(asked: argparse.Namespace, parts: Parts, file: Path) -> str:
    """A recipe with a `cpu` profile is written for a device: without one it is that profile or nothing."""
    from .recipe import read

    running = asked.command in (run, fleet.sweep)
    if asked.profile not in ("auto", "none") or parts.has_device() or "cpu" not in read(file, parts.kinds).profiles:
        return "none" if asked.profile == "auto" else asked.profile
    if asked.profile == "auto":
        if running:
            print("no CUDA device found: taking profile cpu (with --profile none this would be an error)")
        return "cpu"
    if running:
        raise Missing(f"{file} without a profile needs a CUDA device, and none was found: without --profile it takes profile cpu")
    return "none"


# -- finding


def _explain(name: str, steps: dict[str, Any], indent: str) -> None:
    step = steps[name]
    if step.artifact:
        print(f"{indent}{name} is kept: nothing it depends on has changed ({step.artifact.id[:12]})")
        return
    print(f"{indent}{name} runs:")
    for reason in step.why:
        print(f"{indent}  {reason}")
    for source in (n for names in step.inputs.values() for n in names):
        if steps[source].artifact is None:
            _explain(source, steps, indent + "  ")


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# -- the grammar of the command line


class Parser(argparse.ArgumentParser):
    """Exit code 2 with one line and a suggestion, not a page of usage."""

    def error(self, message: str) -> NoReturn:
        if found := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            names = re.findall(r"[a-z]+", found[2])
            message = f"there is no command {found[1]!r}{finding.meant(found[1], names)}"
        raise BadRecipe(f"{self.prog}: {message}\ntry: {self.prog} --help")


COMMANDS: tuple[tuple[Callable[..., Any], tuple[str, ...]], ...] = (
    (run, ("recipe", "--set", "--profile", "--targets", "--out", "--rehearse", "--no-wait", "--allow-network-fs")),
    (fleet.sweep, ("file", "--set", "--profile", "--targets", "--out", "--jobs", "--allow-network-fs")),
    (check, ("recipe", "--set", "--targets")),
    (plan, ("recipe", "--set", "--profile")),
    (why, ("stage", "recipe?", "--set", "--profile")),
    (ls, ("run?",)),
    (show, ("what",)),
    (diff, ("one", "two")),
    (gating.gate, ("run?", "--baseline", "--accept", "--replay")),
    (report, ("run?", "--out")),
    (schema, ()),
    (doctor, ("engine?",)),
    (starter.init, ("recipe", "--answer")),
)
STORE: tuple[tuple[Callable[..., Any], tuple[str, ...]], ...] = (
    (upkeep.fsck, ("--subset", "--repair", "--allow-network-fs")),
    (upkeep.gc, ("--keep", "--dry-run", "--allow-network-fs")),
    (upkeep.pin, ("what?", "--off", "--allow-network-fs")),
    (upkeep.size, ("--allow-network-fs",)),
    (exchange.push, ("dir", "what", "--allow-network-fs")),
    (exchange.pull, ("dir", "what", "--allow-network-fs")),
)
OPTIONS: dict[str, dict[str, Any]] = {
    "--set": {"action": "append", "default": [], "metavar": "PATH=VALUE", "help": "e.g. stages.teacher.fit.steps=2000; repeatable"},
    "--profile": {"default": "auto", "metavar": "NAME", "help": "a profile, `none`, or `auto` (default): cpu without a device"},
    "--targets": {"type": Path, "metavar": "FILE", "help": "hosts of the targets that stages name (targets.yaml)"},
    "--out": {"type": Path, "default": Path("runs"), "metavar": "DIR", "help": "where pages and bundles are written (runs)"},
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


def parser() -> argparse.ArgumentParser:
    whole = Parser(prog="python -m pipeline", description="From a large segmentation network to a small measured engine.")
    commands = _group(whole)
    _add(commands, COMMANDS)
    store = commands.add_parser("store", help="Looks after a store: fsck, gc, pin, size, push, pull.", description=upkeep.__doc__)
    _add(_group(store), STORE)
    return whole


def _group(of: argparse.ArgumentParser) -> Any:
    return of.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)


def _add(commands: Any, table: tuple[tuple[Callable[..., Any], tuple[str, ...]], ...]) -> None:
    for command, takes in table:
        one = commands.add_parser(command.__name__, help=command.__doc__.splitlines()[0], description=command.__doc__)
        one.set_defaults(command=command)
        for name in (*takes, "--store"):
            if name in OPTIONS:
                one.add_argument(name, **OPTIONS[name])
            else:
                bare = name.rstrip("?")
                kind = Path if bare in ("recipe", "file", "dir") else str
                one.add_argument(bare, type=kind, nargs="?" if name.endswith("?") else None, metavar=bare.upper())
