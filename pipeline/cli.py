"""The command line: `python -m pipeline COMMAND`. Every command is a function below; pipeline/errors.py lists the exit codes."""

import argparse
import difflib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from .errors import BadRecipe, Missing, Stillhouse
from .store import Store


@dataclass(frozen=True)
class Parts:
    """What the command line is given by __main__, so that this package knows no machine learning."""

    kinds: Mapping[str, str]
    has_device: Callable[[], bool]
    machine: Callable[[], dict[str, Any]]
    page: Callable[[dict[str, Any], dict[str, Any]], tuple[str, dict[str, Any]]]


def main(arguments: list[str], parts: Parts) -> int:
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


# -- commands


def run(asked: argparse.Namespace, parts: Parts) -> int:
    """Runs what must run, then writes the page and the bundle to OUT/<run>/."""
    recipe = _recipe(asked, parts)
    if asked.rehearse:
        return _rehearse(recipe, asked, parts)
    return _run(recipe, Store(asked.store).prepare(), asked.out, parts)


def check(asked: argparse.Namespace, parts: Parts) -> None:
    """Checks the recipe and every profile of it without running anything."""
    from .recipe import check as check_recipe

    recipes = check_recipe(asked.recipe, parts.kinds, asked.set)
    profiles = ", ".join(recipes[0].profiles)
    print(f"{asked.recipe}: {len(recipes[0].stages)} stages, good" + (f"; profiles: {profiles}, good" if profiles else ""))


def plan(asked: argparse.Namespace, parts: Parts) -> None:
    """Shows which stages are kept, which would run, and why."""
    from .plan import last_keys, make

    recipe, store = _recipe(asked, parts), Store(asked.store)
    for step in make(recipe.stages, store, last_keys(store, recipe.name)):
        verb = f"kept  {step.artifact.id[:12]}" if step.artifact else "runs  " + "; ".join(step.why)
        print(f"{step.name:<12} {step.stage.kind:<9} {verb}")


def why(asked: argparse.Namespace, parts: Parts) -> None:
    """Says why a stage would run, field by field, against the last time it was made."""
    from .plan import last_keys, make

    store = Store(asked.store)
    if asked.recipe is None:
        asked.recipe = Path(_begin(store, _newest(store))["file"])
    recipe = _recipe(asked, parts)
    if asked.stage not in recipe.stages:
        raise BadRecipe(f"{asked.recipe} has no stage {asked.stage!r}{_meant(asked.stage, recipe.stages)}")
    steps = {step.name: step for step in make(recipe.stages, store, last_keys(store, recipe.name))}
    _explain(asked.stage, steps, "")


def ls(asked: argparse.Namespace, parts: Parts) -> None:
    """Lists the runs of the store, or the stages of one run."""
    from .show import line

    store = Store(asked.store)
    if asked.run:
        for entry in _stages(store, _run_named(store, asked.run)).values():
            print(line(entry["stage"], "", entry["state"], entry["seconds"], entry["id"]))
        return
    for name in store.runs():
        entries = store.journal(name).read()
        if not entries:
            continue
        end = entries[-1] if entries[-1]["event"] == "end" else None
        code = "unfinished" if end is None else {0: "passed", 3: "gate failed"}.get(end["code"], f"exit {end['code']}")
        profile = f"  [{entries[0]['profile']}]" if entries[0].get("profile") else ""
        print(f"{name:<28} {entries[0]['at']}  {code}{profile}")


def show(asked: argparse.Namespace, parts: Parts) -> None:
    """Prints what is known of an artifact: kind, facts, files, where it lies. WHAT is an id, or RUN/STAGE."""
    store = Store(asked.store)
    name, _, stage = asked.what.partition("/")
    if stage:
        stages = _stages(store, _run_named(store, name))
        if stage not in stages or not stages[stage]["id"]:
            raise BadRecipe(f"run {name} made no stage {stage!r}{_meant(stage, stages)}")
        id = stages[stage]["id"]
    else:
        id = store.complete(asked.what)
    manifest = store.manifest(id)
    print(json.dumps({"id": id, "folder": str(store.folder(id)), **manifest}, indent=2))


