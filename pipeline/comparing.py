"""`diff RUN RUN`: what was changed between two runs, and what came of it, in the order in which one leads to the other.

Here stand the recipe, the code and the stages; what the artifacts mean is told by the stages, through what __main__ hands in.
"""

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from . import finding
from .artifact import Artifact
from .errors import BadStore
from .keys import differences
from .manifest import Damaged
from .plan import DIGEST
from .report import leave
from .store import Store

# Kinds that the stages look into, and the file without which there is nothing to see; of all others the manifest says enough.
OPENED = {"Dataset": "index.json", "Measurement": "measurement.json", "Verdict": "verdict.json"}
FIELDS = 14  # of the recipe on a terminal; the page lists all
FIGURES = 8


class Section(NamedTuple):
    """A heading and its lines; without lines: nothing changed, or there is nothing to compare."""

    title: str
    lines: list[str]


class Told(NamedTuple):
    """What the stages make of two runs: `causes` were changed by people, `effects` came of it; the page, and its facts as JSON."""

    causes: list[Section]
    effects: list[Section]
    html: str
    facts: dict[str, Any]


@dataclass
class Side:
    """One of the two runs, as far as its journal and the store tell."""

    run: str
    begin: dict[str, Any]
    outcome: str
    ended: dict[str, dict[str, Any]]  # stage -> its last entry
    images: dict[str, dict[str, Any] | None] = field(default_factory=dict)  # stage -> pre-image of its key; None: swept
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def settings(self) -> dict[str, Any]:
        return self.begin["resolved"]["stages"]

    def id(self, stage: str) -> str | None:
        return self.ended.get(stage, {}).get("id")

    def about(self) -> dict[str, Any]:
        began = {key: self.begin.get(key) for key in ("recipe", "profile", "file")}
        return {"run": self.run, "started": self.begin["at"], "outcome": self.outcome, **began}


Change = tuple[str, Any, Any]  # dotted path, before, after


class Story(NamedTuple):
    """What the pipeline knows of the difference; the stages lay it out on the page."""

    runs: list[dict[str, Any]]
    recipe: list[Change]
    code: list[str]
    stages: list[str]
    same: list[str]  # stages with the same artifact in both
    figures: list[Change]
    notes: list[str]
    inputs: list[dict[str, dict[str, Any]]]  # of both runs: stage -> settings
    at: list[dict[str, str]]  # of both runs: stage -> when its artifact was made


def diff(asked: argparse.Namespace, parts: Any) -> None:
    """What was changed between two runs, and what came of it; the same with pictures is written to OUT/ONE..TWO/."""
    store = Store(asked.store)
    one, two = (_side(store, finding.run_named(store, run)) for run in (asked.one, asked.two))
    for side, other in ((one, two), (two, one)):
        _gather(store, side, other)
    story = _story(store, one, two)
    told = parts.compare(story, one.artifacts, two.artifacts) if parts.compare else Told([], [], "", {})
    causes = [
        Section("recipe", _some([_changed(*change) for change in story.recipe], FIELDS)),
        *told.causes,
        Section("code", _some(story.code, FIGURES)),
    ]
    figures = Section("other figures", _some([_changed(*change) for change in story.figures], FIGURES))
    _print(one, two, [*causes, Section("stages", story.stages), *told.effects, figures], story)
    if told.html and one.run != two.run:
        print(f"page: {leave(asked.out / f'{one.run}..{two.run}', 'diff', told.html, told.facts)}")


# -- what is known of each


def _side(store: Store, run: str) -> Side:
    entries = store.journal(run).read()
    return Side(run, finding.begin(store, run), finding.outcome(entries), finding.stages(store, run))


def _gather(store: Store, side: Side, other: Side) -> None:
    """The artifacts of a run. Those that will be opened are verified; what is not there, or not sound, is said in one line."""
    for stage, entry in side.ended.items():
        if not entry["id"]:
            continue
        side.images[stage] = store.pre_image(entry["key"])
        try:
            manifest = store.manifest(entry["id"])
            if OPENED.get(manifest["kind"]) in manifest["files"] and entry["id"] != other.id(stage):
                store.verify(entry["id"])
        except (Damaged, BadStore) as problem:
            side.notes.append(_lost(side.run, stage, problem))
            continue
        found = store.find(entry["key"], stage)
        beside = found.beside if found and found.id == entry["id"] else {}
        side.artifacts[stage] = Artifact(stage, manifest["kind"], entry["id"], store.folder(entry["id"]), manifest["facts"], beside)


