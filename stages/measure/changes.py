"""Where a model lost what it lost: the few images that cost most, with the class maps of before and after, so that a verdict can be seen.

Images are chosen by what they took from the figures, not by how many pixels differ on them: a model that was trained anew differs
everywhere, and most of that is no loss.
"""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifact import Artifact
from pipeline.errors import BadData, Missing, Refused
from pipeline.stage import Job
from stages.evidence import Evidence, Unknown, differences, read
from stages.measure.miou import counts
from stages.measure.paired import mean_seen, require_pairs
from stages.measure.sure import parts
from stages.rules import RELEASED

MOST = 6  # images of one pair
TRAININGS = 3  # of two trainings, which differ everywhere
WORTH = 0.01  # points of mIoU or of a class: what is less needs no picture


def changes(
    pairs: list[tuple[str, str, int]], samples, maps, fingerprint: dict[str, Any], most: int, released: Any, job: Job
) -> list[dict[str, Any]]:
    """What measurement.json holds of every pair (of, against, most images) that lost something or cannot be told; writes changed_*.png."""
    found = []
    for of, against, limit in pairs if most else []:
        entry = {"of": of, "against": against, "problem": None, "miou": None, "classes": {}, "images": []}
        try:
            kept = read(job.out, f"counts_{against}") if against != RELEASED else released_counts(of, released, fingerprint)
            entry |= lost(kept, read(job.out, f"counts_{of}"), samples, min(most, limit))
            predict = opened(of, released, samples, job.state) if against == RELEASED and entry["images"] else None
            for image in entry["images"]:
                shot, label = samples[image["index"]]
                before = maps.get(against, image["index"]) if predict is None else predict(shot)
                if predict is not None:  # another processor may round otherwise than the one that it was accepted on
                    image["as_accepted"] = bool((counts(before, label, len(samples.classes)) == kept[image["index"]]).all())
                draw(image["index"], entry, before, samples, maps, job.out)
        except (Unknown, BadData, Missing, Refused) as problem:  # pictures never cost the measurement
            entry |= {"problem": str(problem), "images": []}
        found += [entry] if entry["images"] or entry["problem"] else []
    return found


def compared(reference: Artifact, candidates: list[Artifact], raced: list[list[str]]) -> list[tuple[str, str, int]]:
    """The pairs a rule may be about: what is raced with the released one, candidates against the reference, and it against trainings."""
    trained = [one for one in candidates if one.kind == reference.kind == "Checkpoint"]
    found = [(name, RELEASED, MOST) for name, other in raced if other == RELEASED]
    found += [(one.name, reference.name, TRAININGS if one in trained else MOST) for one in candidates]
    return found + [(reference.name, one.name, TRAININGS) for one in trained]


def lost(against: np.ndarray, of: np.ndarray, samples, most: int) -> dict[str, Any]:
    """mIoU and classes that `of` lost, in points, and of which images they were lost."""
    require_pairs(against, of)
    each = -parts(of, against)  # (N, C) points lost
    whole, cost = mean_seen(each), np.nan_to_num(each)

    def named(points: np.ndarray) -> dict[str, float]:
        return {samples.classes[c]: round(float(points[c]), 4) for c in np.argsort(-points, kind="stable") if points[c] >= WORTH}

    images = [
        {"index": i, "name": samples.name(i), "miou": round(float(whole[i]), 4), "classes": named(cost[i])}
        for i in costliest(cost, whole, most)
    ]
    return {"miou": round(float(whole.sum()), 4), "classes": named(cost.sum(axis=0)), "images": images}


def costliest(cost: np.ndarray, whole: np.ndarray, most: int) -> list[int]:
    """Images to be shown: in turn those that cost the class that lost most and mIoU most, then one for each other class."""
    sums = cost.sum(axis=0)
    classes = [int(c) for c in np.argsort(-sums, kind="stable") if sums[c] >= WORTH]
    if not classes:
        return []
    first = [cost[:, classes[0]], whole]
    turns = first * 2 + [cost[:, c] for c in classes[1:]] + first * most
    found: list[int] = []
    for points in turns:
        left = [int(i) for i in np.argsort(-points, kind="stable") if i not in found and points[i] > 0]
        found += left[:1]
    return found[:most]


def released_counts(name: str, released: Any, fingerprint: dict[str, Any]) -> np.ndarray:
    """Of the model of that name in the baseline, on these very images; Unknown says why not and what to do."""
    evidence = Evidence({}, None, released)
    kept = evidence.baseline()
    if name not in kept.models:
        raise Unknown(f"{released.file} holds {', '.join(kept.models)} and no {name}. {released.accept}")
    if differing := differences(fingerprint, kept.fingerprint.model_dump()):
        raise Unknown(f"the baseline was measured on other images; what differs: {differing}. {released.accept}")
    return evidence.released_counts(name)


def opened(name: str, released: Any, samples, work: Path) -> Any:
    """image (H, W, 3) -> class map of the released model of that name, built anew here."""
    from stages.measure.predict import open_session, require_same_table
    from stages.rebuilt import rebuilt

    built = rebuilt(name, released, work / f"pictured_{name}")
    require_same_table(samples.artifact, built)
    session = open_session(built)
    return lambda image: session(image[None].copy())[0]


def draw(i: int, entry: dict[str, Any], before: np.ndarray, samples, maps, out: Path) -> None:
    """The image, its label and both class maps; what several pairs share is written once."""
    from PIL import Image

    from stages.validate import write_map

    image, label = samples[i]
    if not (out / f"changed_image_{i}.png").exists():
        Image.fromarray(image).save(out / f"changed_image_{i}.png")
        write_map(label, samples.colours, out / f"changed_label_{i}.png")
    write_map(maps.get(entry["of"], i), samples.colours, out / f"changed_map_{entry['of']}_{i}.png")
    kept = f"changed_released_{entry['of']}_{i}.png" if entry["against"] == RELEASED else f"changed_map_{entry['against']}_{i}.png"
    write_map(before, samples.colours, out / kept)