def diff(asked: argparse.Namespace, parts: Parts) -> None:
    """What differs between two runs: recipe fields, artifacts, figures."""
    from .keys import differences
    from .report import figures

    store = Store(asked.store)
    one, two = (_run_named(store, r) for r in (asked.one, asked.two))
    found = differences(_begin(store, one)["resolved"], _begin(store, two)["resolved"])
    print("recipe:" if found else "recipe: the same")
    for path, before, after in found:
        print(f"  {path}: {json.dumps(before)} -> {json.dumps(after)}")
    stages = [_stages(store, r) for r in (one, two)]
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
    print(write(store, _run_named(store, asked.run or _newest(store)), asked.out, parts))


def schema(asked: argparse.Namespace, parts: Parts) -> None:
    """Prints the JSON schema of recipes, for editors."""
    from .schema import schema as recipe_schema

    print(json.dumps(recipe_schema(parts.kinds), indent=2))


def doctor(asked: argparse.Namespace, parts: Parts) -> int:
    """Says what this machine has and lacks for each part of the pipeline."""
    from .doctor import examine

    return examine(asked.store, parts)


def init(asked: argparse.Namespace, parts: Parts) -> None:
    """Writes a commented starter recipe from a few questions, or from --answer key=value."""
    from .starter import QUESTIONS, starter

    if asked.recipe.exists():
        raise BadRecipe(f"{asked.recipe} exists already: choose another name")
    given = dict(pair.partition("=")[::2] for pair in asked.answer)
    if unknown := given.keys() - {key for key, *_ in QUESTIONS}:
        raise BadRecipe(f"no question is called {', '.join(sorted(unknown))}; there are: {', '.join(key for key, *_ in QUESTIONS)}")
    answers = {"name": asked.recipe.stem}
    for key, question, default, choices in QUESTIONS:
        default = answers.get(key, default)
        answers[key] = given[key] if key in given else _ask(question, default, choices)
    text = starter(**answers)
    asked.recipe.parent.mkdir(parents=True, exist_ok=True)
    asked.recipe.write_text(text, encoding="utf-8")
    print(f"wrote {asked.recipe}\nnext:  python -m pipeline check {asked.recipe}\nthen:  python -m pipeline run {asked.recipe}")


# -- running


def _run(recipe: Any, store: Store, out: Path, parts: Parts) -> int:
    from .report import write
    from .runner import Runner
    from .show import choose, tell

    show = choose()
    began = time.monotonic()
    try:
        outcome = Runner(store, parts.kinds, show).run(recipe)
        if not outcome.changed:
            for step in outcome.steps:
                show.end(step.name, step.stage.kind, "kept", 0.0, step.artifact.id)
    finally:
        show.close()
    page = out / outcome.run / "page.html"
    if outcome.changed or not page.exists():
        page = write(store, outcome.run, out, parts)
    tell(f"{outcome.run}: {time.monotonic() - began:.1f} s" + ("" if outcome.changed else ", every stage kept"))
    tell(f"page:   {page}")
    for bundle in (s.name for s in outcome.steps if s.artifact and s.artifact.kind == "Bundle"):
        tell(f"bundle: {page.parent / bundle}")
    if outcome.error:
        raise outcome.error
    return _judge(outcome, f" ({recipe.profile} profile)" if recipe.profile else "")


def _judge(outcome: Any, suffix: str) -> int:
    from .runner import verdict
    from .show import tell

    for step in outcome.steps:
        if step.artifact and step.artifact.kind == "Verdict":
            tell(f"{step.name}{suffix}: " + ("passed" if step.artifact.facts["passed"] else "FAILED"))
    return verdict(outcome.steps)


def _rehearse(recipe: Any, asked: argparse.Namespace, parts: Parts) -> int:
    """The whole line with 2 steps and 4 images, in a store that is thrown away."""
    from .runner import Runner
    from .show import choose

    began, show = time.monotonic(), choose()
    print(f"rehearsing {recipe.name}: 2 steps, 4 images, every stage; nothing is kept")
    try:
        with tempfile.TemporaryDirectory(prefix="stillhouse-") as folder:
            store = Store(Path(folder) / "store").prepare()
            outcome = Runner(store, parts.kinds, show, rehearsing=True).run(recipe)
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
    """The recipe with its overrides. A recipe with a `cpu` profile is written for a device: without one it is that profile or nothing."""
    from .recipe import read

    profile = asked.profile
    undecided = profile in ("auto", "none") and not parts.has_device()
    if undecided and "cpu" in read(asked.recipe, parts.kinds, profile="none", sets=()).profiles:
        if profile == "none" and asked.command is run:
            raise Missing(
                f"{asked.recipe} without a profile needs a CUDA device, and none was found: without --profile it takes profile cpu"
            )
        if profile == "auto":
            profile = "cpu"
            if asked.command is run:
                print("no CUDA device found: taking profile cpu (with --profile none this would be an error)")
    return read(asked.recipe, parts.kinds, profile="none" if profile == "auto" else profile, sets=asked.set)


