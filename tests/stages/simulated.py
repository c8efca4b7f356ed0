"""What the tests of gates run on: machines of three kinds of noise, and sets of images with a reference and a damaged candidate."""

import math
from typing import NamedTuple

import numpy as np

from stages.measure.miou import miou


class Machine(NamedTuple):
    """Noise of one kernel of 10 ms; sds are of ln(time). The figures are those of a rented machine on its own, a shared one, a bad one."""

    drift: float  # sd of a slow wander (clock, heat), forgotten after drift_s
    drift_s: float
    neighbour: float  # another tenant makes everything take so many times as long,
    busy: float  # in this share of the time
    process: float  # sd of what a process has for its lifetime: where its memory lies
    run: float  # sd of a single run
    spikes: float  # share of runs that are interrupted,
    spike: float  # and so take 1 + Exp(spike) times as long


MACHINES = {
    "quiet": Machine(0.005, 30, 1.0, 0.0, 0.003, 0.005, 0.002, 0.5),
    "ci": Machine(0.03, 20, 1.15, 0.2, 0.01, 0.03, 0.02, 0.5),
    "bad": Machine(0.08, 10, 1.6, 0.35, 0.02, 0.08, 0.08, 1.5),
}
RUN_S, START_S, NEIGHBOUR_S = 0.01, 5.0, 2.0  # a run; two process starts between rounds; how long a neighbour stays or is away


def paired_ratios(machine: Machine, gates: int, rounds: int, seed: int, pairs: int = 30) -> np.ndarray:
    """(gates, rounds) ln(median B / median A) of two equal programs in turns. Noise multiplies: B slower by e adds ln(1 + e)."""
    random = np.random.Generator(np.random.PCG64(seed))
    background = Background(machine, gates, random)
    found = np.zeros((gates, rounds))
    for r in range(rounds):
        background.pass_by(START_S)
        both = np.stack([np.stack([background.run() for _ in range(2)]) for _ in range(pairs)])  # (pairs, first or second, gates)
        swap = random.random((pairs, gates)) < 0.5
        a, b = np.where(swap, both[:, 1], both[:, 0]), np.where(swap, both[:, 0], both[:, 1])
        offset = machine.process * random.standard_normal((2, gates))
        found[:, r] = np.median(b, axis=0) + offset[1] - np.median(a, axis=0) - offset[0]
    return found


def in_turn_ratios(machine: Machine, gates: int, runs: int, seed: int) -> np.ndarray:
    """(gates,) ln(mean B / mean A) of two equal programs, all runs of A before all runs of B: what is usually done."""
    random = np.random.Generator(np.random.PCG64(seed))
    background, sides = Background(machine, gates, random), []
    for _ in range(2):
        background.pass_by(START_S)
        offset = machine.process * random.standard_normal(gates)
        sides.append(np.mean([np.exp(background.run() + offset) for _ in range(runs)], axis=0))
    return np.log(sides[1] / sides[0])


class Background:
    """Many machines of one kind, each going its own way."""

    def __init__(self, machine: Machine, gates: int, random: np.random.Generator):
        self.machine, self.random = machine, random
        self.drift = machine.drift * random.standard_normal(gates)
        self.busy = random.random(gates) < machine.busy

    def pass_by(self, seconds: float) -> None:
        kept = math.exp(-seconds / self.machine.drift_s)
        fresh = self.machine.drift * math.sqrt(1 - kept**2)
        self.drift = kept * self.drift + fresh * self.random.standard_normal(len(self.drift))
        if self.machine.busy:
            changed = self.random.random(len(self.busy)) < 1 - math.exp(-seconds / NEIGHBOUR_S)
            self.busy = np.where(changed, self.random.random(len(self.busy)) < self.machine.busy, self.busy)

    def run(self) -> np.ndarray:
        """ln(time) of the next run on every machine."""
        self.pass_by(RUN_S)
        gates, machine = len(self.drift), self.machine
        spikes = np.zeros(gates)
        hit = np.flatnonzero(self.random.random(gates) < machine.spikes)
        spikes[hit] = np.log1p(self.random.exponential(machine.spike, len(hit)))
        return self.drift + self.busy * math.log(machine.neighbour) + machine.run * self.random.standard_normal(gates) + spikes


class Images(NamedTuple):
    reference: np.ndarray  # int64 (N, C, 3)
    candidate: np.ndarray

    def some(self, number: int, random: np.random.Generator) -> "Images":
        chosen = random.integers(0, len(self.reference), number)
        return Images(self.reference[chosen], self.candidate[chosen])

    def true_drop(self) -> float:
        return miou(self.reference.sum(axis=0))[0] - miou(self.candidate.sum(axis=0))[0]


def images(number: int, mismatch: float, harm: float, *, classes: int = 19, clump: int = 1, seed: int = 0, pixels: int = 20000) -> Images:
    """Classes from everywhere to rare, images from easy to hard. The candidate differs on a share `mismatch` of the pixels, in clumps of
    so many; of these, 1/2 + `harm` turn right into wrong and the others wrong into right.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    frequency = 1 / np.arange(1, classes + 1)
    present = random.random((number, classes)) < np.clip(1.5 * frequency * np.linspace(1, 0.6, classes) + 0.05, 0.03, 0.98)
    present[:, 0] = True
    area = present * random.gamma(0.7, 1, (number, classes)) * frequency**0.6 + 1e-9
    area = (pixels * area / area.sum(axis=1, keepdims=True)).astype(int)
    hard = 0.4 + 2.4 * random.beta(2, 6, (number, 1))
    wrong = random.binomial(area, np.clip(np.linspace(0.03, 0.35, classes) * hard * random.lognormal(0, 0.4, (number, classes)), 0, 0.95))
    taken_for = frequency**0.6 / (frequency**0.6).sum()
    false = random.multinomial(wrong.sum(axis=1), taken_for)
    reference = np.stack([area - wrong, false, wrong], axis=-1)
    clumps = random.poisson(area * mismatch * random.gamma(2, 0.5, (number, 1)) / clump)
    bad = random.binomial(clumps, 0.5 + harm)
    hurt, helped = np.minimum(clump * bad, area - wrong), np.minimum(clump * (clumps - bad), wrong)
    more, fewer = random.multinomial(hurt.sum(axis=1), taken_for), random.multinomial(helped.sum(axis=1), taken_for)
    wrong = wrong + hurt - helped
    return Images(reference, np.stack([area - wrong, np.maximum(0, false + more - np.minimum(fewer, false)), wrong], axis=-1))


def at_most(trials: int, chance: float, doubt: float = 1e-4) -> int:
    """The count that a Binomial(trials, chance) exceeds with less than `doubt`."""
    total, k = 0.0, -1
    while total < 1 - doubt:
        k += 1
        total += math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k)
    return k
