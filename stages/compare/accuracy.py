"""What accuracy did between two runs: paired where both measured the same images, so that chance can be told from change.

Intervals are over images. What another seed of training would give is a different question, which no two runs can answer.
"""

from typing import Any

import numpy as np

from pipeline.errors import BadData
from stages.measure.fingerprint import WORDS
from stages.measure.paired import CLASS_LEVEL, SUPPORT, chance, error, holm, influence, mean_seen, require_pairs
from stages.page.words import name, number

from .measured import Measured

Z975 = 1.96  # two-sided 95 %
WITHIN = 0.3  # points; classes that moved less, and not beyond chance, are folded
SHOWN = 12  # classes on a terminal


def compared(one: Measured, two: Measured, notes: list[str]) -> dict[str, Any] | None:
    """mIoU of every network in both, and IoU per class of the one that decides: the last candidate that both measured."""
    shared = [model for model in one.models if model in two.models]
    if not shared:
        notes.append(f"{one.run} and {two.run} measured no network of the same name: accuracy is not compared")
        return None
    differs = [words for key, words in WORDS.items() if one.fingerprint.get(key) != two.fingerprint.get(key)]
    rows = [_row(model, one, two, None if differs else paired(one, two, model)) for model in shared]
    decides = rows[-1]["name"]
    classes = _classes(one, two, shared[-1], None if differs else paired(one, two, shared[-1]))
    found = {"differs": differs, "images": [number(side.told.get("images")) for side in (one, two)], "models": rows}
    return found | {
        "of": decides,
        "classes": classes,
        "only": [[name(m) for m in a.models if m not in b.models] for a, b in _ways(one, two)],
    }


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


def _ways(one: Measured, two: Measured) -> tuple[tuple[Measured, Measured], ...]:
    return (one, two), (two, one)


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
    elif said:
        said.append(f"95 % intervals over {found['images'][0]} images; another seed of training moves a network, too")
    return said + [f"{', '.join(only)}: measured in one run only" for only in found["only"] if only]


def class_lines(found: dict[str, Any] | None) -> list[str]:
    if not found:
        return []
    rows = [row for row in found["classes"] if row["change"] is not None]
    folded = [row for row in rows if abs(row["change"]) <= WITHIN and not row["beyond"]]
    told = [row for row in rows if row not in folded]
    wide = max((len(row["name"]) for row in told), default=0)
    said = [f"{row['name']:<{wide}}  {row['before']:5.1f} -> {row['after']:5.1f}  {moved(row, 1)}{mark(row)}" for row in told[:SHOWN]]
    if len(told) > SHOWN:
        said.append(f"and {len(told) - SHOWN} more, by {abs(told[SHOWN]['change']):.1f} at most")
    said += [
        f"{row['name']}: only in one of the class tables" for row in found["classes"] if (row["before"] is None) != (row["after"] is None)
    ]
    if not said:
        return []
    said = [f"IoU of {found['of']}" + ("; * beyond chance, ? in fewer than 10 images" if any(r["margin"] for r in told) else ""), *said]
    return said + (
        [f"{len(folded)} classes within {WITHIN}" if len(folded) > 1 else f"{folded[0]['name']} within {WITHIN}"] if folded else []
    )


def moved(row: dict[str, Any], digits: int = 2) -> str:
    margin = "" if row["margin"] is None else f" ± {row['margin']:.{digits}f}"
    return f"{row['change']:+.{digits}f}{margin}"


def mark(row: dict[str, Any]) -> str:
    return " *" if row["beyond"] else " ?" if row["images"] is not None and row["images"] < SUPPORT else ""
