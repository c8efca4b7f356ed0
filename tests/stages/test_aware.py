"""INT8 by learning: the file is the network that learnt, both runtimes run it, and it loses next to nothing."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pipeline.artifact import Artifact
from pipeline.errors import BadData, BadRecipe, Stillhouse
from stages import aware, graph
from stages.aware import Aware
from stages.data import Data
from stages.embed import Embed
from stages.engines.onnxruntime import session_of
from stages.engines.pytorch import session_of as torch_session
from stages.fakequant import RUNTIMES, fake_quantised
from stages.kd import Pair
from stages.kd._step import Step
from stages.kd._terms import Terms
from stages.load import measured
from stages.loop import fit
from stages.measure.miou import counts, miou
from stages.models import open_model, row_of
from stages.samples import open_samples
from stages.train import Train
from tests.stages import small_line
from tests.stages.small_fit import Job, forget_accelerate, rows, settings

torch.set_num_threads(1)
SIZE = [64, 96]
SAME = {"scale": [1, 1]}


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """Artifacts of a student trained for some seconds, and of its INT8."""
    folder = tmp_path_factory.mktemp("aware")

    def made(name, stage, **inputs):
        forget_accelerate()
        job = small_line.Job(folder / name)
        result = stage.run(inputs, job)
        return Artifact(name, stage.makes, name, job.out, json.loads(json.dumps(result.facts)), result.beside)

    source = {"kind": "streets", "seed": 7, "train": 24, "val": 12, "test": 0}
    data = made("data", Data.model_validate({"kind": "data", "source": source, "size": SIZE}))
    fit = {"steps": 150, "batch": 4, "lr": 1e-2, "seed": 1, "augment": SAME}
    student = made("student", Train.model_validate({"kind": "train", "data": "data", "model": {"kind": "tiny"}, "fit": fit}), data=data)
    int8 = made("int8", stage_of(fit=fit | {"steps": 30, "lr": 1e-3}), data=data, checkpoint=student)
    return SimpleNamespace(data=data, student=student, int8=int8)


def stage_of(**changes):
    made = {"kind": "aware", "data": "data", "checkpoint": "student", "runtime": "openvino", "fit": {"steps": 2}}
    return Aware.model_validate(made | changes)


def images_of(data, split="val"):
    samples = open_samples(data, split)
    return [samples[i][0] for i in range(len(samples))]


def torch_image(image):
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()


@pytest.fixture(scope="module")
def openvino_maps(line):
    """Of a batch of the val images, as OpenVINO gives them for the file."""
    pytest.importorskip("openvino")
    from stages.engines.openvino import core

    model = core().read_model(line.int8.file("model.onnx"))
    compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled({"image": np.stack(images_of(line.data))})["classmap"]


def miou_of(maps, data):
    samples = open_samples(data, "val")
    return miou(sum(counts(guess, samples[i][1], len(samples.classes)) for i, guess in enumerate(maps)))[0]


def test_on_both_runtimes_it_is_as_good_as_the_student_in_float(line, openvino_maps):
    images = np.stack(images_of(line.data))
    float_ = miou_of(torch_session(open_model(line.student))(images), line.data)
    int8 = miou_of(session_of(line.int8.file("model.onnx"))(images), line.data)
    openvino = miou_of(openvino_maps, line.data)
    print("float", float_, "int8", int8, "openvino", openvino)
    assert float_ > 15
    assert int8 > float_ - 0.3 and openvino > float_ - 0.3


def test_the_file_is_the_network_that_learnt_and_openvino_computes_it(line, openvino_maps):
    parity = line.int8.facts["parity"]
    assert parity["images"] == 8 and parity["agreement"] >= 0.9999 and parity["max_logit_error"] < 1e-3
    assert (openvino_maps == session_of(line.int8.file("model.onnx"))(np.stack(images_of(line.data)))).mean() >= 0.999


def test_every_layer_takes_rounded_inputs_and_int8_weights_with_a_step_per_channel(line):
    graph = onnx.load(line.int8.file("model.onnx")).graph
    held = {x.name: numpy_helper.to_array(x) for x in graph.initializer}
    maker = {name: node for node in graph.node for name in node.output}
    convs = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convs) == line.int8.facts["quantized"]["layers"] == 15
    for node in convs:
        x, w = (maker[name] for name in node.input[:2])
        assert x.op_type == w.op_type == "DequantizeLinear" and maker[x.input[0]].op_type == "QuantizeLinear"
        weight, steps = held[w.input[0]], held[w.input[1]]
        assert weight.dtype == np.int8 and steps.shape == (len(weight),) and next(a.i for a in w.attribute if a.name == "axis") == 0
        assert (np.abs(weight.reshape(len(weight), -1)).max(1) >= 100).all() and weight.min() >= -127  # the codes are used
        assert held[x.input[2]].dtype == np.uint8 and node.input[2] in held and held[node.input[2]].dtype == np.float32
    assert maker["logits"].op_type == "Conv" and not any("logits" in node.input and node.op_type == "QuantizeLinear" for node in graph.node)


def test_the_model_takes_and_gives_what_every_exported_one_does_and_tells_how_it_was_made(line):
    graph = onnx.load(line.int8.file("model.onnx")).graph
    assert [(v.name, v.type.tensor_type.elem_type) for v in (*graph.input, *graph.output)] == [
        ("image", TensorProto.UINT8),
        ("classmap", TensorProto.UINT8),
    ]
    facts = line.int8.facts
    assert facts["precision"] == "int8" and facts["align_corners"] is False and facts["batch"] == "any" and facts["opset"] == 20
    assert facts["quantized"] == {"to": "int8", "runtime": "openvino", "how": "aware", "steps": 30, "layers": 15}
    assert facts["classes"] == line.data.facts["classes"] and facts["size"] == [64, 96]
    assert facts["parameters"] == sum(p.numel() for p in open_model(line.student).parameters())
    assert line.int8.json("preprocessing.json")["enlarging"]["how"] == "bilinear, half-pixel centres, then argmax"
    assert len(line.int8.json("curves.json")["train"]) == 30
    content = line.int8.file("model.onnx").read_bytes()
    assert b"stack_trace" not in content and b".py" not in content


def calibrated(line, runtime="openvino", folded=None):
    """The student with rounding in it, as it is before it learns."""
    folded = folded if folded is not None else row_of(line.student).folded(open_model(line.student))
    return folded, fake_quantised(folded, map(torch_image, images_of(line.data, "train")[:8]), RUNTIMES[runtime])


def test_a_file_that_is_not_the_network_is_refused_and_says_so(line, tmp_path, monkeypatch):
    written = onnx.load(line.int8.file("model.onnx"))
    written.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 12, 16, 24]))
    monkeypatch.setattr(graph, "exported", lambda *a: written)
    job = Job(tmp_path)
    job.state.mkdir()
    _, other = calibrated(line)  # before it learnt
    with pytest.raises(Stillhouse, match="the exported file is not the network: on 8 images of val it agrees with PyTorch on 9"):
        aware.published(other, (64, 96), line.data, stage_of(), job)


def test_a_network_that_float64_computes_the_same_must_be_met_almost_everywhere(line):
    _, net = calibrated(line)
    least = aware.least_agreement(net, line.data, stage_of())
    assert 0.99 < least <= 0.999


def made_hard(folded):
    """The same function, with one channel of the last map 400 times as large and the classifier's weights for it 400 times as small."""
    with torch.no_grad():
        first, taker = folded.fuse[0], folded.classifier
        k = int(taker.weight.abs().sum((0, 2, 3)).argmax())
        first.weight[k] *= 400
        first.bias[k] *= 400
        taker.weight[:, k] /= 400
    return folded


