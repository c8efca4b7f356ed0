"""INT8 after training: ranges from calibration images, rounding as Q/DQ in the ONNX file, in the form that each runtime takes.

| runtime     | by                       | activations     | weights, per channel| Q/DQ stand                  | bias  | all else |
|-------------|--------------------------|-----------------|---------------------|-----------------------------|-------|----------|
| onnxruntime | onnxruntime.quantization | uint8, any zero | int8, zero at 0     | before layers, after Conv   | int32 | float32  |
| tensorrt    | onnxruntime.quantization | int8, zero at 0 | int8, zero at 0     | before layers               | float | float16  |
| openvino    | nncf                     | uint8, any zero | int8, zero at 0     | before layers               | float | float32  |

Layers are Conv, MatMul and Gemm, attention's own products among them (NNCF leaves out that of queries and keys); LayerNorm, Softmax,
sums and enlarging are not rounded, and the logits are float32.
onnxruntime has an integer Conv only where its result is rounded too; of MatMul it takes the float result. TensorRT refuses a zero
elsewhere than at 0, and a rounded bias. OpenVINO 2026.4 is wrong on some graphs with int8 activations (0.49 to 0.68 of the pixels).
Activations have one scale per tensor.
NNCF's bias correction is off, because it fails on heads with folded BatchNorm (3.4.0); SmoothQuant too, because it changes weights,
and a layer that is taken back to float needs those it was trained with (SegFormer-B0: the same quality).
"""

import contextlib
import io
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import BadData
from stages import machine, qdq
from stages.engines import need

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto

OPTIONS = {  # of onnxruntime.quantization: operators looked at, type of activations, extra options
    "onnxruntime": ([*qdq.LAYERS, *qdq.ACTIVATIONS], "QUInt8", {"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]}),
    "tensorrt": (
        [*qdq.LAYERS],
        "QInt8",
        {"OpTypesToExcludeOutputQuantization": [*qdq.LAYERS], "ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    ),
}
HALF = ("tensorrt",)  # its GPUs are made for float16, and it builds exactly the types it is given
ROUNDING = {"onnxruntime": ("Conv",), "tensorrt": (), "openvino": ()}  # layers whose results are rounded too


def tool(runtime: str) -> str:
    """Who quantises for this runtime, with its version."""
    return machine.version("nncf") if runtime == "openvino" else machine.version("onnxruntime", "onnxruntime-gpu")


def quantised(proto: "ModelProto", images: "Iterable[np.ndarray]", runtime: str, work: Path) -> "ModelProto":
    """The graph with Q/DQ for this runtime in it, in the form of stages/qdq.py. Images uint8 (H, W, 3); `work` is for passing files."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    with quiet():
        found = by_nncf(proto, images) if runtime == "openvino" else by_onnxruntime(proto, images, runtime, work)
    found = qdq.without_pair_on(qdq.loosened(found, proto, rounding=ROUNDING[runtime]), "logits")
    if not qdq.layers(found):
        raise BadData(f"the ONNX file has no {', '.join(qdq.LAYERS)} that {tool(runtime)} would quantise: leave it in float")
    return found


def by_onnxruntime(proto: "ModelProto", images: "Iterable[np.ndarray]", runtime: str, work: Path) -> "ModelProto":
    import onnx

    need("onnxruntime", "pip install onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_static

    operators, activations, extra = OPTIONS[runtime]
    onnx.save(proto, work / "float.onnx")  # given the graph itself, the tool moves its weights to a file
    quantize_static(
        work / "float.onnx",
        work / "quantised.onnx",
        Reader(images),
        op_types_to_quantize=operators,
        per_channel=True,
        activation_type=QuantType[activations],
        weight_type=QuantType.QInt8,
        extra_options=extra,
    )
    found = onnx.load(work / "quantised.onnx")
    return qdq.restored(proto, found)


class Reader:
    """Hands onnxruntime one image after the other."""

    def __init__(self, images: "Iterable[np.ndarray]"):
        self.images = iter(images)

    def get_next(self) -> dict[str, Any] | None:
        image = next(self.images, None)
        return None if image is None else {"image": image[None].copy()}

    def __len__(self) -> int:
        raise TypeError("images come one by one")


def by_nncf(proto: "ModelProto", images: "Iterable[np.ndarray]") -> "ModelProto":
    nncf = nncf_silent()
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, AdvancedSmoothQuantParameters, QuantizationParameters

    batches = [image[None].copy() for image in images]  # read more than once
    found = nncf.quantize(
        proto,
        nncf.Dataset(batches, lambda batch: {"image": batch}),
        subset_size=len(batches),
        model_type=nncf.ModelType.TRANSFORMER,  # convolutions come out the same
        advanced_parameters=AdvancedQuantizationParameters(
            disable_bias_correction=True,
            smooth_quant_alphas=AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
            activations_quantization_params=QuantizationParameters(per_channel=False),  # onnxruntime, which compares, knows no other
        ),
    )
    return qdq.unsigned(found)


def nncf_silent() -> Any:
    """NNCF without the package through which its import calls a server of its makers and writes to the user's home."""
    from stages.engines.openvino import silent

    silent()
    nncf = need("nncf", "pip install stillhouse[openvino]")
    logging.getLogger("nncf").setLevel(logging.ERROR)  # its own set_log_level also turns down handlers that others have put there
    return nncf


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Advice and progress bars of the tools: nobody can act on them."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers  # logging.warning() brings one of its own
