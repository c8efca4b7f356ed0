"""What the rows tensorrt and tensorrt_rtx share, which is all but their fields: from an ONNX artifact to a plan, and from it to class maps.

The work is done by the two files that bundles carry (stages/bundle_files/*_tensorrt.py), so that a device builds and runs what was built
and measured here. This one looks before they do, speaks of what went wrong in the words of the house, and collects facts.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from pipeline.artifact import Artifact
from pipeline.errors import BadData, Missing
from stages import machine, onnxfile
from stages.bundle_files import build_tensorrt, runtime_tensorrt
from stages.engines import _layers, answer, opening

log = logging.getLogger(__name__)


def one_to_most(batch: tuple[int, int, int]) -> tuple[int, int, int]:
    """What looks at an engine, measures it or packs it gives it one image."""
    fewest, best, most = batch
    if not fewest == 1 <= best <= most:
        raise ValueError(f"{list(batch)} are no batches [fewest, best, most]: begin with 1 and let none be below the one before it")
    return batch


# Fields of both rows.
Count = Annotated[int, Field(ge=1, le=1024)]
Batch = Annotated[
    tuple[Count, Count, Count],
    Field(strict=False, description="Images at once: the fewest, which is 1, the number it is made fastest for, the most."),
    AfterValidator(one_to_most),
]
Level = Annotated[
    int, Field(ge=0, le=5, description="How long the builder searches: 0 shortest, 5 longest; 3 is the runtime's own default.")
]
Workspace = Annotated[
    int | None, Field(ge=1, le=1 << 20, description="Most MiB of the GPU's memory that one layer may take to work in; none: all there is.")
]
Tf32 = Annotated[bool, Field(description="Whether float32 products may be rounded to 10 bits (TensorFloat-32), which is faster.")]
Memory = Annotated[
    Literal["auto", "cuda-python", "pycuda"],
    Field(description="What reaches the GPU's memory; auto: cuda-python if it is installed, else pycuda. A name never gives the other."),
]
DISTRIBUTIONS = {
    "tensorrt": (("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),),
    "tensorrt_rtx": (("tensorrt-rtx-cu13-bindings", "tensorrt-rtx"), ("tensorrt-rtx-cu13-libs",)),
}
INSTALL = {
    "tensorrt": "pip install 'tensorrt>=10.9' (on Jetson it comes with JetPack)",
    "tensorrt_rtx": "pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings",
}


def requirements(settings: dict[str, Any], version: Callable[..., str]) -> list[str]:
    memory = ("cuda-python", "pycuda") if settings["memory"] == "auto" else (settings["memory"],)
    found = [version(*names) for names in (*DISTRIBUTIONS[settings["kind"]], (*memory, "cuda-bindings"))]
    return [text.replace(" ", "==") for text in found if text != "missing"]


def environment(kind: str) -> dict[str, str]:
    return {"runtime": runtime(kind, machine.version), "gpu": gpu_names()}


def runtime(kind: str, version: Callable[..., str]) -> str:
    """By the name of the kind, whichever distribution brings it."""
    found = version(*DISTRIBUTIONS[kind][0]).split()[-1]
    return found if found == "missing" else f"{kind} {found}"


def gpu_names() -> str:
    return ", ".join(f"{gpu['name']} ({gpu['capability']})" for gpu in machine.gpus()) or "none"


def build(settings: dict[str, Any], source: Artifact, out: Path) -> dict[str, Any]:
    """Writes engine.plan, engine.timing where the runtime keeps such a cache, and engine.layers.json where a GPU can open the plan.

    An engine.timing that lies in `out` already is what an earlier build measured. Without a GPU only TensorRT-RTX builds.
    """
    file, kind = onnxfile.check(source.file("model.onnx")), settings["kind"]
    if kind == "tensorrt" and not machine.has_device():
        raise Missing(
            "engine: tensorrt builds on the GPU that will run it, and the driver shows none on this machine. "
            "Write kind: tensorrt_rtx, which builds without one, or build on the device"
        )
    trt, timing = module(kind), out / "engine.timing"
    logger = runtime_tensorrt.logger(trt)
    before = len(logger.said)
    try:
        measured = timing.read_bytes() if timing.is_file() else None
        made = build_tensorrt.built(
            trt, file.read_bytes(), settings, logger, measured, lambda network: agreeing(_layers.described(network), source)
        )
    except build_tensorrt.Failed as failed:
        raise BadData(str(failed)) from None
    finally:
        for severity, text in logger.said[before:]:
            log.log(logging.INFO if severity == "INFO" else logging.WARNING, "%s: %s", kind, text)
    (out / "engine.plan").write_bytes(made.plan)
    if made.timing is not None:
        timing.write_bytes(made.timing)
    facts = facts_of(settings, made.told, build_tensorrt.named(trt), gpu_names())
    return facts | looked_into(settings, out, facts)


def facts_of(settings: dict[str, Any], told: dict[str, Any], runtime: str, gpu: str) -> dict[str, Any]:
    """What an engine's facts hold of its build, here or on a target. `told`: see build_tensorrt.built."""
    if told["skipped_tactics"]:
        text = "%s: %d times a way of computing was left out for lack of memory: the engine may be slow"
        log.warning(text, settings["kind"], told["skipped_tactics"])
    options = {name: value for name, value in settings.items() if name not in ("kind", "threads", "memory", "argmax")}
    built = {"runtime": runtime, "gpu": gpu, "options": options, "timing": told["timing"]}
    return {"network": told["network"], "built": built, "warnings": told["warnings"], "skipped_tactics": told["skipped_tactics"]}


