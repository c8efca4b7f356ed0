"""Runs every model over the same images, one after the other, and counts what each gets right and where two of them differ.

Class maps are kept (compressed, in the stage's state) until all is counted: two models are compared pixel by pixel, never by figures.
"""

import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import BadData, Stopped
from pipeline.stage import Job
from stages import elsewhere
from stages.measure.boundary import boundaries, boundary_f
from stages.measure.fingerprint import Fingerprint
from stages.measure.miou import counts, miou
from stages.measure.mismatch import CLEAR, mismatches, percents, reader
from stages.measure.paired import touched
from stages.measure.predict import open_rewritten, parameter_count, weight_bytes
from stages.measure.waterfall import Model, hop, precision, share, summary

LABEL, CLEARLY = " label", " clear"  # no stage can be called so


class Maps:
    """The class maps of every model on every image, the labels, and where the reference's choice was clear."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def keep(self, name: str, i: int, found: np.ndarray) -> None:
        head = np.array(found.shape, np.int64).tobytes()
        (self.folder / f"{name}_{i}.map").write_bytes(head + zlib.compress(np.ascontiguousarray(found), 1))

    def get(self, name: str, i: int) -> np.ndarray:
        """uint8 (H, W)"""
        kept = (self.folder / f"{name}_{i}.map").read_bytes()
        return np.frombuffer(zlib.decompress(kept[16:]), np.uint8).reshape(np.frombuffer(kept[:16], np.int64))


class Pass(NamedTuple):
    """What one pass of all models over all images gives."""

    models: dict[str, dict]  # what measurement.json holds of each
    waterfall: dict[str, Any]
    equal: np.ndarray  # int64 (M, N, 2) pixels equal to the reference's, all pixels
    maps: Maps
    fingerprint: dict[str, Any]
    mismatch: dict[str, Any]  # from which gap on a choice is clear, or why that is not known


def accuracy(models: list[Model], reference: str, samples, job: Job) -> Pass:
    """Every model over all images, one after the other; then each beside the reference and beside what it was made from."""
    maps, entries, counted, seen_pixels = Maps(job.state / "maps"), {}, {}, Fingerprint(samples.classes)
    lacks = ""
    for k, model in enumerate(models):
        session = run = open_rewritten(model.artifact) if model.rewritten else elsewhere.session(model.artifact, job)
        if model.name == reference:
            clearly, lacks = reader(session, model.artifact.facts)
            run = clearly or session
        feed = seen_pixels.add if k == 0 else None
        counted[model.name], edges = over_all_images(run, model.name, samples, maps, job, (k, len(models)), feed)
        entries[model.name] = entry(model, session, counted[model.name], edges)
        if not counted[model.name][..., [0, 2]].any():
            raise BadData("no pixel of this split is labelled, and nothing could be lost: look at its labels, or take another split")
        if not model.rewritten:
            np.save(job.out / f"counts_{model.name}.npy", counted[model.name])
    equal = np.zeros((len(models), len(samples), 2), np.int64)
    hops = []
    for k, model in enumerate(models):
        equal[k], seen, apart, differ = compared(model, reference, samples, maps, clear=not lacks)
        entries[model.name] |= percents(differ)
        if not model.rewritten and model.name != reference:
            np.save(job.out / f"touched_{model.name}.npy", apart)  # bounds what it can have lost, whatever the labels hold
            np.save(job.out / f"mismatch_{model.name}.npy", differ)
        entries[model.name] |= {"role": "reference" if model.name == reference else "candidate", "agreement": share(equal[k].sum(axis=0))}
        hops.append(hop(model, entries, counted, seen, samples.classes))
    in_lines = {one["name"] for one in hops if one["from"]} | {one["from"] for one in hops}
    waterfall = summary([one for one in hops if one["name"] in in_lines])
    split = {"clear": None, "why": f"{reference} {lacks}"} if lacks else {"clear": CLEAR, "why": None}
    kept = {m.name: entries[m.name] for m in models if not m.rewritten}
    return Pass(kept, waterfall, equal, maps, seen_pixels.told(), split)


def over_all_images(session, name: str, samples, maps: Maps, job: Job, place: tuple[int, int], feed) -> tuple[np.ndarray, np.ndarray]:
    """int64 (N, C, 3) tp, fp, fn and int64 (C, 4) boundary pixels over all images. `place`: its number, how many there are.

    A session may give (class maps, where its choice was clear). `feed` is given every image and label, where anybody asks for them; the
    labels are kept then.
    """
    counted = np.zeros((len(samples), len(samples.classes), 3), np.int64)
    edges = np.zeros((len(samples.classes), 4), np.int64)
    for i in range(len(samples)):
        if signal := job.stop_asked():
            raise Stopped(f"stopped while measuring {name}; the measurement starts again next time", signal)
        image, label = samples[i]
        if feed:
            feed(image, label)
            maps.keep(LABEL, i, label)
        found = session(image[None].copy())  # (1, H, W, 3); samples may be views of a read-only file
        if isinstance(found, tuple):
            found, clear = found
            maps.keep(CLEARLY, i, clear[0].view(np.uint8))
        maps.keep(name, i, found[0])
        counted[i] = counts(found[0], label, len(samples.classes))
        edges += boundaries(found[0], label, len(samples.classes))
        job.progress(place[0] * len(samples) + i + 1, place[1] * len(samples))
    return counted, edges


def compared(
    model: Model, reference: str, samples, maps: Maps, clear: bool
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """int64 (N, 2) pixels equal to the reference's, all pixels; the same of the hop before and of the first, summed over all images;
    int64 (N, C) judged pixels of either class on which it differs from the reference; and those of any class (mismatch.mismatches)."""
    others, classes = {"before": model.before, "first": model.first}, len(samples.classes)
    seen = {key: np.zeros(2, np.int64) for key in others} | {"touched": np.zeros(classes, np.int64)}
    apart = np.zeros((len(samples), classes), np.int64)
    differ = np.zeros((len(samples), 3 if clear else 2), np.int64)
    equal = np.zeros((len(samples), 2), np.int64)
    for i in range(len(samples)):
        found, expected, label = maps.get(model.name, i), maps.get(reference, i), maps.get(LABEL, i)
        equal[i] = same(found, expected, model.name, reference)
        apart[i] = touched(expected, found, label, classes)
        differ[i] = mismatches(expected, found, label, maps.get(CLEARLY, i) if clear else None)
        for key, other in others.items():
            if other is not None:
                seen[key] += same(found, maps.get(other, i), model.name, other)
        if model.before is not None:
            seen["touched"] += touched(maps.get(model.before, i), found, label, classes)
    return equal, seen, apart, differ


def same(one: np.ndarray, other: np.ndarray, name: str, of: str) -> tuple[int, int]:
    """Equal pixels, all pixels."""
    if one.shape != other.shape:
        raise BadData(f"{name} gives maps of {one.shape} and {of} of {other.shape} for one image: resizing one of them would hide a loss")
    return np.count_nonzero(one == other), one.size


def entry(model: Model, session, counted: np.ndarray, edges: np.ndarray) -> dict[str, Any]:
    mean, iou = miou(counted.sum(axis=0))
    sharp, by_class = boundary_f(edges)
    return {
        "artifact": model.artifact.kind,
        "role": None,
        "ran": session.ran,
        "precision": precision(model, session.ran),
        "runtime": runtime(model, session.ran),
        "first": model.first,
        "miou": mean,
        "iou": iou,
        "agreement": None,
        "boundary_f": sharp,
        "boundary_f_of": by_class,
        "size_mb": weight_bytes(model.artifact) / 1e6,
        "parameters": parameter_count(model.artifact, session),
        "latency": None,
    }


def runtime(model: Model, ran: dict[str, Any]) -> str:
    """What engines must have in common to be siblings: the runtime without its version, and what computes."""
    return f"{ran['runtime'].split()[0]} on {ran['provider']}"
