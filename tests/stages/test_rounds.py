"""The latency verdict: exact p-values against every sign there is, and how often it is right on simulated machines.

The simulations have fixed seeds. Their bounds are what a binomial count exceeds once in ten thousand tries at the stated rate.
"""

import itertools
import math

import numpy as np
import pytest

from pipeline.errors import BadData
from stages.measure import order, rounds
from tests.stages.simulated import MACHINES, at_most, in_turn_ratios, paired_ratios

GATES = 1000  # simulated per machine


def ranked_by_hand(distances):
    return [sum(o < d for o in distances) + (sum(o == d for o in distances) + 1) / 2 for d in distances]


def p_by_enumeration(differences, margin):
    """Every way to give the differences a sign, each as likely: the share with a rank sum as low as the one seen."""
    signed = [d - margin for d in differences]
    rank = ranked_by_hand([abs(z) for z in signed])
    seen = sum(r for r, z in zip(rank, signed, strict=True) if z > 0)
    held = [r for r, z in zip(rank, signed, strict=True) if z]
    low = sum(sum(itertools.compress(held, signs)) <= seen for signs in itertools.product((0, 1), repeat=len(held)))
    return low / 2 ** len(held)


@pytest.mark.parametrize("digits", [9, 1, 0], ids=["no ties", "ties", "ties and zeros"])
def test_p_values_equal_the_share_of_all_signs_with_ranks_as_low(digits):
    random = np.random.default_rng(digits)
    for n in (1, 2, 5, 9, 12):
        for _ in range(4):
            differences = np.round(random.normal(0.3, 1, n), digits).tolist()
            for margin in (0.0, 1.0):
                assert rounds.p_below(differences, margin) == pytest.approx(p_by_enumeration(differences, margin), rel=1e-12)
                above = p_by_enumeration([-d for d in differences], -margin)
                assert rounds.p_above(differences, margin) == pytest.approx(above, rel=1e-12)


def test_the_largest_rank_sums_rejected_at_one_percent_are_those_of_the_printed_tables():
    for n, critical in ((10, 5), (15, 19), (20, 43), (30, 120)):
        ranks = list(range(1, n + 1))
        subset = next(s for k in range(n) for s in itertools.combinations(ranks, k) if sum(s) == critical)
        signed = [r if r in subset else -r for r in ranks]
        assert rounds.p_below(signed) <= 0.01
        one_more = next(s for k in range(n) for s in itertools.combinations(ranks, k) if sum(s) == critical + 1)
        assert rounds.p_below([r if r in one_more else -r for r in ranks]) > 0.01


def test_sixty_rounds_that_all_agree_are_as_unlikely_as_sixty_heads():
    assert rounds.p_below([-1.0 - k for k in range(60)]) == pytest.approx(2.0**-60, rel=1e-9)
    assert rounds.p_below([]) == rounds.p_below([0.0, 0.0]) == 1.0


def test_the_estimate_is_the_median_of_pairwise_means_and_the_interval_holds_the_margins_that_are_not_rejected():
    random = np.random.default_rng(1)
    for n in (6, 10, 17):
        values = random.normal(0, 1, n).tolist()
        centre, low, high = rounds.hodges_lehmann(values)
        means = sorted((values[i] + values[j]) / 2 for i in range(n) for j in range(i, n))
        assert centre == pytest.approx(np.median(means))
        assert low in means and high in means and low < centre < high
        for bound, p in ((low, rounds.p_above), (high, rounds.p_below)):
            outwards = math.copysign(1e-9, bound - centre)
            assert p(values, bound + outwards) <= 0.025 < p(values, bound - outwards)


def test_five_rounds_have_no_interval_and_six_have_one():
    assert rounds.hodges_lehmann([1, 2, 3, 4, 5]) == (3.0, None, None)
    assert rounds.hodges_lehmann([1, 2, 3, 4, 5, 6.5]) == (3.5, 1.0, 6.5)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    random = np.random.default_rng(2)
    missed = 0
    for _ in range(600):
        _, low, high = rounds.hodges_lehmann(random.standard_t(3, 12) + 0.7)
        missed += not low <= 0.7 <= high
    assert 600 - at_most(600, 1 - 0.035) <= missed <= at_most(600, 0.05)  # exact, so a little wider than 95 %


