"""Holds the rules of a gate against the evidence, and puts each outcome into one sentence with its numbers.

Accuracy is judged by what other images of the kind would say (counted.py), times by what other runs would (timed.py). Every
outcome is True, False or None: undecided. What was not measured is a broken rule; what cannot be compared is an undecided one.
"""

from typing import Any

from pipeline.errors import BadData
from stages.counted import by_images, by_pixels, classes_that_lost
from stages.evidence import Busy, Evidence, Unknown
from stages.rules import CPU_TIMES, RELEASED, TIMES, Rule, asked, holds, judged_value, spoken
from stages.timed import by_rounds, by_runs, decisions

BARE = "two figures, which tell nothing of chance"


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
            text = spoken(rule.model_copy(update={"against": None}), of, None, {}) + (f", against {rule.against}" if rule.against else "")
            against = evidence.other_figure(rule)
        if of is None or (rule.against and against is None):
            unknown = " and ".join(name for name, value in ((rule.of, of), (rule.against, against)) if name and value is None)
            why = f" ({reason})" if (reason := evidence.unmeasured(rule)) else ""
            return entry | {"text": f"{rule.metric} of {unknown} was not measured{why}; {asked(rule)} was asked"}
        entry["value_against"], text = against, spoken(rule, of, against, {})
        if rule.metric in TIMES and (noise := evidence.noise(rule.of)):
            raise Busy(noise)
        if rule.metric in CPU_TIMES and rule.against and evidence.on_gpu(rule):
            raise Unknown("processor time says nothing of what a GPU computes: ask for the time by the clock")
        if rule.is_tail_of_two and rule.sure is not False:
            raise Unknown(rule.instead)
        values = {name: judged_value(name, of, against) for name in rule.limits()}
        kept = all(holds(name, values[name], limit) for name, limit in rule.limits().items())
        text = spoken(rule, of, against, values)
        passed, why, more = decided(rule, evidence, kept, rule in lost)
    except (Unknown, BadData) as problem:
        text = f"{text}; {asked(rule)} was asked, which cannot be told: {problem}"
        return entry | {"passed": None, "text": text, "problem": str(problem)} | ({"busy": True} if isinstance(problem, Busy) else {})
    text = "; ".join([text, f"{asked(rule)} was asked", *why])
    return entry | {"value": next(iter(values.values())), "passed": passed, "text": text} | more


def decided(rule: Rule, evidence: Evidence, kept: bool, lost: bool) -> tuple[bool | None, list[str], dict[str, Any]]:
    """The outcome, what there is to say about it, and further fields of the entry. `kept`: what the figures alone say."""
    if rule.family in ("miou", "iou") and (counted := evidence.counted(rule)) is not None:
        return by_images(rule, counted, evidence, kept, lost)
    if rule.is_mismatch and (counted := evidence.mismatches(rule)) is not None:
        return by_pixels(rule, counted)
    if rule.is_time and rule.against is None and rule.at_most is not None and rule.sure is not False:
        passed, why, more = by_runs(rule, evidence.samples(rule))
        return passed and kept, why, more  # `kept`: of a second limit
    if rule.sure and rule.has_bound:
        stored = "counts per image were not stored: run the recipe again"
        raise Unknown(f"{BARE}: pairs do, of a median that may grow by so much" if rule.is_time else stored)
    return kept, [BARE] if rule.is_time and rule.against else [], {}
