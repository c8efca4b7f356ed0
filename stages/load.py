"""Takes in a teacher that was trained elsewhere, and measures it on the data at once: shifted labels show here, not after distilling."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

from pydantic import Field

from pipeline.artifact import Artifact
from pipeline.errors import BadData, Stillhouse, Stopped
from pipeline.keys import settings as plain
from pipeline.stage import Dataset, Job, Made, Stage
from stages.models import TABLE as MODELS
from stages.weights import Weights

DOUBTFUL = 10.0  # mIoU points below which the labels themselves are suspected
SHIFTS = (0, -1, 1)  # added to the data's labels


class Load(Stage):
    kind: Literal["load"]
    model: MODELS.field() = Field(description="The architecture the weights are for.")
    weights: Weights = Field(description="Where the weights are: {file: PATH}, or {hub: org/name, revision: 40 hex digits}.")
    data: Dataset

    makes: ClassVar[str] = "Checkpoint"
    version: ClassVar[int] = 3

    def outside(self) -> dict[str, str]:
        return {"weights": self.weights.digest()}

    def run(self, inputs: dict[str, Artifact], job: Job) -> Made:
        from stages.weights import save_checkpoint

        data, path = inputs["data"], self.weights.locate()
        row = self.model.completed(path)
        if assumed := self.model.assumed(path):
            job.say(assumed)
        module = row.build(len(data.facts["classes"]))
        row.load(module, path)
        with explained(data):
            val = measured(module, data, job)
        save_checkpoint(job.out, module.state_dict())
        (job.out / "curves.json").write_text(json.dumps({"train": [], "val": []}), encoding="utf-8")
        facts = {key: data.facts[key] for key in ("classes", "colours", "size")}
        parameters = sum(p.numel() for p in module.parameters())
        return Made({"model": plain(row), **facts, "steps": 0, "val": val}, {"weights": str(path), "parameters": parameters})


@contextmanager
def explained(data: Artifact) -> Iterator[None]:
    """A network from elsewhere may want any amount of memory for one image; how much, nobody knows before it is tried."""
    from stages.bounds import wants_memory

    try:
        yield
    except Stillhouse:
        raise
    except Exception as error:
        if not wants_memory(error):
            raise
        size = data.facts["size"] or "its own size"
        raise BadData(
            f"this network wants more memory than there is for one image of {size}: is it made for that? Give data a smaller size"
        ) from None


def measured(module, data: Artifact, job: Job) -> dict[str, Any] | None:
    """mIoU on the whole val split, with what a person should know about it said aloud."""
    if not data.facts["splits"].get("val"):
        job.say("not measured: the data has no val split")
        return None
    totals = counted(module, data, job)
    scores = {shift: miou_of(total) for shift, total in totals.items()}
    miou, iou = scores[0]
    job.say(f"mIoU {miou:.1f} on {data.facts['splits']['val']} val images")
    if miou < DOUBTFUL and not job.rehearsing:
        job.say(suspicion(miou, {shift: score[0] for shift, score in scores.items() if shift}))
    return {"miou": miou, "iou": iou, "split": "val"}


def counted(module, data: Artifact, job: Job) -> dict[int, Any]:
    """Counts (C, 3) over all val images, for the labels as they are and shifted by one either way."""
    import torch

    from stages.measure.miou import counts
    from stages.models import classmap
    from stages.samples import open_samples

    samples, classes = open_samples(data, "val"), len(data.facts["classes"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.allow_tf32 = False  # as validate measures the same network
    module.to(device).eval()
    totals = dict.fromkeys(SHIFTS, 0)
    for i in range(len(samples)):
        image, label = samples[i]
        with torch.inference_mode():
            x = torch.from_numpy(image.copy()).to(device).permute(2, 0, 1)[None].float()
            guess = classmap(module(x)["logits"], label.shape, module.align_corners)[0].cpu().numpy()
        for shift in SHIFTS:
            totals[shift] = totals[shift] + counts(guess, shifted(label, shift, classes), classes)
        job.progress(i + 1, len(samples))
        if signal := job.stop_asked():
            raise Stopped("stopped while measuring; the measurement starts anew next time", signal)
    return totals


def shifted(label, shift: int, classes: int):
    """Labels with `shift` added; what leaves the classes becomes ignored (255)."""
    import numpy as np

    if shift == 0:
        return label
    moved = label.astype(np.int16) + shift
    return np.where((label < classes) & (moved >= 0) & (moved < classes), moved, 255).astype(np.uint8)


def miou_of(total) -> tuple[float, list]:
    from stages.measure.miou import miou

    return miou(total)


def suspicion(miou: float, others: dict[int, float]) -> str:
    shift, best = max(others.items(), key=lambda item: item[1])
    if best > max(2 * miou, miou + 5):
        return (
            f"WARNING: with labels shifted by {shift:+d} it would be {best:.1f}. Data and weights number their classes differently: "
            "is a background class counted in one of them (reduce_labels)? Correct the class table of the data."
        )
    tried = ", ".join(f"{score:.1f} with labels shifted by {shift:+d}" for shift, score in others.items())
    return (
        f"WARNING: mIoU {miou:.1f} is hardly better than chance, and a shift of the labels does not explain it ({tried}). "
        "Compare the order of the classes, and the images this teacher was trained on, with the data."
    )
