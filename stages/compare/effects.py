"""What else came of a change: sizes, the hops from network to engine, and each rule of the gate."""

import json
from typing import Any

from pipeline.artifact import Artifact
from stages.page.words import clean, count, megabytes, name, number, times

from .measured import Measured, mapping

OUTCOMES = {True: "passed", False: "FAILED", None: "undecided"}


def sizes(one: Measured, two: Measured) -> list[dict[str, Any]]:
    """Networks whose bytes or parameters changed; those that changed alike share a line."""
    told: dict[str, list[str]] = {}
    for model in (m for m in one.models if m in two.models):
        parts = []
        for key, say in (("size_mb", megabytes), ("parameters", lambda v: f"{count(v)} parameters")):
            before, after = (number(side.models[model].get(key)) for side in (one, two))
            if before and after and say(before) != say(after):
                parts.append(f"{say(before)} -> {say(after)} ({grown(after / before)})")
        if parts:
            told.setdefault(", ".join(parts), []).append(name(model))
    return [{"names": names, "text": f"{', '.join(names)}: {text}"} for text, names in told.items()]


def grown(ratio: float) -> str:
    return f"{times(ratio)} times" if ratio >= 2 else f"{100 * (ratio - 1):+.2g} %"


def hops(one: Measured, two: Measured) -> list[dict[str, Any]]:
    """Hops of the waterfall that cost something else than they did, or are judged otherwise."""
    sides = [{name(hop["name"]): hop for hop in _hops(side) if hop.get("from")} for side in (one, two)]
    found = []
    for hop in (h for h in sides[0] if h in sides[1]):
        before, after = (number(side[hop].get("change")) for side in sides)
        states = [clean(side[hop].get("state", ""), 20) for side in sides]
        if before is None or after is None or (abs(after - before) < 0.005 and states[0] == states[1]):
            continue
        judged = f", {states[0]} -> {states[1]}" if states[0] != states[1] else ""
        text = f"{name(sides[1][hop]['from'])} to {hop}: {before:+.2f} -> {after:+.2f} points{judged}"
        found.append({"name": hop, "before": before, "after": after, "states": states, "text": text})
    return found


def verdicts(one: dict[str, Artifact], two: dict[str, Artifact], notes: list[str]) -> list[dict[str, Any]]:
    """Every rule of every gate in either run: {"gate", "rule", "before", "after"}; None where a run does not ask it."""
    found = []
    names = [key for side in (one, two) for key, artifact in side.items() if artifact.kind == "Verdict"]
    for gate in dict.fromkeys(names):
        if gate in one and gate in two and one[gate].id == two[gate].id:
            continue
        sides = [_rules(side[gate], notes) if gate in side else {} for side in (one, two)]
        for rule in dict.fromkeys((*sides[0], *sides[1])):
            found.append({"gate": name(gate), "rule": rule, "before": sides[0].get(rule), "after": sides[1].get(rule)})
    return found


def _rules(artifact: Artifact, notes: list[str]) -> dict[str, dict[str, Any]]:
    """By what each asks; a rule that is asked twice counts once."""
    try:
        rules = json.loads(artifact.file("verdict.json").read_bytes())["rules"]
        return {_asked(rule): _judged(rule) for rule in rules if isinstance(rule, dict)}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        notes.append(f"verdict.json of {name(artifact.name)} cannot be read: its rules are not compared")
        return {}


def _asked(rule: dict[str, Any]) -> str:
    against = f" against {rule['against']}" if rule.get("against") else ""
    return clean(f"{rule.get('metric')} of {rule.get('of')}{against} {rule.get('limit') or ''}", 160)


def _judged(rule: dict[str, Any]) -> dict[str, Any]:
    passed = rule.get("passed")
    return {
        "passed": passed if isinstance(passed, bool) else None,
        "value": number(rule.get("value")),
        "text": clean(rule.get("text", ""), 400),
    }


def verdict_lines(found: list[dict[str, Any]]) -> list[str]:
    """Rules that are judged otherwise, then those only one run asks; the others are counted."""
    said, alike = [], {}
    for one in found:
        before, after = one["before"], one["after"]
        if before is None or after is None:
            there, word = (after, "new") if before is None else (before, "no longer asked")
            said.append(f"{word}: {one['rule']}: {OUTCOMES[there['passed']]}")
        elif before["passed"] is not after["passed"]:
            values = "" if None in (before["value"], after["value"]) else f" ({before['value']:.4g} -> {after['value']:.4g})"
            said.insert(0, f"{one['rule']}: {OUTCOMES[before['passed']]} -> {OUTCOMES[after['passed']]}{values}")
        else:
            alike[after["passed"]] = alike.get(after["passed"], 0) + 1
    if not said and all(one["before"]["value"] == one["after"]["value"] for one in found):
        return []
    return said + ([f"as before: {', '.join(f'{n} {OUTCOMES[passed]}' for passed, n in alike.items())}"] if alike else [])


def _hops(side: Measured) -> list[dict[str, Any]]:
    found = mapping(side.told.get("waterfall")).get("hops")
    return [hop for hop in found if isinstance(hop, dict) and "name" in hop] if isinstance(found, list) else []
