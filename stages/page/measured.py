"""What a measurement tells besides the figures of each network, as clean JSON: the hops between them, and how quiet the machine was."""

from typing import Any

from .words import clean, name, number, plain

SEEN = {  # of stages/measure/quiet.py
    "seconds": "seconds of measuring",
    "waited": "share of them in which somebody waited for a core",
    "running": "other programs that wanted to run",
    "throttled": "stops by a limit on processor time",
    "stolen": "share of the processor given to other guests",
}
STATES = ("loses", "keeps", "unclear")


def waterfall(measurement: dict) -> dict | None:
    """{"hops", "loses", "text"}; None where a measurement has none, or nothing in it can be read."""
    told = _mapping(measurement.get("waterfall"))
    hops = [_hop(one) for one in told.get("hops") or [] if isinstance(one, dict)] if isinstance(told.get("hops"), list) else []
    if not hops:
        return None
    losing = [one["name"] for one in hops if one["state"] == "loses"]
    return {"hops": hops, "loses": losing, "text": clean(told.get("text", ""), 1000)}


def conditions(measurement: dict) -> dict | None:
    """{"valid", "reasons", "seen", "not_watched"} of the times; None where none were measured."""
    told = _mapping(measurement.get("conditions"))
    if not told:
        return None
    reasons = told.get("reasons") if isinstance(told.get("reasons"), list) else []
    seen = {word: number(told.get(key)) for key, word in SEEN.items()}
    mhz = told.get("mhz") if isinstance(told.get("mhz"), list) else []
    seen["processor clocks, MHz"] = " to ".join(f"{value:g}" for value in map(number, mhz[:2]) if value is not None) or None
    found = {"valid": told.get("valid") is True, "reasons": [clean(reason, 200) for reason in reasons[:8]], "seen": seen}
    return found | {"not_watched": _not_watched(_mapping(told.get("not_watched")))}


def target(measurement: dict) -> dict | None:
    """{"name", "machine"} of the machine on which some of the models ran; None where all ran on this one."""
    told = _mapping(measurement.get("target"))
    facts = {key: value for key, value in _mapping(told.get("facts")).items() if key != "packages"}
    return {"name": name(told.get("name", "")), "machine": plain(facts)} if told else None


def kept(model: dict) -> dict | None:
    """{"kept": True | False | None, "why"} of an INT8 engine."""
    told = _mapping(model.get("kept"))
    if not told:
        return None
    return {"kept": told.get("kept") if isinstance(told.get("kept"), bool) else None, "why": clean(told.get("why", ""), 400)}


def _hop(one: dict) -> dict:
    made = one.get("from") is not None
    worst = _mapping(one.get("worst"))
    figures = ("miou", "boundary_f", "change", "standard_error", "agreement", "agreement_first", "boundary_change")
    return {
        "name": name(one.get("name", "")),
        "from": name(one["from"]) if made else None,
        "precision": name(one.get("precision", "")),
        "state": one.get("state") if one.get("state") in STATES else None,
        "worst": {"class": name(worst.get("class", "")), "change": number(worst.get("change"))} if worst else None,
    } | {key: number(one.get(key)) for key in figures}


def _not_watched(told: dict) -> str | None:
    models = told.get("models") if isinstance(told.get("models"), list) else []
    return f"{', '.join(map(name, models))}: timed on target {name(told.get('target', ''))}" if told else None


def _mapping(value: Any) -> dict:
    return value if isinstance(value, dict) else {}
