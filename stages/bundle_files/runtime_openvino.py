"""Opens engine.xml in OpenVINO, with the arithmetic it was measured with."""

import sys
from pathlib import Path

TYPES = {"f32": "float32", "bf16": "bfloat16"}  # as the runtime prints them


class Unfit(Exception):
    """This machine cannot run the engine as it was measured."""


def load(folder: Path, settings: dict):
    """A function from uint8 (1, H, W, 3) to uint8 (1, H, W)."""
    sys.modules.setdefault("openvino_telemetry", None)  # through it, importing openvino would call a server of its makers
    import openvino

    core = openvino.Core()
    model = core.read_model(folder / "engine.xml")
    model.reshape({"image": [1, *list(model.input("image").partial_shape)[1:]]})  # faster than any number of images
    how = {"INFERENCE_PRECISION_HINT": settings["precision"], "PERFORMANCE_HINT": "LATENCY"}
    if settings["threads"]:
        how["INFERENCE_NUM_THREADS"] = settings["threads"]
    if settings["precision"] == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise Unfit("this engine was measured in bf16, and this CPU has no bfloat16 arithmetic")
    compiled = core.compile_model(model, "CPU", how)
    ran = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if ran not in (settings["precision"], TYPES[settings["precision"]]):
        raise Unfit(f"this engine was measured in {settings['precision']}; openvino computes in {ran} on this machine")
    return lambda images: compiled({"image": images})["classmap"]
