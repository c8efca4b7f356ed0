"""train: from a data set to a checkpoint that opens, with real rows: `streets` and `tiny`."""

import hashlib
import json

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from pipeline.artifact import Artifact
from pipeline.errors import BadData, BadRecipe, Stopped
from pipeline.stage import Made
from stages.data import Data
from stages.models import TABLE, open_model
from stages.teach import require_whole
from stages.train import Train

FIT = {"steps": 3, "batch": 2, "crop": [32, 64], "lr": 0.001}


class Job:
    rehearsing = False

    def __init__(self, folder, stop_at=None):
        self.out, self.state, self.said, self.left = folder / "out", folder / "state", [], stop_at
        self.out.mkdir(parents=True)

    def say(self, text):
        self.said.append(text)

    def progress(self, done, total, **figures):
        pass

    def stop_asked(self):
        if self.left is not None:
            self.left -= 1
        return 2 if self.left is not None and self.left < 0 else 0


@pytest.fixture(autouse=True)
def fresh_accelerate():
    from accelerate.state import AcceleratorState, GradientState, PartialState

    torch.set_num_threads(1)
    for one in (AcceleratorState, GradientState, PartialState):
        one._reset_state()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    job = Job(tmp_path_factory.mktemp("data"))
    stage = Data.model_validate({"kind": "data", "source": {"kind": "streets", "train": 5, "val": 3, "test": 0}, "size": [32, 64]})
    return artifact("data", "Dataset", job, stage.run({}, job))


def artifact(name: str, kind: str, job: Job, made: Made) -> Artifact:
    """As the store would hand it on: facts have been through JSON."""
    return Artifact(name, kind, hashlib.sha256(name.encode()).hexdigest(), job.out, *json.loads(json.dumps([made.facts, made.beside])))


def stage(**changes) -> Train:
    return Train.model_validate({"kind": "train", "data": "data", "model": {"kind": "tiny", "size": "small"}, "fit": FIT} | changes)


def run(folder, data, train: Train, **job) -> tuple[Artifact, Job]:
    lent = Job(folder, **job)
    return artifact("student", "Checkpoint", lent, train.run({"data": data}, lent)), lent


def test_a_checkpoint_holds_what_the_next_stages_need_and_opens(tmp_path, data):
    checkpoint, job = run(tmp_path, data, stage())
    assert sorted(p.name for p in job.out.iterdir()) == ["curves.json", "weights.safetensors"]
    facts = checkpoint.facts
    assert facts["model"] == {"kind": "tiny", "size": "small", "align_corners": False} and facts["steps"] == 3 and facts["size"] == [32, 64]
    assert facts["classes"] == data.facts["classes"] and facts["colours"] == data.facts["colours"]
    assert 0 <= facts["val"]["miou"] <= 100 and len(facts["val"]["iou"]) == len(facts["classes"]) and facts["val"]["images"] == 3
    assert [p["step"] for p in checkpoint.json("curves.json")["train"]] == [1, 2, 3]
    assert {"seconds", "step_ms", "cpu_ms", "data_wait", "device"} <= checkpoint.beside.keys()
    net = open_model(checkpoint)
    stored = load_file(checkpoint.file("weights.safetensors"))
    assert not net.training and all(torch.equal(v, stored[k]) for k, v in net.state_dict().items())


def test_the_same_settings_give_the_same_bytes(tmp_path, data):
    files = [
        [(j.out / f).read_bytes() for f in ("weights.safetensors", "curves.json")]
        for _, j in (run(tmp_path / n, data, stage()) for n in "ab")
    ]
    assert files[0] == files[1]


def test_interrupted_it_gives_the_same_bytes_too(tmp_path, data):
    _, whole = run(tmp_path / "whole", data, stage())
    with pytest.raises(Stopped, match="stopped at step 2 of 3"):
        run(tmp_path / "x", data, stage(), stop_at=2)
    again = Job(tmp_path / "y")
    again.state = tmp_path / "x" / "state"
    stage().run({"data": data}, again)
    assert (again.out / "weights.safetensors").read_bytes() == (whole.out / "weights.safetensors").read_bytes()
    assert (again.out / "curves.json").read_bytes() == (whole.out / "curves.json").read_bytes()


