"""The command line: `python -m pipeline COMMAND`. Every command is a function below; pipeline/errors.py lists the exit codes."""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import comparing, exchange, finding, fleet, gating, grammar, room, starter, targets, upkeep
from .errors import BadRecipe, BadStore, Missing, Stillhouse
from .manifest import Damaged
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
    compare: Callable[..., Any] | None = None  # a comparing.Story and the artifacts of two runs -> a comparing.Told
    kernels: Callable[[], str] | None = None  # by what the losses are computed here; it needs torch
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
    except Damaged as damage:
        print(f"{damage}: run its recipe again, it will be made anew", file=sys.stderr)
        return BadStore.code
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
    from .released import with_committed

    store = Store(asked.store)
    recipe = with_committed(_recipe(asked, parts), store)
    for step in make(recipe.stages, store, last_keys(store, recipe.name)):
        verb = f"kept  {step.artifact.id[:12]}" if step.artifact else "runs  " + "; ".join(step.why)
        print(f"{step.name:<12} {step.stage.kind:<9} {verb}")


def why(asked: argparse.Namespace, parts: Parts) -> None:
    """Says why a stage would run, field by field, against the last time it was made."""
    from .plan import last_keys, make
    from .released import with_committed

    store = Store(asked.store)
    if asked.recipe is None:
        asked.recipe = Path(finding.begin(store, finding.newest(store))["file"])
    recipe = with_committed(_recipe(asked, parts), store)
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
    if not store.runs():
        print(f"no run in {store.root} yet: python -m pipeline run RECIPE")
    for name in sorted(store.runs(), key=store.sequence):
        entries = store.journal(name).read()
        if not entries:
            continue
        profile = f"  [{entries[0]['profile']}]" if entries[0].get("profile") else ""
        print(f"{name:<28} {entries[0]['at']}  {finding.outcome(entries)}{profile}")


def show(asked: argparse.Namespace, parts: Parts) -> None:
    """Prints what is known of an artifact: kind, facts, files, where it lies. WHAT is an id, or RUN/STAGE."""
    store = Store(asked.store)
    id = finding.artifact(store, asked.what)
    manifest = store.manifest(id)
    print(json.dumps({"id": id, "folder": str(store.folder(id)), **manifest}, indent=2))


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
    from .released import with_committed
    from .runner import Runner
    from .show import choose, tell

    show = choose()
    began = time.monotonic()
    recipe = with_committed(recipe, store)
    runner = Runner(store, parts.kinds, show, wait=not asked.no_wait, machine=parts.machine)
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
    return _judge(outcome, recipe, store)


def _leave(outcome: Any, store: Store, out: Path, parts: Parts) -> None:
    """The page and the bundles of a run."""
    from .report import for_ci, write
    from .show import tell

    page = out / outcome.run / "page.html"
    artifacts = {s.name: s.artifact for s in outcome.steps if s.artifact}
    bundles = [page.parent / name for name, artifact in artifacts.items() if artifact.kind == "Bundle"]
    there = all(path.exists() for path in (page, *bundles))
    if outcome.changed or not there or not _says(page.parent, for_ci(store, outcome.run, artifacts, page)):
        try:
            write(store, outcome.run, out, parts)
        except OSError as error:
            if outcome.error is None:
                raise
            tell(f"page:   not written, {room.explained(error, out)}")
            return
    tell(f"page:   {page}")
    for bundle in bundles:
        tell(f"bundle: {bundle}")


def _says(folder: Path, texts: dict[str, str]) -> bool:
    """Whether these files are there and hold this: `gate` may have judged the run by another baseline since, and left a page of that."""
    return all((folder / name).is_file() and (folder / name).read_text(encoding="utf-8") == text for name, text in texts.items())


def _judge(outcome: Any, recipe: Any, store: Store) -> int:
    from . import verdict
    from .report import verdict_json
    from .runner import verdict as code

    noted = {"recipe": recipe.name, "profile": recipe.profile, "file": str(recipe.path)}
    begin = finding.begin(store, outcome.run) if outcome.run else noted
    for step in outcome.steps:
        if step.artifact and step.artifact.kind == "Verdict":
            verdict.show(verdict.read(verdict_json(step.artifact), step.name, outcome.run or "", begin, store))
    return code(outcome.steps)


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


# -- what each word of the grammar does


def parser() -> argparse.ArgumentParser:
    commands = (run, fleet.sweep, check, plan, why, ls, show, comparing.diff, gating.gate, report, schema, doctor, starter.init)
    store = (upkeep.fsck, upkeep.gc, upkeep.pin, upkeep.size, exchange.push, exchange.pull)
    return grammar.parser(*({command.__name__: command for command in some} for some in (commands, store)))