def test_learning_brings_back_what_rounding_costs_where_one_channel_takes_all_codes(line, tmp_path):
    forget_accelerate()
    job = Job(tmp_path)
    folded, student = calibrated(line, folded=made_hard(row_of(line.student).folded(open_model(line.student))))
    whole, rounded = (measured(net, line.data, job)["miou"] for net in (folded, student))
    terms = Terms(*rows({"kind": "ce"}), rows({"kind": "pixel"}), Pair(folded.widths, folded.widths, len(line.data.facts["classes"])), 0)
    chosen = settings(steps=60, lr=5e-4, crop=SIZE, validate_every=0, weight_decay=0.0, augment=SAME)
    done = fit(student, terms, open_samples(line.data, "train"), open_samples(line.data, "val"), chosen, job, folded)
    print("float", whole, "rounded", rounded, "learnt", done.val["miou"])
    assert rounded < whole - 5.0
    assert done.val["miou"] > whole - 1.0


EARLIER = {
    "data": Data.model_validate({"kind": "data", "source": {"kind": "streets"}, "size": [64, 96]}),
    "student": Train.model_validate({"kind": "train", "data": "data", "model": {"kind": "tiny"}}),
}


def problems(**changes):
    return {".".join(map(str, path)): text for path, text in stage_of(**changes).problems(EARLIER)}