def test_a_faster_candidate_passes_at_the_first_look_and_says_so():
    found = rounds.decide([-0.1 + 0.001 * k for k in range(60)])
    assert (found.verdict, found.rounds) == ("pass", 10)
    assert found.change == pytest.approx(math.expm1(-0.0955)) and found.low < found.change < found.high < 0
    assert found.p_pass == 2.0**-10
    expected = "9.11 % faster (95 %: -9.34 to -8.88 %) in 10 rounds: slower by 5 % or more is ruled out (p 0.00098)"
    assert found.text == expected


def test_a_slow_candidate_fails_at_the_first_look_and_the_sentence_holds_both_limits():
    found = rounds.decide([math.log(1.08) + 0.001 * k for k in range(10)], tolerance=0.04)
    assert (found.verdict, found.rounds, found.p_fail) == ("fail", 10, 2.0**-10)
    assert "slower by more than 2 % (p 0.00098), 4 % was allowed and is not ruled out (p 1)" in found.text


def test_too_few_rounds_ask_for_more_and_rounds_after_a_verdict_change_nothing():
    for n, following in ((0, 10), (9, 10)):
        found = rounds.decide([0.0] * n)
        assert found.verdict == "go on" and found.rounds == n and f"the next look is after {following} rounds" in found.text
    undecided = (math.log(1.04) + 0.2 * np.random.default_rng(0).standard_normal(59)).tolist()
    assert "after 60 rounds; this many rounds find changes of" in rounds.decide(undecided).text
    passed = [0.0] * 10
    assert rounds.decide(passed + [0.2] * 50) == rounds.decide(passed)


def test_between_the_looks_nothing_is_decided():
    half = [0.06 if k % 2 else 0.01 for k in range(10)]
    assert rounds.decide(half).verdict == "go on"
    assert rounds.decide(half + [0.0] * 9).rounds == 19 and rounds.decide(half + [0.0] * 9).verdict == "go on"
    assert rounds.decide(half + [0.0] * 10) == rounds.decide(half + [0.0] * 30)


def test_after_the_last_look_a_loss_fails_and_what_shows_nothing_is_inconclusive():
    spread = [(k - 29.5) / 60 for k in range(60)]
    mixed = [spread[k * 7 % 60] for k in range(60)]
    withheld = rounds.decide(mixed)
    assert withheld.verdict == "inconclusive" and withheld.rounds == 60
    assert "neither rules out 5 %" in withheld.text and "on this machine" in withheld.text
    slower = rounds.decide([m + 0.13 for m in mixed])
    assert slower.verdict == "fail" and slower.p_fail > rounds.FAIL_LEVEL and slower.p_slower <= rounds.FAIL_LEVEL
    assert "the last look does not rule out 5 % or more" in slower.text


def test_a_round_is_the_ratio_of_medians():
    assert rounds.log_ratio([1, 2, 90], [2.2, 1, 80]) == pytest.approx(math.log(1.1))


def test_nonsense_is_refused():
    for ratios, tolerance in (([math.nan], 0.05), ([math.inf], 0.05), ([0.0], 0.0)):
        with pytest.raises(BadData, match="finite ratios"):
            rounds.decide(ratios, tolerance)


def test_quantiles_of_student_are_those_of_the_tables():
    for p, freedom, value in ((0.99, 9, 2.821), (0.95, 9, 1.833), (0.99, 29, 2.462), (0.95, 59, 1.671)):
        assert rounds.student(p, freedom) == pytest.approx(value, rel=0.004)


# Simulated machines. Rates at which 2,000 simulated gates were seen to pass or fail stand in the tables; counts here stay within them.


@pytest.fixture(scope="module")
def machines():
    return {name: paired_ratios(machine, GATES, rounds.LOOKS[-1], seed=11) for name, machine in MACHINES.items()}


