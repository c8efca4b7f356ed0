"""What a verdict says of time: against another model by rounds in turns, and by itself by the runs between which its quantile lies.

All rules on pairs are judged together, so that many of them raise no more false alarms than one (measure/rounds.py). Where engines are
built by timing, another build of the same file may be faster: where one was found slower there are three builds more, and the one in the
middle decides.
"""

from statistics import median, stdev
from typing import Any

from stages.evidence import Busy, Evidence, Unknown
from stages.rules import CPU_TIMES, TIMES, Rule, asked

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def by_rounds(rule: Rule, pair: dict[str, Any], evidence: Evidence, together: dict[Rule, Any]) -> dict[str, Any]:
    """A time against another's, by rounds in which both took turns: the fields of an entry. `together`: see decisions."""
    from stages.measure.pairs import ratios
    from stages.measure.rounds import decide

    found: dict[str, Any] = {"passed": None, "text": f"{rule.metric} of {rule.of} against {rule.against}"}
    try:
        chosen, channel = deciding(rule, pair, evidence), channel_of(rule)
        times = {side: median(t for one in chosen["rounds"] for t in one[channel][side]) for side in ("candidate", "baseline")}
        found |= {"value_of": times["candidate"], "value_against": times["baseline"]}
        decision = together.get(cell(rule)) or decide(ratios(chosen["rounds"], channel), rule.at_most_ratio - 1)
        found |= {"value": 1 + decision.change, "rounds": {key: value for key, value in decision._asdict().items() if key != "text"}}
        found["text"] = f"{found['text']}: {decision.text}"
        if chosen is not pair:
            found |= between_builds(pair, channel, found["text"])
        elif decision.verdict == "fail" and "not_rebuilt" in pair:
            found["text"] += f"; another build may tell otherwise, and there is none: {pair['not_rebuilt']}"
        require_told(rule, chosen)
    except Unknown as problem:
        text = f"{found['text']}; {asked(rule)} was asked, which cannot be told: {problem}"
        return found | {"text": text, "problem": str(problem)} | ({"busy": True} if isinstance(problem, Busy) else {})
    kept = found["value"] <= rule.at_most_ratio if rule.sure is False else None
    passed = {"pass": True, "fail": False}.get(decision.verdict, kept)
    return found | {"passed": passed, "text": f"{found['text']}; {asked(rule)} was asked"}


def decisions(rules: list[Rule], evidence: Evidence) -> dict[Rule, Any]:
    """What the rounds of every rule on a pair say (rounds.Decision), by `cell`; those that say nothing are left out and share nothing."""
    from stages.measure.pairs import ratios
    from stages.measure.rounds import decide_together

    cells: dict[Rule, tuple[list[float], float]] = {}
    for rule in rules:
        try:
            if pair := evidence.pair(rule):
                chosen = deciding(rule, pair, evidence)
                require_told(rule, chosen)
                cells[cell(rule)] = ratios(chosen["rounds"], channel_of(rule)), rule.at_most_ratio - 1
        except Unknown:
            continue
    return dict(zip(cells, decide_together(list(cells.values())), strict=True)) if cells else {}


def deciding(rule: Rule, pair: dict[str, Any], evidence: Evidence) -> dict[str, Any]:
    """The measurement whose rounds decide: the pair's own, or where that found a loss and it was built again, the build in the middle."""
    from stages.measure.pairs import ratios
    from stages.measure.rounds import decide

    if "problem" in pair:
        raise Unknown(pair["problem"])
    evidence.require_same_baseline(rule, pair)
    channel = channel_of(rule)
    if rule.metric in CPU_TIMES:
        require_told(rule, pair)
    builds = pair.get("builds", [])
    if not builds or decide(ratios(pair["rounds"], channel), rule.at_most_ratio - 1).verdict != "fail":
        return pair
    return sorted(builds, key=lambda build: slower_by(build, channel))[len(builds) // 2]


def between_builds(pair: dict[str, Any], channel: str, text: str) -> dict[str, Any]:
    """How far builds of one file lie apart: fields of an entry. Without the build that was found slow: it was picked for that."""
    changes = sorted(slower_by(build, channel) for build in pair["builds"])
    own, spread = slower_by(pair, channel), stdev(changes)
    each = ", ".join(f"{100 * change:+.2f}" for change in changes)
    text += f"; that is the one in the middle of {len(changes)} builds more ({each} %, standard deviation {100 * spread:.2g} %)"
    text += f", for builds differ; the one that was measured first takes {100 * own:+.2f} %"
    return {"text": text, "builds": {"changes": changes, "standard_deviation": spread, "first": own}}


def slower_by(measured: dict[str, Any], channel: str) -> float:
    """0.03: the candidate takes 3 % longer (Hodges-Lehmann)."""
    from math import expm1

    from stages.measure.pairs import ratios
    from stages.measure.rounds import hodges_lehmann

    return expm1(hodges_lehmann(ratios(measured["rounds"], channel))[0])


def require_told(rule: Rule, measured: dict[str, Any]) -> None:
    """Raises Unknown where the rule's times say nothing."""
    from stages.measure.pairs import silent

    if rule.metric in TIMES and not measured["valid"]:
        raise Busy("; ".join(measured["reasons"]))
    if rule.metric in CPU_TIMES and (why := silent(measured["rounds"], channel_of(rule))):
        raise Unknown(why)


def channel_of(rule: Rule) -> str:
    return (TIMES | CPU_TIMES)[rule.metric][0]


def cell(rule: Rule) -> Rule:
    """What two rules on the same times have in common: they are judged once."""
    return rule.model_copy(update={"sure": None})


def by_runs(rule: Rule, samples: list[float]) -> tuple[bool | None, list[str], dict[str, Any]]:
    """An absolute limit on a time, by the runs between which its quantile lies."""
    from stages.measure.order import judge_limit

    if not samples:
        raise Unknown("single runs were not stored, and one figure tells no bound: run the recipe again")
    found = judge_limit(samples, rule.at_most, QUANTILES[rule.percentile])
    passed = {"pass": True, "fail": False, "inconclusive": None}[found.verdict]
    return passed, [found.text.split(";")[0]], {"confidence": {"at_most": {"low": found.low, "high": found.high}}, "runs": len(samples)}
