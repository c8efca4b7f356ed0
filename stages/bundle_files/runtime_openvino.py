"""Opens engine.xml in OpenVINO, with the arithmetic it was measured with."""

import sys
from pathlib import Path

TYPES = {"f32": "float32", "bf16": "bfloat16"}  # as the runtime prints them


class Unfit(Exception):
    """This machine cannot run the engine as it was measured."""


def load(folder: Path, settings: dict):
    """A function from uint8 (1, H, W, 3) to uint8 (1, H, W), or to float32 logits (1, C, h, w) where the argmax is native.

    Its `bind` is for measuring.
    """
    compiled, gives = opened(folder / "engine.xml", settings), "logits" if settings.get("argmax") == "native" else "classmap"

    def run(images):
        return compiled({"image": images})[gives]

    def bind(images):
        """A function that runs the engine alone, on images that lie where it reads them."""
        import openvino

        request = compiled.create_infer_request()
        request.set_tensor("image", openvino.Tensor(images, shared_memory=False))
        return request.infer

    run.bind = bind
    return run


def load_tail(folder: Path, settings: dict):
    """A function from float32 logits (1, C, h, w) to uint8 (1, H, W): what the engine leaves to native code, as a graph."""
    compiled = opened(folder / "engine.tail.onnx", {**settings, "precision": "f32"})  # as native code computes
    return lambda logits: compiled({"logits": logits})["classmap"]


def opened(file: Path, settings: dict):
    sys.modules.setdefault("openvino_telemetry", None)  # through it, importing openvino would call a server of its makers
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    given = model.input(0)
    model.reshape({given.any_name: [1, *list(given.partial_shape)[1:]]})  # faster than any number of images
    how = {"INFERENCE_PRECISION_HINT": settings["precision"], "PERFORMANCE_HINT": "LATENCY"}
    if settings["threads"]:
        how["INFERENCE_NUM_THREADS"] = settings["threads"]
    if settings["precision"] == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise Unfit("this engine was measured in bf16, and this CPU has no bfloat16 arithmetic")
    compiled = core.compile_model(model, "CPU", how)
    ran = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if ran not in (settings["precision"], TYPES[settings["precision"]]):
        raise Unfit(f"this engine was measured in {settings['precision']}; openvino computes in {ran} on this machine")
    return compiled
