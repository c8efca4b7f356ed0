"""Holds measured figures against the rules of the recipe, and writes a verdict with the numbers in it.

A rule speaks of one figure of one model, alone or against the same figure of another, which may be the one in the committed baseline. What
was not measured is a failed rule. What cannot be told (a time by the clock on a busy machine, a drop too small for so few images, a
baseline that is not here) leaves its rule undecided. The verdict never raises: the line goes on to the bundle, marked, and the command
ends with exit code 3 (a rule is broken) or 4 (undecided).
"""

import json
import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.artifact import Artifact
from pipeline.problems import meant
from pipeline.stage import Job, Made, Stage, Takes
from stages.rules import LEAST_RUNS, METRICS, RELEASED, Rule, metric_problem

__all__ = ("METRICS", "Gate", "Rule")


class Gate(Stage):
    kind: Literal["gate"]
    makes: ClassVar[str] = "Verdict"
    version: ClassVar[int] = 5

    measured: Annotated[str, Takes(("Measurement",)), Field(description="The stage whose figures are judged.")]
    rules: list[Rule] = Field(min_length=1, description="All of them must hold.")

    def problems(self, earlier: dict[str, Stage]) -> list[tuple[tuple, str]]:
        found = []
        measured = earlier.get(self.measured)
        for i, rule in enumerate(self.rules):
            if problem := metric_problem(rule.metric):
                found.append((("rules", i, "metric"), problem))
            if measured is None or not hasattr(measured, "candidates"):
                continue
            found += [(("rules", i, *field), text) for field, text in self._of_models(rule, measured, earlier)]
        return found

    def _of_models(self, rule: Rule, measured: Stage, earlier: dict[str, Stage]) -> Iterator[tuple[tuple, str]]:
        if rule.metric == "clear_mismatch" and not _gives_logits(earlier.get(measured.reference)):
            text = f"{measured.reference}, the reference of {self.measured}, gives no logits: take a checkpoint"
            yield ("metric",), f"{text}, or an ONNX file exported with logits: true"
        held, listed = [measured.reference, *measured.candidates], [rule.of, rule.against] in measured.pairs
        paired = rule.is_of_pair and listed
        if rule.of == rule.against or (rule.of == measured.reference and (rule.is_mismatch or rule.metric == "agreement")):
            yield ("of",), f"{rule.of} would be compared with itself, which always holds"
        if rule.is_time and rule.against is None:
            yield from _of_runs(rule, measured)
        if rule.is_time and listed and not paired and rule.sure is not False and not rule.is_tail_of_two:
            yield ("metric",), "pairs tell of a median whether it is slower by so much: write p50 with an at_most_ratio above 1 alone"
        elif rule.against == RELEASED and rule.is_time and not paired:
            text = f"a time against {RELEASED} is a median with an at_most_ratio above 1 (p50_ms, cpu_p50_ms), timed in turns"
            yield ("against",), f"{text}: add [{rule.of}, {RELEASED}] to pairs of {self.measured}"
        elif rule.against and rule.is_time and _place(rule.of, earlier) != _place(rule.against, earlier):
            text = f"{rule.of} and {rule.against} are timed on different machines, which says nothing: build both on one target"
            yield ("against",), text
        elif rule.is_tail_of_two and rule.sure is not False:
            yield ("metric",), rule.instead
        if paired and not math.isclose(rule.at_most_ratio, 1 + measured.latency.tolerance):
            asked, found = round(rule.at_most_ratio - 1, 6), measured.latency.tolerance
            text = (
                f"{self.measured} times pairs until {found:g} can be told, this asks for {asked:g}: write latency: {{tolerance: {asked:g}}}"
            )
            yield ("at_most_ratio",), text
        for field, name, known in (("of", rule.of, held), ("against", rule.against, [*held, "null", RELEASED])):
            if name is None or (field == "against" and name == RELEASED):
                continue
            if name not in held:
                yield (field,), f"{name} is not measured by {self.measured}, which holds {', '.join(held)}{meant(name, known)}"
            elif rule.is_time and not paired and rule.against != RELEASED and name not in measured.latency_of:
                yield (field,), f"the time of {name} is not measured: add it to latency_of of {self.measured}"

    def unsettled(self, facts: dict[str, Any]) -> tuple[str, ...]:
        """A verdict that nothing but a busy machine left open: the next run measures again. Not one that is broken by anything else, nor
        one with times that said too little on a quiet machine: nobody gets another verdict by measuring until it suits."""
        return ("measured",) if facts.get("busy") else ()

    def names_released(self) -> bool:
        return any(rule.against == RELEASED for rule in self.rules)

    def run(self, inputs, job: Job) -> Made:
        verdict = judged(self.rules, inputs["measured"], job.released)
        (job.out / "verdict.json").write_text(json.dumps(verdict, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        busy = verdict["passed"] is None and all("busy" in rule for rule in verdict["rules"] if rule["passed"] is None)
        return Made({"passed": verdict["passed"]} | ({"busy": True} if busy else {}))


def judged_again(settings: dict[str, Any], inputs: dict[str, Any], released: Any) -> dict[str, Any]:
    """The verdict on a finished measurement, as it would be written now."""
    return judged(Gate.model_validate(settings).rules, inputs["measured"], released)


def judged(rules: list[Rule], measured: Artifact, released: Any) -> dict[str, Any]:
    """What verdict.json holds: the outcome of every rule, and on which machine it was measured."""
    from stages.evidence import of_artifact
    from stages.judged import judge

    evidence = of_artifact(measured, released)
    return judge(rules, evidence) | {"machine": machine_of(evidence.measurement), "conditions": conditions_of(evidence.measurement)}


def machine_of(measurement: dict[str, Any]) -> str:
    """E.g. `AMD EPYC, 2 cores, no GPU`, and the target where models were measured on one"""
    target = measurement.get("target")
    return _machine(measurement.get("machine") or {}) + (f"; target {target['name']}: {_machine(target['facts'])}" if target else "")


def _machine(facts: dict[str, Any]) -> str:
    gpus = ", ".join(gpu["name"] for gpu in facts.get("gpus") or []) or "no GPU"
    return f"{facts['cpu']}, {facts['cores']} core{'s' if facts['cores'] != 1 else ''}, {gpus}" if facts.get("cpu") else "not known"


def conditions_of(measurement: dict[str, Any]) -> list[str]:
    """Why times by the clock say nothing, each reason once."""
    found = list((measurement.get("conditions") or {}).get("reasons", []))
    for pair in measurement.get("pairs") or []:
        found += [f"{pair['candidate']} against {pair['baseline']}: {reason}" for reason in pair.get("reasons", []) if not pair["valid"]]
    return list(dict.fromkeys(found))


def _gives_logits(stage: Stage | None) -> bool:
    """As far as a recipe tells it."""
    if stage is None or stage.makes == "Checkpoint":
        return True
    if stage.makes == "OnnxModel":
        return getattr(stage, "logits", stage.kind == "quantize")
    return stage.kind == "optimize" and stage.engine.kind == "pytorch"


def _of_runs(rule: Rule, measured: Stage) -> Iterator[tuple[tuple, str]]:
    """A limit on a time by itself is judged by a bound, which takes so many runs."""
    if list(rule.limits()) != ["at_most"]:
        yield ("metric",), "a time by itself has one limit, at_most, in ms"
    elif rule.sure is not False and measured.latency.runs < (needed := LEAST_RUNS[rule.percentile]):
        text = f"a bound on {rule.percentile} takes {needed} runs, and {rule.of} is timed in {measured.latency.runs}"
        yield ("metric",), f"{text}: write latency: {{runs: {needed}}} there, or sure: false, which judges the figure alone"


def _place(name: str, earlier: dict[str, Stage]) -> str | None:
    """The target on which a model is timed; None: this machine."""
    return getattr(earlier.get(name), "target", None)
