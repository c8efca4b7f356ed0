"""What a run leaves for people and for CI: OUT/<run>/page.html, page.json, a copy of each bundle; of a gate junit.xml and summary.md."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from . import finding, junit, summary, verdict
from .artifact import Artifact
from .errors import BadStore
from .manifest import Damaged
from .recipe import stage_class, takes
from .store import Store


def write(store: Store, run: str, out: Path, parts: Any, judged: Mapping[str, dict[str, Any]] | None = None) -> Path:
    """Renders the page of a run and copies its bundles; returns the page's path. `judged`: verdicts to tell instead of the stored ones."""
    story, artifacts = gather(store, run, parts)
    folder = out / run
    folder.mkdir(parents=True, exist_ok=True)
    for artifact in artifacts.values():
        if artifact.kind == "Bundle":
            copy_bundle(store, artifact, folder / artifact.name, story)
    with tempfile.TemporaryDirectory(prefix="stillhouse-") as work:
        shown = artifacts | {name: _judged_anew(artifacts[name], told, Path(work)) for name, told in (judged or {}).items()}
        html, facts = parts.page(story, shown)
        for name, text in for_ci(store, run, shown, folder / "page.html").items():
            _write(folder / name, text)
    return leave(folder, "page", html, facts)


def leave(folder: Path, name: str, html: str, facts: dict[str, Any]) -> Path:
    """Writes a page and its facts beside each other; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / f"{name}.json", json.dumps(facts, indent=1))
    _write(folder / f"{name}.html", html)  # last: where it is, everything is
    return folder / f"{name}.html"


def for_ci(store: Store, run: str, artifacts: Mapping[str, Artifact], page: Path) -> dict[str, str]:
    """File name -> text, of a run with a gate."""
    begin, verdicts = finding.begin(store, run), []
    for artifact in artifacts.values():
        if artifact.kind == "Verdict":
            verdicts.append(verdict.read(verdict_json(artifact), artifact.name, run, begin, store))
    return {"junit.xml": junit.xml(verdicts), "summary.md": summary.markdown(verdicts, str(page))} if verdicts else {}


def verdict_json(artifact: Artifact) -> Any:
    """None where it cannot be read: that is no verdict that passed."""
    try:
        return artifact.json("verdict.json")
    except (OSError, ValueError, RecursionError):
        return None


def gather(store: Store, run: str, parts: Any) -> tuple[dict[str, Any], dict[str, Artifact]]:
    """What the journal tells of a run, and the verified artifacts it ended with."""
    entries = store.journal(run).read()
    begin = finding.begin(store, run)
    origin = begin["origin"] if isinstance(begin.get("origin"), dict) else {}  # runs of before it was noted: this machine's
    ended = {e["stage"]: e for e in entries if e["event"] == "stage"}
    end = entries[-1] if entries[-1]["event"] == "end" else {"code": None, "error": "the run did not end"}
    artifacts, stages = {}, []
    for name, settings in begin["resolved"]["stages"].items():
        entry = ended.get(name, {"state": "missing", "id": None, "key": None, "seconds": 0.0})
        if entry["id"] and (artifact := store.find(entry["key"], name, entry["id"])):
            try:
                store.verify(artifact.id)
            except Damaged as damage:
                if store.read_only:
                    raise BadStore(f"{name}: {damage}, and the store is read-only, so that it cannot be made anew") from None
                place = store.quarantine(damage)  # else the next run would find it there and keep it again
                raise BadStore(f"{name}: {damage}; moved to {place}: run the recipe again, it will be made anew") from None
            artifacts[name] = artifact
        kept = entry["state"] == "kept"
        state = "done" if entry["state"] in ("made", "kept") else entry["state"]
        seconds = artifacts[name].beside.get("seconds", 0.0) if kept and name in artifacts else entry["seconds"]
        stages.append({"name": name, "kind": settings["kind"], "id": entry["id"], "kept": kept, "state": state, "seconds": seconds})
        stages[-1]["inputs"] = _inputs(settings, begin["resolved"]["stages"], parts.kinds)
    story = {
        "run": run,
        "recipe": begin["recipe"],
        "profile": begin.get("profile"),
        "rehearsal": False,
        "started": begin["at"],
        "seconds": round(sum(e["seconds"] for e in ended.values()), 1),
        "exit": end["code"],
        "error": end.get("error"),
        "resolved": begin["resolved"],
        "stages": stages,
        "machine": origin.get("machine") or parts.machine(),
        "versions": origin.get("versions") or versions(),
    }
    return story, artifacts


def versions() -> dict[str, str]:
    """Of Stillhouse and of every package that its own metadata names, where installed."""
    from .doctor import requirements

    found = {}
    for name in ("stillhouse", *requirements()):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def figures(store: Store, stages: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Every number and flag in the facts of a run's artifacts, by dotted path; of a damaged one nothing is told."""
    found: dict[str, Any] = {}
    for name, entry in stages.items():
        if entry["id"]:
            with contextlib.suppress(Damaged):
                _leaves(store.manifest(entry["id"])["facts"], name, found)
    return found


def _judged_anew(artifact: Artifact, told: dict[str, Any], work: Path) -> Artifact:
    """A verdict that is in no store."""
    folder = work / artifact.id
    folder.mkdir()
    (folder / "verdict.json").write_text(json.dumps(told), encoding="utf-8")
    return replace(artifact, folder=folder, facts=artifact.facts | {"passed": told["passed"]})


def copy_bundle(store: Store, artifact: Artifact, target: Path, story: dict[str, Any]) -> None:
    """A copy that people may move, with a note of the run it came from. Replaces an older copy whole."""
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    for file in artifact.folder.iterdir():
        if file.name != "MANIFEST.json":
            shutil.copyfile(file, fresh / file.name)
    note = {key: story[key] for key in ("run", "recipe", "profile", "started")} | {"artifact": artifact.id}
    (fresh / "run.json").write_text(json.dumps(note, indent=1), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)


def _write(file: Path, text: str) -> None:
    """Whole or not at all: a page is never half there after a run was killed."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(file)


def _inputs(settings: dict[str, Any], stages: dict[str, Any], kinds: Mapping[str, str]) -> dict[str, list[str]]:
    """Fields that name stages: {"data": ["data"], "candidates": ["onnx", "engine"]}. A stage may be called like a setting: `to: int8`."""
    cls = stage_class(settings, kinds)  # None in a run of another version
    found = {}
    for field in takes(cls) if cls else ():
        value = settings.get(field)
        names = value if isinstance(value, list) else [value]
        if known := [name for name in names if name in stages]:
            found[field] = known
    return found


def _leaves(value: Any, path: str, found: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for key, child in value.items():
            _leaves(child, f"{path}.{key}", found)
    elif isinstance(value, int | float):
        found[path] = value
