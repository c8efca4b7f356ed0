"""The training loop: what it computes, that it can be stopped anywhere, and what it refuses to publish. A tiny net, samples in memory."""

import copy
import hashlib
import json
import math
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from pipeline.errors import BadData, BadRecipe, BadStore, Diverged, Missing, Stopped
from stages import loop, state
from stages.batches import crops, names_at
from stages.fit import Augment, Fit
from stages.kd import TABLE
from stages.kd._terms import Terms
from stages.loop import fit
from stages.memory import keep_freed_memory

CLASSES = 3


class Net(nn.Module):
    """Two convolutions with everything that makes resuming hard: BatchNorm buffers, dropout, a counter."""

    align_corners = False
    widths = {"logits": CLASSES, "head": 4}

    def __init__(self, dropout=0.2):
        super().__init__()
        self.first, self.norm, self.drop = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Dropout(dropout)
        self.classifier = nn.Conv2d(4, CLASSES, 1)
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 127.0), persistent=False)

    def forward(self, image):
        head = self.drop(self.norm(self.first((image - self.mean) / 60)).relu())
        return {"logits": self.classifier(head), "head": head}


class Memory:
    """Samples in memory: the class is the brightest channel, so that there is something to learn."""

    classes, colours, size = ["red", "green", "blue"], [[255, 0, 0], [0, 255, 0], [0, 0, 255]], (16, 24)

    def __init__(self, n=7, seed=0):
        rng = np.random.RandomState(seed)
        self.labels = rng.randint(0, CLASSES, (n, 2, 3)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
        self.images = (np.eye(3)[self.labels] * 80 + rng.randint(60, 160, (n, 16, 24, 3))).astype(np.uint8)
        self.labels[:, :2, :2] = 255

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.images[i], self.labels[i]

    def name(self, i):
        return f"street_{i}"


class Job:
    """Stops when `stop_at` questions have been asked."""

    rehearsing = False

    def __init__(self, folder, stop_at=None, number=signal.SIGINT):
        self.out, self.state = folder / "out", folder / "state"
        self.said, self.shown, self.asked, self.stop_at, self.number = [], [], 0, stop_at, number
        self.out.mkdir(parents=True, exist_ok=True)

    def say(self, text):
        self.said.append(text)

    def progress(self, done, total, **figures):
        self.shown.append((done, total, figures))

    def stop_asked(self):
        self.asked += 1
        return self.number if self.stop_at is not None and self.asked > self.stop_at else 0


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """One process trains once in real life; here each test starts anew."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    torch.set_num_threads(1)
    for one in (AcceleratorState, GradientState, PartialState):
        one._reset_state()


BASE = {"steps": 12, "batch": 4, "lr": 0.01, "crop": [16, 16], "validate_every": 5, "seed": 3, "clip": 1.0}


def settings(**changes) -> Fit:
    return Fit.model_validate(BASE | changes)


def rows(*kinds):
    return [TABLE.row(k["kind"]).model_validate(k) for k in kinds]


def terms_of(*losses) -> Terms:
    return Terms(*rows({"kind": "ce"}), rows(*losses), Net.widths, Net.widths, CLASSES, 0)


def trained(folder, fit_settings=None, losses=(), teacher=None, train=None, val=None, stop_at=None, **net):
    torch.manual_seed(1)
    job = Job(folder, stop_at)
    done = fit(Net(**net), terms_of(*losses), train or Memory(), val or Memory(5, 1), fit_settings or settings(), job, teacher)
    return done, job


def digest(weights) -> str:
    return hashlib.sha256(b"".join(k.encode() + v.contiguous().numpy().tobytes() for k, v in sorted(weights.items()))).hexdigest()


def teacher_net():
    torch.manual_seed(77)
    return Net()


KD = [{"kind": "pixel", "temperature": 2.0}, {"kind": "cwd"}]


# What it computes


def test_training_equals_a_loop_written_out_by_hand(tmp_path):
    s = settings(optimizer="sgd", momentum=0.9, weight_decay=0.01, validate_every=0, clip=None, warmup=3, power=0.9, schedule="poly")
    done, _ = trained(tmp_path, s, dropout=0.0)
    torch.manual_seed(1)
    net = Net(dropout=0.0).train()
    params = dict(net.named_parameters())
    moments = {}
    for step, (images, labels) in enumerate(crops(Memory(), s, s.crop)):
        logits = net(images.permute(0, 3, 1, 2).float())["logits"]
        up = nn.functional.interpolate(logits, (16, 16), mode="bilinear", align_corners=False)
        loss = nn.functional.cross_entropy(up, labels.long(), ignore_index=255)
        rate = 0.01 * (1 - step / 12) ** 0.9 * min(1, (step + 1) / 3)
        grads = torch.autograd.grad(loss, list(params.values()))
        with torch.no_grad():
            for (name, p), g in zip(params.items(), grads, strict=True):
                g = g + (0.01 * p if p.dim() > 1 else 0)
                moments[name] = g if step == 0 else 0.9 * moments[name] + g
                p -= rate * moments[name]
    for name, value in net.state_dict().items():
        torch.testing.assert_close(done.weights[name], value, atol=1e-6, rtol=1e-5)


def test_a_batch_in_parts_gives_the_gradient_of_the_whole(tmp_path):
    class Plain(Net):  # without BatchNorm the parts see what the whole sees, and without ignored pixels all weigh the same
        def __init__(self):
            super().__init__(0.0)
            self.norm = nn.Identity()

    data = Memory()
    data.labels[data.labels == 255] = 0
    results = []
    for parts in (1, 2, 4):
        torch.manual_seed(1)
        s = settings(accumulate=parts, augment={"scale": [1, 1], "flip": 0.5, "colour": 0.0})
        results.append(fit(Plain(), terms_of(), data, None, s, Job(tmp_path / str(parts))))
    for other in results[1:]:
        torch.testing.assert_close(results[0].weights, other.weights, atol=1e-6, rtol=1e-4)
        assert [p["loss"] for p in results[0].curves["train"]] == pytest.approx([p["loss"] for p in other.curves["train"]], rel=1e-4)


def test_it_learns(tmp_path):
    done, job = trained(tmp_path, settings(steps=150, lr=0.05, validate_every=50, batch=6))
    assert done.val["miou"] > 80 and done.val["miou"] == done.curves["val"][-1]["miou"]
    assert [p["step"] for p in done.curves["val"]] == [50, 100, 150] and done.val["images"] == 5
    assert done.curves["train"][-1]["loss"] < 0.5 * done.curves["train"][0]["loss"]
    assert job.shown[-1][:2] == (150, 150) and {"loss", "ms"} == set(job.shown[-1][2])


def test_the_curves_hold_every_weighted_term_and_its_ratio_to_the_task_loss(tmp_path):
    done, _ = trained(tmp_path, losses=[{"kind": "pixel", "weight": 0.5}, {"kind": "cwd", "weight": 2.0}], teacher=teacher_net())
    assert [p["step"] for p in done.curves["train"]] == list(range(1, 13))
    for point in done.curves["train"]:
        terms = point["terms"]
        assert list(terms) == ["ce", "pixel", "cwd"] and point["loss"] == pytest.approx(sum(terms.values()))
        assert point["ratios"] == pytest.approx({k: terms[k] / terms["ce"] for k in ("pixel", "cwd")})
    assert [p["lr"] for p in done.curves["train"]] == pytest.approx([settings().rate(i) for i in range(12)])


def test_a_window_of_the_curve_is_the_mean_over_its_steps(tmp_path, monkeypatch):
    one, _ = trained(tmp_path / "1")
    from stages.pupil import Curves

    monkeypatch.setattr(Curves, "POINTS", 3)
    three, _ = trained(tmp_path / "2")
    losses = [p["loss"] for p in one.curves["train"]]
    assert [p["step"] for p in three.curves["train"]] == [4, 8, 12]
    assert [p["loss"] for p in three.curves["train"]] == pytest.approx([np.mean(losses[i : i + 4]) for i in (0, 4, 8)], rel=1e-5)


def test_averaged_weights_are_the_result_when_asked_for(tmp_path):
    """The average, recomputed from the weights after each step; averaging does not disturb those."""
    s = settings(steps=3, validate_every=0)
    averaged, _ = trained(tmp_path / "averaged", s.model_copy(update={"ema": 0.15}))
    torch.manual_seed(1)
    own = {k: v.clone() for k, v in Net().state_dict().items()}
    after = [weights_stopped_at(tmp_path, s, step) for step in (1, 2)] + [trained(tmp_path / "plain", s)[0].weights]
    for step, weights in enumerate(after):
        decay = min(0.15, (1 + step) / (10 + step))
        own = {k: decay * own[k] + (1 - decay) * v if v.is_floating_point() else v for k, v in weights.items()}
    torch.testing.assert_close(averaged.weights, own, atol=1e-6, rtol=1e-5)
    assert digest(averaged.weights) != digest(after[-1])


def weights_stopped_at(tmp_path, s, step):
    with pytest.raises(Stopped):
        trained(tmp_path / f"stopped{step}", s, stop_at=step)
    found = state.newest(tmp_path / f"stopped{step}" / "state", print)
    assert found.step == step
    return {k.removeprefix("student/"): v for k, v in found.tensors.items() if k.startswith("student/")}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schedule": "poly", "power": 1.0}, lambda t: 1 - t),
        ({"schedule": "poly", "power": 0.9}, lambda t: (1 - t) ** 0.9),
        ({"schedule": "cosine"}, lambda t: (1 + math.cos(math.pi * t)) / 2),
    ],
)
def test_the_learning_rate_follows_its_schedule(changes, expected):
    s = settings(steps=100, lr=2.0, warmup=10, **changes)
    assert [s.rate(i) for i in range(100)] == pytest.approx([2 * expected(i / 100) * min(1, (i + 1) / 10) for i in range(100)])


def test_the_head_learns_faster_when_asked(tmp_path):
    s = settings(steps=1, optimizer="sgd", momentum=0.0, weight_decay=0.0, validate_every=0, clip=None)
    moves = {}
    for factor in (1.0, 10.0):
        torch.manual_seed(1)
        before = {k: v.clone() for k, v in Net().state_dict().items()}
        torch.manual_seed(1)
        done = fit(
            Net(), terms_of(), Memory(), None, s.model_copy(update={"head_lr": factor}), Job(tmp_path / str(factor)), head=("classifier.",)
        )
        moves[factor] = {k: v - before[k] for k, v in done.weights.items()}
    torch.testing.assert_close(moves[10.0]["classifier.weight"], 10 * moves[1.0]["classifier.weight"], atol=1e-6, rtol=1e-4)
    assert torch.equal(moves[10.0]["first.weight"], moves[1.0]["first.weight"])


def test_the_teacher_is_left_alone(tmp_path):
    teacher = teacher_net()
    before = copy.deepcopy(teacher.state_dict())
    trained(tmp_path, losses=KD, teacher=teacher)
    assert not teacher.training and all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"channels_last": True}, {"ema": 0.9}, {"schedule": "cosine", "warmup": 4}])
def test_the_other_settings_train_too(tmp_path, changes):
    done, _ = trained(tmp_path, settings(**changes), KD, teacher_net())
    plain, _ = trained(tmp_path / "plain", settings(precision="fp32" if "precision" not in changes else "bf16"), KD, teacher_net())
    assert done.curves["train"][-1]["loss"] == pytest.approx(plain.curves["train"][-1]["loss"], rel=0.5)
    assert all(v.dtype == torch.float32 for v in done.weights.values() if v.is_floating_point())


# What randomness depends on


def test_two_runs_give_the_same_bytes_and_another_seed_gives_others(tmp_path):
    first, second = (trained(tmp_path / n, losses=KD, teacher=teacher_net())[0] for n in "ab")
    other = trained(tmp_path / "c", settings(seed=4), KD, teacher_net())[0]
    assert digest(first.weights) == digest(second.weights) and json.dumps(first.curves) == json.dumps(second.curves)
    assert digest(first.weights) != digest(other.weights)


def test_what_the_process_drew_before_does_not_matter(tmp_path):
    first, _ = trained(tmp_path / "a")
    torch.manual_seed(1)
    net = Net()
    torch.rand(1000)
    np.random.rand(1000)
    second = fit(net, terms_of(), Memory(), Memory(5, 1), settings(), Job(tmp_path / "b"))
    assert digest(first.weights) == digest(second.weights)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(workers):
    plain, worked = (list(crops(Memory(), settings(), (16, 16), start=2, workers=n)) for n in (0, workers))
    assert len(plain) == len(worked) == 10
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(plain, worked, strict=True))


def test_processes_share_out_the_same_global_batch_whatever_their_number():
    s = settings(accumulate=2)
    whole = [torch.cat(parts) for parts in _pairs(crops(Memory(), settings(), (16, 16)), 1)]
    ranks = [_pairs(crops(Memory(), s, (16, 16), rank=r, world=2), 2) for r in range(2)]
    for step, batch in enumerate(whole):
        shared = torch.cat([ranks[rank][step][part] for part in range(2) for rank in range(2)])
        assert torch.equal(batch, shared)


def _pairs(batches, n):
    """Images, n parts per step."""
    images = [images for images, _ in batches]
    return [images[i : i + n] for i in range(0, len(images), n)]


def test_the_samples_of_a_step_can_be_named():
    names = [n for step in range(7) for n in names_at(step, Memory(), settings())]
    assert sorted(names) == sorted(4 * [f"street_{i}" for i in range(7)])


TWO = """
import importlib.util, sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("of_fit", sys.argv[1])
of_fit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(of_fit)
print(of_fit.without_batchnorm(Path(sys.argv[2])))
"""


def without_batchnorm(folder) -> str:
    """Trains what does not depend on how a batch is divided; the loss curve, rounded, and the mIoU."""
    data = Memory()
    data.labels[data.labels == 255] = 0
    torch.manual_seed(1)
    net = Net(dropout=0.0)
    net.norm = nn.Identity()
    plain = {"scale": [1, 1], "flip": 0.5, "colour": 0.1}  # no padding: a mean over all pixels is the mean of the parts' means
    done = fit(net, terms_of(), data, Memory(5, 1), settings(clip=None, ema=0.5, augment=plain), Job(folder))
    return json.dumps([[round(p["loss"], 4) for p in done.curves["train"]], done.curves["val"]])


def test_two_processes_learn_what_one_learns(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, __file__, str(tmp_path / str(rank))],
            env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=120)[0].splitlines()[-1] for process in ranks]
    assert told == [without_batchnorm(tmp_path / "one")] * 2


# Stopping and going on


@pytest.mark.parametrize("changes", [{}, {"ema": 0.9, "accumulate": 2}, {"optimizer": "sgd", "channels_last": True}], ids=str)
def test_stopped_at_any_step_and_started_again_it_ends_in_the_same_bytes(tmp_path, changes):
    s = settings(**changes)
    undisturbed, _ = trained(tmp_path / "whole", s, KD, teacher_net())
    for stop in (0, 1, 4, 5, 11):
        folder = tmp_path / f"stop{stop}"
        with pytest.raises(Stopped) as raised:
            trained(folder, s, KD, teacher_net(), stop_at=stop)
        assert raised.value.code == 130
        done, job = trained(folder, s, KD, teacher_net())
        assert job.said[0].startswith("resumed at step ") and job.said[0].endswith(" of 12")
        assert digest(done.weights) == digest(undisturbed.weights)
        assert json.dumps(done.curves) == json.dumps(undisturbed.curves) and done.val == undisturbed.val


def test_stopped_again_and_again_every_two_steps_it_still_ends_in_the_same_bytes(tmp_path):
    undisturbed, _ = trained(tmp_path / "whole")
    for _ in range(100):
        try:
            done, _ = trained(tmp_path / "broken", stop_at=2)
            break
        except Stopped:
            pass
    assert digest(done.weights) == digest(undisturbed.weights) and done.curves == undisturbed.curves


def test_a_stop_by_sigterm_has_its_own_exit_code(tmp_path):
    with pytest.raises(Stopped, match="stopped at step 2 of 12; the same command goes on from there") as raised:
        fit(Net(), terms_of(), Memory(), None, settings(), Job(tmp_path, 2, signal.SIGTERM))
    assert raised.value.code == 143


def test_state_is_saved_while_training_and_a_kill_loses_only_what_came_after(tmp_path):
    class Killed(Exception):
        pass

    class Dying(Job):
        def progress(self, done, total, **figures):
            if done == 12:
                raise Killed

    s = settings(save_every=1e-9, validate_every=0)
    with pytest.raises(Killed):
        torch.manual_seed(1)
        fit(Net(), terms_of(), Memory(), Memory(5, 1), s, Dying(tmp_path / "killed"))
    done, job = trained(tmp_path / "killed", s)
    assert job.said[0] == "resumed at step 10 of 12"
    assert digest(done.weights) == digest(trained(tmp_path / "whole", s)[0].weights)


def test_a_damaged_newest_state_costs_steps_but_not_the_result(tmp_path):
    whole, _ = trained(tmp_path / "whole")
    for stop in (3, 2):
        with pytest.raises(Stopped):
            trained(tmp_path / "x", stop_at=stop)
    newest = sorted((tmp_path / "x" / "state").iterdir())[-1]
    (newest / state.TENSORS).write_bytes(b"rot")
    done, job = trained(tmp_path / "x")
    assert "is damaged" in job.said[0] and job.said[1].startswith("resumed at step 3")
    assert digest(done.weights) == digest(whole.weights)


def test_a_state_of_other_settings_or_another_network_is_refused(tmp_path):
    with pytest.raises(Stopped):
        trained(tmp_path, stop_at=3)
    with pytest.raises(BadStore, match="saved under other settings; delete that folder to start over"):
        trained(tmp_path, settings(lr=0.5))

    class Other(Net):
        def __init__(self):
            super().__init__()
            self.extra = nn.Conv2d(1, 1, 1)

    with pytest.raises(BadStore, match=r"training needs student/extra\.weight of shape .* lacks it"):
        fit(Other(), terms_of(), Memory(), None, settings(), Job(tmp_path))


def test_a_stop_during_the_last_validation_is_heeded_and_loses_no_step(tmp_path):
    whole, _ = trained(tmp_path / "whole", settings(validate_every=0))
    with pytest.raises(Stopped, match="stopped at step 12 of 12"):
        trained(tmp_path / "x", settings(validate_every=0), stop_at=12)
    done, _ = trained(tmp_path / "x", settings(validate_every=0))
    assert digest(done.weights) == digest(whole.weights) and done.val == whole.val


# What is never published


class Exploding(Net):
    """The loss of step `at` (counted in training forwards) is not finite."""

    def __init__(self, at):
        super().__init__()
        self.at, self.count = at, 0

    def forward(self, image):
        out = super().forward(image)
        self.count += self.training
        if self.training and self.count == self.at:
            out["logits"] = out["logits"] * float("nan")
        return out


def test_a_loss_that_is_not_finite_ends_training_and_names_the_step_and_its_samples(tmp_path):
    s = settings(steps=4000)  # looked at every 10 steps only: the first bad one is named, not the one of the look
    job = Job(tmp_path)
    with pytest.raises(Diverged) as raised:
        fit(Exploding(7), terms_of(), Memory(), None, s, job)
    names = ", ".join(sorted(set(names_at(6, Memory(), s))))
    assert f"the loss of step 7 is not finite; its batch was {names}" in str(raised.value)
    assert not job.state.exists() and not list(job.out.iterdir())


def test_a_stop_right_after_a_bad_step_saves_nothing(tmp_path):
    job = Job(tmp_path, stop_at=5)
    with pytest.raises(Diverged, match="the loss of step 5"):
        fit(Exploding(5), terms_of(), Memory(), None, settings(steps=400), job)
    assert not job.state.exists()


def test_weights_that_are_not_finite_are_not_published_even_if_the_loss_was(tmp_path, monkeypatch):
    original = loop.Loop.report_if_due

    def spoil(self):
        original(self)
        if self.done == 12:
            with torch.no_grad():
                self.pupil.student.norm.running_var[1] = float("inf")

    monkeypatch.setattr(loop.Loop, "report_if_due", spoil)
    with pytest.raises(Diverged, match=r"weights of the student are not finite, the first is norm.running_var"):
        fit(Net(), terms_of(), Memory(), None, settings(), Job(tmp_path))


class Broken(Memory):
    def __getitem__(self, i):
        if i == 3:
            raise BadData("street_3.png: changed since it was indexed; run again")
        return super().__getitem__(i)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_is_named_without_a_traceback_whoever_finds_it(tmp_path, workers):
    with pytest.raises(BadData) as raised:
        fit(Net(), terms_of(), Broken(), None, settings(workers=workers), Job(tmp_path))
    assert str(raised.value) == "street_3.png: changed since it was indexed; run again"


def test_memory_that_a_step_frees_is_there_for_the_next(tmp_path):
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("another C library")
    keep_freed_memory()
    torch.ones(1 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(1 << 20)  # 4 MiB: 1024 pages
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 2048


def test_a_device_without_enough_memory_is_told_what_to_change(tmp_path):
    class Huge(Net):
        def forward(self, image):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(Missing, match=r"too little memory for batches of 4: lower fit\.batch or fit\.crop, raise fit\.accumulate"):
        fit(Huge(), terms_of(), Memory(), None, settings(), Job(tmp_path))


# Settings


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch": 6, "accumulate": 4}, "batch 6 cannot be worked off in accumulate: 4 equal parts"),
        ({"warmup": 12}, "warmup 12 must be shorter than steps 12"),
        ({"augment": {"scale": [2.0, 0.5]}}, "must be .low, high. with 0 < low <= high"),
        ({"lr": 0}, "greater than 0"),
        ({"stesp": 3}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, said):
    with pytest.raises(ValidationError, match=said):
        settings(**changes)


def test_every_setting_says_what_it_is():
    for model in (Fit, Augment):
        assert all(field.description for field in model.model_fields.values())


def test_fp16_without_a_gpu_is_missing_a_device(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(Missing, match="fp16 needs a GPU"):
        trained(tmp_path, settings(precision="fp16"))


def test_a_crop_that_does_not_fit_is_named_with_the_nearest_that_does():
    assert settings(crop=[100, 128]).misfits(None, 32) == [
        (("crop",), "crop [100, 128]: the model needs multiples of 32; the nearest is [96, 128]")
    ]
    assert settings(crop=None).misfits((90, 128), 32)[0][1].startswith("crop is not set, and data.size [90, 128]")
    assert "needs a crop" in settings(crop=None).misfits(None, 32)[0][1]
    assert settings(crop=[64, 96]).misfits(None, 32) == [] == settings(crop=None).misfits((64, 96), 32)


def test_a_rehearsal_takes_the_same_path_in_two_steps(tmp_path):
    s = settings(steps=1000, batch=8, accumulate=4, warmup=100, ema=0.9).rehearsed()
    done, _ = trained(tmp_path, s, KD, teacher_net())
    assert (s.steps, s.batch, done.val["images"], [p["step"] for p in done.curves["train"]]) == (2, 2, 4, [1, 2])


def test_tensorboard_gets_the_curves(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    _, job = trained(tmp_path / "run", settings(track="tensorboard"))
    assert job.said[0] == "curves for TensorBoard are written to tracking/state"
    assert list((tmp_path / "tracking").rglob("events.out.tfevents.*"))


def test_the_seed_of_the_losses_is_their_own(tmp_path):
    """A baseline and a distilled student see the same batches and dropout: without weight, distilling changes nothing."""
    baseline, _ = trained(tmp_path / "a")
    nearly, _ = trained(tmp_path / "b", losses=[{"kind": "pixel", "weight": 1e-30}], teacher=teacher_net())
    assert digest(baseline.weights) == digest(nearly.weights)


def test_too_many_processes_for_the_batch_are_refused(tmp_path, monkeypatch):
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: 3))
    with pytest.raises(BadRecipe, match="must be a multiple of accumulate 1 x 3 processes"):
        trained(tmp_path)
