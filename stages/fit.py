"""What a recipe says about training: the settings of the one training loop (stages/loop.py), and the learning rate they give."""

import math
from importlib import metadata
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.stage import Aside, Later

Pair = Field(strict=False)  # YAML gives lists where a tuple is meant


class Augment(BaseModel):
    """How a training image is varied each time it is used."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    scale: Annotated[tuple[float, float], Pair] = Field(
        (0.5, 2.0), description="Range of the enlargement before cropping, drawn evenly; [1, 1] keeps the size of the data."
    )
    flip: float = Field(0.5, ge=0, le=1, description="Probability of mirroring left and right.")
    colour: float = Field(0.2, ge=0, le=0.9, description="Brightness, contrast and saturation vary by up to this fraction; 0 is off.")

    @model_validator(mode="after")
    def ordered(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1] <= 16:
            raise ValueError(f"scale {list(self.scale)} must be [low, high] with 0 < low <= high <= 16")
        return self


class Fit(BaseModel):
    """The settings of the training loop. `batch` images make one optimiser step, over all processes and parts together."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    steps: int = Field(1000, ge=1, description="Optimiser steps.")
    batch: int = Field(8, ge=1, description="Images per optimiser step, over all processes.")
    crop: Annotated[tuple[int, int], Pair] | None = Field(
        None, description="Height and width in pixels of what the student sees in training; null takes data.size."
    )
    lr: float = Field(6e-5, gt=0, description="Highest learning rate.")
    head_lr: float = Field(1.0, gt=0, description="Factor on the learning rate of the model's head (the weights a pretrained start lacks).")
    weight_decay: float = Field(0.01, ge=0, description="Weight decay, on weights of two and more dimensions (not on norms and biases).")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="The optimiser.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd; the first beta of adamw.")
    schedule: Literal["poly", "cosine"] = Field("poly", description="How the learning rate falls to zero over the steps.")
    power: float = Field(1.0, gt=0, description="Exponent of the poly schedule.")
    warmup: int = Field(0, ge=0, description="Steps over which the learning rate rises from near zero.")
    ema: float | None = Field(None, gt=0, lt=1, description="Decay per step of averaged weights, which then are the result; null is off.")
    clip: float | None = Field(None, gt=0, description="Largest norm of the gradient; null is off.")
    accumulate: int = Field(
        1, ge=1, description="Parts in which a batch is worked off to save memory; losses and BatchNorm then average within each part."
    )
    processes: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes of this machine that share every batch, with a GPU each, or a core each without GPUs.",
    )
    determinism: Literal["fast", "strict"] = Field(
        "fast",
        description="strict: the same bits every time, slower on a GPU; torch and device then belong to the key. A CPU is exact anyway.",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="Arithmetic of the networks; losses and weights stay fp32.")
    channels_last: bool = Field(False, description="Memory layout NHWC for convolutions: faster for CNNs, mostly on GPUs.")
    compile: bool = Field(False, description="Compile the student with torch.compile: slower start, faster steps.")
    data: Annotated[Literal["host", "device"], Later()] = Field(
        "host",
        description="Who makes the crops: the host, image by image; or the device, which then holds the whole train split in its memory.",
    )
    workers: Annotated[int | None, Aside()] = Field(
        None,
        ge=0,
        le=64,
        description="Processes that prepare data; null takes none on a CPU and up to 8 beside a GPU. No effect on results.",
    )
    seed: int = Field(0, ge=0, description="Fixes the student's start, the order of samples, augmentation and dropout.")
    validate_every: int = Field(0, ge=0, description="Steps between two points of the validation curve; 0 validates once, at the end.")
    val_images: int | None = Field(None, ge=1, description="Images of the val split used for it, evenly spread; null takes all.")
    save_every: Annotated[float, Aside()] = Field(
        300.0, gt=0, description="Seconds between two savings of the training state, from which a stopped run resumes."
    )
    augment: Augment = Field(Augment(), description="How training images are varied.")
    track: Annotated[Literal["none", "tensorboard"], Aside()] = Field(
        "none", description="Also write the curves for TensorBoard, under ./tracking (needs the extra `track`)."
    )

    @model_validator(mode="after")
    def divisible(self) -> Self:
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} cannot be worked off in accumulate: {self.accumulate} equal parts")
        if self.batch % (self.accumulate * self.processes):
            raise ValueError(f"batch {self.batch} must be a multiple of accumulate {self.accumulate} x {self.processes} processes")
        if self.warmup >= self.steps:
            raise ValueError(f"warmup {self.warmup} must be shorter than steps {self.steps}")
        return self

    def rate(self, step: int) -> float:
        """The learning rate of step 0 .. steps - 1; it would reach 0 at `steps`."""
        left = 1 - step / self.steps
        fall = left**self.power if self.schedule == "poly" else (1 - math.cos(math.pi * left)) / 2
        return self.lr * fall * min(1.0, (step + 1) / (self.warmup or 1))

    def environment(self) -> dict[str, str]:
        """What decides the bits of the result beside the settings. Only `strict` promises bits, so only there it counts."""
        if self.determinism == "fast":
            return {}
        from stages.machine import cpu_name, gpus

        names = sorted({gpu["name"] for gpu in gpus()})
        return {"device": ", ".join(names) or cpu_name()} | _versions()

    def rehearsed(self) -> "Fit":
        """The same code paths in 2 steps of 2 images, or of one for each process."""
        batch = min(self.batch, max(2, self.processes))
        return self.model_copy(update={"steps": 2, "batch": batch, "accumulate": 1, "warmup": 0, "validate_every": 0, "val_images": 4})

    def misfits(self, size: tuple[int, int] | None, multiple: int, whose: str = "the model") -> list[tuple[tuple, str]]:
        """What is wrong in view of the data's size (None: unknown or native) and what the networks divide by: (field, message)."""
        if self.crop is None and size is None:
            return [(("crop",), "the data keeps its native sizes, so training needs a crop, e.g. crop: [512, 512]")]
        found = self.crop or size
        if any(side < 1 or side % multiple for side in found):
            near = [max(multiple, round(side / multiple) * multiple) for side in found]
            where = "crop" if self.crop else "crop is not set, and data.size"
            return [(("crop",), f"{where} {list(found)}: {whose} needs multiples of {multiple}; the nearest is {near}")]
        return []


def _versions() -> dict[str, str]:
    """Of torch, whose version names its CUDA, and of cuDNN where torch brings it as a package; read without importing either."""
    found = {name: _version(name) for name in ("torch", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")}
    return {name: version for name, version in found.items() if version}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
