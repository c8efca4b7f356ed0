"""Makes ready what benchmarks/end_to_end.py races: the padded student and the random network, exported, cut and quantised.

The conventional file is the plain export between the normalised image and the logits. Ours are engines of the rewritten export, which
the stages export, quantize and optimize would make: built by the same functions.
"""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx.utils import Extractor

from benchmarks.racers import Racer
from pipeline.artifact import Artifact
from pipeline.errors import BadData, Stillhouse
from stages import graph
from stages.export import write
from stages.int8 import quantised
from stages.measure.parity import probes
from stages.models import Model, open_model, row_of
from stages.quantize import loaded

OPSET = 20
DRAWN, CALIBRATED = 8, 32  # pictures


class Pictures(NamedTuple):
    """What is raced and judged on."""

    images: np.ndarray  # uint8 (N, H, W, 3)
    labels: np.ndarray | None  # uint8 (N, H, W), 255 is ignored
    calibration: np.ndarray  # uint8 (n, H, W, 3), of the train split
    what: str


def pictures_of(root: Path | None, size: tuple[int, int], split: str, most: int, student: Artifact | None, work: Path) -> Pictures:
    """Of a folder in CamVid's form, at most so many (0: all) of a split; without a folder, drawn ones."""
    if root is None:
        drawn = np.stack([image for _, image in probes(size, DRAWN)])
        return Pictures(drawn, None, drawn, f"{len(drawn)} drawn pictures, no labels")
    from stages.data import Data
    from stages.samples import open_samples

    job = Job(work / "data")
    made = Data.model_validate({"kind": "data", "source": {"kind": "camvid", "root": str(root)}, "size": list(size)}).run({}, job)
    dataset = Artifact("data", "Dataset", "", job.out, made.facts, made.beside)
    if student and student.facts["classes"] != dataset.facts["classes"]:
        raise Stillhouse(f"the student knows {student.facts['classes']}, {root} has {dataset.facts['classes']}")
    train, judged = open_samples(dataset, "train"), open_samples(dataset, split)
    pairs = [judged[i] for i in spread(len(judged), most)]
    images, labels = (np.stack(part) for part in zip(*pairs, strict=True))
    calibration = np.stack([train[i][0] for i in spread(len(train), CALIBRATED)])
    return Pictures(images, labels, calibration, f"{len(images)} pictures of {split}, INT8 calibrated on {len(calibration)} of train")


def spread(total: int, wanted: int) -> list[int]:
    """Evenly spread numbers below `total`; 0 wants all."""
    return sorted({i * total // wanted for i in range(wanted)}) if 0 < wanted < total else list(range(total))


def student_of(folder: Path) -> Artifact:
    """A Checkpoint artifact of a store, by its folder."""
    if not (folder / "MANIFEST.json").is_file() or not (folder / "weights.safetensors").is_file():
        raise BadData(f"{folder} is no Checkpoint: it needs MANIFEST.json and weights.safetensors (`show RUN/STAGE` tells where one lies)")
    manifest = json.loads((folder / "MANIFEST.json").read_text(encoding="utf-8"))
    return Artifact("student", manifest["kind"], folder.name, folder, manifest["facts"])


def padded(student: Artifact, classes: int, pictures: Pictures) -> torch.nn.Module:
    """The student with a classifier of `classes` rows: its own, then rows that never win, which say one low number everywhere.

    That number is 1 below the lowest logit of the student on the pictures of calibration: nowhere near the largest of a pixel, and it
    hardly widens the range of the logits, which -10,000 would make useless to whoever quantises them.
    """
    row, net, own = row_of(student), open_model(student), len(student.facts["classes"])
    if classes < own:
        raise BadData(f"--classes {classes}: the student has {own} classes, and padding only adds some")
    low = math.floor(min(float(logits_of(net, picture).min()) for picture in pictures.calibration)) - 1.0
    with torch.random.fork_rng(devices=[]):
        wide = row.build(classes)
    state = wide.state_dict()
    for key, value in net.state_dict().items():
        if value.shape == state[key].shape:
            state[key].copy_(value)
        elif value.shape[0] == own and state[key].shape[0] == classes and value.shape[1:] == state[key].shape[1:]:
            state[key].fill_(low if value.ndim == 1 else 0.0)[:own] = value
        else:
            raise BadData(f"{student.name}: {key} of {list(value.shape)} is no row per class, and cannot be padded to {classes} classes")
    return wide.eval()


def logits_of(net: torch.nn.Module, picture: np.ndarray) -> torch.Tensor:
    """picture uint8 (H, W, 3) -> (1, C, h, w)."""
    with torch.inference_mode():
        return net(torch.from_numpy(np.array(picture)[None]).permute(0, 3, 1, 2).float())["logits"]


def random_network(row: Model, classes: int) -> torch.nn.Module:
    """Fresh weights, and statistics of BatchNorm as training would leave them: not at their start. More borders than a trained one has."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = row.build(classes)
        for key, value in net.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 2.0)
    return net.eval()


def files(row: Model, net: torch.nn.Module, size: tuple[int, int], racers: list[Racer], calibration: np.ndarray, work: Path) -> dict:
    """What each racer opens: {name: {"file": ..} or {"folder": .., "facts": ..}}. `calibration`: uint8 (N, H, W, 3)."""
    work.mkdir()
    plain, rewritten = (graph.exported(each, size, "dynamo", OPSET, True) for each in (net, row.folded(net)))
    conventional, classes = work / "conventional.onnx", plain.graph.output[1].type.tensor_type.shape.dim[1].dim_value
    conventional.write_bytes(cut(plain, normalised(plain)).SerializeToString())
    facts = {"size": list(size), "classes": list(map(str, range(classes))), "align_corners": net.align_corners}
    sources, found = {"f32": artifact(rewritten, facts, work / "f32")}, {}
    for k, racer in enumerate(racers):
        if racer.tail == "torch":
            found[racer.name] = {"file": str(conventional)}
            continue
        source = f"{racer.runtime} int8" if "int8" in racer.precision else "f32"
        if source not in sources:
            proto = quantised(loaded(sources["f32"].file("model.onnx")), calibration, racer.runtime, work)
            sources[source] = artifact(proto, facts | {"precision": "int8"}, work / source.replace(" ", "_"))
        folder = work / f"engine_{k}"
        folder.mkdir()
        found[racer.name] = {"facts": racer.row().build(sources[source], folder), "folder": str(folder)}
    return found


def artifact(proto: onnx.ModelProto, facts: dict[str, Any], folder: Path) -> Artifact:
    folder.mkdir()
    write(proto, folder / "model.onnx", keep_logits=False)
    return Artifact(folder.name, "OnnxModel", "", folder, facts)


def cut(proto: onnx.ModelProto, start: str) -> onnx.ModelProto:
    """The graph from the tensor `start` to `logits`."""
    return Extractor(onnx.shape_inference.infer_shapes(proto)).extract_model([start], ["logits"])


def normalised(proto: onnx.ModelProto) -> str:
    """The tensor that the first convolution reads: what lies before it is Transpose, Cast and normalising."""
    return next(node.input[0] for node in proto.graph.node if node.op_type == "Conv")


class Job:
    """What a data stage asks of the runner."""

    rehearsing = False

    def __init__(self, folder: Path):
        self.out, self.state = folder, folder
        folder.mkdir()

    def say(self, text: str) -> None:
        say(text)

    def progress(self, done: int, total: int, **figures: float) -> None:
        pass

    def stop_asked(self) -> int:
        return 0


def say(text: str) -> None:
    """To whoever waits; the table is for standard output."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)
