"""The pairs of a measurement, raced one after the other; what comes out slower by an unlucky build gets the chance of three more.

TensorRT picks the fastest way of computing each layer by timing them, and two builds of one file differ by what went on meanwhile. So a
loss is measured again with three new builds; the gate lets the one in the middle decide (timed.py). A baseline that is built by timing is
built anew for each of them, too: a lucky one would make every candidate look slow.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifact import Artifact
from pipeline.errors import BadData
from pipeline.stage import Job
from stages.rules import RELEASED

if TYPE_CHECKING:
    import numpy as np

BUILDS = 3
RAW = ("rounds", "builds")  # fields of an entry that only pairs.json holds


def races(
    pairs: list[list[str]], models: tuple[Artifact, ...], images: "list[np.ndarray]", job: Job, how: dict[str, Any]
) -> list[dict[str, Any]]:
    """What pairs.json holds: every pair with its rounds, or why there are none. `how`: settings of measure.pairs.measure."""
    from stages.evidence import Unknown
    from stages.measure import pairs as measuring
    from stages.measure.predict import require_same_table
    from stages.rebuilt import rebuilt

    held, found = {model.name: model for model in models}, []
    how = how | {"cells": len(pairs) * len(measuring.CHANNELS)} | ({"most": 1} if job.rehearsing else {})
    for k, (name, other) in enumerate(pairs):
        try:
            baseline = held[other] if other != RELEASED else rebuilt(name, job.released, job.state / f"released_{k}")
            require_same_table(held[name], baseline)
        except (Unknown, BadData) as problem:
            found.append({"candidate": name, "baseline": other, "problem": str(problem), "told": f"not measured: {problem}"})
            continue

        def measure(models: list[Artifact], work: Path = job.state / f"pair_{k}") -> dict[str, Any]:
            return measuring.measure(*models, images, work, **how)

        entry = measure([held[name], baseline])
        entry["told"] = measuring.told(entry)
        if other == RELEASED:  # the gate asks whether its baseline is still this one
            entry |= {"source": baseline.id, "engine": baseline.beside.get("engine")}
        found.append(entry | built_more([held[name], baseline], held, entry, job, how["between"], measure))
    return found


def built_more(
    pair: list[Artifact],
    held: dict[str, Artifact],
    entry: dict[str, Any],
    job: Job,
    between: Callable[[int, int], None],
    measure: Callable[[list[Artifact]], dict[str, Any]],
) -> dict[str, Any]:
    """Further fields of an entry: `builds`, each with its rounds, or `not_rebuilt`; none where builds had no part in it."""
    from stages.evidence import Unknown
    from stages.rebuilt import is_by_chance
    from stages.timed import slower_by

    chances = [is_by_chance(model) for model in pair]
    if not any(chances) or not has_lost(entry):
        return {}
    which = " and ".join(model.name for model, chance in zip(pair, chances, strict=True) if chance)
    job.say(f"{pair[0].name} is slower than {pair[1].name}, and builds by timing differ: {BUILDS} more of {which}")
    builds = []
    try:
        for k in range(BUILDS):
            between(k, BUILDS)
            builds.append(measure([again(m, pair[0].name, held, job, k) if c else m for m, c in zip(pair, chances, strict=True)]))
    except (Unknown, BadData) as problem:
        return {"not_rebuilt": str(problem), "told": f"{entry['told']}; not built again: {problem}"}
    changes = ", ".join(f"{100 * slower_by(build, 'image_ms'):+.2f}" for build in builds)
    return {"builds": builds, "told": f"{entry['told']}; {BUILDS} builds more: wall {changes} %"}


def again(model: Artifact, candidate: str, held: dict[str, Artifact], job: Job, k: int) -> Artifact:
    """The same engine, built once more."""
    from stages.rebuilt import built, origin, rebuilt

    work = job.state / f"build_{k}_{model.name}"
    if model.name == RELEASED:
        return rebuilt(candidate, job.released, work)
    source, timing = origin(model, held, job.lineage)
    return built(model.name, model.facts["engine"], source, work, timing)


def has_lost(entry: dict[str, Any]) -> bool:
    """Whether any time that says something is one a gate might fail."""
    from stages.measure.pairs import CHANNELS, ratios, silent
    from stages.measure.rounds import decide

    rounds = entry["rounds"]
    channels = [channel for channel in CHANNELS if not silent(rounds, channel)]
    return any(decide(ratios(rounds, channel), entry["tolerance"]).verdict == "fail" for channel in channels)
