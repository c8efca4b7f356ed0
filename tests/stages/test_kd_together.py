"""Methods side by side in real training: in any company, between CNNs and transformers, in parts and processes, stopped and gone on."""

import json
import os

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.artifact import Artifact
from pipeline.errors import Stopped
from pipeline.stage import Made
from stages import group
from stages.data import Data
from stages.distill import Distill
from stages.models import TABLE as MODELS
from stages.models import open_model
from stages.samples import open_samples
from tests.stages import small_line
from tests.stages.small_fit import Job, forget_accelerate

FULL = bool(os.environ.get("STILLHOUSE_FULL"))
FIT = {"steps": 2, "batch": 4, "crop": [32, 64], "lr": 0.001}
R18 = {"kind": "deeplabv3", "backbone": "resnet18", "width": 16}
MOBILE = {"kind": "deeplabv3", "backbone": "mobilenet_v2", "width": 16, "aux": False}
B0 = {"kind": "segformer", "size": "b0"}
LARGE, SMALL = {"kind": "tiny", "size": "large"}, {"kind": "tiny"}

# teacher, student, owner of the task loss, losses beside it
COMPANIES = {
    "rdd, pixel, gskd and text": (R18, SMALL, {"kind": "rdd"}, ["pixel", "gskd", {"kind": "text", "least": 1}]),
    "kt to a student without auxiliary head": (R18, MOBILE, {"kind": "ce"}, ["kt"]),
    "a transformer teaches a CNN": (B0, R18, {"kind": "ce"}, ["heteroakd"]),
    "a CNN teaches a transformer": (R18, B0, {"kind": "ce"}, ["heteroakd", "kt", "gskd"]),
    "cirkd, mgd and afdcd": (LARGE, SMALL, {"kind": "ce"}, ["cirkd", "mgd", "afdcd"]),
}
CIRKD = {"kind": "cirkd", "queue": 64}  # smaller memories: less to compare with, and to save
MANY = [CIRKD, "heteroakd", "gskd", "kt", "text", "mgd"]


@pytest.fixture(autouse=True)
def fresh_accelerate():
    forget_accelerate()


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """Data, vectors of language, and untrained teachers."""
    folder = tmp_path_factory.mktemp("line")
    source = {"kind": "streets", "seed": 5, "train": 6, "val": 1, "test": 0}
    data = small_line.made(Data.model_validate({"kind": "data", "source": source, "size": [32, 64]}), "data", {}, folder)
    (folder / "words").mkdir()
    vectors = torch.nn.functional.normalize(1 + torch.randn(len(data.facts["classes"]), 16, generator=torch.Generator().manual_seed(0)))
    save_file({"text": vectors}, folder / "words" / "text.safetensors")
    words = Artifact("words", "TextMatrix", "id-words", folder / "words", {"classes": data.facts["classes"]}, {})
    teachers = {}

    def inputs(model):
        name = "_".join(str(value) for value in model.values())
        if name not in teachers:
            teachers[name] = of_many_opinions(small_line.checkpoint(folder, data, name, 1, model), data)
        return {"data": data, "teacher": teachers[name], "text": words}

    return inputs


def of_many_opinions(teacher, data) -> Artifact:
    """An untrained network says one class everywhere; without its mean of each class it says many, and some of them are right."""
    images = torch.stack([torch.from_numpy(image) for image, _ in open_samples(data, "train")]).permute(0, 3, 1, 2).float()
    weights, module = load_file(teacher.file("weights.safetensors")), open_model(teacher)
    bias = [key for key in weights if key.endswith("classifier.bias") or key == "classifier.4.bias"][-1]
    with torch.no_grad():
        weights[bias] = weights[bias] - module(images)["logits"].mean((0, 2, 3))
    save_file(weights, teacher.folder / "weights.safetensors")
    return teacher


def distill(student, losses, task=None, **fit) -> Distill:
    losses = [{"kind": kind} if isinstance(kind, str) else kind for kind in losses]
    fields = {"task": task or {"kind": "ce"}, "losses": losses, "text": "words" if any(one["kind"] == "text" for one in losses) else None}
    return Distill.model_validate({"kind": "distill", "data": "data", "teacher": "teacher", "model": student, "fit": FIT | fit} | fields)


def taught(folder, stage, inputs) -> Artifact:
    forget_accelerate()
    job = Job(folder)
    made = stage.run(inputs if stage.text else {k: v for k, v in inputs.items() if k != "text"}, job)
    return Artifact("student", "Checkpoint", "id-student", job.out, *json.loads(json.dumps([made.facts, made.beside])))


def curves(student):
    return student.json("curves.json")["train"]