# -- finding


def _newest(store: Store) -> str:
    runs = store.runs()
    if not runs:
        raise BadRecipe(f"no run in {store.root} yet: python -m pipeline run RECIPE")
    return max(runs, key=lambda name: (store.root / "refs/runs" / name).stat().st_mtime_ns)


def _run_named(store: Store, name: str) -> str:
    runs = store.runs()
    if name not in runs:
        raise BadRecipe(f"no run {name!r} in {store.root}{_meant(name, runs)}; `ls` lists them")
    return name


def _begin(store: Store, name: str) -> dict[str, Any]:
    entries = store.journal(name).read()
    if not entries or entries[0]["event"] != "begin":
        raise BadRecipe(f"run {name} never began: nothing is known of it")
    return entries[0]


def _stages(store: Store, name: str) -> dict[str, dict[str, Any]]:
    return {e["stage"]: e for e in store.journal(name).read() if e["event"] == "stage"}


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


def _ask(question: str, default: str, choices: tuple[str, ...] | None) -> str:
    if not sys.stdin.isatty():
        return default
    hint = f" ({'/'.join(choices)})" if choices else ""
    while True:
        answer = input(f"{question}{hint} [{default}]: ").strip() or default
        if not choices or answer in choices:
            return answer
        print(f"please one of {', '.join(choices)}")


def _meant(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(known)}" if known else ""


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# -- the grammar of the command line


class Parser(argparse.ArgumentParser):
    """Exit code 2 with one line and a suggestion, not a page of usage."""

    def error(self, message: str) -> NoReturn:
        if "invalid choice" in message:
            word, names = sys.argv[1] if len(sys.argv) > 1 else "", [c.__name__ for c, _ in COMMANDS]
            message = f"there is no command {word!r}{_meant(word, names)}"
        raise BadRecipe(f"{self.prog}: {message}\ntry: {self.prog} --help")


COMMANDS: tuple[tuple[Callable[..., Any], tuple[str, ...]], ...] = (
    (run, ("recipe", "overrides", "out")),
    (check, ("recipe", "set")),
    (plan, ("recipe", "overrides")),
    (why, ("stage", "recipe?", "overrides")),
    (ls, ("run?",)),
    (show, ("what",)),
    (diff, ("one", "two")),
    (report, ("run?", "out")),
    (schema, ()),
    (doctor, ()),
    (init, ("recipe",)),
)


def parser() -> argparse.ArgumentParser:
    whole = Parser(prog="python -m pipeline", description="From a large segmentation network to a small measured engine.")
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    for command, takes in COMMANDS:
        one = commands.add_parser(command.__name__, help=command.__doc__.splitlines()[0], description=command.__doc__)
        one.set_defaults(command=command)
        for name in takes:
            _argument(one, name)
        one.add_argument("--store", type=Path, default=Path(".stillhouse"), metavar="DIR", help="where artifacts live (.stillhouse)")
        if command is run:
            one.add_argument("--rehearse", action="store_true", help="only try every stage with 2 steps and 4 images, keep nothing")
        if command is init:
            one.add_argument("--answer", action="append", default=[], metavar="KEY=VALUE", help="answers a question beforehand")
    return whole


def _argument(one: argparse.ArgumentParser, name: str) -> None:
    if name in ("overrides", "set"):
        one.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="e.g. stages.teacher.fit.steps=2000; repeatable")
    if name == "overrides":
        one.add_argument("--profile", default="auto", metavar="NAME", help="a profile, `none`, or `auto` (default): cpu without a device")
    elif name == "out":
        one.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="where pages and bundles are written (runs)")
    elif name != "set":
        bare = name.rstrip("?")
        kind = Path if bare == "recipe" else str
        one.add_argument(bare, type=kind, nargs="?" if name.endswith("?") else None, metavar=bare.upper())