def test_what_cannot_work_is_said_before_anything_runs():
    assert problems() == {}
    assert "write fp32" in problems(fit={"precision": "bf16"})["fit.precision"]
    assert "fit.compile" in problems(fit={"compile": True})
    assert "multiples of 32" in problems(fit={"crop": [40, 64]})["fit.crop"]
    assert "vector of language" in problems(losses=[{"kind": "text"}])["losses.0"]
    native = EARLIER | {"data": Data.model_validate({"kind": "data", "source": {"kind": "streets"}, "size": "native"})}
    assert "one image size" in dict(stage_of(fit={"crop": [64, 64]}).problems(native))[("data",)]
    odd = EARLIER | {"data": Data.model_validate({"kind": "data", "source": {"kind": "streets"}, "size": [60, 96]})}
    assert "Write size: [64, 96]" in dict(stage_of().problems(odd))[("data",)]


def test_vectors_of_language_that_nobody_reads_are_refused():
    words = Embed.model_validate({"kind": "embed", "data": "data", "file": "words.npy", "rows": ["road"]})
    found = dict(stage_of(text="words").problems(EARLIER | {"words": words}))
    assert found == {("text",): "no loss here uses vectors of language (those that do: text): add one, or leave text out"}


def test_an_auxiliary_head_has_no_loss_and_nobody_is_told_to_give_it_one(line, tmp_path, monkeypatch):
    """No file will hold it: its cross-entropy would only pull at the network below it."""
    headed = {"kind": "train", "data": "data", "model": {"kind": "tiny", "aux": True}, "fit": {"steps": 1, "batch": 2, "augment": SAME}}
    stage = Train.model_validate(headed)
    assert dict(stage_of(task={"kind": "ce", "aux_weight": 0.0}).problems(EARLIER | {"student": stage})) == {}
    forget_accelerate()
    made = stage.run({"data": line.data}, job := small_line.Job(tmp_path / "headed"))
    student = Artifact("headed", "Checkpoint", "headed", job.out, json.loads(json.dumps(made.facts)), made.beside)
    assert "aux" in open_model(student).widths
    found = []
    monkeypatch.setattr("stages.loop.fit", lambda net, terms, *_: found.append(terms) or sys.exit())
    with pytest.raises(SystemExit):
        stage_of().run({"data": line.data, "checkpoint": student}, small_line.Job(tmp_path / "int8"))
    image = torch_image(images_of(line.data)[0])
    step = Step(open_model(student)(image), open_model(student)(image), torch.zeros(1, *SIZE, dtype=torch.uint8), maps=found[0].maps)
    assert set(found[0](step)[0]) == {"ce", "pixel"}


def test_what_shows_only_in_the_inputs_is_said_before_training(line, tmp_path):
    other = Artifact("other", "Checkpoint", "x", line.student.folder, line.student.facts | {"classes": ["a", "b"]}, {})
    with pytest.raises(BadData, match="must be the same, in the same order"):
        stage_of().run({"data": line.data, "checkpoint": line.student, "teacher": other}, Job(tmp_path))
    with pytest.raises(BadData, match="data has no split 'test': it has train, val"):
        stage_of(split="test").run({"data": line.data, "checkpoint": line.student}, Job(tmp_path))
    with pytest.raises(BadRecipe, match=r"fit\.crop"):
        stage_of(fit={"crop": [40, 40]}).run({"data": line.data, "checkpoint": line.student}, Job(tmp_path))


def test_a_rehearsal_takes_two_steps_and_looks_at_two_images():
    brief = stage_of(fit={"steps": 500, "batch": 8}).rehearsed()
    assert (brief.fit.steps, brief.fit.batch, brief.parity_images) == (2, 2, 2)