@pytest.mark.parametrize("company", COMPANIES)
def test_methods_teach_in_company(company, tmp_path, line):
    teacher, student, task, losses = COMPANIES[company]
    done = taught(tmp_path, distill(student, losses, task), line(teacher))
    points = curves(done)
    assert [p["step"] for p in points] == [1, 2]
    kinds = {task["kind"], *(one["kind"] if isinstance(one, dict) else one for one in losses)}
    assert kinds <= {term.partition("_")[0] for term in points[1]["terms"]} and all(points[1]["terms"].values())
    bare = MODELS.row(student["kind"]).model_validate(student).build(len(done.facts["classes"])).state_dict()
    weights = load_file(done.file("weights.safetensors"))
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in bare.items()}
    assert all(v.isfinite().all() for v in weights.values())


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"precision": "bf16"}, {"accumulate": 2, "precision": "bf16", "ema": 0.5}], ids=str)
def test_methods_teach_in_parts_and_in_half_precision(changes, tmp_path, line):
    whole, other = (taught(tmp_path / str(len(c)), distill(SMALL, MANY, **c), line(LARGE)) for c in ({}, changes))
    names = set(curves(whole)[0]["terms"])
    assert all(set(point["terms"]) == names for point in curves(other))
    near = {"ce": 0.1, "kt_logit": 0.1, "heteroakd_pixel": 0.1, "text_align": 0.1}  # others depend on draws, or on the part
    for name, tolerance in near.items():
        assert curves(other)[0]["terms"][name] == pytest.approx(curves(whole)[0]["terms"][name], rel=tolerance), name


def agreeing(stage, inputs, job) -> Made:
    """Trains as always; in the end every process must hold the same weights, and the same in its losses."""
    from stages.loop import Loop
    from stages.teach import teach

    finished = Loop.finished

    def compared(self):
        held = [*self.pupil.student.parameters(), *self.pupil.terms.state_dict().values()]
        own = torch.cat([value.detach().double().flatten() for value in held])
        everyone = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(everyone, own)
        assert len(everyone) == 2 and torch.equal(*everyone)
        memory = next(m for m in self.pupil.terms.modules() if type(m).__name__ == "Memory")
        assert int(memory.written.sum()) > 0
        return finished(self)

    Loop.finished = compared
    return teach(stage, inputs, job)


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2, "precision": "bf16", "batch": 8}], ids=str)
def test_two_processes_end_with_the_same_weights_and_memories(changes, tmp_path, line, monkeypatch):
    monkeypatch.setattr(group, "START", "fork")
    stage, job = distill(SMALL, MANY, processes=2, **changes), Job(tmp_path)
    made = group.together("tests.stages.test_kd_together:agreeing", (stage, line(LARGE)), 2, job)
    assert made.facts["steps"] == 2 and (job.out / "weights.safetensors").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_stopped_and_started_again_it_ends_in_the_same_bytes(processes, tmp_path, line, monkeypatch):
    """What cirkd remembers and what heteroakd's projectors learned is part of the state."""
    monkeypatch.setattr(group, "START", "fork")
    stage = distill(SMALL, [CIRKD, "heteroakd"], steps=5 if processes == 1 else 12, processes=processes, batch=4)
    inputs = {k: v for k, v in line(LARGE).items() if k != "text"}
    whole = Job(tmp_path / "whole")
    stage.run(inputs, whole)
    with pytest.raises(Stopped):
        stage.run(inputs, Job(tmp_path / "broken", stop_at=3))
    again = Job(tmp_path / "broken")
    stage.run(inputs, again)
    assert again.said[0].startswith("resumed at step ")
    for name in ("weights.safetensors", "curves.json"):
        assert (again.out / name).read_bytes() == (whole.out / name).read_bytes()


@pytest.mark.parametrize(
    ("teacher", "student"),
    [(LARGE, SMALL), pytest.param(R18, R18, marks=pytest.mark.skipif(not FULL, reason="exports a larger network: make test-full"))],
    ids=["tiny", "with an auxiliary head"],
)
def test_an_exported_student_holds_no_weight_that_only_training_needs(teacher, student, tmp_path, line):
    inputs = line(teacher)
    done = taught(tmp_path, distill(student, [*MANY, "afdcd", "fitnet"]), inputs)
    held = onnx.load(small_line.exported(tmp_path, inputs["data"], done).file("model.onnx")).graph.initializer
    own = {k: v for k, v in load_file(done.file("weights.safetensors")).items() if not k.startswith("aux_classifier.")}
    kernels = sorted(tuple(v.shape) for v in own.values() if v.dim() == 4)
    assert sorted(tuple(i.dims) for i in held if len(i.dims) == 4 and tuple(i.dims) != (1, 3, 1, 1)) == kernels  # without the image's mean
    assert not [i.name for i in held if "aux" in i.name]
