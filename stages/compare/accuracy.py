"""What accuracy did between two runs: paired where both measured the same images, so that chance can be told from change.

Intervals are over images. What another seed of training would give is a different question, which no two runs can answer.
"""

from typing import Any

import numpy as np

from pipeline.errors import BadData
from stages.measure.fingerprint import WORDS
from stages.measure.paired import CLASS_LEVEL, SUPPORT, chance, error, holm, influence, mean_seen, require_pairs
from stages.page.comparison import WITHIN, folded
from stages.page.words import name, number

from .measured import Measured

Z975 = 1.96  # two-sided 95 %
SHOWN = 12  # classes on a terminal


def compared(one: Measured, two: Measured, notes: list[str]) -> dict[str, Any] | None:
    """mIoU of every network in both, and IoU per class of the one that decides."""
    shared, model = [m for m in one.models if m in two.models], decides(one, two)
    if model is None:
        notes.append(f"{one.run} and {two.run} measured no network of the same name: accuracy is not compared")
        return None
    differs = [words for key, words in WORDS.items() if one.fingerprint.get(key) != two.fingerprint.get(key)]
    if not one.fingerprint and not two.fingerprint and one.classes != two.classes:
        differs = [WORDS["classes"]]
    pairs = {m: None if differs else paired(one, two, m) for m in shared}
    found = {"differs": differs, "images": [number(side.told.get("images")) for side in (one, two)], "of": name(model)}
    found |= {"models": [_row(m, one, two, pairs[m]) for m in shared], "classes": _classes(one, two, model, pairs[model])}
    return found | {"only": [[name(m) for m in a.models if m not in b.models] for a, b in ((one, two), (two, one))]}


def decides(one: Measured, two: Measured) -> str | None:
    """The network that both measured and that speaks for the runs: the last engine, ONNX file or reference, if it changed."""
    shared = [model for model in one.models if model in two.models]
    moved = [model for model in shared if _iou(one, model) != _iou(two, model)] or shared
    for kind in ("Engine", "OnnxModel"):
        if made := [model for model in moved if two.models[model].get("artifact") == kind]:
            return made[-1]
    reference = two.told.get("reference")
    return reference if reference in moved else moved[-1] if moved else None


