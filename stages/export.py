"""From a checkpoint to one ONNX file that takes image bytes and gives class numbers, checked against PyTorch before it is published."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from pipeline.errors import BadData, Stillhouse
from pipeline.stage import Dataset, Job, Made, Stage, Takes
from stages import machine
from stages.measure.allowed import EXACT

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto
    from torch import nn

REHEARSED_AGREEMENT = 0.999  # after two steps of training classes still tie at many pixels
LOGIT_IMAGES = 2  # images on which logits are compared too


class Export(Stage):
    kind: Literal["export"]
    makes: ClassVar[str] = "OnnxModel"
    version: ClassVar[int] = 4

    data: Dataset
    checkpoint: Annotated[str, Takes(("Checkpoint",)), Field(description="The stage whose network is exported.")]
    exporter: Literal["dynamo", "optimum"] = Field("dynamo", description="Who writes the graph: torch.onnx, or optimum for hf models.")
    opset: int = Field(20, ge=18, le=23, description="Version of the ONNX operator set.")
    dynamic_batch: bool = Field(True, description="Whether any number of images may be given at once; otherwise exactly one.")
    logits: bool = Field(False, description="Whether the graph also gives the logits before enlarging, float32 (B, C, h, w).")
    split: str = Field("val", description="Split whose images check the file against PyTorch.")
    parity_images: int = Field(8, ge=1, le=10000, description="How many images of that split are compared.")

    def problems(self, earlier: dict[str, Stage]) -> list[tuple[tuple, str]]:
        found = []
        size = getattr(earlier.get(self.data), "size", None)
        model = getattr(earlier.get(self.checkpoint), "model", None)
        if size == "native":
            found.append(
                (("data",), f"export needs one image size; write a size, e.g. [512, 1024], in place of native in stage {self.data}")
            )
        elif size and model is not None and (advice := padded(tuple(size), model.multiple)):
            found.append((("data",), advice))
        if self.exporter == "optimum" and model is not None and model.kind != "hf":
            found.append((("exporter",), f"optimum exports models of kind hf; {self.checkpoint} is of kind {model.kind}: write dynamo"))
        return found

    def rehearsed(self) -> Self:
        return self.model_copy(update={"parity_images": min(2, self.parity_images)})

    def run(self, inputs, job: Job) -> Made:
        from stages import graph
        from stages.measure.flops import flops
        from stages.models import open_model, row_of
        from stages.samples import open_samples

        data, checkpoint = inputs["data"], inputs["checkpoint"]
        row, size = row_of(checkpoint), image_size(data.facts["size"])
        if advice := padded(size, row.multiple):
            raise BadData(advice)
        open_samples(data, self.split)  # one that is not there is told before the work that is compared on it
        module = open_model(checkpoint)
        folded = row.folded(module)
        work = {"before": flops(module, size, row.aux_keys), "after": flops(folded, size, row.aux_keys)}
        job.say(f"one image takes {work['before'] / 1e9:.2f} GFLOPs as trained, {work['after'] / 1e9:.2f} as exported")
        proto = graph.exported(folded, size, self.exporter, self.opset, self.dynamic_batch)
        file = write(proto, job.out / "model.onnx", keep_logits=self.logits)
        parity = checked(module, proto, file, data, self, job)
        preprocessing = contract(module, size, len(data.facts["classes"]), self.dynamic_batch)
        (job.out / "preprocessing.json").write_text(json.dumps(preprocessing, indent=2) + "\n", encoding="utf-8")
        facts = {key: data.facts[key] for key in ("classes", "colours")} | {"size": list(size)}
        facts |= {"opset": self.opset, "exporter": self.exporter, "batch": preprocessing["input"]["batch"], "parity": parity}
        facts |= {"align_corners": module.align_corners, "precision": "f32"}
        kept = (p for name, p in module.named_parameters() if not name.startswith(row.aux_keys))
        facts |= {"parameters": sum(p.numel() for p in kept), "source": {"model": checkpoint.facts["model"]}, "flops": work}
        return Made(facts, {"tools": [machine.version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")]})


def write(proto: "ModelProto", file: Path, keep_logits: bool) -> Path:
    """One file that a strict reader accepts; the logits are an output only when asked for."""
    import onnx

    from stages import onnxfile

    if not keep_logits:
        slim = onnx.ModelProto()
        slim.CopyFrom(proto)
        del slim.graph.output[:]
        slim.graph.output.extend(value for value in proto.graph.output if value.name != "logits")
        proto = slim
    onnx.checker.check_model(proto, full_check=True)
    file.write_bytes(proto.SerializeToString(deterministic=True))
    return onnxfile.check(file)


def checked(module: "nn.Module", proto: "ModelProto", file: Path, data, stage, job: Job, least: float | None = None) -> dict[str, Any]:
    """Compares the written file with the network on real images; a difference is a defect, never a warning.

    `stage` says how many images of which split; `least` replaces the share of pixels that is asked for.
    """
    from stages.engines.onnxruntime import session_of
    from stages.engines.pytorch import session_of as torch_session
    from stages.measure.parity import compare

    found = compare(torch_session(module), session_of(file), picked(data, stage))
    with_logits = write(proto, job.state / "with_logits.onnx", keep_logits=True)
    error = max_logit_error(module, session_of(with_logits).session, [image for _, image in islice(picked(data, stage), LOGIT_IMAGES)])
    with_logits.unlink()
    if least is None:
        least = REHEARSED_AGREEMENT if job.rehearsing else EXACT.agreement
    if found.agreement < least:
        raise Stillhouse(
            f"the exported file is not the network: on {found.images} images of {stage.split} it agrees with PyTorch on "
            f"{found.agreement:.4%} of pixels, and {least:.2%} is asked. Worst: {found.worst} ({found.worst_agreement:.4%}); "
            f"largest difference of logits: {error:.2g}. Nothing was published; try another opset or exporter, and please report it"
        )
    job.say(f"agrees with PyTorch on {found.agreement:.4%} of pixels of {found.images} images, logits differ by {error:.1e} at most")
    return {"images": found.images, "agreement": found.agreement, "max_logit_error": float(f"{error:.2g}")}


def picked(data, stage) -> "Iterator[tuple[str, np.ndarray]]":
    """The images of the split that are compared, at even distances: name, uint8 (H, W, 3)."""
    from stages.samples import open_samples

    samples = open_samples(data, stage.split)
    for i in sorted({k * len(samples) // stage.parity_images for k in range(min(stage.parity_images, len(samples)))}):
        yield samples.name(i), samples[i][0]


def max_logit_error(module: "nn.Module", session: Any, images: list) -> float:
    """`session`: an onnxruntime session that gives the logits. Images uint8 (H, W, 3)."""
    import numpy as np
    import torch

    worst = 0.0
    for image in images:
        with torch.inference_mode():
            ours = module(torch.from_numpy(image[None].copy()).permute(0, 3, 1, 2).float())["logits"].numpy()
        theirs = session.run(["logits"], {"image": np.ascontiguousarray(image[None])})[0]
        worst = max(worst, float(np.abs(ours - theirs).max()))
    return worst


def contract(module: "nn.Module", size: tuple[int, int], classes: int, dynamic_batch: bool) -> dict[str, Any]:
    """preprocessing.json: all that somebody without this package must know to feed the file."""
    mean, std = (getattr(module, name).flatten().tolist() for name in ("mean", "std"))
    image = {"name": "image", "dtype": "uint8", "layout": "NHWC", "order": "RGB", "range": [0, 255], "size": list(size)}
    return {
        "input": {**image, "batch": "any" if dynamic_batch else 1},
        "resize": {"rule": "bilinear", "what": "the whole image is brought to size (height, width); nothing is cropped or padded"},
        "normalise": {"where": "inside the graph: do not normalise", "how": "(value - mean) / std", "mean": mean, "std": std},
        "output": {"name": "classmap", "dtype": "uint8", "layout": "NHW", "size": list(size), "classes": classes},
        "enlarging": {
            "where": "inside the graph, between the tensor logits (B, classes, h, w) and the class map",
            "how": f"bilinear, {'align_corners' if module.align_corners else 'half-pixel centres'}, then argmax",
        },
        "ignore": {"label": 255, "what": "marks pixels without a label in data sets; it is never predicted"},
    }


def image_size(size: Any) -> tuple[int, int]:
    if size is None:
        raise BadData("export needs one image size, and the data stage keeps every image at its own; write a size, e.g. [512, 1024], there")
    return tuple(size)


def padded(size: tuple[int, int], multiple: int) -> str | None:
    """What to write in place of a size the network cannot divide; None when it can."""
    if not any(n % multiple for n in size):
        return None
    up = [-(-n // multiple) * multiple for n in size]
    return (
        f"images of {list(size)} cannot be exported: height and width must be multiples of {multiple}. Write size: {up} in the data stage"
    )
