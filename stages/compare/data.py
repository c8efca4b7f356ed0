"""What differs between two data sets: the source, the classes and their order, how many images, and which files."""

import json
from typing import Any

from pipeline.artifact import Artifact
from stages.page.words import clean, name, number

from .measured import mapping

SHOWN = 4  # names of files in a line
TABLE = {"colours": "colours", "labels": "values of masks"}  # facts of a class table besides its names


def changes(one: dict[str, Artifact], two: dict[str, Artifact], notes: list[str]) -> list[str]:
    """One sentence for each difference between data stages of the same name."""
    sets = [{key: a for key, a in side.items() if a.kind == "Dataset"} for side in (one, two)]
    found = []
    for stage in (key for key in sets[0] if key in sets[1] and sets[0][key].id != sets[1][key].id):
        pair = (sets[0][stage], sets[1][stage])
        told = [*_facts(*(artifact.facts for artifact in pair)), *_files(*pair, notes)]
        found += [f"{stage}: {text}" for text in told or ["other content in images of the same number and classes"]]
    return found


def _facts(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    found = [
        f"{key} {_shown(before.get(key))} -> {_shown(after.get(key))}" for key in ("source", "size") if before.get(key) != after.get(key)
    ]
    splits = [mapping(facts.get("splits")) for facts in (before, after)]
    for split in dict.fromkeys((*splits[0], *splits[1])):
        counts = [number(side.get(split)) or 0 for side in splits]
        if counts[0] != counts[1]:
            found.append(f"split {name(split)} {counts[0]} -> {counts[1]} images")
    classes = _classes(*([name(c) for c in facts.get("classes") or []] for facts in (before, after)))
    return found + (classes or [f"class table: other {word}" for key, word in TABLE.items() if before.get(key) != after.get(key)])


def _classes(before: list[str], after: list[str]) -> list[str]:
    if before == after:
        return []
    gone, come = [c for c in before if c not in after], [c for c in after if c not in before]
    parts = [f"{word} {', '.join(some)}" for word, some in (("without", gone), ("with", come)) if some]
    return [f"class table {len(before)} -> {len(after)}, {'; '.join(parts) if parts else 'in another order'}"]


def _files(before: Artifact, after: Artifact, notes: list[str]) -> list[str]:
    """From the indices of data sets of files; drawn and downloaded ones have none."""
    if not all(artifact.file("index.json").is_file() for artifact in (before, after)):
        return []
    try:
        indices = [_index(artifact) for artifact in (before, after)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        notes.append(f"index.json of {name(before.name)} cannot be read: files are not compared")
        return []
    found = []
    for split in dict.fromkeys((*indices[0], *indices[1])):
        was, now = (index.get(split, {}) for index in indices)
        shared = [key for key in was if key in now]
        for word, some in (
            ("new", [key for key in now if key not in was]),
            ("gone", [key for key in was if key not in now]),
            ("with another label", [key for key in shared if was[key][1] != now[key][1]]),
            ("with another picture", [key for key in shared if was[key][0] != now[key][0]]),
        ):
            if some:
                more = f" and {len(some) - SHOWN} more" if len(some) > SHOWN else ""
                found.append(f"split {name(split)}: {len(some)} {word}: {', '.join(clean(key, 60) for key in some[:SHOWN])}{more}")
    return found


def _index(artifact: Artifact) -> dict[str, dict[str, tuple[str, str]]]:
    """split -> image -> digests of image and label."""
    index = json.loads(artifact.file("index.json").read_bytes())
    return {split: {str(e["image"]): (e["image_sha256"], e["label_sha256"]) for e in entries} for split, entries in index.items()}


def _shown(value: Any) -> str:
    return " x ".join(str(v) for v in value) if isinstance(value, list) else clean(value, 60) if value is not None else "native"
