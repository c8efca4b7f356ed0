"""What was measured of two models in turns, as clean JSON: the figure of every round, what they say together, and what disturbed them."""

import math
from statistics import median
from typing import Any

from pipeline.artifact import Artifact

from .words import clean, name, number

CHANNELS = {"wall": "image_ms", "processor": "image_cpu_ms"}
LOOKS = (10, 20, 30, 45, 60)  # of stages/measure/rounds.py, which brings numpy
MOST_PAIRS, MOST_ROUNDS, MOST_BUILDS = 16, 60, 8
FACTOR = 1000.0  # two models further apart are no pair


def collect(measured: Artifact | None, notes: list[str]) -> list[dict]:
    """One dict per pair, every field present; [] where there are none."""
    if measured is None or not measured.file("pairs.json").is_file():
        return []
    try:
        found = measured.json("pairs.json")
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, list):
        notes.append(f"pairs.json of {name(measured.name)} could not be read.")
        return []
    return [_pair(one) for one in found[:MOST_PAIRS] if isinstance(one, dict)]


def _pair(told: dict) -> dict:
    rounds, tolerance = _rounds(told), number(told.get("tolerance"))
    builds = told.get("builds") if isinstance(told.get("builds"), list) else []
    return {
        "candidate": name(told.get("candidate", "")),
        "baseline": name(told.get("baseline", "")),
        "tolerance": tolerance if tolerance is not None and 0 < tolerance <= 1 else None,
        "problem": None if told.get("problem") is None else clean(told["problem"]),
        "valid": told.get("valid") is True,
        "reasons": [clean(reason, 200) for reason in told["reasons"][:8]] if isinstance(told.get("reasons"), list) else [],
        "channels": _channels(told, rounds),
        "disturbed": {str(k): clean("; ".join(map(str, one["reasons"][:4])), 200) for k, one in enumerate(rounds, 1) if _reasons(one)},
        "looks": [look for look in LOOKS if look <= len(rounds)],
        "builds": [_channels(told, _rounds(build)) for build in builds[:MOST_BUILDS] if isinstance(build, dict)],
        "not_rebuilt": None if told.get("not_rebuilt") is None else clean(told["not_rebuilt"]),
    }


def _rounds(told: dict) -> list[dict]:
    found = told.get("rounds")
    return [one for one in found[:MOST_ROUNDS] if isinstance(one, dict)] if isinstance(found, list) else []


def _reasons(one: dict) -> bool:
    return isinstance(one.get("reasons"), list) and bool(one["reasons"])


def _channels(told: dict, rounds: list[dict]) -> dict[str, dict | None]:
    """By channel: how much longer the candidate took in each round, and over all of them with 95 % confidence, as fractions. A processor
    that only waits for a GPU has none."""
    on_gpu = bool(rounds) and rounds[0].get("on_gpu") is True
    return {word: None if on_gpu and word == "processor" else _channel(rounds, key) for word, key in CHANNELS.items()}


def _channel(rounds: list[dict], key: str) -> dict | None:
    ratios = [_ratio(one.get(key)) for one in rounds]
    if not ratios or None in ratios:
        return None
    from stages.measure.rounds import hodges_lehmann

    change, low, high = (None if value is None else round(math.expm1(value), 6) for value in hodges_lehmann(ratios))
    return {"changes": [round(math.expm1(ratio), 6) for ratio in ratios], "change": change, "low": low, "high": high}


def _ratio(times: Any) -> float | None:
    """ln(candidate / baseline) of the medians of a round; None where they are no times."""
    sides = [times.get(side) for side in ("candidate", "baseline")] if isinstance(times, dict) else []
    if not sides or not all(isinstance(side, list) and side and all((number(t) or 0) > 0 for t in side) for side in sides):
        return None
    factor = median(sides[0]) / median(sides[1])
    return math.log(factor) if 1 / FACTOR < factor < FACTOR else None
