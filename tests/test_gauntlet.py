"""The figures that the gauntlet tells: paired differences, their interval, and plain training that had as much time."""

import importlib.util
import math
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parent.parent / "benchmarks" / "gauntlet.py"


@pytest.fixture(scope="module")
def gauntlet():
    spec = importlib.util.spec_from_file_location("gauntlet", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def runs(*mious, ms=100.0, steps=1000):
    return {seed: {"miou": miou, "ms": ms, "steps": steps, "drives": {"a": miou}} for seed, miou in enumerate(mious, 1)}


def test_the_interval_is_students_t_over_the_seeds(gauntlet):
    centre, half = gauntlet.interval([1.0, 2.0, 4.5])
    assert centre == pytest.approx(2.5) and half == pytest.approx(4.303 * 1.802776 / math.sqrt(3), rel=1e-5)
    assert gauntlet.bounds(*gauntlet.interval([1.5])) == "one seed"


def test_at_equal_time_a_method_is_held_against_plain_training_of_more_steps(gauntlet):
    budgets = {"none": runs(30.0, 32.0), "none_2x": runs(34.0, 36.0, steps=2000)}
    assert gauntlet.equal_time(runs(35.0, 37.0, ms=150.0), budgets) == pytest.approx(36.0 - 33.0)
    assert gauntlet.equal_time(runs(35.0, 37.0, ms=250.0), budgets) is None, "beyond the longest budget nothing is told"
    assert gauntlet.equal_time(runs(35.0, 37.0, ms=None), budgets) is None


def test_the_plot_has_a_dot_for_each_seed_and_a_line_for_each_interval(gauntlet):
    svg = gauntlet.drawn([("kt", runs(31.0, 33.5)), ("cwd", runs(31.5))], runs(30.0, 32.0))
    assert svg.count("<circle") == 3 and svg.count("stroke-width") == 1 and ">kt<" in svg and ">cwd<" in svg
