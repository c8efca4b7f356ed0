"""The graph that leaves the house: bytes of an image in, a class number per pixel out, with everything in between inside it.

uint8 (B, H, W, 3) RGB "image" -> float -> the network, which normalises -> bilinear enlarging -> argmax -> uint8 (B, H, W) "classmap".

TensorRT knows uint8 only at the edges of a graph, and only on its way to or from floating point; so the first operator and the last
one are such casts. On a CPU that costs nothing (onnxruntime 1.31, 512x512: 0.25 against 0.28 ms for both edges).
"""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from kernels.upsample_argmax.reference import upsample_argmax as classmap  # in plain operators, which exporters know
from pipeline.errors import Missing, Stillhouse

log = logging.getLogger(__name__)


class Deployed(nn.Module):
    """The network between bytes and class numbers; also gives the logits (B, C, h, w) the class numbers come from."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.module(image.float().permute(0, 3, 1, 2))["logits"]
        return classmap(logits, (image.shape[1], image.shape[2]), self.module.align_corners), logits


def exported(module: nn.Module, size: tuple[int, int], exporter: str, opset: int, dynamic_batch: bool) -> onnx.ModelProto:
    """A graph with the outputs classmap and logits, without a trace of the machine that wrote it."""
    with quiet():
        proto = {"dynamo": by_dynamo, "optimum": by_optimum}[exporter](module.eval(), size, opset, dynamic_batch)
    batch = proto.graph.input[0].type.tensor_type.shape.dim[0]
    if dynamic_batch != bool(batch.dim_param):
        raise Stillhouse(
            f"a {'dynamic' if dynamic_batch else 'fixed'} batch was asked for, the exporter wrote {batch.dim_param or batch.dim_value}"
        )
    return without_traces(through_float(proto))


def through_float(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Class numbers become float32, which holds them exactly, before they become bytes."""
    nodes = proto.graph.node
    last = next(i for i, node in enumerate(nodes) if "classmap" in node.output)
    numbers = nodes[last].input[0]
    nodes.insert(last, helper.make_node("Cast", [numbers], ["classmap_float"], "classmap_float", to=TensorProto.FLOAT))
    nodes[last + 1].input[0] = "classmap_float"
    return proto


def by_dynamo(module: nn.Module, size: tuple[int, int], opset: int, dynamic_batch: bool) -> onnx.ModelProto:
    # Two images: with one, the exporter takes the batch for a constant without a word.
    example = torch.zeros(2 if dynamic_batch else 1, *size, 3, dtype=torch.uint8)
    try:
        program = torch.onnx.export(
            Deployed(module),
            (example,),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes={"image": {0: torch.export.Dim("batch")}} if dynamic_batch else None,
            input_names=["image"],
            output_names=["classmap", "logits"],
            external_data=False,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise Stillhouse(f"torch.onnx cannot export this network at opset {opset}: {str(error).strip().splitlines()[0]}") from error
    return program.model_proto


def by_optimum(module: nn.Module, size: tuple[int, int], opset: int, dynamic_batch: bool) -> onnx.ModelProto:
    """The transformers model inside an hf network, through optimum; head and tail are put around it here."""
    try:
        from optimum.exporters.onnx import onnx_export_from_model
    except ImportError as error:
        raise Missing(
            f"exporter: optimum needs optimum-onnx ({error}); pip install stillhouse[optimum] in an environment of its own"
        ) from None
    inner = transformers_model(module)
    with tempfile.TemporaryDirectory() as folder:
        onnx_export_from_model(inner, Path(folder), opset=opset, task="semantic-segmentation", do_validation=False)
        core = onnx.load(Path(folder) / "model.onnx")
    mean, std = (getattr(module, name).flatten().tolist() for name in ("mean", "std"))
    return between_bytes(core, size, mean, std, module.align_corners, "batch" if dynamic_batch else 1)


def transformers_model(module: nn.Module) -> nn.Module:
    """The outermost model of the transformers package in a network."""
    from transformers import PreTrainedModel

    for part in module.modules():
        if isinstance(part, PreTrainedModel):
            return part
    raise Stillhouse(f"exporter: optimum found no transformers model in {type(module).__name__}; write exporter: dynamo")


def between_bytes(
    core: onnx.ModelProto, size: tuple[int, int], mean: list[float], std: list[float], align_corners: bool, batch: str | int
) -> onnx.ModelProto:
    """Puts a graph pixel_values (B, 3, H, W) -> logits (B, C, h, w) between image bytes and class numbers. mean, std: for 0..255."""
    opset = next(entry.version for entry in core.opset_import if entry.domain in ("", "ai.onnx"))
    constants = {
        "to_mean": np.array(mean, np.float32).reshape(1, 3, 1, 1),
        "to_std": np.array(std, np.float32).reshape(1, 3, 1, 1),
        "to_size": np.array(size, np.int64),
        "to_first": np.array([0], np.int64),
        "to_second": np.array([2], np.int64),
    }
    head = [
        helper.make_node("Cast", ["image"], ["image_float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["image_float"], ["image_nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["image_nchw", "to_mean"], ["image_centred"]),
        helper.make_node("Div", ["image_centred", "to_std"], [core.graph.input[0].name]),
    ]
    how = "align_corners" if align_corners else "half_pixel"
    tail = [
        helper.make_node("Shape", ["logits"], ["logits_shape"]),
        helper.make_node("Slice", ["logits_shape", "to_first", "to_second"], ["logits_batch"]),
        helper.make_node("Concat", ["logits_batch", "to_size"], ["logits_target"], axis=0),
        helper.make_node(
            "Resize", ["logits", "", "", "logits_target"], ["logits_large"], mode="linear", coordinate_transformation_mode=how
        ),
        helper.make_node("ArgMax", ["logits_large"], ["classes"], axis=1, keepdims=0),
        helper.make_node("Cast", ["classes"], ["classmap"], to=TensorProto.UINT8),
    ]
    logits = next(value for value in core.graph.output if value.name == "logits")
    classes = logits.type.tensor_type.shape.dim[1].dim_value
    graph = helper.make_graph(
        [*head, *core.graph.node, *tail],
        "deployed",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [batch, *size, 3])],
        [
            helper.make_tensor_value_info("classmap", TensorProto.UINT8, [batch, *size]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes or "classes", "h", "w"]),
        ],
        [*core.graph.initializer, *(numpy_helper.from_array(value, name) for name, value in constants.items())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=core.ir_version)
    model.producer_name = "stillhouse"
    return onnx.shape_inference.infer_shapes(model)


def without_traces(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Drops what exporters note about the code they ran through: stack traces hold the paths of this machine."""
    del proto.metadata_props[:]
    proto.doc_string = ""
    graphs = [proto.graph]
    while graphs:
        graph = graphs.pop()
        graph.doc_string = ""
        for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
            part.doc_string = ""
            del part.metadata_props[:]
        graphs += [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return proto


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What exporters print and warn goes to the log: nobody can act on it."""
    said = io.StringIO()
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "optimum", "transformers")
    levels = {name: logging.getLogger(name).level for name in names}
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            if said.getvalue().strip():
                log.info("%s", said.getvalue().strip())
