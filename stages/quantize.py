"""Puts a precision below float32 into the ONNX file itself, for one runtime, and says what that changed.

float16 keeps in float32 what it would not hold; int8 rounds by ranges seen on calibration images, and gives layers back to float where
the loss is above the budget. What is looked at for that comes from the split `train` alone.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.artifact import Artifact
from pipeline.errors import BadData, Stillhouse
from pipeline.stage import Dataset, Job, Made, Stage, Takes
from stages import machine

if TYPE_CHECKING:
    from onnx import ModelProto

    from stages.engines import Session

SUITS = {  # runtime of the quantised file -> engines that run it as it is meant; float16 is the same for all of them
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt_rtx", "onnxruntime"),
}
OPSET = 19  # the first in which QuantizeLinear takes float16
RANKED_ON = 4  # images on which layers are put in order
LEAST_AGREEMENT = 0.99  # of class maps in float16 with those in float32; it is 0.9995 on random weights


class Calibration(BaseModel):
    """Which images are looked at."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    split: Literal["train"] = Field("train", description="Always train: what is reported on must not have been looked at.")
    images: int = Field(64, ge=1, le=4096, description="Images, evenly spaced, whose values set the ranges.")
    held_out: int = Field(32, ge=1, le=4096, description="Other images of the split, on which the loss is measured.")


class Quantize(Stage):
    kind: Literal["quantize"]
    makes: ClassVar[str] = "OnnxModel"

    data: Dataset
    onnx: Annotated[str, Takes(("OnnxModel",)), Field(description="The stage whose ONNX file, in float32, is quantised.")]
    to: Literal["fp16", "int8"] = Field(description="Precision of what the graph computes.")
    runtime: Literal["onnxruntime", "openvino", "tensorrt"] = Field(description="Who will run it: the graph takes that runtime's form.")
    calibration: Calibration = Field(Calibration(), description="The images of train that are looked at.")
    budget: float | None = Field(
        1.0, ge=0, allow_inf_nan=False, description="mIoU points that may be lost on held-out images of train; none: not looked at."
    )

    @model_validator(mode="after")
    def has_a_use(self) -> Self:
        if self.to == "fp16" and self.runtime == "openvino":
            raise ValueError(
                "openvino computes in f32 or bf16 on CPUs whatever the file holds: leave this stage out and write precision: bf16 "
                "in the engine"
            )
        return self

    def problems(self, earlier: dict[str, Stage]) -> list[tuple[tuple, str]]:
        source, found = earlier.get(self.onnx), []
        if source is not None and source.kind in ("quantize", "aware"):
            found.append((("onnx",), f"{self.onnx} is quantised already: name the stage that exported it"))
        if self.to == "int8" and self.runtime == "tensorrt" and getattr(source, "opset", OPSET) < OPSET:
            text = f"int8 for tensorrt has float16 between its layers, and Q/DQ know that from opset {OPSET} on: write opset: {OPSET}"
            found.append((("onnx",), f"{text} in {self.onnx}"))
        return found

    def unsuited(self, engine: str) -> str | None:
        return unsuited(self.runtime, engine)

    def environment(self) -> dict[str, str]:
        packages = ("onnxruntime", "onnxruntime-gpu"), *((("nncf",), ("openvino",)) if self.runtime == "openvino" else ())
        return {"tools": ", ".join(machine.version(*names) for names in packages)}

    def rehearsed(self) -> Self:
        few = self.calibration.model_copy(update={"images": min(2, self.calibration.images), "held_out": min(2, self.calibration.held_out)})
        return self.model_copy(update={"calibration": few, "budget": None})

    def run(self, inputs: dict[str, Artifact], job: Job) -> Made:
        from stages.export import write
        from stages.measure.predict import require_same_table
        from stages.samples import open_samples

        data, source = inputs["data"], inputs["onnx"]
        require_same_table(data, source)
        if source.facts.get("precision", "f32") != "f32":
            raise BadData(f"{source.name} is in {source.facts['precision']} already: name the stage that exported it")
        samples = open_samples(data, self.calibration.split)
        looked_at = Looked(samples, *divided(len(samples), self.calibration))
        proto = loaded(source.file("model.onnx"))
        how = {"fp16": to_fp16, "int8": to_int8}[self.to]
        made, facts, tried = how(self, proto, looked_at, job)
        write(made, job.out / "model.onnx", keep_logits=True)
        shutil.copyfile(source.file("preprocessing.json"), job.out / "preprocessing.json")
        if tried:
            tried["held_out"] = [samples.name(i) for i in looked_at.held_out]
            (job.out / "sensitivity.json").write_text(json.dumps(tried, indent=1) + "\n", encoding="utf-8")
        facts |= compared(proto, made, looked_at.images(looked_at.held_out))
        checked(self, facts, job)
        about = {"to": self.to, "runtime": self.runtime, "how": "post-training", "images": len(looked_at.calibration)}
        return Made(source.facts | {"precision": self.to, "quantized": about | facts})


def unsuited(runtime: str, engine: str) -> str | None:
    """Why an engine of this kind must not be built from a file that was quantised for `runtime`."""
    if engine in SUITS[runtime]:
        return None
    suited = next((runtime for runtime, engines in SUITS.items() if engine in engines), None)
    advice = f"use one with runtime: {suited}" if suited else "use the float one"
    return f"quantised for {runtime}, and {engine} may run such a graph wrong without a word: {advice}"


class Looked(NamedTuple):
    """Images of train, by their numbers."""

    samples: Any
    calibration: list[int]
    held_out: list[int]

    def images(self, numbers: list[int]):
        """uint8 (H, W, 3) each, one after the other."""
        return (self.samples[i][0] for i in numbers)


