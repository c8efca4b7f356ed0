"""Puts the outcome of a run into one sentence and a few figures: did it pass, what did the small network cost, what did it gain."""

import re
from typing import Any

from pipeline.artifact import Artifact

from .roles import TITLES, Cast, low
from .words import clean, count, megabytes, ms, name, number, points, signed, times

LIMIT = re.compile(r"\b(at_(?:least|most)(?:_ratio)?) (-?\d{1,12}(?:\.\d{1,12})?(?:e[+-]?\d{1,2})?)\b")


def rules(artifacts: dict[str, Artifact], notes: list[str]) -> list[dict]:
    """The rules of every gate, as they were judged."""
    found = []
    for artifact in artifacts.values():
        if artifact.kind == "Verdict":
            found += [_rule(artifact.name, rule) for rule in _judged(artifact, notes)]
    return found


def verdict(run: dict, stages: list[dict], judged: list[dict], table: list[dict], cast: Cast) -> dict:
    """{"state": passed | failed | unfinished | undecided | unjudged, "sentence": ...}"""
    broken = next((s for s in stages if s["state"] in ("failed", "stopped")), None)
    first = next((rule for rule in judged if rule["passed"] is False), None)
    open_ = next((rule for rule in judged if rule["passed"] is None), None)
    if first:
        return {"state": "failed", "sentence": f"Failed: {first['text']}"}
    if broken or any(s["state"] != "done" for s in stages):
        return {"state": "unfinished", "sentence": _unfinished(run, broken, judged)}
    if open_:
        return {"state": "undecided", "sentence": f"Undecided: {open_['text']}"}
    if not judged:
        return {"state": "unjudged", "sentence": f"Not judged: the recipe has no gate; {_keeps(table, cast)}".removesuffix("; ")}
    return {"state": "passed", "sentence": f"Passed: {_keeps(table, cast) or 'every rule of the gate holds.'}"}


def headline(table: list[dict], cast: Cast, about: dict | None) -> list[dict]:
    """The figures that people ask for first: {"value", "unit", "says"}; those that were not measured are left out."""
    row = {role: next((r for r in table if r["stage"] == name(stage) and r["measured"]), None) for role, stage in cast.lead.items()}
    teacher, baseline, student = (row.get(role) for role in ("teacher", "baseline", "student"))
    small = row.get("engine") or row.get("onnx") or student or row.get("model")
    answers, conditions = _answers(small, row), (about or {}).get("conditions")
    if answers and conditions and not conditions["valid"] and not conditions["not_watched"]:  # who was timed elsewhere, is told there
        answers["says"] += "; inconclusive: the machine was not quiet"
    return [f for f in (_kept(small, teacher), _gained(student, baseline), _smaller(student or small, teacher, small), answers) if f]


def _judged(artifact: Artifact, notes: list[str]) -> list[dict]:
    try:
        told = artifact.json("verdict.json")
        judged = [rule for rule in told["rules"] if isinstance(rule, dict)]
        whole = told["passed"] is True
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        judged, whole = [], False
    if whole or any(rule.get("passed") is not True for rule in judged):
        return judged
    notes.append(f"verdict.json of {name(artifact.name)} does not say that it passed, nor which rule failed.")
    return [*judged, {"text": f"the verdict of {name(artifact.name)} could not be read or holds no passed rule.", "passed": False}]


def _rule(gate: str, rule: dict) -> dict:
    texts = {key: None if rule.get(key) is None else clean(rule[key], 80) for key in ("metric", "of", "against", "limit")}
    numbers = {key: number(rule.get(key)) for key in ("value", "value_of", "value_against", "images")}
    passed = None if "passed" in rule and rule["passed"] is None else rule.get("passed") is True
    told = {"gate": name(gate), "text": clean(rule.get("text", "a rule without a text"), 800), "passed": passed}
    worst = [one for one in _list(rule.get("worst"))[:64] if isinstance(one, dict) and type(one.get("image")) is int]
    limits = [(kind, number(float(bound))) for kind, bound in LIMIT.findall(texts["limit"] or "")]
    more = {
        "low_power": rule.get("low_power") is True,
        "limits": [{"kind": kind, "bound": bound} for kind, bound in limits if bound is not None],
        "interval": _interval(rule, limits[0][0] if limits else "", numbers["value"]),
        "worst": [{"image": one["image"], "name": name(one.get("name", "")), "points": number(one.get("points"))} for one in worst],
    }
    return told | texts | numbers | more


