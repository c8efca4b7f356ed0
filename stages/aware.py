"""Quantisation-aware distillation: a trained student goes on learning with the rounding of INT8 in it, and leaves as an ONNX file.

The network before rounding teaches it, unless another teacher is named: what the file loses against that network is what is trained away.
"""

import json
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from pipeline.artifact import Artifact
from pipeline.errors import BadData, BadRecipe
from pipeline.stage import Dataset, Job, Made, Stage, Takes
from stages import machine
from stages.export import checked, contract, image_size, padded, picked, write
from stages.fit import Fit
from stages.kd import TABLE as KD
from stages.kd.ce import Ce
from stages.kd.pixel import Pixel
from stages.models import Model
from stages.quantize import unsuited
from stages.train import class_count, coarser, unmet, unread

if TYPE_CHECKING:
    from torch import Tensor

    from stages.fakequant import FakeQuantised

CALIBRATION = 16  # images of the train split from which ranges are taken before the first step
LEAST_AGREEMENT = 0.999  # share of pixels on which the file and the network that was trained must give the same class,
SLACK = 3.0  # less so many times the share on which that network differs from itself computed in float64


class Aware(Stage):
    kind: Literal["aware"]
    makes: ClassVar[str] = "OnnxModel"
    version: ClassVar[int] = 2

    data: Dataset
    checkpoint: Annotated[str, Takes(("Checkpoint",)), Field(description="The stage whose trained network is brought to INT8.")]
    teacher: Annotated[str | None, Takes(("Checkpoint",))] = Field(
        None, description="The stage whose checkpoint teaches; null takes the network itself, as it was before rounding."
    )
    runtime: Literal["onnxruntime", "openvino", "tensorrt"] = Field(
        description="The runtime that will run the file: it decides which tensors are rounded, and to signed or unsigned codes."
    )
    task: KD.field(role="task") = Field(Ce(kind="ce"), description="The loss on the labels: it has exactly one owner.")
    losses: list[KD.field(role="loss")] = Field([Pixel(kind="pixel")], description="The distillation methods, beside the task loss.")
    text: Annotated[str | None, Takes(("TextMatrix",))] = Field(
        None, description="The stage whose text vectors of the classes are used, by the methods that need them."
    )
    fit: Fit = Field(
        description="How it goes on learning: few steps, at a hundredth to a tenth of the learning rate the student was trained with."
    )
    opset: int = Field(20, ge=20, le=23, description="Version of the ONNX operator set.")
    dynamic_batch: bool = Field(True, description="Whether any number of images may be given at once; otherwise exactly one.")
    split: str = Field("val", description="Split whose images check the file against the trained network.")
    parity_images: int = Field(8, ge=1, le=10000, description="How many images of that split are compared.")

    def environment(self) -> dict[str, str]:
        return self.fit.environment()

    def problems(self, earlier: dict[str, Stage]) -> list[tuple[tuple, str]]:
        found = self._fit_problems()
        student = getattr(earlier.get(self.checkpoint), "model", None)
        teacher = getattr(earlier.get(self.teacher or self.checkpoint), "model", None)
        size = getattr(earlier.get(self.data), "size", None)
        if student is None or teacher is None:  # the reference itself is wrong, and told elsewhere
            return found
        if size == "native":
            found.append((("data",), f"INT8 ranges hold for one image size; write a size, e.g. [512, 1024], in stage {self.data}"))
        elif size and (advice := padded(tuple(size), student.multiple)):
            found.append((("data",), advice))
        elif size:
            found += [(("fit", *path), text) for path, text in self.fit.misfits(tuple(size), *coarser(student, teacher))]
        student = student.model_copy(update={"aux": False})  # an auxiliary head stays as it is here, and has no loss
        places = [(("task",), self.task), *((("losses", i), loss) for i, loss in enumerate(self.losses))]
        for where, method in places:
            found += unmet(where, method, student, teacher, self.text, class_count(earlier.get(self.data)))
        return found + unread(self.text, [method for _, method in places])

    def unsuited(self, engine: str) -> str | None:
        return unsuited(self.runtime, engine)

    def _fit_problems(self) -> list[tuple[tuple, str]]:
        found = []
        if self.fit.precision != "fp32":
            text = f"{self.fit.precision} would round what has just been rounded to eight bits; write fp32"
            found.append((("fit", "precision"), text))
        if self.fit.compile:
            found.append((("fit", "compile"), "the rounding is not compiled; write false"))
        return found

    def rehearsed(self) -> Self:
        return self.model_copy(update={"fit": self.fit.rehearsed(), "parity_images": min(2, self.parity_images)})

    def run(self, inputs: dict[str, Artifact], job: Job) -> Made:
        if self.fit.processes > 1:
            from stages.group import together

            return together("stages.aware:tuned", (self, inputs), self.fit.processes, job)
        return tuned(self, inputs, job)


