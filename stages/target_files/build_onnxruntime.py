"""Builds for onnxruntime on a target: the engine is the ONNX file as it was sent; opening it shows whether the runtime takes it."""

import os
import shutil
from pathlib import Path


def build(onnx: Path, out: Path, settings: dict, have) -> dict:
    """Writes engine.* into `out`; tells what ran, as stages/engines/onnxruntime.py says it. `have.runtime` is what will open it."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # since 1.29 the runtime tells its makers of every model it opens unless this is set
    import onnxruntime

    shutil.copyfile(onnx, out / "engine.onnx")
    version, provider = f"onnxruntime {onnxruntime.__version__}", have.runtime.PROVIDERS[settings["provider"]]
    return {"ran": {"runtime": version, "provider": provider, "precision": "as exported", "threads": settings["threads"]}}
