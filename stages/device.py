"""What a training runs on: the device, the precision and the processes, as accelerate finds them, and how exact its arithmetic is."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch

from pipeline.errors import BadRecipe, Missing
from pipeline.stage import Job
from stages.fit import Fit

MORE_ROOM = "lower fit.batch or fit.crop, raise fit.accumulate, or use precision bf16"
FULL = ("can't allocate memory", "not enough memory")  # how torch's allocator for the CPU says it, on Linux and on Windows
INEXACT = "does not have a deterministic implementation"


def accelerator_for(settings: Fit, job: Job):
    from accelerate import Accelerator

    if settings.track == "tensorboard" and find_spec("tensorboard") is None:
        raise Missing("fit.track: tensorboard needs a package that is not installed: pip install 'stillhouse[track]'")
    folder = Path("tracking") / job.state.name
    tracker = settings.track if settings.track != "none" else None
    precision, no_device = {"fp32": "no"}.get(settings.precision, settings.precision), not torch.accelerator.is_available()
    try:
        # The pupil moves itself: moving it again would leave its averages looking at weights that nobody trains.
        accelerator = Accelerator(cpu=no_device, device_placement=False, mixed_precision=precision, log_with=tracker, project_dir=folder)
    except ValueError as error:  # accelerate says so when the device lacks a precision
        raise Missing(f"fit.precision {settings.precision} does not run on this machine: {error}") from None
    if settings.precision == "fp16" and accelerator.device.type == "cpu":
        raise Missing("fit.precision fp16 needs a GPU, and none was found; use bf16 or fp32")
    if accelerator.num_processes != settings.processes:
        found = accelerator.num_processes
        raise BadRecipe(f"fit.processes is {settings.processes}, and {found} were started: set it to {found}, and start the command once")
    if tracker:
        accelerator.init_trackers("fit")
        job.say(f"curves for TensorBoard are written to {folder}")
    return accelerator


@contextmanager
def exact(settings: Fit) -> Iterator[None]:
    """While a training lasts: fp32 is no TF32, and under `determinism: strict` only algorithms that give the same bits every time."""
    strict = settings.determinism == "strict"
    if strict:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS reads it when it starts; without it its sums may change their order
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark, cuda.allow_tf32, cudnn.allow_tf32
    try:
        if strict or settings.precision == "fp32":
            cuda.allow_tf32 = cudnn.allow_tf32 = False
        if strict:
            torch.use_deterministic_algorithms(True)
            cudnn.deterministic, cudnn.benchmark = True, False
        yield
    except RuntimeError as error:
        if INEXACT not in str(error):
            raise
        raise Missing(f"fit.determinism: strict is not possible here ({str(error).splitlines()[0]}); use determinism: fast") from None
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark, cuda.allow_tf32, cudnn.allow_tf32 = before[1:]


@contextmanager
def room_explained(settings: Fit, crop: tuple[int, int] | None) -> Iterator[None]:
    """Running out of memory is told in the words of the recipe."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        on_device = isinstance(error, torch.OutOfMemoryError)
        if not on_device and not isinstance(error, MemoryError) and not any(words in str(error) for words in FULL):
            raise
        where, size = "the device" if on_device else "this machine", " x ".join(map(str, crop)) if crop else "the size of the data"
        parts = settings.accumulate * settings.processes
        tried = f"fit.batch {settings.batch}, crops of {size}" + (f", in {parts} parts" if parts > 1 else "")
        raise Missing(f"{where} has too little memory for this training ({tried}): {MORE_ROOM}") from None
