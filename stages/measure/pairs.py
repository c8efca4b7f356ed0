"""Two models timed in turns, round after round of fresh processes, until wall time and processor time can both be judged.

rounds.py says why, and when that is. What is kept is raw: every run of every round, in which order they came and what else the machine
did meanwhile, so that any verdict can be recomputed. Where others keep the machine busy the clock says nothing, and is not waited for.
"""

import random
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifact import Artifact
from stages.measure import quiet
from stages.measure.latency import BOUNDARIES, Child, of_cpu, on_gpu
from stages.measure.rounds import LOOKS, decide, log_ratio

RUNS = 30  # of either side in a round, at most
SIDES = ("candidate", "baseline")
CHANNELS = tuple(key for boundary in BOUNDARIES for key in (boundary, of_cpu(boundary)))
MOSTLY = 0.25  # share of rounds that may have been disturbed


def measure(
    candidate: Artifact,
    baseline: Artifact,
    images: list[np.ndarray],
    work: Path,
    *,
    size: tuple[int, int] | None,
    tolerance: float,
    runs: int,
    warmup_ms: int,
    threads: int | None,
    cells: int = len(CHANNELS),
    most: int = LOOKS[-1],
    between: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """One entry of pairs.json. `between(done, total)` is called after each round and may raise; `most`: rounds, after which it ends;
    `cells`: among how many times a loss shall stand, which keeps measuring on until it does."""
    work.mkdir(exist_ok=True)
    for k, image in enumerate(images):
        np.save(work / f"image_{k}.npy", image)
    common = {"images": [str(work / f"image_{k}.npy") for k in range(len(images))], "size": size}
    common |= {"warmup_ms": warmup_ms, "threads": threads}
    rounds: list[dict[str, Any]] = []
    while len(rounds) < most and not decided(rounds, tolerance, cells):
        rounds.append(one_round((candidate, baseline), common, work, min(runs, RUNS)))
        between(len(rounds), most)
    return {"candidate": candidate.name, "baseline": baseline.name, "tolerance": tolerance, **conditions(rounds), "rounds": rounds}


def one_round(
    models: tuple[Artifact, Artifact], common: dict[str, Any], work: Path, runs: int, start: Callable[..., Child] = Child
) -> dict[str, Any]:
    """{"order": "0110..." (1: the baseline came first), "on_gpu", "seen", "reasons", "image_ms": {"candidate": [...], ...}, ...}"""
    children: dict[int, Child] = {}
    first = (1, 0) if random.random() < 0.5 else (0, 1)  # who is started and warms up first is drawn, too
    try:
        for k in first:
            children[k] = start(models[k], common, work)
        for k in first:
            children[k].opened()
        for k in first:
            children[k].warm()
        samples = {key: {side: [] for side in SIDES} for key in CHANNELS}
        watch, order = quiet.Watch(), ""
        watch.begin()
        for _ in range(runs):
            swapped = random.random() < 0.5
            order += str(int(swapped))
            for k in (1, 0) if swapped else (0, 1):
                for key, values in children[k].timed(1).items():
                    samples[key][SIDES[k]] += [round(value, 5) for value in values]
        watch.turn("", on_gpu(children[k].ran))  # whose run was the last
        seen = {key: value for key, value in watch.end().items() if key != "order"}
        there = {SIDES[k]: samples["engine_ms"][SIDES[k]] for k in (0, 1) if on_gpu(children[k].ran)}
        return {"order": order, "on_gpu": bool(there), "seen": seen, "reasons": quiet.reasons(seen, there), **samples}
    finally:
        for child in children.values():
            child.end()


def ratios(rounds: list[dict[str, Any]], channel: str) -> list[float]:
    """The figure of every round (rounds.log_ratio)."""
    return [log_ratio(one[channel]["baseline"], one[channel]["candidate"]) for one in rounds]


def decided(rounds: list[dict[str, Any]], tolerance: float, cells: int, channels: Collection[str] = CHANNELS) -> bool:
    """Whether it is time to stop: after a look, where every channel that can be judged has its verdict."""
    if len(rounds) not in LOOKS:
        return False
    told = [channel for channel in channels if not silent(rounds, channel)]
    return all(decide(ratios(rounds, channel), tolerance, cells).verdict != "go on" for channel in told)


def silent(rounds: list[dict[str, Any]], channel: str) -> str:
    """Why a channel tells nothing; "" where it does."""
    if channel in BOUNDARIES:
        return "; ".join(conditions(rounds)["reasons"])
    if rounds[0]["on_gpu"]:
        return "processor time says nothing of what a GPU computes: ask for the time by the clock"
    if not all(np.median(one[channel][side]) > 0 for one in rounds for side in SIDES):
        return "the processor's clock is too coarse on this machine for times this short"
    return ""


def told(entry: dict[str, Any]) -> str:
    """What a person should know at once of an entry of pairs.json."""
    channels = {"wall": "image_ms", "CPU": "image_cpu_ms"}
    rounds, tolerance = entry["rounds"], entry["tolerance"]
    heard = {word: key for word, key in channels.items() if word == "wall" or not silent(rounds, key)}
    said = [f"{word} {decide(ratios(rounds, key), tolerance).text}" for word, key in heard.items()]
    return "; ".join([*said, *entry["reasons"]])


def conditions(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether wall time says anything, and if not why."""
    disturbed = [one["reasons"] for one in rounds if one["reasons"]]
    if len(disturbed) <= MOSTLY * len(rounds):
        return {"valid": True, "reasons": []}
    text = f"in {len(disturbed)} of {len(rounds)} rounds the machine was not quiet, in the last: {disturbed[-1][0]}"
    return {"valid": False, "reasons": [text]}
