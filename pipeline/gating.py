"""`gate RUN`: judges a finished run again without training anything, makes it the baseline, or replays its verdict from what was stored.

Who judges are the stages, through what __main__ hands in; here is only found what they judge.
"""

import argparse
import dataclasses
import importlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from . import finding, fsops, pins, released
from .artifact import Artifact
from .errors import BadRecipe, BadStore, GateFailed, Undecided
from .keys import taken
from .manifest import Damaged
from .stage import Stage
from .store import Store

WORDS = {True: "passed", False: "FAILED", None: "undecided"}


@dataclass(frozen=True)
class Finished:
    """What a run has made, by stage."""

    name: str
    recipe: str
    profile: str | None
    file: Path
    stages: dict[str, Stage]
    artifacts: dict[str, Artifact]

    @property
    def lineage(self) -> dict[str, dict[str, list[str]]]:
        return {name: {field: names for field, (_, names) in taken(stage).items()} for name, stage in self.stages.items()}

    def verdicts(self) -> list[str]:
        return [name for name, artifact in self.artifacts.items() if artifact.kind == "Verdict"]

    def inputs(self, store: Store, gate: str) -> dict[str, Artifact]:
        """Of a gate, verified."""
        taken = {field: names[0] for field, names in self.lineage[gate].items()}
        if lost := [name for name in taken.values() if name not in self.artifacts]:
            raise BadStore(f"{lost[0]} of {self.name} was found damaged and not made again: run {self.file} again")
        found = {field: self.artifacts[name] for field, name in taken.items()}
        for artifact in found.values():
            verify(store, artifact)
        return found


def gate(asked: argparse.Namespace, parts: Any) -> int:
    """Judges a finished run (the newest) by its rules and the committed baseline; --accept makes it the baseline.

    What it finds goes to OUT/<run>/, too: page.html, junit.xml, summary.md. --replay only looks.
    """
    if asked.accept and asked.replay:
        raise BadRecipe("--accept makes a run the baseline, --replay only looks at one: give one of the two")
    if asked.replay and asked.baseline:
        raise BadRecipe("--replay judges with the baseline of its day: leave --baseline out, or leave --replay out to judge by that file")
    store = Store(asked.store)
    run = finished(store, asked.run or finding.newest(store), parts)
    file = asked.baseline or released.place(run.file, run.recipe, run.profile)
    if asked.accept:
        return _accept(store, run, file, parts)
    if asked.replay:
        outcomes = [_replayed(store, run, name, parts) for name in run.verdicts()]
    else:
        from . import report, show

        known = released.read(file, store, None if asked.baseline else (run.recipe, run.profile))
        judged = {name: _judged(store, run, name, known, parts) for name in run.verdicts()}
        outcomes = [_tell(store, run.name, name, told) for name, told in judged.items()]
        show.tell(f"page:   {report.write(store, run.name, asked.out, parts, judged)}")
    return GateFailed.code if False in outcomes else Undecided.code if None in outcomes else 0


def finished(store: Store, name: str, parts: Any) -> Finished:
    begin, ended = finding.begin(store, finding.run_named(store, name)), finding.stages(store, name)
    stages, artifacts = {}, {}
    for stage, settings in begin["resolved"]["stages"].items():
        stages[stage] = _read(settings, parts.kinds)
        if id := ended.get(stage, {}).get("id"):
            try:
                manifest = store.manifest(id)
            except Damaged as damage:
                raise BadStore(f"{stage} of {name}: {damage}; run {begin['file']} again") from None
            artifacts[stage] = Artifact(stage, manifest["kind"], id, store.folder(id), manifest["facts"])
    found = Finished(name, begin["recipe"], begin.get("profile"), Path(begin["file"]), stages, artifacts)
    if not found.verdicts():
        raise BadRecipe(f"run {name} has no verdict: it ended before, or {begin['file']} has no gate")
    return found


def verify(store: Store, artifact: Artifact) -> None:
    try:
        store.verify(artifact.id)
    except Damaged as damage:
        raise BadStore(f"{artifact.name}: {damage}; run its recipe again, it will be made anew") from None