def paired(one: Measured, two: Measured, model: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Counts int64 (N, C, 3) of both on the same images, or None."""
    counts = (one.counts(model), two.counts(model))
    try:
        if counts[0] is None or counts[1] is None:
            return None
        require_pairs(*counts)
    except BadData:
        return None
    return counts


def _row(model: str, one: Measured, two: Measured, counts: tuple[np.ndarray, np.ndarray] | None) -> dict[str, Any]:
    before, after = (number(side.models[model].get("miou")) for side in (one, two))
    row = {"name": name(model), "before": before, "after": after, "change": None, "margin": None, "beyond": None}
    if before is not None and after is not None:
        row["change"] = after - before
    if counts and row["change"] is not None:
        was, now = (influence(c) for c in counts)
        se = error(mean_seen(now.image) - mean_seen(was.image))
        if se is not None:
            row |= {"margin": Z975 * se, "beyond": abs(row["change"]) > Z975 * se}
    return row


def _classes(one: Measured, two: Measured, model: str, counts: tuple[np.ndarray, np.ndarray] | None) -> list[dict[str, Any]]:
    """Largest change first. Of classes that only one run knows there is one figure."""
    figures = [dict(zip(side.classes, _iou(side, model), strict=False)) for side in (one, two)]
    colours = {c: colour for side in (two, one) for c, colour in zip(side.classes, side.told.get("colours") or [], strict=False)}
    rows = []
    for c in dict.fromkeys((*one.classes, *two.classes)):
        before, after = (side.get(c) for side in figures)
        change = None if before is None or after is None else after - before
        rows.append({"name": c, "colour": colours.get(c), "before": before, "after": after, "change": change})
        rows[-1] |= {"margin": None, "beyond": None, "images": None}
    if counts:
        _mark(rows, one.classes, *counts)
    return sorted(rows, key=lambda row: -abs(row["change"]) if row["change"] is not None else 1.0)


def _mark(rows: list[dict[str, Any]], classes: list[str], before: np.ndarray, after: np.ndarray) -> None:
    """Which changes no chance explains: two-sided, at 5 % over all classes in ten images or more (Holm)."""
    was, now = influence(before), influence(after)
    support = (before[..., 0] + before[..., 2] > 0).sum(axis=0)
    by_name = {row["name"]: row for row in rows}
    judged, p = [], []
    for c, known in enumerate(classes):
        row, se = by_name[known], error(now.image[:, c] - was.image[:, c])
        row["images"] = int(support[c])
        if row["change"] is None or se is None or not np.isfinite(se):
            continue
        row["margin"] = Z975 * se
        if support[c] >= SUPPORT:
            judged.append(row)
            p.append(min(1.0, 2 * chance(abs(row["change"]), se)))
    for row, beyond in zip(judged, holm(p, CLASS_LEVEL), strict=True):
        row["beyond"] = beyond


def _iou(side: Measured, model: str) -> list[float | None]:
    found = side.models[model].get("iou")
    return [number(v) for v in found] if isinstance(found, list) else []


# -- on the terminal


def lines(found: dict[str, Any] | None) -> list[str]:
    if not found:
        return []
    told: dict[str, list[str]] = {}
    for row in found["models"]:
        if row["change"] is None or (round(row["change"], 3) == 0 and not row["beyond"]):
            continue
        told.setdefault(f"mIoU {row['before']:.2f} -> {row['after']:.2f}  {moved(row)}", []).append(row["name"])
    said = [f"{', '.join(names)}: {text}" for text, names in told.items()]
    if said and found["differs"]:
        said.append(f"not on the same images, so nothing is paired; what differs: {'; '.join(found['differs'])}")
    elif said and any(row["margin"] is not None for row in found["models"]):
        said.append(f"95 % intervals over {found['images'][0]} images; another seed of training moves a network, too")
    elif said:
        said.append("no intervals: the counts of one of the runs cannot be paired image by image")
    return said + [f"{', '.join(only)}: measured in one run only" for only in found["only"] if only]


def class_lines(found: dict[str, Any] | None) -> list[str]:
    if not found:
        return []
    little = [row for row in found["classes"] if folded(row)]
    told = [row for row in found["classes"] if row["change"] is not None and not folded(row)]
    wide = max((len(row["name"]) for row in told), default=0)
    said = [f"{row['name']:<{wide}}  {row['before']:5.1f} -> {row['after']:5.1f}  {moved(row, 1)}{mark(row)}" for row in told[:SHOWN]]
    if len(told) > SHOWN:
        said.append(f"and {len(told) - SHOWN} more, by {abs(told[SHOWN]['change']):.1f} at most")
    alone = [row["name"] for row in found["classes"] if (row["before"] is None) != (row["after"] is None)]
    said += [f"measured in one run only: {', '.join(alone)}"] if alone else []
    if not said:
        return []
    head = f"IoU of {found['of']}" + ("; * beyond chance, ? in fewer than 10 images" if any(row["margin"] for row in told) else "")
    few = f"{len(little)} classes" if len(little) > 1 else "".join(row["name"] for row in little)
    return [head, *said, *([f"{few} within {WITHIN}"] if little else [])]


def moved(row: dict[str, Any], digits: int = 2) -> str:
    margin = "" if row["margin"] is None else f" ± {row['margin']:.{digits}f}"
    return f"{row['change']:+.{digits}f}{margin}"


def mark(row: dict[str, Any]) -> str:
    return " *" if row["beyond"] else " ?" if row["images"] is not None and row["images"] < SUPPORT else ""
