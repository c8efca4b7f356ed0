"""Builds for OpenVINO on a target: its own file of the network, weights as they were sent."""

import sys
from importlib import metadata
from pathlib import Path


def build(onnx: Path, out: Path, settings: dict, have) -> dict:
    """Writes engine.* into `out`; tells what ran, as stages/engines/openvino.py says it. `have.runtime` is what will open it."""
    sys.modules.setdefault("openvino_telemetry", None)  # through it, importing openvino would call a server of its makers
    import openvino

    openvino.save_model(openvino.Core().read_model(onnx), out / "engine.xml", compress_to_fp16=False)
    version = f"openvino {metadata.version('openvino')}"
    return {"ran": {"runtime": version, "provider": "CPU", "precision": settings["precision"], "threads": settings["threads"]}}