def _lost(run: str, stage: str, problem: Exception) -> str:
    swept = isinstance(problem, Damaged) and problem.what == "MANIFEST.json is missing"
    why = f"artifact {problem.id[:12]} is not in the store any more" if swept else str(problem)
    return f"{stage} of {run} is not compared: {why}"


def _story(store: Store, one: Side, two: Side) -> Story:
    resolved = [side.begin["resolved"] for side in (one, two)]
    recipe = differences(*({**r, "profile": s.begin.get("profile")} for r, s in zip(resolved, (one, two), strict=True)))
    shared = [stage for stage in one.ended if one.id(stage) and one.id(stage) == two.id(stage)]
    return Story(
        runs=[one.about(), two.about()],
        recipe=recipe,
        code=[*_versions(one, two), *_origins(one, two)],
        stages=list(_stages(one, two)),
        same=shared,
        figures=_apart(_figures(one, two), recipe),
        notes=[*one.notes, *(note for note in two.notes if note not in one.notes)],
        inputs=[side.settings() for side in (one, two)],
        at=[{stage: _made_at(store, side, stage) for stage in side.artifacts} for side in (one, two)],
    )


def _made_at(store: Store, side: Side, stage: str) -> str:
    """When the artifact was made, by this run or by the one it was kept from; empty where nobody knows any more."""
    run = side.artifacts[stage].beside.get("run")
    entries = [side.ended[stage]] if run in (None, side.run) else [finding.stages(store, run).get(stage, {})]
    return entries[0].get("at", "")


# -- what was changed


def _versions(one: Side, two: Side) -> Iterator[str]:
    """Kinds of stages and rows of tables that give other results than they did, as the keys tell."""
    told: dict[str, list[str]] = {}
    for stage, before in one.images.items():
        after = two.images.get(stage)
        for text in _versions_of(before, after) if before and after else ():
            told.setdefault(text, []).append(stage)
    yield from (f"{text} ({', '.join(stages)})" for text, stages in told.items())


