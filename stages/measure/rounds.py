"""Whether a candidate is slower than its baseline, decided from paired rounds: noise delays a verdict or withholds it, and rarely turns it.

A round is a fresh process for each of the two (where memory lies differs from process to process, and no number of runs averages that
away) whose runs take turns in random order; its one figure is ln(median of the candidate / median of the baseline). What slows the
machine slows both, and since either may come first, the figure of a model against itself is symmetric around 0: all that the test needs.

Several times that are judged together are several chances of a false alarm, and 1 % is meant for all of them. Five looks at 0.2 % give a
cell (one time of one pair) its 1 % by adding up, wherever measuring ends; cells share that as Holm (1979) does: of those that do not fail,
each has an equal part. Nothing is assumed of how cells hang together, as wall and processor time of one pair do. Passing shares nothing:
all cells must pass. Seen in 13,000 simulated families of 8 equal cells, wall and processor time correlated by 0.8, under noise that hides
half the tolerance: 0.4 % with a false alarm, and 3.9 % were each cell judged as if it were alone.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from pipeline.errors import BadData

LOOKS = (10, 20, 30, 45, 60)  # rounds after which the figures are looked at
PASS_LEVEL = 0.01  # of each look: a candidate slower by the tolerance or more passes in at most 5 of 100 gates, however much noise
FAIL_LEVEL = 0.002  # of each look: against half the tolerance, and at the last look against no loss; over all cells judged together
CONFIDENCE = 0.95  # of the interval that is told beside a verdict


class Decision(NamedTuple):
    verdict: str  # pass, fail, inconclusive, or go on: measure more rounds and ask again
    rounds: int  # the first so many of them are what it rests on
    change: float | None  # 0.03: the candidate takes 3 % longer (Hodges-Lehmann); None without any round
    low: float | None  # its interval, of these rounds taken by themselves; None where they are too few
    high: float | None
    p_pass: float  # how likely rounds this fast are if the candidate is slower by the tolerance or more
    p_fail: float  # how likely rounds this slow are if it is slower by half the tolerance or less
    p_slower: float  # how likely rounds this slow are if it is no slower at all
    detectable: float | None  # the change that this many rounds of this noise find in 95 of 100 cases at 1 % false alarms
    text: str


def log_ratio(baseline: Sequence[float], candidate: Sequence[float]) -> float:
    """The figure of one round from the times of its runs: positive where the candidate is slower."""
    return math.log(float(np.median(candidate)) / float(np.median(baseline)))


def decide(ratios: Sequence[float], tolerance: float = 0.05, cells: int = 1) -> Decision:
    """The verdict of the first look that has one. `ratios`: log_ratio of every round in the order of measuring; tolerance 0.05: 5 %;
    `cells`: how many share the false alarms with this one.

    Rounds beyond that look change nothing: nobody gets another verdict by measuring on. At every look:
    pass where "slower by the tolerance or more" is rejected at 1 %; fail where "slower by half the tolerance or less" is at 0.2 % / cells.
    At the last look: fail where "no slower" is rejected at 0.2 % / cells, else inconclusive.
    """
    if not 0 < tolerance < math.inf or not np.all(np.isfinite(ratios)):
        raise BadData(f"a tolerance above 0 and finite ratios decide about time; got tolerance {tolerance} and {list(ratios)}")
    for look in LOOKS:
        seen = list(ratios[:look])
        if len(seen) < look:
            break
        if p_below(seen, math.log1p(tolerance)) <= PASS_LEVEL:
            return told("pass", seen, tolerance, cells)
        if p_above(seen, math.log1p(tolerance / 2) if look < LOOKS[-1] else 0.0) <= FAIL_LEVEL / cells:
            return told("fail", seen, tolerance, cells)
    ended = len(ratios) >= LOOKS[-1]
    return told("inconclusive" if ended else "go on", list(ratios[: LOOKS[-1]]), tolerance, cells)


def decide_together(cells: Sequence[tuple[Sequence[float], float]]) -> list[Decision]:
    """The verdicts of several (ratios, tolerance), with 1 false alarm in 100 for all of them together (Holm 1979).

    A cell that fails among so many leaves its part to those that do not, which may let another one fail, and so on.
    """
    left = len(cells)
    while True:
        found = [decide(ratios, tolerance, left) for ratios, tolerance in cells]
        still = sum(one.verdict != "fail" for one in found)
        if still in (0, left):
            return found
        left = still


def p_below(differences: Sequence[float], margin: float = 0.0) -> float:
    """Exact one-sided p-value of Wilcoxon's signed-rank test: how likely ranks this low are if the centre is `margin` or more.

    Equal distances from the margin share their mean rank, and the distribution is the one of the ranks at hand (each sign as likely as
    its opposite), so that ties leave it exact. What equals the margin keeps its rank and counts for neither side (Pratt 1959).
    """
    signed = np.asarray(differences, dtype=float) - margin
    ranks = doubled_ranks(np.abs(signed))
    sums = rank_sums(tuple(np.sort(ranks[signed != 0]).tolist()))
    return min(1.0, float(sums[ranks[signed > 0].sum()]))


def p_above(differences: Sequence[float], margin: float = 0.0) -> float:
    """The same to the other side: how likely ranks this high are if the centre is `margin` or less."""
    return p_below(-np.asarray(differences, dtype=float), -margin)


def doubled_ranks(distances: np.ndarray) -> np.ndarray:
    """Twice the rank of each, which is whole for shared ranks, too: first + last rank of those that are equal."""
    _, group, size = np.unique(distances, return_inverse=True, return_counts=True)
    last = np.cumsum(size)
    return (2 * last - size + 1)[group]


@lru_cache(maxsize=256)  # without ties the ranks are always the same
def rank_sums(ranks: tuple[int, ...]) -> np.ndarray:
    """P(sum <= s) for s = 0, 1, ... where every rank is counted or not with equal chance, by adding one rank after the other."""
    chance = np.ones(1)
    for rank in ranks:
        longer = np.zeros(len(chance) + rank)
        longer[: len(chance)] += chance / 2
        longer[rank:] += chance / 2
        chance = longer
    return np.cumsum(chance)


def hodges_lehmann(differences: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float | None, float | None]:
    """(centre, low, high): the median of all pairwise means, and the interval of margins that the signed-rank test does not reject.

    The interval is exact: it holds the centre of a symmetric distribution with at least this confidence. None where there are too few
    differences for it (5 at 95 %: even the extremes enclose the centre with 93.75 % only).
    """
    values = np.asarray(differences, dtype=float)
    one, other = np.triu_indices(len(values))
    means = np.sort((values[one] + values[other]) / 2)
    sums = rank_sums(tuple(range(2, 2 * len(values) + 1, 2)))[::2]  # P(W <= 0), P(W <= 1), ...
    outside = int(np.searchsorted(sums, (1 - confidence) / 2, side="right"))  # means cut off at either end
    bounds = (float(means[outside - 1]), float(means[-outside])) if outside else (None, None)
    return float(np.median(means)), *bounds


def detectable(differences: Sequence[float]) -> float | None:
    """The change found with 95 % power at 1 % false alarms by as many rounds with this spread, as a fraction; None below two rounds.

    (t_0.99 + t_0.95) sd / sqrt(R). With normal quantiles instead it would promise 20 % too much at ten rounds.
    """
    rounds = len(differences)
    if rounds < 2:
        return None
    error = float(np.std(differences, ddof=1)) / math.sqrt(rounds)
    return math.expm1((student(0.99, rounds - 1) + student(0.95, rounds - 1)) * error)


def student(probability: float, freedom: int) -> float:
    """Quantile of Student's t from the normal one (Abramowitz & Stegun 26.7.5): 0.4 % off at 9 degrees of freedom, less above."""
    z = NormalDist().inv_cdf(probability)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def told(verdict: str, seen: list[float], tolerance: float, cells: int) -> Decision:
    centre, low, high = hodges_lehmann(seen) if seen else (None, None, None)
    change, low, high = (None if value is None else math.expm1(value) for value in (centre, low, high))
    p_pass, p_fail, p_slower = p_below(seen, math.log1p(tolerance)), p_above(seen, math.log1p(tolerance / 2)), p_above(seen, 0.0)
    found = Decision(verdict, len(seen), change, low, high, p_pass, p_fail, p_slower, detectable(seen), "")
    return found._replace(text=f"{measured(found)}: {meaning(found, tolerance, cells)}")