def agreeing(described: dict[str, Any], source: Artifact) -> dict[str, Any]:
    """The description itself, when the network computes in what the artifact says it does."""
    told = source.facts.get("precision", "f32")
    if described["precision"] != told:
        raise BadData(
            f"{source.name} is said to be {told}, and TensorRT reads a network that computes in {described['precision']} "
            f"({_layers.sentence(described)}): make the file again"
        )
    return described


def looked_into(settings: dict[str, Any], out: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """What only an opened plan tells; engine.layers.json holds its layers and their times."""
    ran = {"runtime": facts["built"]["runtime"], "provider": "no GPU here", "threads": None}
    ran["precision"] = facts["network"]["precision"] + (" with tf32" if settings["tf32"] else "")
    if not machine.has_device():
        return {"ran": ran, "opened": False}
    session = open_session(settings, out, facts | {"ran": ran})
    (out / "engine.layers.json").write_text(session.runner.insight(), encoding="utf-8")
    return {"ran": session.ran, "opened": True}


def open_session(settings: dict[str, Any], folder: Path, facts: dict[str, Any]) -> "Session":
    kind, plan = settings["kind"], folder / "engine.plan"
    if not machine.has_device():
        raise Missing(f"an engine of kind {kind} runs on an NVIDIA GPU, and the driver shows none on this machine")
    trt = module(kind)
    memory = reached(settings["memory"])
    code = settings.get("version_compatible", False)
    with opening(plan, kind, None):
        try:
            runner = runtime_tensorrt.Runner(trt, plan.read_bytes(), memory, runtime_tensorrt.logger(trt), code)
        except runtime_tensorrt.Unfit as unfit:
            built = facts.get("built", {})
            raise BadData(
                f"{unfit}. It was built by {built.get('runtime', 'an unknown version')} on {built.get('gpu', 'an unknown GPU')}; "
                f"here is {build_tensorrt.named(trt)} on {gpu_names()}: build it again here from its ONNX file"
            ) from None
        except RuntimeError as error:  # of the driver: most often its memory is full
            advice = "if its memory is full, end what else runs there or build for a smaller batch"
            raise Missing(f"the GPU does not open {plan}: {error}; {advice}") from None
    ran = {"runtime": build_tensorrt.named(trt), "provider": machine.gpus()[0]["name"], "precision": facts["ran"]["precision"]}
    return Session(runner, ran | {"threads": None, "memory": memory.name})


def module(kind: str) -> Any:
    try:
        return runtime_tensorrt.imported(kind)
    except ImportError as error:
        raise Missing(f"{kind} is asked for and cannot be imported here ({error}); install it: {INSTALL[kind]}") from None


def reached(memory: str) -> Any:
    try:
        return runtime_tensorrt.memory_of(memory)
    except ImportError as error:
        wanted = "cuda-python" if memory == "auto" else memory
        raise Missing(f"memory: {memory} cannot be had here ({error}); install it: pip install {wanted}") from None


class Session:
    def __init__(self, runner: runtime_tensorrt.Runner, ran: dict[str, Any]):
        self.runner, self.ran = runner, ran

    def __call__(self, images):
        return answer(lambda: self.runner(images), images)

    def bind(self, images):
        return self.runner.bind(images)
