"""Bounds of a quantile that assume no distribution: which of the sorted samples it lies between, by counting alone.

A sample exceeds the true quantile q with probability 1 - q, so how many of n do is binomial, and the t largest samples can be set aside
as long as "t or fewer exceed it" is unlikely. The samples have to be independent: take them over ten rounds or more, not in one breath.
Source: order-statistic intervals (David & Nagaraja, Order Statistics, 7.1); MLPerf Inference judges its latencies in this way.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


def figures(values: Sequence[float]) -> dict[str, float | None]:
    """Of timed runs: p50, p90, p99 (interpolated between runs), mean, n; and with 95 % confidence p50 lies from p50_low to p50_high, p90 is
    p90_most at most, p99 p99_most. None: too few runs to say (9, 46 and 473 are needed)."""
    p50, p90, p99 = (float(p) for p in np.percentile(values, (50, 90, 99)))
    found = {"p50": p50, "p90": p90, "p99": p99, "mean": float(np.mean(values)), "n": len(values)}
    found["p50_low"], found["p50_high"] = quantile_bounds(values, 0.5, 0.975)
    found |= {"p90_most": quantile_bounds(values, 0.9, 0.95)[1], "p99_most": quantile_bounds(values, 0.99, 0.95)[1]}
    return {key: value if value is None else round(value, 5) for key, value in found.items()}


class Limit(NamedTuple):
    verdict: str  # pass, fail or inconclusive
    low: float | None
    high: float | None
    text: str


def judge_limit(samples: Sequence[float], limit: float, q: float, confidence: float = 0.99) -> Limit:
    """An absolute limit in ms on quantile q: pass where its upper bound keeps it, fail where its lower bound breaks it."""
    low, high = quantile_bounds(samples, q, confidence)
    verdict = "pass" if high is not None and high <= limit else "fail" if low is not None and low > limit else "inconclusive"
    if high is None:
        between = f"has no upper bound after {len(samples)} runs, it takes {samples_needed(q, confidence)}"
    else:
        between = f"lies below {high:.4g} ms" + ("" if low is None else f" and above {low:.4g} ms")
    return Limit(verdict, low, high, f"p{100 * q:g} {between} ({confidence:.4g} each); at most {limit:g} ms was asked")


def quantile_bounds(samples: Sequence[float], q: float, confidence: float = 0.99) -> tuple[float | None, float | None]:
    """(low, high) of the true quantile q, 0 < q < 1; each holds with this confidence by itself, both with 2 * confidence - 1.

    None where there are too few samples to tell. At least one sample lies outside a bound: the largest of all is never one, for a single
    spike would then be the figure. An upper bound of p99 at 99 % therefore takes 662 samples, as in MLPerf.
    """
    if not (0 < q < 1 and 0.5 < confidence < 1):
        raise ValueError(f"a quantile between 0 and 1 and a confidence between 0.5 and 1 were expected, not {q} and {confidence}")
    ordered = np.sort(np.asarray(samples, dtype=float))
    above = most_outside(len(ordered), 1 - q, 1 - confidence)
    below = most_outside(len(ordered), q, 1 - confidence)
    return (float(ordered[below]) if below > 0 else None), (float(ordered[-1 - above]) if above > 0 else None)


def samples_needed(q: float, confidence: float = 0.99) -> int:
    """The least number of samples that gives an upper bound of quantile q."""
    n = 2
    while most_outside(n, 1 - q, 1 - confidence) < 1:
        n += 1
    return n


def most_outside(n: int, chance: float, level: float) -> int:
    """The largest t with P(Binomial(n, chance) <= t) < level; -1 where even t = 0 is likelier than that."""
    total, t = binomial(n, 0, chance), -1
    while total < level:
        t += 1
        total += binomial(n, t + 1, chance)
    return t


def binomial(n: int, k: int, chance: float) -> float:
    """Through logarithms: the factors alone overflow."""
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(ways + k * math.log(chance) + (n - k) * math.log1p(-chance))
