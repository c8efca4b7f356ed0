"""Which stages are kept, which will run, and why: decided from keys alone, before anything starts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from . import secrets
from .artifact import Artifact
from .keys import differences, digest, pre_image, taken
from .stage import Stage
from .store import Store

DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Step:
    """One stage in a plan. `artifact` is set when it is kept; `key` is None while an input is still to be made; `stale` is the id of
    what is there and is made anew all the same."""

    name: str
    stage: Stage
    key: str | None
    image: dict[str, Any]
    artifact: Artifact | None
    why: tuple[str, ...]
    stale: str | None = None

    @property
    def inputs(self) -> dict[str, list[str]]:
        return {field: names for field, (_, names) in taken(self.stage).items()}


Settled = Mapping[str, tuple[str, str]]  # stage -> key and id of the artifact that a run has made or kept


def make(
    stages: Mapping[str, Stage], store: Store, last: Mapping[str, str] | None = None, done: Settled = MappingProxyType({})
) -> list[Step]:
    """The steps in order. `last` maps stage names to the keys they had in an earlier run, so that reasons can be given; `done` is what
    this run has settled: it stays with these artifacts, and what they left open stays so."""
    steps = _steps(stages, store, last or {}, done, {})
    anew = {} if store.read_only else _unsettled(steps, done)
    return _steps(stages, store, last or {}, done, anew) if anew else steps


def _unsettled(steps: list[Step], done: Settled) -> dict[str, str]:
    """Stages whose artifact is there and is made anew -> why: nobody computes the same twice, but for what could not be told with it.

    Not where another verdict on it stands that is no pass: it would get a second chance.
    """
    held = [step for step in steps if step.artifact]
    asked = [(step, name) for step in held for field in step.stage.unsettled(step.artifact.facts) for name in step.inputs[field]]
    askers = {step.name for step, _ in asked}
    against = [step for step in held if step.artifact.facts.get("passed", True) is not True and step.name not in askers]
    judged = {name for step in against for names in step.inputs.values() for name in names}
    free = [(step.name, name) for step, name in asked if name not in done and name not in judged]
    return {name: f"{asker} was left undecided by it: it is made anew" for asker, name in free}


def _steps(stages: Mapping[str, Stage], store: Store, last: Mapping[str, str], done: Settled, anew: Mapping[str, str]) -> list[Step]:
    made: dict[str, Artifact | None] = {}
    steps = []
    for name, stage in stages.items():
        image = pre_image(stage, {n: a.id if a else None for n, a in made.items()})
        waiting = list(dict.fromkeys(n for _, names in taken(stage).values() for n in names if made[n] is None))
        unasked = getattr(stage, "target", None) if stage.there is None else None
        key = None if waiting or unasked else digest(image)
        settled = done.get(name)
        found = store.find(key, name, settled[1] if settled and settled[0] == key else None) if key else None
        artifact = None if name in anew else found
        why = () if artifact else (anew[name],) if found else tuple(_reasons(store, last.get(name), image, waiting, key))
        if unasked:  # what it is belongs to the key
            why = (f"target {unasked} is asked for its facts when it runs", *([f"waits for {', '.join(waiting)}"] if waiting else []))
        made[name] = artifact
        steps.append(Step(name, stage, key, image, artifact, why, found.id if found and not artifact else None))
    return steps


def last_keys(store: Store, recipe: str) -> dict[str, str]:
    """The key each stage had when a run of this recipe last finished it."""
    keys: dict[str, str] = {}
    for run in store.runs(recipe):
        for entry in store.journal(run).read():
            if entry["event"] == "stage" and entry["state"] in ("made", "kept"):
                keys[entry["stage"]] = entry["key"]
    return keys


def _reasons(store: Store, last: str | None, image: dict[str, Any], waiting: list[str], key: str | None) -> list[str]:
    before = store.pre_image(last) if last else None
    if before is None:
        return [f"never made; waits for {', '.join(waiting)}" if waiting else "never made"]
    if key == last:
        return ["its artifact is missing or damaged in the store"]
    now = secrets.redacted(image, secrets.known(image))  # as the store keeps it
    found = [_say(*difference) for difference in differences(before, now) if not _is_unknown(difference)]
    found += [f"{name} will be made anew" for name in waiting]
    return found or ["a password or token in its settings has changed"]


def _is_unknown(difference: tuple[str, Any, Any]) -> bool:
    path, _, after = difference
    return path.startswith("inputs") and after is None


def _say(path: str, before: Any, after: Any) -> str:
    what = "another artifact, " if path.startswith("inputs.") else ""
    return f"{path}: {what}{_short(before)} -> {_short(after)}"


def _short(value: Any) -> str:
    if isinstance(value, str) and DIGEST.fullmatch(value):
        return value[:12]
    text = "absent" if value is None else repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