def measured(found: Decision) -> str:
    """E.g. `0.31 % slower (95 %: -0.20 to +0.83 %) in 10 rounds`."""
    if found.change is None:
        return "nothing measured"
    size = f"{abs(found.change):.2%}".replace("%", f" % {'slower' if found.change > 0 else 'faster'}")
    interval = "" if found.low is None else f" (95 %: {100 * found.low:+.2f} to {100 * found.high:+.2f} %)"
    return f"{size}{interval} in {found.rounds} rounds"


def meaning(found: Decision, tolerance: float, cells: int) -> str:
    limit, half = f"{100 * tolerance:g} %", f"{50 * tolerance:g} %"
    sees = "" if found.detectable is None else f"; this many rounds find changes of {100 * found.detectable:.2g} % on this machine"
    among = "" if cells == 1 else f", one of {cells} times that share their false alarms"
    if found.verdict == "pass":
        return f"slower by {limit} or more is ruled out (p {found.p_pass:.2g})"
    if found.verdict == "fail" and found.p_fail <= FAIL_LEVEL / cells:
        return f"slower by more than {half} (p {found.p_fail:.2g}{among}), {limit} was allowed and is not ruled out (p {found.p_pass:.2g})"
    if found.verdict == "fail":
        return f"slower (p {found.p_slower:.2g}{among}), and the last look does not rule out {limit} or more (p {found.p_pass:.2g})"
    if found.verdict == "inconclusive":
        return f"the last look neither rules out {limit} (p {found.p_pass:.2g}) nor shows any loss (p {found.p_slower:.2g}{among}){sees}"
    following = next(look for look in LOOKS if look > found.rounds)
    alone = "" if found.p_fail > FAIL_LEVEL else f" slower by more than {half} (p {found.p_fail:.2g}) is too little to stand{among};"
    return f"undecided,{alone} the next look is after {following} rounds{sees}"
