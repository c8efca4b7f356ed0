"""Runs the reference and every candidate over the same images: what each gets right, how long it takes, how big it is."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from pipeline import targets
from pipeline.artifact import Artifact
from pipeline.errors import BadData, Stopped
from pipeline.problems import meant
from pipeline.stage import Dataset, Job, Later, Made, Stage, Takes
from stages import elsewhere, machine
from stages.rules import RELEASED

if TYPE_CHECKING:
    import numpy as np

PREDICTS = ("Checkpoint", "OnnxModel", "Engine")
TIMED_IMAGES = 8  # images that take turns while time is measured


class Latency(BaseModel):
    """How time is measured."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    runs: int = Field(
        60, ge=1, le=100000, description="Timed runs per model and boundary, in ten rounds; of pairs: in every round, and 30 at most."
    )
    warmup_ms: int = Field(200, ge=0, le=60000, description="Least warm-up in ms, and never fewer than ten runs; 0: a single run.")
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads for every model; none: as each engine says itself.")
    tolerance: Annotated[float, Later()] = Field(
        0.05, ge=0.005, le=1.0, allow_inf_nan=False, description="What pairs are measured to tell: 0.05 is slower by 5 %, or not."
    )


class Validate(Stage):
    kind: Literal["validate"]
    makes: ClassVar[str] = "Measurement"
    version: ClassVar[int] = 6
    reproducible: ClassVar[bool] = False  # time is measured

    data: Dataset
    reference: Annotated[str, Takes(PREDICTS, named=True), Field(description="What the candidates are compared with.")]
    candidates: Annotated[list[str], Takes(PREDICTS, named=True), Field(description="The stages measured beside it.")]
    latency_of: Annotated[list[str], Takes(PREDICTS, named=True), Field(description="Those of them whose time is measured.")] = []
    pairs: Annotated[list[Annotated[list[str], Field(min_length=2, max_length=2)]], Later()] = Field(
        [],
        description="[candidate, baseline], timed in turns in fresh processes, in 10 to 60 rounds, until latency.tolerance can be "
        "told: what gates on times should rest on. `released`: the candidate as the committed baseline has it, built anew here.",
    )
    split: str = Field("val", description="Split of the data the figures are for.")
    pictures: int = Field(
        6,
        ge=0,
        le=64,
        description="Images kept as pictures: half evenly spaced, half where reference and last candidate differ. As many, and 6 at most, "
        "of every model that lost something against the reference or since the release: those that cost most. 0: none.",
    )
    latency: Latency = Field(Latency(), description="How time is measured.")

    target: Annotated[str | None, Later()] = Field(
        None, pattern=targets.NAME, description="Where engines that were built on this target run and are timed; all else runs here."
    )

    def problems(self, earlier: dict[str, Stage]) -> list[tuple[tuple, str]]:
        held = [self.reference, *self.candidates]
        found = [(("candidates", i), f"{name} is measured already") for i, name in enumerate(self.candidates) if name in held[: i + 1]]
        for i, name in enumerate(self.latency_of):
            if name not in held:
                found.append((("latency_of", i), f"{name} is neither the reference nor a candidate: add it to candidates"))
            elif name in self.latency_of[:i]:
                found.append((("latency_of", i), f"{name} is timed already"))
        found += self._pair_problems(held, earlier)
        return found + elsewhere.strangers(self.target, {name: getattr(earlier.get(name), "target", None) for name in held})

    def _pair_problems(self, held: list[str], earlier: dict[str, Stage]) -> Iterator[tuple[tuple, str]]:
        for i, pair in enumerate(self.pairs):
            for k, name in enumerate(pair):
                known = held if k == 0 else [*held, RELEASED]
                if name not in known:
                    yield ("pairs", i, k), f"{name} is neither the reference nor a candidate{meant(name, known)}"
                elif getattr(earlier.get(name), "target", None):
                    yield ("pairs", i, k), f"{name} is built on a target, and pairs are timed on this machine: leave it out"
            if pair[0] == pair[1] or pair in self.pairs[:i]:
                yield ("pairs", i), "names one model twice" if pair[0] == pair[1] else "is measured already"

    def names_released(self) -> bool:
        return any(RELEASED in pair for pair in self.pairs)

    def environment(self) -> dict[str, str]:
        return elsewhere.described(self.there) | self._environment()

    def _environment(self) -> dict[str, str]:
        if not self.latency_of and not self.pairs:
            return {}
        runtimes = ", ".join(machine.version(*names) for names in (("torch",), ("onnxruntime", "onnxruntime-gpu"), ("openvino",)))
        gpus = ", ".join(gpu["name"] for gpu in machine.gpus()) or "none"
        return {"cpu": machine.cpu_name(), "cores": str(machine.cores()), "gpu": gpus, "runtimes": runtimes}

    def rehearsed(self) -> Self:
        brief = self.latency.model_copy(update={"runs": min(3, self.latency.runs), "warmup_ms": 0})
        return self.model_copy(update={"latency": brief, "pictures": min(2, self.pictures)})

    def run(self, inputs: dict[str, Any], job: Job) -> Made:
        from stages.measure import quiet, waterfall
        from stages.measure.accuracy import accuracy
        from stages.measure.changes import changes, compared
        from stages.measure.kept import kept
        from stages.measure.predict import require_same_table
        from stages.races import RAW, races
        from stages.samples import open_samples

        begun, data, reference, candidates = time.monotonic(), inputs["data"], inputs["reference"], inputs["candidates"]
        for model in (reference, *candidates):
            require_same_table(data, model)
        samples = open_samples(data, self.split)
        if not len(samples):
            raise BadData(f"split {self.split} of {data.name} is empty: there is nothing to measure on")
        lined_up = waterfall.models(reference, candidates, job.lineage)
        found = accuracy(lined_up, reference.name, samples, job)
        models = {artifact.name: found.models[artifact.name] for artifact in (reference, *candidates)}
        decides = candidates[-1].name if candidates else reference.name
        equal = found.equal[[m.name for m in lined_up].index(decides)]
        pictures = write_pictures(equal, models, samples, found.maps, self.pictures, job.out)
        asked = compared(reference, candidates, self.pairs)
        changed = changes(asked, samples, found.maps, found.fingerprint, self.pictures, job.released, job)
        times, conditions = latencies(inputs["latency_of"], samples, data, self.latency, job)
        for name, latency in times.items():
            models[name]["latency"] = latency
        how = self.latency.model_dump() | {"size": data.facts["size"], "between": going_on(job)}
        raced = races(self.pairs, (reference, *candidates), turning(samples), job, how) if self.pairs else []
        for name, verdict in kept(models, [name for name in models if quiet.reasons_of(conditions, name)]).items():
            models[name]["kept"] = verdict
        measurement = {"split": self.split, "images": len(samples), "classes": data.facts["classes"], "colours": data.facts["colours"]}
        measurement |= {"fingerprint": found.fingerprint, "mismatch": found.mismatch}
        measurement |= {"reference": reference.name, "models": models, "waterfall": found.waterfall}
        measurement |= {"pictures": pictures, "changes": changed}
        measurement |= {"machine": machine.facts(), "conditions": conditions}
        if raced:
            (job.out / "pairs.json").write_text(json.dumps(raced, separators=(",", ":")) + "\n", encoding="utf-8")
            measurement["pairs"] = [{key: value for key, value in one.items() if key not in RAW} for one in raced]
        measurement |= {"target": {"name": self.target, "facts": job.target.facts}} if self.target else {}
        (job.out / "names.json").write_text(json.dumps([samples.name(i) for i in range(len(samples))]) + "\n", encoding="utf-8")
        (job.out / "measurement.json").write_text(json.dumps(measurement, indent=1) + "\n", encoding="utf-8")
        for line in said(measurement, job.rehearsing):
            job.say(line)
        return Made(facts(measurement), {"seconds": round(time.monotonic() - begun, 1)})