def verdicts(ratios, slower_by):
    found = [rounds.decide((row + math.log1p(slower_by)).tolist()) for row in ratios]
    counted = {word: sum(f.verdict == word for f in found) for word in ("pass", "fail", "inconclusive")}
    return counted, float(np.mean([f.rounds for f in found]))


@pytest.mark.parametrize("name, most_rounds", [("quiet", 10.01), ("ci", 10.2), ("bad", 14)])
def test_a_model_against_itself_passes_soon_on_every_machine(machines, name, most_rounds):
    counted, mean_rounds = verdicts(machines[name], 0.0)
    assert counted["fail"] <= at_most(GATES, 0.0005) and counted["pass"] >= GATES - at_most(GATES, 0.001)
    assert mean_rounds <= most_rounds


@pytest.mark.parametrize(
    "name, waved_through, rounds_from, rounds_to", [("quiet", 0.01, 10, 10.1), ("ci", 0.0125, 12.5, 15), ("bad", 0.03, 32, 40)]
)
def test_five_percent_slower_is_found_on_every_machine(machines, name, waved_through, rounds_from, rounds_to):
    counted, mean_rounds = verdicts(machines[name], 0.05)
    assert counted["pass"] <= at_most(GATES, waved_through)
    assert counted["fail"] >= GATES - at_most(GATES, waved_through + 0.005)
    assert rounds_from <= mean_rounds <= rounds_to


@pytest.mark.parametrize("name", MACHINES)
def test_ten_percent_slower_never_passes(machines, name):
    counted, mean_rounds = verdicts(machines[name], 0.10)
    assert counted["pass"] == 0 and counted["fail"] == GATES and mean_rounds <= 14


def test_half_the_tolerance_rarely_fails_on_a_shared_machine(machines):
    counted, mean_rounds = verdicts(machines["ci"], 0.02)
    assert counted["fail"] <= at_most(GATES, 0.002) and mean_rounds <= 11


def test_noise_that_hides_everything_leads_to_no_verdict_or_a_late_one_but_never_to_a_pass_of_a_loss():
    random = np.random.default_rng(5)
    counted, mean_rounds = verdicts(0.25 * random.standard_normal((300, 60)), 0.05)  # a machine on which everybody is at work
    assert counted["pass"] <= at_most(300, 0.05) and counted["inconclusive"] > 200 and mean_rounds > 50


def families(number, pairs, seed):
    """(number, cells, 60) rounds of equal models under noise that hides half the tolerance; a pair's two times correlate by 0.8."""
    random = np.random.default_rng(seed)
    wall, own = random.standard_normal((2, number, pairs, 60))
    return np.concatenate([wall, 0.8 * wall + 0.6 * own], axis=1)


def test_twenty_times_judged_together_raise_no_more_false_alarms_than_one():
    alone = [f for f in families(200, 10, seed=2).tolist() if any(rounds.decide(cell).verdict == "fail" for cell in f)]
    together = sum(any(one.verdict == "fail" for one in rounds.decide_together([(cell, 0.05) for cell in f])) for f in alone)
    assert together <= at_most(200, 0.01) < len(alone)


def test_a_loss_is_found_among_many_by_the_rounds_that_one_more_look_brings_and_leaves_its_part_to_the_others():
    same = [0.001 * (-1) ** k * (k % 7 + 1) for k in range(60)]
    clear = [0.1 + x for x in same]
    assert rounds.decide(clear[:10]).verdict == "fail" and rounds.decide(clear[:10], cells=3).verdict == "go on"
    assert "is too little to stand, one of 3 times" in rounds.decide(clear[:10], cells=3).text
    assert rounds.decide(clear[:20], cells=3).rounds == 20 and rounds.decide(clear[:20], cells=1000).verdict == "fail"
    assert [one.verdict for one in rounds.decide_together([(same, 0.05), (clear, 0.05), (same, 0.05)])] == ["pass", "fail", "pass"]
    ten = clear[:10]  # its p, 1/1024, stands among two and not among three
    assert [one.verdict for one in rounds.decide_together([(ten, 0.05)] * 3)] == ["go on"] * 3
    assert [one.verdict for one in rounds.decide_together([(ten, 0.05), (clear, 0.05), (same, 0.05)])] == ["fail", "fail", "pass"]
    assert rounds.decide_together([]) == []


