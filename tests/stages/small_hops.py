"""A network that learned for a few seconds, its hops to an engine, and the same hops broken on purpose: what the waterfall must name."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper

from pipeline.artifact import Artifact
from tests.stages import small_line

SIZE = (64, 128)
LINEAGE = {"student": {"data": ["data"]}, "onnx": {"data": ["data"], "checkpoint": ["student"]}, "engine": {"onnx": ["onnx"]}}


def line(folder: Path) -> dict[str, Artifact]:
    from stages.data import Data

    source = {"kind": "streets", "seed": 5, "train": 24, "val": 8, "test": 0}
    dataset = small_line.made(Data.model_validate({"kind": "data", "source": source, "size": list(SIZE)}), "data", {}, folder)
    student = small_line.checkpoint(folder, dataset)
    learned(student, dataset)
    made = small_line.exported(folder, dataset, student)
    return {"data": dataset, "student": student, "onnx": made, "engine": small_line.engine(folder, made, kind="onnxruntime", threads=1)}


def learned(checkpoint: Artifact, dataset: Artifact, steps=200) -> None:
    """Trains the checkpoint where it lies; enough to tell sky from road."""
    from stages.models import open_model
    from stages.samples import open_samples
    from stages.weights import save_checkpoint

    torch.manual_seed(0)
    module, samples = open_model(checkpoint).train(), open_samples(dataset, "train")
    images = torch.from_numpy(np.stack([samples[i][0] for i in range(len(samples))])).permute(0, 3, 1, 2).float()
    labels = torch.from_numpy(np.stack([samples[i][1] for i in range(len(samples))])).long()
    optimiser = torch.optim.AdamW(module.parameters(), 5e-3)
    for _ in range(steps):
        picked = torch.randint(len(images), (4,))
        logits = module(images[picked])["logits"]
        loss = F.cross_entropy(F.interpolate(logits, labels.shape[1:], mode="bilinear"), labels[picked], ignore_index=255)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    (checkpoint.folder / "weights.safetensors").unlink()
    save_checkpoint(checkpoint.folder, module.state_dict())


def edited(artifact: Artifact, folder: Path, file: str, edit, **facts) -> Artifact:
    """The same artifact with one ONNX file of it changed by `edit(proto)`."""
    shutil.copytree(artifact.folder, folder)
    proto = onnx.load(folder / file)
    edit(proto)
    onnx.save(proto, folder / file)
    return dataclasses.replace(artifact, folder=folder, facts=artifact.facts | facts)


def normalised_wrongly(proto: onnx.ModelProto) -> None:
    """As if the mean had been subtracted from values 0..1: the network sees images far too bright."""
    mean = next(tensor for tensor in proto.graph.initializer if tensor.name == "module.mean")
    mean.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(mean) / 255, mean.name))


def resized(proto: onnx.ModelProto, **attributes: str) -> None:
    """The enlarging of the logits with other attributes."""
    node = next(node for node in proto.graph.node if node.op_type == "Resize" and node.input[0] in ("logits", "tail_logits"))
    for attribute in node.attribute:
        if attribute.name in attributes:
            attribute.s = attributes[attribute.name].encode()


def quantised(source: Artifact, folder: Path, images: list[np.ndarray]) -> Artifact:
    """INT8 after training, with ranges as found on `images` uint8 (H, W, 3)."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = iter(images)

        def get_next(self):
            image = next(self.left, None)
            return None if image is None else {"image": image[None]}

    shutil.copytree(source.folder, folder)
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True, "op_types_to_quantize": ["Conv"]}
    types["reduce_range"] = True  # CPUs without VNNI saturate sums of two full products: every CPU shall see the same loss
    quantize_static(source.file("model.onnx"), folder / "model.onnx", Reader(), quant_format=QuantFormat.QDQ, **types)
    how = {"to": "int8", "runtime": "onnxruntime", "how": "post-training"}
    return dataclasses.replace(source, name="int8", folder=folder, facts=source.facts | {"precision": "int8", "quantized": how})