def _interval(rule: dict, limit: str, value: float | None) -> list[float] | None:
    """From where to where the figure lies: with 90 % confidence, so that each end is a one-sided bound of 95 %; of times 98 % and more."""
    rounds, one = _mapping(rule.get("rounds")), _mapping(_mapping(rule.get("confidence")).get(limit))
    if rounds:
        low, high = (None if (end := number(rounds.get(key))) is None else 1 + end for key in ("low", "high"))
    elif "edge" in one:
        edge = number(one["edge"])
        low, high = (None, None) if None in (edge, value) else sorted((edge, 2 * value - edge))
    else:
        low, high = number(one.get("low")), number(one.get("high"))
    return None if None in (low, high) or low > high else [low, high]


def _list(value: Any) -> list:
    return value if isinstance(value, list) else []


def _mapping(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _unfinished(run: dict, broken: dict | None, judged: list[dict]) -> str:
    before = "The gate passed, but the run is unfinished" if judged and all(rule["passed"] for rule in judged) else "Unfinished"
    if not broken:
        why = "it is still going, or was cut short" if run.get("exit") is None else f"it ended with exit code {clean(run['exit'], 8)}"
        return f"{before}: not every stage was reached; {why}."
    if broken["state"] == "stopped":
        return f"{before}: stopped in the stage {name(broken['name'])}; the same command goes on from there."
    error = str(broken["error"] or "").removeprefix(f"{broken['name']}: ")
    why = next((clean(line, 200) for line in error.splitlines() if clean(line)), "see its log.")
    return f"{before}: the stage {name(broken['name'])} ({name(broken['kind'])}) failed: {why}"


def _keeps(table: list[dict], cast: Cast) -> str:
    """The engine keeps 71.3 of the student's 71.4 mIoU and answers in 4.1 ms."""
    row = {role: next((r for r in table if r["stage"] == name(stage) and r["miou"] is not None), None) for role, stage in cast.lead.items()}
    last = row.get("engine") or row.get("onnx")
    whole = row.get("student") or row.get("model")
    if not last or not whole:
        return f"the {_called(whole)} reaches {points(whole['miou'])} mIoU." if whole else ""
    what = "engine" if last is row.get("engine") else "ONNX file"
    speed = f" and answers in {ms(last['image_ms']['p50'])} ms" if last["image_ms"] else ""
    return f"the {what} keeps {points(last['miou'])} of the {_called(whole)}'s {points(whole['miou'])} mIoU{speed}."


def _kept(small: dict | None, teacher: dict | None) -> dict | None:
    if not small or small["miou"] is None:
        return None
    if not teacher or teacher["miou"] is None:
        return {"value": points(small["miou"]), "unit": "mIoU", "says": f"accuracy of the {_called(small)}"}
    return {
        "value": signed(small["miou"] - teacher["miou"]),
        "unit": "mIoU",
        "says": f"{_called(small)} {points(small['miou'])}, teacher {points(teacher['miou'])}: what becoming small cost",
    }


def _gained(student: dict | None, baseline: dict | None) -> dict | None:
    if not student or not baseline or None in (student["miou"], baseline["miou"]):
        return None
    return {
        "value": signed(student["miou"] - baseline["miou"]),
        "unit": "mIoU",
        "says": f"student {points(student['miou'])}, same network without a teacher {points(baseline['miou'])}: what distillation brought",
    }


def _smaller(student: dict | None, teacher: dict | None, small: dict | None) -> dict | None:
    if student and teacher and student["parameters"] and teacher["parameters"]:
        parts = f"{count(teacher['parameters'])} parameters became {count(student['parameters'])}"
        return {"value": f"{times(teacher['parameters'] / student['parameters'])}×", "unit": "smaller", "says": parts}
    if small and small["size_mb"]:
        return {"value": megabytes(small["size_mb"]), "unit": "", "says": f"size of the {_called(small)}"}
    return None


def _answers(small: dict | None, row: dict) -> dict | None:
    if not small or not small["image_ms"]:
        return None
    p50 = small["image_ms"]["p50"]
    for role in ("teacher", "student", "onnx"):
        other = row.get(role)
        if other and other is not small and other["image_ms"] and p50 > 0:
            ratio = other["image_ms"]["p50"] / p50
            fast = "as fast" if 0.95 < ratio < 1.05 else f"{times(ratio)}× as fast"
            word = f"{fast} as the {_called(other)} ({ms(other['image_ms']['p50'])} ms)"
            return {"value": ms(p50), "unit": "ms", "says": f"from image to class map, median; {word}"}
    return {"value": ms(p50), "unit": "ms", "says": "from image to class map, median"}


def _called(row: dict) -> str:
    return low(TITLES[row["role"]])
