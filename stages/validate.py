"""Runs the reference and every candidate over the same images: what each gets right, how long it takes, how big it is."""

import json
import time
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from pipeline import targets
from pipeline.artifact import Artifact
from pipeline.errors import BadData, Stopped
from pipeline.stage import Dataset, Job, Later, Made, Stage, Takes
from stages import elsewhere, machine

if TYPE_CHECKING:
    import numpy as np

PREDICTS = ("Checkpoint", "OnnxModel", "Engine")
TIMED_IMAGES = 8  # images that take turns while time is measured


class Latency(BaseModel):
    """How time is measured."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    runs: int = Field(60, ge=1, le=100000, description="Timed runs per model and boundary, in turns of ten.")
    warmup_ms: int = Field(200, ge=0, le=60000, description="Least warm-up in ms, and never fewer than ten runs; 0: a single run.")
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads for every model; none: as each engine says itself.")


class Validate(Stage):
    kind: Literal["validate"]
    makes: ClassVar[str] = "Measurement"
    version: ClassVar[int] = 2
    reproducible: ClassVar[bool] = False  # time is measured

    data: Dataset
    reference: Annotated[str, Takes(PREDICTS, named=True), Field(description="What the candidates are compared with.")]
    candidates: Annotated[list[str], Takes(PREDICTS, named=True), Field(description="The stages measured beside it.")]
    latency_of: Annotated[list[str], Takes(PREDICTS, named=True), Field(description="Those of them whose time is measured.")] = []
    split: str = Field("val", description="Split of the data the figures are for.")
    pictures: int = Field(
        6, ge=0, le=64, description="Images kept as pictures: half evenly spaced, half where reference and last candidate differ."
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
        return found + elsewhere.strangers(self.target, {name: getattr(earlier.get(name), "target", None) for name in held})

    def environment(self) -> dict[str, str]:
        return elsewhere.described(self.there) | self._environment()

    def _environment(self) -> dict[str, str]:
        if not self.latency_of:
            return {}
        runtimes = ", ".join(machine.version(*names) for names in (("torch",), ("onnxruntime", "onnxruntime-gpu"), ("openvino",)))
        gpus = ", ".join(gpu["name"] for gpu in machine.gpus()) or "none"
        return {"cpu": machine.cpu_name(), "cores": str(machine.cores()), "gpu": gpus, "runtimes": runtimes}

    def rehearsed(self) -> Self:
        brief = self.latency.model_copy(update={"runs": min(3, self.latency.runs), "warmup_ms": 0})
        return self.model_copy(update={"latency": brief, "pictures": min(2, self.pictures)})

    def run(self, inputs: dict[str, Any], job: Job) -> Made:
        from stages.measure.predict import require_same_table
        from stages.samples import open_samples

        begun, data, reference, candidates = time.monotonic(), inputs["data"], inputs["reference"], inputs["candidates"]
        for model in (reference, *candidates):
            require_same_table(data, model)
        samples = open_samples(data, self.split)
        if not len(samples):
            raise BadData(f"split {self.split} of {data.name} is empty: there is nothing to measure on")
        models, pictures = accuracy(reference, candidates, samples, self.pictures, job)
        for name, latency in latencies(inputs["latency_of"], samples, data, self.latency, job).items():
            models[name]["latency"] = latency
        measurement = {"split": self.split, "images": len(samples), "classes": data.facts["classes"], "colours": data.facts["colours"]}
        measurement |= {"reference": reference.name, "models": models, "pictures": pictures, "machine": machine.facts()}
        measurement |= {"target": {"name": self.target, "facts": job.target.facts}} if self.target else {}
        (job.out / "measurement.json").write_text(json.dumps(measurement, indent=1) + "\n", encoding="utf-8")
        miou = {name: round(model["miou"], 3) for name, model in models.items()}
        job.say("mIoU " + ", ".join(f"{name} {value:.2f}" for name, value in miou.items()))
        p50 = {name: model["latency"]["image_ms"]["p50"] for name, model in models.items() if model["latency"]}
        facts = {"split": self.split, "images": len(samples), "miou": miou, "p50_ms": p50}
        return Made(facts, {"seconds": round(time.monotonic() - begun, 1)})


def accuracy(reference: Artifact, candidates: list[Artifact], samples, pictures: int, job: Job) -> tuple[dict[str, dict], list[dict]]:
    """Counts, agreement and pictures of every model -> the entries of measurement.json: models by name, pictures."""
    import numpy as np

    # The last candidate comes right after the reference: where these two differ decides which pictures are kept.
    order = [reference, *candidates[-1:], *candidates[:-1]]
    decides = min(1, len(order) - 1)
    maps, models, kept = job.state / "reference_maps", {}, []
    maps.mkdir(exist_ok=True)
    for k, artifact in enumerate(order):
        session = elsewhere.session(artifact, job)
        counted, equal = over_all_images(session, artifact, samples, maps, job, (k, len(order)))
        np.save(job.out / f"counts_{artifact.name}.npy", counted)
        models[artifact.name] = entry(artifact, session, counted, equal, "candidate" if k else "reference")
        if k == decides:
            kept = [{"name": samples.name(i), "index": i, "agreement": share(equal[i])} for i in chosen(equal, pictures)]
        for j, picture in enumerate(kept):
            write_map(session(batch(samples, picture["index"]))[0], samples.colours, job.out / f"map_{artifact.name}_{j}.png")
    for j, picture in enumerate(kept):
        i = picture["index"]
        write_picture(*samples[i], samples.colours, job.out, j)
        write_map(np.load(maps / f"{i}.npy"), samples.colours, job.out / f"map_{reference.name}_{j}.png")
    return {artifact.name: models[artifact.name] for artifact in (reference, *candidates)}, kept


def over_all_images(session, artifact: Artifact, samples, maps, job: Job, place: tuple[int, int]) -> "tuple[np.ndarray, np.ndarray]":
    """int64 (N, C, 3) tp, fp, fn and int64 (N, 2) pixels equal to the reference's, all pixels.

    The first model of `place` (its number, how many there are) is the reference: its class maps are written to `maps` for the others.
    """
    import numpy as np

    from stages.measure.miou import counts

    counted = np.zeros((len(samples), len(samples.classes), 3), np.int64)
    equal = np.zeros((len(samples), 2), np.int64)
    for i in range(len(samples)):
        if signal := job.stop_asked():
            raise Stopped(f"stopped while measuring {artifact.name}; the measurement starts again next time", signal)
        found = session(batch(samples, i))[0]
        if place[0] == 0:
            np.save(maps / f"{i}.npy", found)
        counted[i] = counts(found, samples[i][1], len(samples.classes))
        equal[i] = np.count_nonzero(found == np.load(maps / f"{i}.npy")), found.size
        job.progress(place[0] * len(samples) + i + 1, place[1] * len(samples))
    return counted, equal


def batch(samples, i: int) -> "np.ndarray":
    return samples[i][0][None].copy()  # (1, H, W, 3); samples may be views of a read-only file


def entry(artifact: Artifact, session, counted: "np.ndarray", equal: "np.ndarray", role: str) -> dict[str, Any]:
    from stages.measure.miou import miou
    from stages.measure.predict import parameter_count, weight_bytes

    mean, iou = miou(counted.sum(axis=0))
    return {
        "artifact": artifact.kind,
        "role": role,
        "ran": session.ran,
        "miou": mean,
        "iou": iou,
        "agreement": share(equal.sum(axis=0)),
        "size_mb": weight_bytes(artifact) / 1e6,
        "parameters": parameter_count(artifact, session),
        "latency": None,
    }


def share(equal: "np.ndarray") -> float:
    """(pixels equal, pixels) -> a fraction."""
    return float(equal[0] / equal[1])


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


def latencies(models: list[Artifact], samples, data: Artifact, settings: Latency, job: Job) -> dict[str, dict]:
    """Time of each model on source images, by name."""
    from stages.measure.latency import measure

    if not models:
        return {}

    def between(done: int, total: int) -> None:
        if signal := job.stop_asked():
            raise Stopped("stopped while measuring time; the measurement starts again next time", signal)
        job.progress(done, total)

    picked = sorted({k * len(samples) // TIMED_IMAGES for k in range(TIMED_IMAGES)})
    images = [samples.source(i) for i in picked]
    size = data.facts["size"]

    def remote(model: Artifact) -> Any:
        return elsewhere.Timer(model, job, images, size, settings.warmup_ms, settings.threads)

    return measure(models, images, size, job.state, **settings.model_dump(), between=between, remote=remote)