def _versions_of(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """Of one stage; where its kind or that of a row is another, the recipe says so already."""
    if before["stage"] == after["stage"] and before["version"] != after["version"]:
        yield f"stage kind {before['stage']}: version {before['version']} -> {after['version']}"
    for path, (kind, version) in before["rows"].items():
        then = after["rows"].get(path)
        if then and then[0] == kind and then[1] != version:
            yield f"{path} {kind}: version {version} -> {then[1]}"


def _origins(one: Side, two: Side) -> Iterator[str]:
    origins = [side.begin.get("origin") for side in (one, two)]
    if missing := [side.run for side, origin in zip((one, two), origins, strict=True) if not isinstance(origin, dict)]:
        if one.run != two.run:
            yield f"not recorded for {' and '.join(missing)}: code, packages and machine (runs note them since this version)"
        return
    found = differences(*origins)
    revision = any(path == "code.revision" for path, _, _ in found)
    for path, before, after in found:
        of, _, name = path.partition(".")
        if path == "code.revision":
            yield f"revision: {_brief(before)} -> {_brief(after)}"
        elif of == "code":
            yield f"{name}/: " + ("its files differ" if revision else "its files differ, edited without a commit")
        else:
            yield _changed(f"{'package' if of == 'versions' else 'machine'} {name}", before, after)


def _brief(revision: Any) -> str:
    return str(revision)[:10] if revision else "none"


# -- what came of it


def _stages(one: Side, two: Side) -> Iterator[str]:
    """Which stages were made anew, and why: for reasons of their own, or because of what they take."""
    follow, broken = [], {}
    for stage in dict.fromkeys((*one.settings(), *two.settings())):
        absent = [side.run for side in (one, two) if stage not in side.settings()]
        lacking = [side for side in (one, two) if stage in side.settings() and not side.id(stage)]
        if absent:
            broken.setdefault(f"only in {two.run if absent == [one.run] else one.run}", []).append(stage)
        elif lacking:
            for side in lacking:
                broken.setdefault(f"{side.ended.get(stage, {}).get('state', 'not reached')} in {side.run}", []).append(stage)
        elif one.id(stage) != two.id(stage):
            reasons = _reasons(one.images.get(stage), two.images.get(stage))
            if reasons:
                yield f"{stage} made anew: {'; '.join(reasons)}"
            else:
                follow.append(stage)
    if follow:
        yield f"made anew because of what they take: {', '.join(follow)}"
    yield from (f"{state}: {', '.join(stages)}" for state, stages in broken.items())


def _reasons(before: dict[str, Any] | None, after: dict[str, Any] | None) -> list[str]:
    """Of the stage itself; none where only its inputs are others."""
    if before is None or after is None:
        return ["why is not known any more, its key was swept"]
    if before == after:
        return ["from the same settings and inputs, it does not repeat to the bit"]
    found: dict[str, list[str]] = {"its code": []} if any(_versions_of(before, after)) else {}
    for path, was, now in differences(before, after):
        of, _, rest = path.partition(".")
        if of == "config":
            found.setdefault("its settings", []).append(rest.partition("[")[0])
        elif of in ("outside", "environment"):
            found.setdefault({"outside": "files outside the store", "environment": "where it ran"}[of], []).append(_changed(rest, was, now))
    return [f"{what} ({', '.join(dict.fromkeys(names))})" if names else what for what, names in found.items()]


def _figures(one: Side, two: Side) -> Iterator[Change]:
    """Numbers in the facts of artifacts that the stages do not compare themselves."""
    sides = [{name: a.facts for name, a in side.artifacts.items() if a.kind not in OPENED} for side in (one, two)]
    shared = [name for name in sides[0] if name in sides[1] and one.id(name) != two.id(name)]
    for path, before, after in differences(*({name: side[name] for name in shared} for side in sides)):
        if isinstance(before, int | float) and isinstance(after, int | float) and not path.endswith("]"):
            yield path, before, after


def _apart(figures: Iterator[Change], recipe: list[Change]) -> list[Change]:
    """Each change once: stages repeat what the recipe asked of them and what earlier stages found."""
    seen = {(path.rpartition(".")[2], before, after) for path, before, after in recipe if isinstance(before, int | float)}
    found = []
    for path, before, after in figures:
        told = (path.rpartition(".")[2], before, after)
        if told not in seen:
            seen.add(told)
            found.append((path, before, after))
    return found


# -- on the terminal


def _print(one: Side, two: Side, sections: list[Section], story: Story) -> None:
    width = shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else 0
    _say(f"{one.run}: {_when(one)}", width)
    _say(f"{two.run}: {_when(two)}", width)
    for title, lines in sections:
        if lines:
            print(f"\n{title}")
            for line in lines:
                _say(line, width, "  ")
    same = [title for title, lines in sections if not lines and title != "stages"]
    same += [f"stages {', '.join(story.same)}"] if story.same else []
    print()
    _say(f"the same: {'; '.join(same) or 'nothing'}", width)
    for note in story.notes:
        _say(f"note: {note}", width)


def _say(line: str, width: int, indent: str = "") -> None:
    """One line, folded on a terminal; names and values from elsewhere begin no line of their own."""
    line = line.replace("\n", " ")
    print(textwrap.fill(line, width, initial_indent=indent, subsequent_indent=f"{indent}    ") if width > 20 else indent + line)


def _when(side: Side) -> str:
    profile = f", {side.begin['profile']} profile" if side.begin.get("profile") else ""
    return f"{side.outcome}, {side.begin['at'][:16].replace('T', ' ')}{profile}"


def _changed(path: str, before: Any, after: Any) -> str:
    if path.startswith("stages.") and path.count(".") == 1 and None in (before, after):
        return f"{path}: {'added' if before is None else 'taken out'} ({(before or after).get('kind')})"
    numbers = [v for v in (before, after) if isinstance(v, int | float) and not isinstance(v, bool)]
    return f"{path}: {_value(before)} -> {_value(after)}" + (f"  ({after - before:+.4g})" if len(numbers) == 2 else "")


def _value(value: Any) -> str:
    if isinstance(value, str) and DIGEST.fullmatch(value):
        return value[:12]
    text = "none" if value is None else f"{value:.6g}" if isinstance(value, float) and value != int(value) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _some(lines: list[str], most: int) -> list[str]:
    return lines if len(lines) <= most + 1 else [*lines[:most], f"and {len(lines) - most} more, all of them on the page"]
