"""Builds for TensorRT and TensorRT-RTX on a target, through the file with which a bundle builds: a plan for the GPU that is there."""

from pathlib import Path


def build(onnx: Path, out: Path, settings: dict, have) -> dict:
    """Writes engine.* into `out`; tells what ran and what is worth knowing of the build, as stages/engines/_nvinfer.py does.

    `have`: runtime (what will open it), planner (build_tensorrt.py of a bundle), layers (stages/engines/_layers.py), machine.
    An engine.timing that lies in `out` already is what an earlier build measured.
    """
    if not have.runtime.has_driver():
        raise have.runtime.Unfit("an engine is built on the GPU that will run it, and the driver shows none on this machine")
    trt, timing = have.runtime.imported(settings["kind"]), out / "engine.timing"
    log, memory = have.runtime.logger(trt), have.runtime.memory_of(settings["memory"])
    measured = timing.read_bytes() if timing.is_file() else None
    made = have.planner.built(trt, onnx.read_bytes(), settings, log, measured, have.layers.described)
    (out / "engine.plan").write_bytes(made.plan)
    if made.timing is not None:
        timing.write_bytes(made.timing)
    runner = have.runtime.Runner(trt, made.plan, memory, log, settings.get("version_compatible", False))
    (out / "engine.layers.json").write_text(runner.insight(), encoding="utf-8")
    made.told["network"]["plain"] = [plain(name) for name in made.told["network"]["plain"]]
    made.told["warnings"] = [plain(text) for text in made.told["warnings"]]
    precision = made.told["network"]["precision"] + (" with tf32" if settings["tf32"] else "")
    ran = {"runtime": have.planner.named(trt), "provider": have.machine.gpus()[0]["name"], "precision": precision}
    return {"ran": {**ran, "threads": None, "memory": memory.name}, "told": made.told}


def plain(text: str) -> str:
    """As stages/elsewhere.py takes words."""
    return "".join(c if c.isprintable() else " " for c in text)[:200]