def test_the_change_called_detectable_is_what_so_many_rounds_detect(machines):
    """Against the simulated table: 95 % power at 1 % false alarms."""
    for name, change in (("quiet", (0.0070, 0.0045, 0.0024)), ("ci", (0.027, 0.017, 0.0094)), ("bad", (0.072, 0.043, 0.022))):
        for n, expected in zip((10, 20, 60), change, strict=True):
            said = np.median([rounds.detectable(row[:n]) for row in machines[name]])
            assert said == pytest.approx(expected, rel=0.2), (name, n)
            found = [rounds.p_above(row[:n] + math.log1p(said)) <= 0.01 for row in machines[name][:400]]
            assert sum(found) >= 400 - at_most(400, 0.08)


def test_the_same_machines_fool_a_comparison_of_means_taken_one_after_the_other():
    """Were the noise too kind, the tests above would show nothing."""
    tolerance = math.log(1.05)
    ratios = in_turn_ratios(MACHINES["ci"], GATES, 600, seed=3)
    false_alarms, detected = np.mean(ratios > tolerance), np.mean(ratios + tolerance > tolerance)
    assert false_alarms > 0.10 and 0.4 < detected < 0.6


# Absolute limits.


def test_an_upper_bound_takes_as_many_samples_as_in_mlperf():
    assert [order.samples_needed(q) for q in (0.5, 0.9, 0.95, 0.99)] == [11, 64, 130, 662]
    times = np.arange(1000.0)
    assert order.quantile_bounds(times[:661], 0.99)[1] is None
    assert order.quantile_bounds(times[:662], 0.99)[1] == 660.0  # the second largest
    assert order.quantile_bounds([], 0.5) == order.quantile_bounds([1.0], 0.5) == (None, None)


def test_bounds_of_a_median_are_symmetric_and_count_from_both_ends():
    low, high = order.quantile_bounds(np.arange(1, 12), 0.5)
    assert (low, high) == (2.0, 10.0)
    assert sum(math.comb(11, k) for k in (0, 1)) / 2**11 < 0.01 < sum(math.comb(10, k) for k in (0, 1)) / 2**10


def test_an_absolute_limit_is_kept_broken_or_undecided():
    times = [float(t) for t in range(1, 101)]
    low, high = order.quantile_bounds(times, 0.5)
    assert (low, high) == (38.0, 63.0)
    kept = order.judge_limit(times, 63.0, 0.5)
    assert kept.text == "p50 lies below 63 ms and above 38 ms (0.99 each); at most 63 ms was asked"
    assert [order.judge_limit(times, limit, 0.5).verdict for limit in (63.0, 62.9, 38.0, 37.9)] == ["pass", *["inconclusive"] * 2, "fail"]
    few = order.judge_limit(times, 500.0, 0.99)
    assert few.verdict == "inconclusive" and "no upper bound after 100 runs, it takes 662" in few.text
    assert order.judge_limit(times, 50.0, 0.99).verdict == "fail"


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_a_bound_fails_as_rarely_as_it_says_and_is_not_wasteful(q):
    random, true = np.random.default_rng(7), -math.log(1 - q)
    found = [order.quantile_bounds(random.exponential(1, 1000), q, 0.95) for _ in range(500)]
    for wrong in (sum(high < true for _, high in found), sum(low > true for low, _ in found)):
        assert 500 - at_most(500, 1 - 0.025) <= wrong <= at_most(500, 0.05)


def test_a_quantile_outside_zero_and_one_is_refused():
    for q, confidence in ((1.0, 0.99), (0.5, 1.0)):
        with pytest.raises(ValueError, match="between 0"):
            order.quantile_bounds([1.0, 2.0], q, confidence)