def _judged(store: Store, run: Finished, gate: str, known: released.Released, parts: Any) -> dict[str, Any]:
    inputs = run.inputs(store, gate)
    asked = run.stages[gate].names_released()
    return parts.judge(run.stages[gate].model_dump(mode="json"), inputs, known.verified(store) if asked else None)


def _replayed(store: Store, run: Finished, gate: str, parts: Any) -> bool | None:
    """With the baseline as it was then; an outcome other than the stored one is an error, whatever it is."""
    verify(store, run.artifacts[gate])
    inputs = run.inputs(store, gate)
    stored = run.artifacts[gate].json("verdict.json")
    before = stored.get("released")
    known = None
    if before is not None:
        known = released.Released(before["file"], None, before["problem"])
        if before["content"]:  # what was pulled since is not what it was judged with
            known = released.with_artifacts(before["file"], before["content"], store).verified(store)
            there = before.get("artifacts", list(known.artifacts))
            known = dataclasses.replace(known, artifacts={id: one for id, one in known.artifacts.items() if id in there})
    now = parts.judge(run.stages[gate].model_dump(mode="json"), inputs, known)
    outcome = _tell(store, run.name, gate, now)
    outcomes = [[rule["passed"] for rule in one["rules"]] for one in (stored, now)]
    if outcomes[0] != outcomes[1]:
        changed = next(k for k, pair in enumerate(zip(*outcomes, strict=True)) if pair[0] is not pair[1])
        was, is_now = (WORDS[one[changed]] for one in outcomes)
        text = (
            f"{gate} of {run.name}: the stored verdict does not follow from what was measured. Rule {changed + 1} was {was}, now {is_now}"
        )
        raise GateFailed(f"{text}. The code that judges has changed, or what the baseline names is not in this store")
    print(f"{gate} of {run.name}: replayed from stored samples to the same verdict")
    return outcome


def _tell(store: Store, run: str, gate: str, told: dict[str, Any]) -> bool | None:
    from . import verdict

    return verdict.show(verdict.read(told, gate, run, finding.begin(store, run), store))


def _accept(store: Store, run: Finished, file: Path, parts: Any) -> int:
    [gate, *others] = run.verdicts()
    if others:
        raise BadRecipe(f"run {run.name} has several gates ({', '.join([gate, *others])}), a baseline belongs to one: split the recipe")
    verify(store, run.artifacts[gate])
    inputs = run.inputs(store, gate)
    content = {"recipe": run.recipe, "profile": run.profile, "run": run.name}
    content |= parts.baseline(run.stages[gate].model_dump(mode="json"), inputs, run.artifacts, run.lineage)
    for id in content["artifacts"]:
        verify(store, Artifact(id[:12], "", id, store.folder(id)))
    pins.keep(store, f"{released.FOLDER}.{file.stem}.{run.name}", list(content["artifacts"]))  # sweeping must not take what the file names
    file.parent.mkdir(parents=True, exist_ok=True)
    fsops.replace(file, (json.dumps(content, indent=1) + "\n").encode())
    os.chmod(file, 0o644)  # others read it, too
    passed = run.artifacts[gate].facts["passed"]
    although = {True: "", False: ", although its gate FAILED", None: ", although its gate was undecided"}[passed]
    sets = "".join(f" --set {one}" for one in finding.begin(store, run.name).get("sets", ()))
    print(f"{file}: {run.name} is the baseline{although}{f', made with{sets}' if sets else ''}; commit this file")
    print("Other machines need what it names, DIR being a CI cache, a release's files, or a mounted share:")
    size = sum(map(store.size, content["artifacts"])) / 1e6
    from .verdict import command

    push = command(store, "store", "push", "DIR", str(file))
    print(f"  {push}   # {', '.join(content['artifacts'].values())}: {size:.1f} MB")
    return 0


def _read(settings: dict[str, Any], kinds: Any) -> Stage:
    kind = settings["kind"]
    if kind not in kinds:
        raise BadRecipe(f"this version knows no stage of kind {kind}: judge the run with the version that made it")
    module, _, name = kinds[kind].partition(":")
    try:
        return getattr(importlib.import_module(module), name).model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{kind} has other settings in this version ({'.'.join(map(str, first['loc']))}: {first['msg']})"
        raise BadRecipe(f"{what}: judge the run with the one that made it") from None
