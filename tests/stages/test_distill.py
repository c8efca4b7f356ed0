"""distill: everything as in train but the teacher, so that a student and its baseline are a pair."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.artifact import Artifact
from pipeline.errors import BadData
from pipeline.stage import Made
from stages import loop
from stages.data import Data
from stages.distill import Distill
from stages.kd import TABLE
from stages.models import TABLE as MODELS
from stages.train import Train

FIT = {"steps": 4, "batch": 2, "crop": [32, 64], "lr": 0.001}
LOSSES = [{"kind": "pixel", "weight": 1.0}, {"kind": "cwd", "weight": 0.5}]


class Job:
    rehearsing = False

    def __init__(self, folder):
        self.out, self.state, self.said = folder / "out", folder / "state", []
        self.out.mkdir(parents=True)

    def say(self, text):
        self.said.append(text)

    def progress(self, done, total, **figures):
        pass

    def stop_asked(self):
        return 0


@pytest.fixture(autouse=True)
def fresh_accelerate():
    from accelerate.state import AcceleratorState, GradientState, PartialState

    torch.set_num_threads(1)
    for one in (AcceleratorState, GradientState, PartialState):
        one._reset_state()


def artifact(name, kind, job, made) -> Artifact:
    return Artifact(name, kind, hashlib.sha256(name.encode()).hexdigest(), job.out, *json.loads(json.dumps([made.facts, made.beside])))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    job = Job(tmp_path_factory.mktemp("data"))
    stage = Data.model_validate({"kind": "data", "source": {"kind": "streets", "train": 5, "val": 2, "test": 0}, "size": [32, 64]})
    return artifact("data", "Dataset", job, stage.run({}, job))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, data):
    job = Job(tmp_path_factory.mktemp("teacher"))
    stage = Train.model_validate({"kind": "train", "data": "data", "model": {"kind": "tiny", "size": "large"}, "fit": FIT | {"steps": 2}})
    return artifact("teacher", "Checkpoint", job, stage.run({"data": data}, job))


@pytest.fixture(scope="module")
def text(tmp_path_factory, data):
    job, classes = Job(tmp_path_factory.mktemp("text")), data.facts["classes"]
    rows = torch.nn.functional.normalize(1 + torch.randn(len(classes), 16, generator=torch.Generator().manual_seed(0)))
    save_file({"text": rows}, job.out / "text.safetensors")
    return artifact("text", "TextMatrix", job, Made({"classes": classes}))


def distill(**changes) -> Distill:
    settings = {"kind": "distill", "data": "data", "teacher": "teacher", "model": {"kind": "tiny"}, "losses": LOSSES, "fit": FIT}
    return Distill.model_validate(settings | changes)


def run(folder, stage, **inputs) -> Artifact:
    job = Job(folder)
    return artifact("student", "Checkpoint", job, stage.run(inputs, job))


def test_a_student_is_taught_by_every_method_there_is(tmp_path, data, teacher, text):
    kinds = [{"kind": name} for name in TABLE.rows(role="loss")]
    student = run(tmp_path, distill(losses=kinds, text="text"), data=data, teacher=teacher, text=text)
    assert student.facts["model"]["size"] == "small" and student.facts["classes"] == data.facts["classes"]
    terms = student.json("curves.json")["train"][-1]["terms"]
    assert {"ce", *(k["kind"] for k in kinds)} <= {term.partition("_")[0] for term in terms} and all(terms.values())


def test_a_student_and_its_baseline_start_alike_and_see_the_same_batches(tmp_path, data, teacher, monkeypatch):
    seen: list[list] = []
    original = loop.Loop._terms

    def recorded(self, images, labels):
        weights = {k: v.clone() for k, v in self.pupil.student.state_dict().items()} if self.done == 0 else None
        seen[-1].append((images.clone(), labels.clone(), weights))
        return original(self, images, labels)

    monkeypatch.setattr(loop.Loop, "_terms", recorded)
    baseline = Train.model_validate({"kind": "train", "data": "data", "model": {"kind": "tiny"}, "fit": FIT})
    seen.append([])
    first = run(tmp_path / "baseline", baseline, data=data)
    seen.append([])
    second = run(tmp_path / "student", distill(), data=data, teacher=teacher)
    assert len(seen[0]) == len(seen[1]) == 4
    for a, b in zip(*seen, strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert all(torch.equal(v, seen[1][0][2][k]) for k, v in seen[0][0][2].items())
    ends = [load_file(c.file("weights.safetensors")) for c in (first, second)]
    assert any(not torch.equal(v, ends[1][k]) for k, v in ends[0].items())


def test_without_methods_distilling_is_training(tmp_path, data, teacher):
    baseline = Train.model_validate({"kind": "train", "data": "data", "model": {"kind": "tiny"}, "fit": FIT})
    first = run(tmp_path / "a", baseline, data=data)
    second = run(tmp_path / "b", distill(losses=[]), data=data, teacher=teacher)
    assert first.file("weights.safetensors").read_bytes() == second.file("weights.safetensors").read_bytes()


def test_the_teacher_is_not_part_of_the_checkpoint(tmp_path, data, teacher):
    student = run(tmp_path, distill(), data=data, teacher=teacher)
    assert sorted(p.name for p in student.folder.iterdir()) == ["curves.json", "weights.safetensors"]
    bare = MODELS.row("tiny").model_validate({"kind": "tiny"}).build(len(data.facts["classes"]))
    assert load_file(student.file("weights.safetensors")).keys() == bare.state_dict().keys()


def test_the_teacher_runs_folded_and_the_student_learns_as_it_is(tmp_path, data, teacher, monkeypatch):
    class Enough(Exception):
        pass

    def fit(*given):
        seen.extend(any(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules()) for net in (given[0], given[6]))
        raise Enough

    seen = []
    monkeypatch.setattr("stages.teach.fit", fit)
    with pytest.raises(Enough):
        run(tmp_path, distill(), data=data, teacher=teacher)
    assert seen == [True, False]


def test_a_teacher_of_other_classes_is_refused_with_both_class_lists(tmp_path, data, teacher):
    other = Artifact("teacher", "Checkpoint", teacher.id, teacher.folder, teacher.facts | {"classes": ["road", "sky"]})
    with pytest.raises(BadData) as raised:
        run(tmp_path, distill(), data=data, teacher=other)
    text = str(raised.value)
    assert "teacher knows 2 classes and data has 12" in text and "teacher: road, sky" in text and "data: road, marking" in text


def test_a_rehearsal_is_two_steps(tmp_path, data, teacher):
    assert run(tmp_path, distill(fit=FIT | {"steps": 9000}).rehearsed(), data=data, teacher=teacher).facts["steps"] == 2


def test_the_stage_says_what_it_takes():
    from pipeline.keys import taken

    assert {field: (takes.kinds, names) for field, (takes, names) in taken(distill()).items()} == {
        "data": (("Dataset",), ["data"]),
        "teacher": (("Checkpoint",), ["teacher"]),
    }
    assert all(info.description for name, info in Distill.model_fields.items() if name != "kind")


def test_a_text_matrix_of_other_classes_is_refused_with_both_class_lists(tmp_path, data, teacher, text):
    other = Artifact("text", "TextMatrix", text.id, text.folder, {"classes": ["road", "sky"]})
    with pytest.raises(BadData, match=r"(?s)text knows 2 classes and data has 12.*text: road, sky"):
        run(tmp_path, distill(losses=[{"kind": "text"}], text="text"), data=data, teacher=teacher, text=other)


TAUGHT_BY_TEXT = """\
name: text
stages:
  data: {kind: data, source: {kind: streets}, size: [64, 128]}
  words: {kind: embed, data: data, file: words.npy, rows: [road, sky]}
  teacher: {kind: train, data: data, model: {kind: tiny, size: large}}
  student: {kind: distill, data: data, teacher: teacher, model: {kind: tiny}, losses: [{kind: cwd}, {kind: text}], text: words}
"""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("student.text=null", "  stages.student.losses.1: text needs a vector of language per class: add a stage of kind embed above, and"),
        (
            "student.losses=[]",
            "  stages.student.text: no loss here uses vectors of language (those that do: text): add one, or leave text out",
        ),
        ("student.text=teacher", '"teacher" makes a Checkpoint, a TextMatrix is needed; words would do'),
    ],
)
def test_a_method_that_needs_text_and_text_that_nobody_needs_are_told_where_they_stand(change, said, tmp_path):
    from pipeline.errors import BadRecipe
    from pipeline.recipe import read
    from stages import KINDS

    (tmp_path / "text.yaml").write_text(TAUGHT_BY_TEXT)
    read(tmp_path / "text.yaml", KINDS)
    with pytest.raises(BadRecipe) as e:
        read(tmp_path / "text.yaml", KINDS, sets=[f"stages.{change}"])
    assert said in str(e.value) and len(str(e.value).splitlines()) == 1