def tuned(stage: Aware, inputs: dict[str, Artifact], job: Job) -> Made:
    from stages.chance import seed_of
    from stages.fakequant import RUNTIMES, fake_quantised
    from stages.kd import Pair
    from stages.kd._terms import Terms
    from stages.loop import fit
    from stages.measure.flops import flops
    from stages.models import open_model, row_of
    from stages.samples import open_samples
    from stages.teach import require_same_classes, text_of

    data, source, settings = inputs["data"], inputs["checkpoint"], stage.fit
    row, size = row_of(source), image_size(data.facts["size"])
    teacher = inputs.get("teacher") or source
    require_fit(stage, data, row, row_of(teacher))
    for checkpoint in (source, teacher):
        require_same_classes(checkpoint, data)
    train = open_samples(data, "train")
    val = open_samples(data, "val") if data.facts["splits"].get("val") else None
    net = open_model(source)
    folded = row.folded(net)
    student = fake_quantised(folded, pictures(train, 4 if job.rehearsing else CALIBRATION), RUNTIMES[stage.runtime], row.aux_keys)
    needed = any(method.needs_teacher for method in (stage.task, *stage.losses))  # else it would run for nothing
    master = row_of(teacher).folded(open_model(teacher)) if needed else None
    own = {tap: width for tap, width in student.widths.items() if tap != "aux"}  # that head is in no file: it neither learns nor teaches
    pair = Pair(own, master.widths if master else {}, len(data.facts["classes"]), text_of(inputs.get("text"), data))
    terms = Terms(stage.task, stage.losses, pair, seed_of(settings.seed, "kd"))
    done = fit(student, terms, train, val, settings, job, master, tuple(f"net.{key}" for key in row.head_keys))
    facts = {key: data.facts[key] for key in ("classes", "colours")} | {"size": list(size), "val": done.val}
    if done.publishes:
        student.load_state_dict(done.weights)
        (job.out / "curves.json").write_text(json.dumps(done.curves, allow_nan=False), encoding="utf-8")
        facts |= published(student.cpu(), size, data, stage, job)
    kept = sum(p.numel() for name, p in net.named_parameters() if not name.startswith(row.aux_keys))
    work = {"before": flops(net, size, row.aux_keys), "after": flops(folded, size, row.aux_keys)}
    facts |= {"parameters": kept, "source": {"model": source.facts["model"]}, "flops": work}
    return Made(facts, done.beside | {"tools": [machine.version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")]})


def require_fit(stage: Aware, data: Artifact, student: Model, teacher: Model) -> None:
    """What was not known before the inputs were there, said before anything is trained."""
    from stages.samples import open_samples

    size = image_size(data.facts["size"])
    if advice := padded(size, student.multiple):
        raise BadData(advice)
    open_samples(data, stage.split)  # after training, the file is compared on it
    if misfits := stage.fit.misfits(size, *coarser(student, teacher)):
        raise BadRecipe("; ".join(f"fit.{'.'.join(path)}: {text}" for path, text in misfits))


def pictures(samples, count: int) -> "list[Tensor]":
    """Whole images at even distances, (1, 3, H, W), 0..255."""
    import torch

    from stages.watch import spread

    return [torch.from_numpy(samples[i][0].copy()).permute(2, 0, 1)[None].float() for i in spread(len(samples), count)]


def published(student: "FakeQuantised", size: tuple[int, int], data: Artifact, stage: Aware, job: Job) -> dict[str, Any]:
    """Writes the files of the OnnxModel, checked against the network that was trained; facts about them."""
    from stages import graph
    from stages.stored import with_nodes

    proto = graph.exported(with_nodes(student), size, "dynamo", stage.opset, stage.dynamic_batch)
    file = write(proto, job.out / "model.onnx", keep_logits=False)
    parity = checked(student, proto, file, data, stage, job, least_agreement(student, data, stage))
    preprocessing = contract(student.net, size, len(data.facts["classes"]), stage.dynamic_batch)
    (job.out / "preprocessing.json").write_text(json.dumps(preprocessing, indent=2) + "\n", encoding="utf-8")
    quantized = {"to": "int8", "runtime": stage.runtime, "how": "aware", "steps": stage.fit.steps, "layers": len(student.layers())}
    facts = {"opset": stage.opset, "exporter": "dynamo", "batch": preprocessing["input"]["batch"], "parity": parity}
    return facts | {"align_corners": student.align_corners, "precision": "int8", "quantized": quantized}


def least_agreement(student: "FakeQuantised", data: Artifact, stage: Aware) -> float:
    """What may be asked of a runtime: all, where everything is summed in whole numbers, but norms and softmax are not.

    One float that falls on the other side of a rounding shifts all after it. How much that matters says the network itself, computed once
    more in float64.
    """
    import copy

    from stages.engines.pytorch import session_of
    from stages.measure.parity import compare

    twin = copy.deepcopy(student).double()
    found = compare(session_of(student), session_of(twin), picked(data, stage))
    return LEAST_AGREEMENT - SLACK * (1 - found.agreement)