def test_training_starts_from_given_weights_and_names_those_that_start_fresh(tmp_path, data):
    first, _ = run(tmp_path / "a", data, stage())
    given = load_file(first.file("weights.safetensors"))
    del given["classifier.weight"], given["classifier.bias"]
    save_file(given, tmp_path / "given.safetensors")
    slow = FIT | {"steps": 1, "lr": 1e-12, "optimizer": "sgd", "weight_decay": 0.0}
    started, job = run(tmp_path / "b", data, stage(init={"file": str(tmp_path / "given.safetensors")}, fit=slow))
    assert job.said[0].startswith("init: 2 weights start fresh") and "classifier.bias, classifier.weight" in job.said[0].replace(
        "classifier.weight, classifier.bias", "classifier.bias, classifier.weight"
    )
    weights = load_file(started.file("weights.safetensors"))
    torch.testing.assert_close(weights["fuse.0.weight"], given["fuse.0.weight"])


def test_the_given_weights_belong_to_the_key(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "w.safetensors")
    first = stage(init={"file": str(tmp_path / "w.safetensors")}).outside()
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    assert first != stage(init={"file": str(tmp_path / "w.safetensors")}).outside() and stage().outside() == {}


def test_a_crop_the_model_cannot_take_is_found_before_anything_runs(tmp_path, data):
    earlier = {"data": Data.model_validate({"kind": "data", "source": {"kind": "streets"}, "size": [32, 64]})}
    assert stage().problems(earlier) == []
    bad = stage(fit=FIT | {"crop": [30, 64]})
    assert bad.problems(earlier) == [(("fit", "crop"), "crop [30, 64]: the model needs multiples of 32; the nearest is [32, 64]")]
    earlier = {"data": Data.model_validate({"kind": "data", "source": {"kind": "streets"}, "size": [48, 64]})}
    assert "data.size [48, 64]" in stage(fit={"steps": 2}).problems(earlier)[0][1]
    with pytest.raises(BadRecipe, match=r"fit\.crop: crop \[30, 64\]: the model needs multiples of 32"):
        run(tmp_path, data, bad)


def test_a_rehearsal_is_two_steps(tmp_path, data):
    rehearsed = stage(fit=FIT | {"steps": 5000, "batch": 16, "warmup": 1500}).rehearsed()
    assert run(tmp_path, data, rehearsed)[0].facts["steps"] == 2


def test_two_processes_make_one_checkpoint(tmp_path, data):
    made, job = run(tmp_path, data, stage(fit=FIT | {"processes": 2}))
    assert sorted(p.name for p in job.out.iterdir()) == ["curves.json", "weights.safetensors"] and made.beside["processes"] == 2
    assert open_model(made) and made.facts["val"]["images"] == 3


def test_data_without_a_val_split_is_trained_on_and_not_measured(tmp_path, data):
    facts = data.facts | {"splits": {"train": 5}}
    checkpoint, _ = run(tmp_path, Artifact("data", "Dataset", data.id, data.folder, facts), stage())
    assert checkpoint.facts["val"] is None and checkpoint.json("curves.json")["val"] == []


def test_data_without_a_train_split_is_refused(tmp_path, data):
    with pytest.raises(BadData, match="has no split 'train'"):
        run(tmp_path, Artifact("data", "Dataset", data.id, data.folder, data.facts | {"splits": {"val": 3}}), stage())


def test_unknown_settings_and_a_method_as_task_loss_are_refused():
    with pytest.raises(ValidationError):
        stage(task={"kind": "pixel"})
    with pytest.raises(ValidationError):
        stage(teacher="teacher")


def test_settings_that_cannot_change_the_weights_stay_out_of_the_key():
    from pipeline.keys import digest, pre_image

    def key(**fit):
        settings = {"kind": "train", "data": "data", "model": {"kind": "tiny"}, "fit": fit}
        return digest(pre_image(Train.model_validate(settings), {"data": "1" * 64}))

    assert key() == key(workers=3) == key(save_every=1.0) == key(track="tensorboard") == key(data="host")
    assert len({key(), key(data="device"), key(seed=5), key(lr=1e-3), key(validate_every=7), key(accumulate=2), key(processes=2)}) == 7


def test_under_strict_the_device_and_the_versions_belong_to_the_key(monkeypatch):
    from stages import machine

    assert stage().environment() == {}
    strict = stage(fit=FIT | {"determinism": "strict"}).environment()
    assert {"torch", "device"} <= strict.keys()
    monkeypatch.setattr(machine, "gpus", lambda: [{"name": "Another GPU"}])
    assert stage(fit=FIT | {"determinism": "strict"}).environment() == strict | {"device": "Another GPU"}


