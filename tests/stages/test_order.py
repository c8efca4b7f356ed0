"""Bounds of percentiles hold as often as they say, and are left out where there are too few runs."""

import numpy as np
import pytest

from stages.measure.order import figures

BOUNDS = ("p50_low", "p50_high", "p90_most", "p99_most")


def test_figures_equal_percentiles_and_ranks_computed_by_hand():
    values = list(np.random.default_rng(0).permutation(np.arange(1, 101, dtype=float)))
    percentiles = {"p50": 50.5, "p90": 90.1, "p99": 99.01, "mean": 50.5, "n": 100}
    assert figures(values) == percentiles | {"p50_low": 40.0, "p50_high": 61.0, "p90_most": 96.0, "p99_most": None}
    assert figures([3.0]) == {"p50": 3.0, "p90": 3.0, "p99": 3.0, "mean": 3.0, "n": 1} | dict.fromkeys(BOUNDS)


@pytest.mark.parametrize("name, runs", [("p50_low", 9), ("p50_high", 9), ("p90_most", 46), ("p99_most", 473)])
def test_the_fewest_runs_that_say_anything(name, runs):
    values = list(range(runs))
    assert figures(values[1:])[name] is None and figures(values)[name] in (1, runs - 2)


@pytest.mark.parametrize("n", [46, 60, 300])
def test_bounds_hold_in_95_of_100_draws_whatever_the_distribution(n):
    draws = [figures(list(one)) for one in np.random.default_rng(n).lognormal(0, 1, (600, n))]
    p50, p90 = 1.0, float(np.exp(1.2815515655))
    assert 0.93 < np.mean([one["p50_low"] <= p50 <= one["p50_high"] for one in draws]) < 0.99
    assert np.mean([p90 <= one["p90_most"] for one in draws]) > 0.93  # whole ranks: more than 95 at most n
