"""Holds the rules of a gate against the evidence, and puts each outcome into one sentence with its numbers.

Accuracy is judged by what other images of the kind would say (measure/sure.py), times by what other runs would (timed.py). Every
outcome is True, False or None: undecided. What was not measured is a broken rule; what cannot be compared is an undecided one.
"""

import math
from typing import Any

from pipeline.errors import BadData
from stages.evidence import Busy, Evidence, Unknown
from stages.rules import RELEASED, TIMES, Rule, asked, holds, judged_value, spoken
from stages.timed import by_rounds, by_runs, decisions


def judge(rules: list[Rule], evidence: Evidence) -> dict[str, Any]:
    """What verdict.json holds."""
    lost, together = classes_that_lost(rules, evidence), decisions(rules, evidence)
    judged = [judge_one(rule, evidence, lost, together) for rule in rules]
    outcomes = [rule["passed"] for rule in judged]
    verdict = {"passed": False if False in outcomes else None if None in outcomes else True, "rules": judged}
    if any(rule.against == RELEASED for rule in rules):
        verdict["released"] = evidence.released.told() if evidence.released else None
    return verdict


def judge_one(
    rule: Rule, evidence: Evidence, lost: frozenset[Rule] = frozenset(), together: dict[Rule, Any] | None = None
) -> dict[str, Any]:
    """One entry of verdict.json. `lost`: the rules on classes whose loss is no chance; `together`: timed.decisions of all rules."""
    entry = {"metric": rule.metric, "of": rule.of, "against": rule.against}
    entry |= {"limit": ", ".join(f"{name} {limit:g}" for name, limit in rule.limits().items()), "sure": rule.sure}
    entry |= {"value": None, "value_of": None, "value_against": None, "passed": False}
    text = f"{rule.metric} of {rule.of}"
    try:
        if pair := evidence.pair(rule):
            return entry | by_rounds(rule, pair, evidence, decisions([rule], evidence) if together is None else together)
        of, against = evidence.figure(rule), None
        if of is not None:
            entry["value_of"] = of
            text = spoken(rule.model_copy(update={"against": None}), of, None, {})
            against = evidence.other_figure(rule)
        if of is None or (rule.against and against is None):
            unknown = " and ".join(name for name, value in ((rule.of, of), (rule.against, against)) if name and value is None)
            return entry | {"text": f"{rule.metric} of {unknown} was not measured; {asked(rule)} was asked"}
        entry["value_against"], text = against, spoken(rule, of, against, {})
        if rule.metric in TIMES and (noise := evidence.noise()):
            raise Busy(noise)
        if rule.is_tail_of_two and rule.sure is not False:
            raise Unknown(rule.instead)
        values = {name: judged_value(name, of, against) for name in rule.limits()}
        kept = all(holds(name, values[name], limit) for name, limit in rule.limits().items())
        text = spoken(rule, of, against, values)
        passed, why, more = decided(rule, evidence, kept, rule in lost)
    except (Unknown, BadData) as problem:
        text = f"{text}; {asked(rule)} was asked, which cannot be told: {problem}"
        return entry | {"passed": None, "text": text} | ({"busy": True} if isinstance(problem, Busy) else {})
    text = "; ".join([text, f"{asked(rule)} was asked", *why])
    return entry | {"value": next(iter(values.values())), "passed": passed, "text": text} | more


def decided(rule: Rule, evidence: Evidence, kept: bool, lost: bool) -> tuple[bool | None, list[str], dict[str, Any]]:
    """The outcome, what there is to say about it, and further fields of the entry. `kept`: what the figures alone say."""
    if rule.family in ("miou", "iou") and (counted := evidence.counted(rule)) is not None:
        return by_images(rule, counted, evidence, kept, lost)
    if rule.is_time and rule.against is None and list(rule.limits()) == ["at_most"] and rule.sure is not False:
        return by_runs(rule, evidence.samples(rule), kept)
    return kept, [], {}


def by_images(rule: Rule, counted: Any, evidence: Evidence, kept: bool, lost: bool) -> tuple[bool | None, list[str], dict[str, Any]]:
    """By counts per image."""
    from stages.measure.paired import FEW_IMAGES
    from stages.measure.sure import in_words

    images, found = len(counted.of), margins(rule, counted, evidence)
    weighed = rule.sure is True or (rule.sure is None and images >= FEW_IMAGES)
    sure = all(one.sure for one in found.values())
    if rule.family == "iou" and weighed and not kept:
        passed = False if lost or any(one.chance is None for one in found.values()) else None
    elif rule.family == "iou":
        passed = None if kept and rule.sure and not sure else kept
    else:
        passed = None if kept and weighed and not sure else kept
    why = [in_words(one, images, limit) for limit, one in found.items()]
    low = [one for limit, one in found.items() if not one.certified and one.se and (images < FEW_IMAGES or not visible(rule, limit, one))]
    if passed is None and not kept:
        why.append(f"{images} images do not show that it is no chance")
    elif passed is None:
        why.append("too few images to promise it. More of them decide, or `sure: false` judges the figure alone")
    if low and rule.against and passed:
        why.append(f"low power: {images} images find a drop of {max(one.detectable for one in low):.2g} points, not a smaller one")
    if any(one.chance is None for one in found.values()):
        why.append("low evidence: few images hold the class")
    numbers = {limit: {"edge": told(one.edge), "se": one.se, "certain": one.certain} for limit, one in found.items()}
    return passed, why, {"images": images, "low_power": bool(low), "confidence": numbers}


def classes_that_lost(rules: list[Rule], evidence: Evidence) -> frozenset[Rule]:
    """Of all rules on classes together: those that lost more than chance can explain, at 5 % for all of them (Holm)."""
    asked_for = [rule for rule in rules if rule.family == "iou"]
    if not asked_for:
        return frozenset()
    from stages.measure.paired import CLASS_LEVEL, holm

    found = []
    for rule in asked_for:
        try:
            counted = evidence.counted(rule) if evidence.figure(rule) is not None else None
            known = margins(rule, counted, evidence) if counted is not None else {}
        except (Unknown, BadData):
            continue
        worst = min(known.values(), key=lambda one: one.points, default=None)
        if worst is not None and worst.chance is not None:
            found.append((rule, worst))
    significant = holm([worst.chance for _, worst in found], CLASS_LEVEL)
    return frozenset(
        rule for (rule, worst), is_lost in zip(found, significant, strict=True) if is_lost and (worst.shown or not rule.against)
    )


def margins(rule: Rule, counted: Any, evidence: Evidence) -> dict[str, Any]:
    from stages.measure.sure import margin

    number = evidence.class_number(rule) if rule.family == "iou" else None
    return {limit: margin(counted, limit, bound, number) for limit, bound in rule.limits().items()}


def visible(rule: Rule, limit: str, found: Any) -> bool:
    """Whether a loss as large as is allowed would be found. A figure alone has no allowance."""
    if rule.against is None:
        return True
    return found.detectable <= (abs(rule.limits()[limit]) if not limit.endswith("_ratio") else math.inf)


def told(value: float) -> float | None:
    """JSON knows no infinity."""
    return value if math.isfinite(value) else None