def divided(count: int, calibration: Calibration) -> tuple[list[int], list[int]]:
    """Numbers of the images for calibration and of those held out: evenly spaced over the split together, and no image in both."""
    if count < 2:
        raise BadData(f"split train has {count} images; quantising looks at one at least, and measures the loss on another")
    total = min(count, calibration.images + calibration.held_out)
    held = min(max(1, total * calibration.held_out // (calibration.images + calibration.held_out)), total - 1)
    spread = [k * count // total for k in range(total)]
    apart = {k * total // held for k in range(held)}
    return [n for k, n in enumerate(spread) if k not in apart], [n for k, n in enumerate(spread) if k in apart]


def loaded(file: Path) -> "ModelProto":
    """The graph of an ONNX file, with a name for every node."""
    import onnx

    from stages import onnxfile

    proto = onnx.load(onnxfile.check(file))
    names: set[str] = set()
    for k, node in enumerate(proto.graph.node):
        if not node.name or node.name in names:
            node.name = f"node_{k}_{node.op_type}"
        names.add(node.name)
    return proto


def to_fp16(stage: Quantize, proto: "ModelProto", looked_at: Looked, job: Job) -> "tuple[ModelProto, dict, dict | None]":
    made, kept = halved(proto, looked_at)
    job.say(f"float16, with {len(kept)} nodes kept in float32" + "".join(f"; {one['node']}: {one['why']}" for one in kept[:5]))
    loss = None if stage.budget is None else within(stage.budget, Loss(proto, looked_at, stage.runtime, job.state)(made))
    return made, {"tool": "stillhouse", "excluded": kept, "loss": loss}, None


def to_int8(stage: Quantize, proto: "ModelProto", looked_at: Looked, job: Job) -> "tuple[ModelProto, dict, dict | None]":
    from stages import int8, qdq
    from stages.sensitivity import Graphs, search

    made = int8.quantised(proto, looked_at.images(looked_at.calibration), stage.runtime, job.state)
    facts = {"tool": int8.tool(stage.runtime), "layers": len(qdq.layers(made)), "excluded": [], "loss": None, "rest": "f32"}
    loss = tried = None
    if stage.budget is not None:
        few = list(looked_at.images(looked_at.calibration[:: -(-len(looked_at.calibration) // RANKED_ON)]))
        loss = Loss(proto, looked_at, stage.runtime, job.state)
        made, tried = search(Graphs(proto, made, int8.ROUNDING[stage.runtime]), stage.budget, loss, few, job)
        facts |= {"excluded": tried["excluded"], "loss": tried["loss"]}
    if stage.runtime in int8.HALF:
        made, kept = halved(made, looked_at)
        facts |= {"rest": "fp16", "kept_in_f32": kept, "loss": loss and within(stage.budget, loss(made))}
    return made, facts, tried


def halved(proto: "ModelProto", looked_at: Looked) -> "tuple[ModelProto, list[dict[str, str]]]":
    from stages import fp16, ranges

    made, kept = fp16.converted(proto, ranges.largest(proto, looked_at.images(looked_at.calibration)))
    return made, [one._asdict() for one in kept]


def within(budget: float, loss: float) -> float:
    if loss > budget:
        raise Stillhouse(
            f"float16 loses {loss:.2f} mIoU points of {budget:g} allowed; nothing was published. Raise budget or stay with float32"
        )
    return loss


class Loss:
    """mIoU points that a graph loses to the float one on the held-out images, each run by the runtime it is meant for."""

    def __init__(self, proto: "ModelProto", looked_at: Looked, runtime: str, work: Path):
        self.looked_at, self.runtime, self.work = looked_at, runtime, work
        self.before = self.miou(proto)

    def __call__(self, proto: "ModelProto") -> float:
        return round(self.before - self.miou(proto), 4)

    def miou(self, proto: "ModelProto") -> float:
        from stages.measure.miou import counts, miou

        samples, total = self.looked_at.samples, 0
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            session = self.opened(proto, Path(folder))
            for i in self.looked_at.held_out:
                image, label = samples[i]
                total = total + counts(session(image[None].copy())[0], label, len(samples.classes))
        return miou(total)[0]

    def opened(self, proto: "ModelProto", folder: Path) -> "Session":
        """A session of the runtime the graph is for; onnxruntime's where that needs a GPU."""
        from stages.engines import TABLE
        from stages.export import write

        write(proto, folder / "model.onnx", keep_logits=True)
        kind = "onnxruntime" if self.runtime == "tensorrt" else self.runtime
        row = TABLE.row(kind)(kind=kind)
        candidate = Artifact("candidate", "OnnxModel", "", folder, {"classes": self.looked_at.samples.classes})
        return row.open(folder, row.build(candidate, folder))


def compared(proto: "ModelProto", made: "ModelProto", images) -> dict[str, Any]:
    """Of class maps and logits in onnxruntime, between the float graph and the quantised one."""
    from stages.answers import answers, sqnr

    images = list(images)
    (maps, logits), (other_maps, other_logits) = (answers(graph, images) for graph in (proto, made))
    return {"agreement": float((maps == other_maps).mean()), "sqnr_db": sqnr(logits, other_logits), "compared_on": len(images)}


def checked(stage: Quantize, facts: dict[str, Any], job: Job) -> None:
    job.say(f"same class as in float32 on {facts['agreement']:.3%} of the pixels of {facts['compared_on']} held-out images of train")
    if stage.to == "fp16" and facts["agreement"] < LEAST_AGREEMENT and not job.rehearsing:
        raise Stillhouse(
            f"float16 gives another class on {1 - facts['agreement']:.2%} of the pixels; nothing was published. Stay with float32"
        )
