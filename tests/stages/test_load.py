"""A given teacher becomes a Checkpoint, is measured at once, and shifted labels are told plainly."""

import json

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from pipeline.artifact import Artifact
from pipeline.errors import BadData, Refused, Stopped
from stages.load import Load, shifted
from stages.models import TABLE, open_model
from stages.weights import save_checkpoint

CLASSES = 6
NAMES = [f"class{i}" for i in range(CLASSES)]
TINY = {"kind": "tiny", "size": "small"}


class Job:
    rehearsing = False

    def __init__(self, out, stop=0):
        self.out, self.state, self.stop, self.said = out, out, stop, []
        out.mkdir(exist_ok=True)

    def say(self, text):
        self.said.append(text)

    def progress(self, done, total, **figures):
        pass

    def stop_asked(self):
        return self.stop


class Samples:
    """Images whose labels are what a given network says, moved by `shift`."""

    def __init__(self, model, shift, n=3):
        random = np.random.default_rng(0)
        self.images = [random.integers(0, 256, (64, 96, 3), dtype=np.uint8) for _ in range(n)]
        self.labels = [self.label(model, image, shift) for image in self.images]

    def label(self, model, image, shift):
        from stages.models import classmap

        x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            guess = classmap(model(x)["logits"], (64, 96), False)[0].numpy()
        return shifted(guess, shift, CLASSES)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i], self.labels[i]


@pytest.fixture
def teacher(tmp_path):
    torch.manual_seed(0)
    model = TABLE.row("tiny")(**TINY).build(CLASSES).eval()
    with torch.no_grad():  # so that every class wins somewhere
        model.classifier.weight.normal_(std=5)
        model.classifier.bias.zero_()
    save_checkpoint(tmp_path, model.state_dict())
    return model


@pytest.fixture
def data(tmp_path):
    facts = {"classes": NAMES, "colours": [[i, i, i] for i in range(CLASSES)], "size": [64, 96], "splits": {"train": 3, "val": 3}}
    return Artifact("data", "Dataset", "0" * 64, tmp_path / "data", facts)


def stage(file, model=TINY):
    return TypeAdapter(Load).validate_python({"kind": "load", "model": model, "weights": {"file": str(file)}, "data": "data"})


def run(tmp_path, data, monkeypatch, samples, **job):
    import sys
    import types

    fake = types.ModuleType("stages.samples")
    fake.open_samples = lambda artifact, split: samples
    monkeypatch.setitem(sys.modules, "stages.samples", fake)
    job = Job(tmp_path / "out", **job)
    return stage(tmp_path / "weights.safetensors").run({"data": data}, job), job


def test_a_teacher_whose_labels_fit_is_measured_and_published_as_it_is(teacher, data, tmp_path, monkeypatch):
    made, job = run(tmp_path, data, monkeypatch, Samples(teacher, 0))
    assert made.facts["val"]["miou"] == 100 and made.facts["val"]["split"] == "val"
    assert made.facts["steps"] == 0 and made.facts["classes"] == NAMES and made.facts["size"] == [64, 96]
    assert job.said == ["mIoU 100.0 on 3 val images"]
    assert json.loads((job.out / "curves.json").read_text()) == {"train": [], "val": []}
    facts = json.loads(json.dumps(made.facts))
    again = open_model(Artifact("teacher", "Checkpoint", "0" * 64, job.out, facts))
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), teacher.state_dict().values(), strict=True))


@pytest.mark.parametrize("shift", [1, -1])
def test_labels_shifted_by_one_are_told_with_the_figure_they_would_reach(shift, teacher, data, tmp_path, monkeypatch):
    made, job = run(tmp_path, data, monkeypatch, Samples(teacher, shift))
    assert made.facts["val"]["miou"] < 10
    assert f"labels shifted by {-shift:+d} it would be" in job.said[-1] and "reduce_labels" in job.said[-1]


def test_a_teacher_that_knows_nothing_of_the_data_is_not_blamed_on_a_shift(teacher, data, tmp_path, monkeypatch):
    samples = Samples(teacher, 0)
    samples.labels = [np.where(label < 3, label + 3, label - 3).astype(np.uint8) for label in samples.labels]
    made, job = run(tmp_path, data, monkeypatch, samples)
    assert made.facts["val"]["miou"] < 10 and "does not explain it" in job.said[-1]


def test_without_a_val_split_nothing_is_made_up(teacher, data, tmp_path, monkeypatch):
    data.facts["splits"].pop("val")
    made, job = run(tmp_path, data, monkeypatch, None)
    assert made.facts["val"] is None and "no val split" in job.said[0]


def test_a_teacher_of_other_classes_is_refused_with_both_numbers(teacher, data, tmp_path):
    data.facts["classes"].append("one more")
    try:
        with pytest.raises(BadData, match="these weights know 6 classes, the data has 7"):
            stage(tmp_path / "weights.safetensors").run({"data": data}, Job(tmp_path / "out"))
    finally:
        data.facts["classes"].pop()


def test_being_asked_to_stop_ends_the_measurement(teacher, data, tmp_path, monkeypatch):
    with pytest.raises(Stopped) as e:
        run(tmp_path, data, monkeypatch, Samples(teacher, 0), stop=15)
    assert e.value.code == 143


def test_the_weights_belong_to_the_key_and_a_pickle_ends_the_plan(teacher, tmp_path):
    first = stage(tmp_path / "weights.safetensors").outside()
    with torch.no_grad():
        teacher.classifier.bias.add_(1)
    save_checkpoint(tmp_path, teacher.state_dict())
    assert stage(tmp_path / "weights.safetensors").outside() != first
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
    with pytest.raises(Refused):
        stage(tmp_path / "teacher.pth").outside()


@pytest.mark.parametrize("saved_by", ["segformer", "hf"])
def test_a_teacher_saved_by_transformers_goes_through(saved_by, data, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="making the checkpoint needs transformers")
    torch.manual_seed(0)
    theirs = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(num_labels=CLASSES)).eval()
    theirs.save_pretrained(tmp_path / "published")
    import sys
    import types

    fake = types.ModuleType("stages.samples")
    fake.open_samples = lambda artifact, split: Samples(lambda x: {"logits": theirs((x / 255 - MEAN) / STD).logits}, 0, n=1)
    monkeypatch.setitem(sys.modules, "stages.samples", fake)
    job = Job(tmp_path / "out")
    made = stage(tmp_path / "published", {"kind": saved_by}).run({"data": data}, job)
    assert made.facts["val"]["miou"] > 99.9
    model = open_model(Artifact("teacher", "Checkpoint", "0" * 64, job.out, json.loads(json.dumps(made.facts))))
    x = 255 * torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x)["logits"], theirs((x / 255 - MEAN) / STD).logits, atol=1e-5, rtol=1e-5)


MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
