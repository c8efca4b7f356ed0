"""A rule of a gate as a recipe writes it: one figure of one model, alone or against the same figure of another, and its limits."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.problems import meant

RELEASED = "released"  # in `against`: the same model in the committed baseline; no stage can be called so
PERCENTILES = ("p50", "p90", "p99")
TIMES = {f"{p}_ms": ("image_ms", p) for p in PERCENTILES} | {f"engine_{p}_ms": ("engine_ms", p) for p in PERCENTILES}
LEAST_RUNS = {"p50": 11, "p90": 64, "p99": 662}  # that bound it with 99 % confidence (measure/order.py, which needs numpy to say so)
CPU_TIMES = {"cpu_p50_ms": ("image_cpu_ms", "p50"), "engine_cpu_p50_ms": ("engine_cpu_ms", "p50")}
MISMATCHES = ("mismatch", "clear_mismatch")
METRICS = ("miou", "boundary_f", "agreement", *MISMATCHES, "size_mb", *TIMES, *CPU_TIMES)
UNITS = {"miou": "points", "boundary_f": "points", "iou": "points", "size_mb": "MB", "agreement": ""}  # of times: ms
UNITS |= dict.fromkeys(MISMATCHES, "%")
DIGITS = {"miou": ".2f", "boundary_f": ".2f", "iou": ".2f", "agreement": ".6f"}  # in sentences; the verdict holds the whole number
LIMITS = ("at_least", "at_most", "at_least_ratio", "at_most_ratio")


class Rule(BaseModel):
    """One figure and its limits: `at_least: -0.2` with `against` allows a loss of 0.2; `at_most_ratio: 1.05` allows 5 % more."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    metric: str = Field(
        description=f"{', '.join(METRICS)}, or iou.CLASS. mismatch: % of the labelled pixels whose class is not the reference's; clear_ "
        "where the reference's two best classes were no tie (52.5 : 47.5 or further apart). Times are of one image in memory; engine_ ones "
        "of the engine alone; cpu_ ones count the processor time of all threads and hold on a busy machine."
    )
    of: str = Field(description="The model judged: a name among reference and candidates of the measurement.")
    against: str | None = Field(
        None,
        description="The model it is compared with; `released`: the one of the same name in the committed baseline; none: the figure is "
        "judged by itself.",
    )
    at_least: float | None = Field(None, allow_inf_nan=False, description="Least figure, or least difference (of - against).")
    at_most: float | None = Field(None, allow_inf_nan=False, description="Largest figure, or largest difference (of - against).")
    at_least_ratio: float | None = Field(None, allow_inf_nan=False, description="Least ratio (of / against).")
    at_most_ratio: float | None = Field(None, allow_inf_nan=False, description="Largest ratio (of / against).")
    sure: bool | None = Field(
        None,
        description="true: more images or runs of this kind would keep the limit, too, with 95 % confidence (miou, iou.CLASS, mismatch; of "
        "times 99 %), or the rule is undecided. false: the figure decides, also for p90 and p99 against another model, which chance rules. "
        "none: as true from 100 images on; below that the figure decides and the verdict says how small a drop it can see. Classes then "
        "fail only for what is no chance, and a mismatch is judged by its figure: it is counted.",
    )

    @model_validator(mode="after")
    def has_a_limit(self) -> Self:
        if not self.limits():
            raise ValueError(f"a rule needs a limit: one of {', '.join(LIMITS)}")
        if self.against is None and (self.at_least_ratio is not None or self.at_most_ratio is not None):
            raise ValueError("a ratio needs two models: name the other one in against")
        if self.is_mismatch and self.against is not None:
            raise ValueError(f"{self.metric} compares with the reference of the measurement: leave against out")
        return self

    def limits(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in LIMITS if getattr(self, name) is not None}

    @property
    def family(self) -> str:
        """The metric, without the class that it is of."""
        return self.metric.split(".")[0]

    @property
    def is_of_pair(self) -> bool:
        """Whether rounds in turns can judge it: a median that may grow by so much against another."""
        median = self.is_time and self.metric.endswith("p50_ms")
        return median and bool(self.against) and list(self.limits()) == ["at_most_ratio"] and self.at_most_ratio > 1

    @property
    def is_mismatch(self) -> bool:
        return self.metric in MISMATCHES

    @property
    def is_time(self) -> bool:
        return self.metric in TIMES or self.metric in CPU_TIMES

    @property
    def has_bound(self) -> bool:
        """Whether other images or other runs would give another figure."""
        return self.family in ("miou", "iou") or self.is_mismatch or self.is_time

    @property
    def percentile(self) -> str:
        """Of a time: p50, p90 or p99."""
        return (TIMES | CPU_TIMES)[self.metric][1]

    @property
    def is_tail_of_two(self) -> bool:
        """A p90 or p99 against another model's. It is made of the few slowest runs, most of which something else interrupted. Simulated on
        a shared machine, 20 rounds in turns find a p99 longer by 10 % in 9 to 16 of 100 cases, and a p95 with 2 to 5 % false alarms where
        1 % was asked for; two figures that were not taken in turns say less."""
        return self.is_time and bool(self.against) and self.percentile != "p50"

    @property
    def instead(self) -> str:
        median = self.metric.replace(self.percentile, "p50")
        return (
            f"{self.percentile} of two models differs by chance more than by what is asked for: write at_most for {self.metric} of "
            f"{self.of} by itself, in ms, or {median} with at_most_ratio and both in pairs; `sure: false` lets the two figures decide all "
            "the same"
        )


def metric_problem(metric: str) -> str | None:
    if metric in METRICS or (metric.startswith("iou.") and metric != "iou."):
        return None
    return f"there is no metric {metric}; there are {', '.join(METRICS)} and iou.CLASS{meant(metric, METRICS)}"


def holds(limit: str, value: float | None, bound: float) -> bool:
    if value is None:
        return False
    return value >= bound if limit.startswith("at_least") else value <= bound


def judged_value(limit: str, of: float, against: float | None) -> float | None:
    """The number a limit is held against; None for a ratio to nothing."""
    if limit.endswith("_ratio"):
        return of / against if against else None
    return of if against is None else of - against


def spoken(rule: Rule, of: float, against: float | None, values: dict[str, float | None]) -> str:
    """E.g. `miou of engine is 41.20 points, of student 41.30, difference -0.1`."""
    unit, digits = f" {UNITS.get(rule.family, 'ms')}".rstrip(), DIGITS.get(rule.family, ".3g")
    text = f"{rule.metric} of {rule.of} is {of:{digits}}{unit}"
    if against is None:
        return text
    unit = "" if unit == " points" else unit
    text += f", of {rule.against} {against:{digits}}{unit}"
    differences = [f"difference {short(of - against, '+')}{unit}"] if any(not name.endswith("_ratio") for name in values) else []
    ratios = [f"ratio {of / against:.4g}" if against else "no ratio to 0"] if any(name.endswith("_ratio") for name in values) else []
    return ", ".join([text, *differences, *ratios])


def short(value: float, sign: str = "") -> str:
    """For a sentence: two digits after the point, below 1 two that count."""
    return f"{value:{sign}.2f}" if abs(value) >= 1 else f"{value:{sign}.2g}"


def asked(rule: Rule) -> str:
    words = {
        "at_least": "at least {:g}",
        "at_most": "at most {:g}",
        "at_least_ratio": "a ratio of at least {:g}",
        "at_most_ratio": "a ratio of at most {:g}",
    }
    return " and ".join(words[name].format(limit) for name, limit in rule.limits().items())
