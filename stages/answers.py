"""Runs ONNX graphs that are still being made, in onnxruntime on the CPU: what they answer, and how far two of them are apart."""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pipeline.errors import BadData

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto


def answers(proto: "ModelProto", images: "Iterable[np.ndarray]") -> "tuple[np.ndarray, np.ndarray]":
    """Class maps uint8 (N, H, W) and logits float32 (N, C, h, w) for images uint8 (H, W, 3)."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper

    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    if not any(output.name == "logits" for output in shown.graph.output):
        shown.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, None))
    session = session_of(shown)
    found = [session.run(["classmap", "logits"], {"image": image[None].copy()}) for image in images]
    maps, logits = (np.concatenate(parts) for parts in zip(*found, strict=True))
    if not np.isfinite(logits).all():
        raise BadData("the logits of the network are not finite on an image of train: there is nothing to compare. Train it again")
    return maps, logits


def session_of(proto: "ModelProto") -> Any:
    """A session of the package on a graph of our own making, which may have outputs that a published file may not."""
    from stages.engines import need

    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    ort = need("onnxruntime", "pip install onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def sqnr(signal: "np.ndarray", other: "np.ndarray") -> float:
    """Signal to quantisation noise in dB; 200 where there is none."""
    import numpy as np

    noise, power = (float(np.square(x, dtype=np.float64).sum()) for x in (signal - other, signal))
    return round(10 * float(np.log10(power / noise)), 2) if noise > power * 1e-20 else 200.0