def said(measurement: dict[str, Any], rehearsing: bool) -> list[str]:
    """What a person should know at once. A rehearsal judges nothing."""
    models, conditions = measurement["models"], measurement["conditions"]
    lines = ["mIoU " + ", ".join(f"{name} {model['miou']:.2f}" for name, model in models.items())]
    if rehearsing:
        return lines
    lines += [measurement["waterfall"]["text"]] if measurement["waterfall"]["hops"] else []
    lines += [f"{one['candidate']} against {one['baseline']}: {one['told']}" for one in measurement.get("pairs", [])]
    lines += [f"{name}: INT8 {model['kept']['why']}" for name, model in models.items() if "kept" in model]
    if conditions and (far := conditions.get("not_watched")):
        lines.append(f"while {', '.join(far['models'])} ran on target {far['target']}, nobody watched how quiet that machine was")
    if conditions and not conditions["valid"]:
        why = "; ".join(conditions["reasons"])
        lines.append(f"times are inconclusive: {why}. If that leaves a gate undecided, the next run measures again")
    return lines


def facts(measurement: dict[str, Any]) -> dict[str, Any]:
    models, hops, conditions = measurement["models"], measurement["waterfall"], measurement["conditions"]
    return {
        "split": measurement["split"],
        "images": measurement["images"],
        "miou": {name: round(model["miou"], 3) for name, model in models.items()},
        "boundary_f": {name: round(model["boundary_f"], 3) for name, model in models.items()},
        "hops": {hop["name"]: round(hop["change"], 3) for hop in hops["hops"] if hop["from"]},
        "loses": hops["loses"],
        "p50_ms": {name: model["latency"]["image_ms"]["p50"] for name, model in models.items() if model["latency"]},
        "times_valid": conditions and conditions["valid"],
        "kept": {name: model["kept"]["kept"] for name, model in models.items() if "kept" in model},
    }