TEACHER = {"kind": "tiny", "size": "small"}


def head_onto(teacher: Artifact, data: Artifact, folder, **changes) -> tuple[Artifact, Job]:
    lent = Job(folder)
    train = stage(model=TEACHER | {"aux": True}, frozen="teacher", **changes)
    return artifact("headed", "Checkpoint", lent, train.run({"data": data, "frozen": teacher}, lent)), lent


def test_onto_a_frozen_network_the_auxiliary_head_alone_is_trained(tmp_path, data):
    teacher, _ = run(tmp_path / "a", data, stage(model=TEACHER))
    fit = FIT | {"steps": 20, "batch": 4, "lr": 0.02, "weight_decay": 0.1, "ema": 0.5, "head_lr": 1e-9}
    headed, _ = head_onto(teacher, data, tmp_path / "b", fit=fit)
    assert headed.facts["model"] == teacher.facts["model"] | {"aux": True} and headed.facts["val"] == teacher.facts["val"]
    before, after = (load_file(checkpoint.file("weights.safetensors")) for checkpoint in (teacher, headed))
    assert after.keys() - before.keys() == {key for key in after if key.startswith("aux_classifier.")} != set()
    assert all(torch.equal(value, after[key]) for key, value in before.items()), "no step and no BatchNorm touched it"
    losses = [point["terms"]["aux"] for point in headed.json("curves.json")["train"]]
    assert losses[-1] < 0.7 * losses[0], "it learned, at fit.lr and not at that times head_lr"
    net, image = open_model(headed), 255 * torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        taps, said = net(image), open_model(teacher)(image)["logits"]
    assert torch.equal(taps["logits"], said) and taps["aux"].shape == (1, len(data.facts["classes"]), 2, 4)


def test_a_head_onto_a_frozen_network_resumes_to_the_same_bytes(tmp_path, data):
    teacher, _ = run(tmp_path / "a", data, stage(model=TEACHER))
    _, whole = head_onto(teacher, data, tmp_path / "whole")
    train, first, again = stage(model=TEACHER | {"aux": True}, frozen="teacher"), Job(tmp_path / "x", stop_at=2), Job(tmp_path / "y")
    with pytest.raises(Stopped, match="stopped at step 2 of 3"):
        train.run({"data": data, "frozen": teacher}, first)
    again.state = first.state
    train.run({"data": data, "frozen": teacher}, again)
    assert (again.out / "weights.safetensors").read_bytes() == (whole.out / "weights.safetensors").read_bytes()


def test_what_is_frozen_must_be_the_same_network_without_its_head(tmp_path):
    def said(theirs, **changes):
        return stage(frozen="teacher", **changes).problems({"teacher": stage(model=theirs)})

    assert said(TEACHER, model=TEACHER | {"aux": True}) == []
    assert said(TEACHER) == [(("model",), "frozen trains the auxiliary head alone, and tiny as set here has none: set aux: true")]
    assert said(TEACHER | {"aux": True}, model=TEACHER | {"aux": True}) == [
        (("frozen",), "teacher has an auxiliary head, which can teach as it is: leave this stage out")
    ]
    assert said({"kind": "tiny", "size": "large"}, model=TEACHER | {"aux": True}) == [
        (("model",), "this is not the network of teacher with a head: write its settings here, and aux: true")
    ]
    save_file({"a": torch.zeros(2)}, tmp_path / "w.safetensors")
    assert said(TEACHER, model=TEACHER | {"aux": True}, init={"file": str(tmp_path / "w.safetensors")}) == [
        (("init",), "teacher brings all weights but those of the auxiliary head: leave init or frozen out")
    ]


def test_images_that_the_student_cannot_take_whole_are_told_before_the_first_step():
    class Val(list):
        size, entries = None, [{"shape": [64, 96]}, {"shape": [90, 128]}]

        def name(self, i):
            return self[i]

    with pytest.raises(BadData, match=r"1 of 2 val images do not fit, the first is b of \[90, 128\]: tiny takes multiples of 32; "):
        require_whole(Val("ab"), TABLE.row("tiny")(kind="tiny"))
    Val.size = (64, 90)
    with pytest.raises(BadData, match=r"2 of 2 val images do not fit, the first is a of \[64, 90\]"):
        require_whole(Val("ab"), TABLE.row("tiny")(kind="tiny"))
    Val.size, Val.entries = None, Val.entries[:1]
    require_whole(Val("a"), TABLE.row("tiny")(kind="tiny"))
