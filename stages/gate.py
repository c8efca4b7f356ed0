"""Holds measured figures against the rules of the recipe, and writes a verdict with the numbers in it.

A rule speaks of one figure of one model, alone or against the same figure of another. What was not measured is a failed rule. A time by
the clock that was measured on a machine too busy to tell leaves its rule undecided; processor times (cpu_) and all else are judged.
The verdict never raises: the line goes on to the bundle, marked, and the command ends with exit code 3 (a rule is broken) or 4 (undecided).
"""

import json
import math
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.problems import meant
from pipeline.stage import Job, Made, Stage, Takes

PERCENTILES = ("p50", "p90", "p99")
TIMES = {f"{p}_ms": ("image_ms", p) for p in PERCENTILES} | {f"engine_{p}_ms": ("engine_ms", p) for p in PERCENTILES}
CPU_TIMES = {"cpu_p50_ms": ("image_cpu_ms", "p50"), "engine_cpu_p50_ms": ("engine_cpu_ms", "p50")}
METRICS = ("miou", "boundary_f", "agreement", "size_mb", *TIMES, *CPU_TIMES)
UNITS = {"miou": "points", "boundary_f": "points", "iou": "points", "size_mb": "MB", "agreement": ""}  # of times: ms
DIGITS = {"miou": ".2f", "boundary_f": ".2f", "iou": ".2f", "agreement": ".6f"}  # in sentences; the verdict holds the whole number
WORDS = {True: "passed", False: "FAILED", None: "undecided"}
LIMITS = ("at_least", "at_most", "at_least_ratio", "at_most_ratio")


