"""Latency of two runs by percentile, and why it says little: the two were not measured in turns, perhaps not even on one machine."""

from typing import Any

from pipeline.keys import differences
from stages.page.words import clean, name, number

from .measured import Measured, mapping

PERCENTILES = ("p50", "p90", "p99")
BOUNDARIES = {"image_ms": "image", "engine_ms": "alone", "image_cpu_ms": "CPU", "engine_cpu_ms": "CPU alone"}
SAID = ("image_ms", "engine_ms", "image_cpu_ms")  # on a terminal; the page has all
MACHINE = ("cpu", "cores", "gpus", "driver", "platform")  # what of it makes times others


def compared(one: Measured, two: Measured) -> dict[str, Any] | None:
    """Every boundary of every network that both timed; None where there is none."""
    rows = []
    for model in (m for m in one.models if m in two.models):
        pair = [mapping(side.models[model].get("latency")) for side in (one, two)]
        for boundary, says in BOUNDARIES.items():
            figures = [[_time(mapping(side.get(boundary)).get(p)) for p in PERCENTILES] for side in pair]
            if figures[0][0] and figures[1][0]:
                rows.append({"name": name(model), "boundary": boundary, "says": says, "before": figures[0], "after": figures[1]})
    raced = {side.run: _raced(side) for side in (one, two)}
    if not rows and not any(raced.values()):
        return None
    return {
        "rows": rows,
        "warning": _warning(one, two, any(raced.values())) if rows else None,
        "busy": _busy(one) + _busy(two),
        "pairs": raced,
    }


def _time(value: Any) -> float | None:
    found = number(value)
    return found if found is not None and found > 0 else None


def _warning(one: Measured, two: Measured, raced: bool) -> str:
    machines = [{key: mapping(side.told.get("machine")).get(key) for key in MACHINE} for side in (one, two)]
    found = differences(*machines)
    when = [side.at[:16].replace("T", " ") for side in (one, two)]
    if found:
        apart = "on different machines (" + ", ".join(f"{path} {clean(a, 40)} -> {clean(b, 40)}" for path, a, b in found[:2]) + ")"
    else:
        apart = f"at different times ({when[0]} and {when[1]})" if all(when) else "at different times"
    better = "; what was paired says more" if raced else f"; validate's `pairs: [[{name(list(two.models)[-1])}, released]]` would say more"
    return f"measured {apart}: figures that are not paired say little{better}"


def _busy(side: Measured) -> list[str]:
    conditions = mapping(side.told.get("conditions"))
    if not conditions or conditions.get("valid") is True:
        return []
    reasons = conditions.get("reasons") if isinstance(conditions.get("reasons"), list) else []
    return [f"clock times of {side.run} are inconclusive: {'; '.join(clean(r, 160) for r in reasons[:1]) or 'no reason was noted'}"]


def _raced(side: Measured) -> list[str]:
    """What pairs told, which is worth more than anything above."""
    found = side.told.get("pairs")
    entries = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    return [
        f"{name(one.get('candidate', ''))} against {name(one.get('baseline', ''))}: {clean(one.get('told', ''), 300)}" for one in entries
    ]


# -- on the terminal


def lines(found: dict[str, Any] | None) -> list[str]:
    if not found:
        return []
    rows = [row for row in found["rows"] if row["before"] != row["after"] and row["boundary"] in SAID]
    wide = max((len(row["name"]) + len(row["says"]) + 2 for row in rows), default=0)
    named = [(f"{row['name']}, {row['says']}", "  ".join(_cells(row))) for row in rows]
    said = [f"{who:<{wide}}  {cells}".rstrip() for who, cells in named]
    if said:
        head = "  ".join(f"{f'{p}, ms':<18}" for p in PERCENTILES)
        said = [f"{'':<{wide}}  {head}".rstrip(), *said, found["warning"], *found["busy"]]
    return said + [f"paired in {run}: {text}" for run, told in found["pairs"].items() for text in told]


def _cells(row: dict[str, Any]) -> list[str]:
    return [f"{f'{figure(a)}->{figure(b)} {percent(a, b)}':<18}" for a, b in zip(row["before"], row["after"], strict=True)]


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def percent(before: float | None, after: float | None) -> str:
    return "" if before is None or after is None else f"{100 * (after / before - 1):+.0f}%"