def write_pictures(equal: "np.ndarray", models: dict[str, dict], samples, maps, pictures: int, out: Path) -> list[dict]:
    """The images worth showing, their labels and every model's maps. equal: (N, 2) of the model that decides which they are."""
    kept = [{"name": samples.name(i), "index": i, "agreement": float(equal[i][0] / equal[i][1])} for i in chosen(equal, pictures)]
    for k, picture in enumerate(kept):
        write_picture(*samples[picture["index"]], samples.colours, out, k)
        for name in models:
            write_map(maps.get(name, picture["index"]), samples.colours, out / f"map_{name}_{k}.png")
    return kept


def chosen(equal: "np.ndarray", pictures: int) -> list[int]:
    """Indices of the images worth showing: half of them evenly spaced, then those with the lowest agreement. equal: (N, 2)."""
    images = len(equal)
    spaced = min(images, (pictures + 1) // 2)
    even = [(2 * k + 1) * images // (2 * spaced) for k in range(spaced)]
    by_agreement = sorted(range(images), key=lambda i: (equal[i][0] / equal[i][1], i))
    return even + [i for i in by_agreement if i not in even][: pictures - spaced]


def write_picture(image: "np.ndarray", label: "np.ndarray", colours: list, folder, k: int) -> None:
    from PIL import Image

    Image.fromarray(image).save(folder / f"image_{k}.png")
    write_map(label, colours, folder / f"label_{k}.png")


def write_map(classes: "np.ndarray", colours: list, file) -> None:
    """A PNG that shows colours and holds class numbers: palette mode, everything outside the class table black."""
    from PIL import Image

    picture = Image.fromarray(classes)
    picture.putpalette([value for colour in colours for value in colour] + [0, 0, 0] * (256 - len(colours)))
    picture.save(file, optimize=True)


def latencies(
    models: list[Artifact], samples, data: Artifact, settings: Latency, job: Job
) -> tuple[dict[str, dict[str, Any]], dict[str, Any] | None]:
    """Time of each model on source images, by name; and whether the machine was quiet meanwhile (None: nothing was timed)."""
    from stages.measure import quiet
    from stages.measure.latency import measure

    if not models:
        return {}, None
    images = turning(samples)
    size, watch = data.facts["size"], quiet.Watch()

    def remote(model: Artifact) -> Any:
        return elsewhere.Timer(model, job, images, size, settings.warmup_ms, settings.threads)

    how = settings.model_dump(exclude={"tolerance"})
    found = measure(models, images, size, job.state, **how, between=going_on(job), remote=remote, watch=watch)
    return found, judged(watch, found, [model.name for model in models if "foreign" in model.facts], job)


def judged(watch: Any, found: dict[str, dict[str, Any]], far: list[str], job: Job) -> dict[str, Any]:
    """How quiet it was, and whether the times count. Nobody watches a target: its times (`far`) are judged by themselves alone."""
    from stages.measure import quiet

    on_gpu = {name: one["samples_engine_ms"] for name, one in found.items() if one["on_gpu"]}
    here, there = ({name: times for name, times in on_gpu.items() if (name in far) is where} for where in (False, True))
    seen = watch.end() if len(far) < len(found) else {"order": watch.order}
    why, unsteady = quiet.reasons(seen, here) if len(far) < len(found) else [], quiet.unsteady(there)
    conditions = {"valid": not why + unsteady, "reasons": why + unsteady} | seen
    return conditions | ({"not_watched": {"target": job.target.name, "models": far, "reasons": unsteady}} if far else {})


def turning(samples) -> "list[np.ndarray]":
    """The images that take turns while time is measured."""
    return [samples.source(i) for i in sorted({k * len(samples) // TIMED_IMAGES for k in range(TIMED_IMAGES)})]


def going_on(job: Job) -> Any:
    """Called between two turns: tells how far they are, and ends them where somebody asks to stop."""

    def between(done: int, total: int) -> None:
        if signal := job.stop_asked():
            raise Stopped("stopped while measuring time; the measurement starts again next time", signal)
        job.progress(done, total)

    return between