class Rule(BaseModel):
    """One figure and its limits: `at_least: -0.2` with `against` allows a loss of 0.2; `at_most_ratio: 1.05` allows 5 % more."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    metric: str = Field(
        description=f"{', '.join(METRICS)}, or iou.CLASS. Times are of one image in memory; engine_ ones of the engine alone; cpu_ ones "
        "count the processor time of all threads and hold on a busy machine."
    )
    of: str = Field(description="The model judged: a name among reference and candidates of the measurement.")
    against: str | None = Field(None, description="The model it is compared with; none: the figure is judged by itself.")
    at_least: float | None = Field(None, allow_inf_nan=False, description="Least figure, or least difference (of - against).")
    at_most: float | None = Field(None, allow_inf_nan=False, description="Largest figure, or largest difference (of - against).")
    at_least_ratio: float | None = Field(None, allow_inf_nan=False, description="Least ratio (of / against).")
    at_most_ratio: float | None = Field(None, allow_inf_nan=False, description="Largest ratio (of / against).")

    @model_validator(mode="after")
    def has_a_limit(self) -> Self:
        if not self.limits():
            raise ValueError(f"a rule needs a limit: one of {', '.join(LIMITS)}")
        if self.against is None and (self.at_least_ratio is not None or self.at_most_ratio is not None):
            raise ValueError("a ratio needs two models: name the other one in against")
        return self

    def limits(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in LIMITS if getattr(self, name) is not None}


class Gate(Stage):
    kind: Literal["gate"]
    makes: ClassVar[str] = "Verdict"

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
            held = [measured.reference, *measured.candidates]
            if rule.against and rule.metric.endswith("_ms") and _place(rule.of, earlier) != _place(rule.against, earlier):
                text = f"{rule.of} and {rule.against} are timed on different machines, which says nothing: build both on one target"
                found.append((("rules", i, "against"), text))
            for field, name, known in (("of", rule.of, held), ("against", rule.against, [*held, "null"])):
                if name is None:
                    continue
                if name not in held:
                    text = f"{name} is not measured by {self.measured}, which holds {', '.join(held)}{meant(name, known)}"
                    found.append((("rules", i, field), text))
                elif rule.metric in (*TIMES, *CPU_TIMES) and name not in measured.latency_of:
                    found.append((("rules", i, field), f"the time of {name} is not measured: add it to latency_of of {self.measured}"))
        return found

    def run(self, inputs, job: Job) -> Made:
        measurement = inputs["measured"].json("measurement.json")
        judged = [judge(rule, measurement) for rule in self.rules]
        outcomes = [rule["passed"] for rule in judged]
        passed = False if False in outcomes else None if None in outcomes else True
        for rule in judged:
            job.say(f"{WORDS[rule['passed']]}: {rule['text']}")
        (job.out / "verdict.json").write_text(json.dumps({"passed": passed, "rules": judged}, indent=2) + "\n", encoding="utf-8")
        return Made({"passed": passed})


def _place(name: str, earlier: dict[str, Stage]) -> str | None:
    """The target on which a model is timed; None: this machine."""
    return getattr(earlier.get(name), "target", None)


def judge(rule: Rule, measurement: dict[str, Any]) -> dict[str, Any]:
    """One entry of verdict.json."""
    of, against = figure(measurement, rule.of, rule.metric), figure(measurement, rule.against, rule.metric) if rule.against else None
    entry = {"metric": rule.metric, "of": rule.of, "against": rule.against}
    entry["limit"] = ", ".join(f"{name} {limit:g}" for name, limit in rule.limits().items())
    if of is None or (rule.against and against is None):
        unknown = " and ".join(name for name, value in ((rule.of, of), (rule.against, against)) if name and value is None)
        text = f"{rule.metric} of {unknown} was not measured; {asked(rule)} was asked"
        return entry | {"value": None, "value_of": of, "value_against": against, "passed": False, "text": text}
    if rule.metric in TIMES and (noise := noisy(measurement)):
        text = f"{spoken(rule, of, against, {})}; {asked(rule)} was asked, which cannot be told: {noise}"
        return entry | {"value": None, "value_of": of, "value_against": against, "passed": None, "text": text}
    values = {name: judged_value(name, of, against) for name in rule.limits()}
    passed = all(holds(name, values[name], limit) for name, limit in rule.limits().items())
    value = next(iter(values.values()))
    text = f"{spoken(rule, of, against, values)}; {asked(rule)} was asked"
    return entry | {"value": value, "value_of": of, "value_against": against, "passed": passed, "text": text}


def noisy(measurement: dict[str, Any]) -> str | None:
    """Why times by the clock say nothing; None where they do."""
    conditions = measurement.get("conditions")
    return None if not conditions or conditions["valid"] else "; ".join(conditions["reasons"])


def figure(measurement: dict[str, Any], name: str, metric: str) -> float | None:
    """A figure of a measurement, None where it was not measured."""
    model = measurement["models"].get(name)
    if model is None:
        return None
    if metric.startswith("iou."):
        table = dict(zip(measurement["classes"], model["iou"], strict=True))
        value = table.get(metric.removeprefix("iou."))
    elif metric in (*TIMES, *CPU_TIMES):
        boundary, percentile = (TIMES | CPU_TIMES)[metric]
        value = (model.get("latency") or {}).get(boundary, {}).get(percentile)
    else:
        value = model.get(metric)
    return None if value is None or not math.isfinite(value) else float(value)


def judged_value(limit: str, of: float, against: float | None) -> float | None:
    """The number a limit is held against; None for a ratio to nothing."""
    if limit.endswith("_ratio"):
        return of / against if against else None
    return of if against is None else of - against


def holds(limit: str, value: float | None, bound: float) -> bool:
    if value is None:
        return False
    return value >= bound if limit.startswith("at_least") else value <= bound


def spoken(rule: Rule, of: float, against: float | None, values: dict[str, float | None]) -> str:
    """E.g. `miou of engine is 41.2 points, of student 41.3 points, difference -0.1 points`."""
    family = rule.metric.split(".")[0]
    unit, digits = f" {UNITS.get(family, 'ms')}".rstrip(), DIGITS.get(family, ".3g")
    if against is None:
        return f"{rule.metric} of {rule.of} is {of:{digits}}{unit}"
    text = f"{rule.metric} of {rule.of} is {of:{digits}}{unit}, of {rule.against} {against:{digits}}{unit}"
    differences = [f"difference {of - against:+.2g}{unit}"] if any(not name.endswith("_ratio") for name in values) else []
    ratios = [f"ratio {of / against:.4g}" if against else "no ratio to 0"] if any(name.endswith("_ratio") for name in values) else []
    return ", ".join([text, *differences, *ratios])


def asked(rule: Rule) -> str:
    words = {
        "at_least": "at least {:g}",
        "at_most": "at most {:g}",
        "at_least_ratio": "a ratio of at least {:g}",
        "at_most_ratio": "a ratio of at most {:g}",
    }
    return " and ".join(words[name].format(limit) for name, limit in rule.limits().items())


def metric_problem(metric: str) -> str | None:
    if metric in METRICS or (metric.startswith("iou.") and metric != "iou."):
        return None
    return f"there is no metric {metric}; there are {', '.join(METRICS)} and iou.CLASS{meant(metric, METRICS)}"
