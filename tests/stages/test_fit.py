"""The training loop: what it computes, that it can be stopped anywhere, and what it refuses to publish. A tiny net, samples in memory."""

import copy
import json
import math
import platform
import resource

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from pipeline.errors import BadData, BadRecipe, Missing, Stopped
from stages import group, state
from stages.batches import crops, names_at
from stages.device import exact
from stages.fit import Augment, Fit
from stages.loop import Loop, fit
from stages.memory import keep_freed_memory
from stages.watch import at_once
from tests.stages.small_fit import (
    KD,
    Job,
    Memory,
    Net,
    digest,
    forget_accelerate,
    settings,
    teacher_net,
    terms_of,
    trained,
    without_batchnorm,
)


@pytest.fixture(autouse=True)
def fresh_accelerate():
    forget_accelerate()


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


@pytest.mark.parametrize("where", ["host", "device"])
def test_two_processes_learn_what_one_learns(tmp_path, monkeypatch, where):
    monkeypatch.setattr(group, "START", "fork")  # cheaper: torch is loaded already
    two = group.together("tests.stages.small_fit:without_batchnorm", (2, where), 2, Job(tmp_path / "two"))
    assert two == without_batchnorm(1, "host", Job(tmp_path / "one"))


# What goes wrong outside


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


@pytest.mark.parametrize(
    ("error", "who"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "the device"),
        (MemoryError(), "this machine"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "this machine"),
    ],
    ids=["device", "Python", "torch"],
)
def test_who_runs_out_of_memory_is_told_what_was_tried_and_what_to_change(tmp_path, error, who):
    class Huge(Net):
        def forward(self, image):
            raise error

    with pytest.raises(Missing) as raised:
        fit(Huge(), terms_of(), Memory(), None, settings(accumulate=2), Job(tmp_path))
    tried = "(fit.batch 4, crops of 16 x 16, in 2 parts): lower fit.batch or fit.crop, raise fit.accumulate, or use precision bf16"
    assert str(raised.value) == f"{who} has too little memory for this training {tried}"


def test_other_errors_of_torch_stay_what_they_are(tmp_path):
    class Wrong(Net):
        def forward(self, image):
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        fit(Wrong(), terms_of(), Memory(), None, settings(), Job(tmp_path))


# Settings


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch": 4, "accumulate": 2, "processes": 4}, "batch 4 must be a multiple of accumulate 2 x 4 processes"),
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


def test_validation_takes_as_many_images_at_a_time_as_a_step_of_training_shows_room_for():
    assert at_once(settings(batch=8, crop=None), (64, 96)) == 8 == at_once(settings(batch=8, crop=[64, 96]), (64, 192))
    assert at_once(settings(batch=64, accumulate=16, crop=None), (64, 96)) == 4
    assert at_once(settings(batch=8, crop=[512, 512]), (1024, 2048)) == 2
    assert at_once(settings(batch=2, crop=[64, 64]), (1024, 2048)) == 1 == at_once(settings(batch=8), None)


def test_a_rehearsal_takes_the_same_path_in_two_steps(tmp_path):
    s = settings(steps=1000, batch=8, accumulate=4, warmup=100, ema=0.9).rehearsed()
    done, _ = trained(tmp_path, s, KD, teacher_net())
    assert (s.steps, s.batch, done.val["images"], [p["step"] for p in done.curves["train"]]) == (2, 2, 4, [1, 2])


def test_a_rehearsal_keeps_the_processes():
    rehearsed = [settings(batch=24, processes=n).rehearsed() for n in (1, 2, 3)]
    assert [(s.processes, s.batch) for s in rehearsed] == [(1, 2), (2, 2), (3, 3)]


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


def test_processes_started_by_somebody_else_are_refused(tmp_path, monkeypatch):
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: 3))
    with pytest.raises(BadRecipe, match=r"fit\.processes is 1, and 3 were started: set it to 3, and start the command once"):
        trained(tmp_path)


def test_strict_training_is_exact_where_it_runs_and_leaves_no_trace_behind(tmp_path):
    class Watched(Net):
        def forward(self, image):
            self.seen = torch.are_deterministic_algorithms_enabled()
            return super().forward(image)

    torch.manual_seed(1)
    net = Watched()
    strict = fit(net, terms_of(), Memory(), Memory(5, 1), settings(determinism="strict"), Job(tmp_path / "strict"))
    fast, _ = trained(tmp_path / "fast")
    assert net.seen and not torch.are_deterministic_algorithms_enabled()
    assert digest(strict.weights) == digest(fast.weights)


@pytest.mark.parametrize(
    ("precision", "determinism", "rounded"), [("fp32", "fast", False), ("bf16", "fast", True), ("bf16", "strict", False)]
)
def test_fp32_is_no_tf32_while_it_learns(precision, determinism, rounded, monkeypatch):
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "allow_tf32", True)  # as torch has it, which is what would round
    before = cudnn.allow_tf32, cudnn.deterministic
    with exact(settings(precision=precision, determinism=determinism)):
        assert (cudnn.allow_tf32, cudnn.deterministic) == (rounded, determinism == "strict")
    assert (cudnn.allow_tf32, cudnn.deterministic) == before and not torch.are_deterministic_algorithms_enabled()


def test_an_operation_that_is_never_exact_is_named_under_strict(tmp_path):
    class Inexact(Net):
        def forward(self, image):
            raise RuntimeError("put_ does not have a deterministic implementation, but you set ...")

    with pytest.raises(Missing, match=r"determinism: strict is not possible here \(put_ does not .*use determinism: fast"):
        fit(Inexact(), terms_of(), Memory(), None, settings(determinism="strict"), Job(tmp_path))


def test_the_machine_counts_only_where_the_same_bits_are_promised():
    assert settings().environment() == {}
    assert {"torch", "device"} <= settings(determinism="strict").environment().keys()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize(
    "loss, waits",
    [
        ({"kind": "cirkd", "queue": 16, "when": {"start": 0.5}}, "methods.1."),
        ({"kind": "kt", "trainable": True, "switch": 0.5}, "methods.1.cut."),
    ],
    ids=["a schedule", "a phase"],
)
def test_weights_whose_loss_waits_stay_and_begin_with_a_step_like_any_first_one(tmp_path, monkeypatch, loss, waits, optimizer):
    """AdamW, had it counted the steps of waiting, would begin with up to 6.6 times the learning rate."""
    seen, learn = [], Loop.learn

    def watched(loop):
        learn(loop)
        seen.append([p.detach().clone() for name, p in loop.pupil.terms.named_parameters() if name.startswith(waits) and p.dim() > 1])

    monkeypatch.setattr(Loop, "learn", watched)
    fit = settings(steps=8, lr=1e-3, optimizer=optimizer, power=1e-6, weight_decay=0.1, clip=None)
    trained(tmp_path, fit, [loss], teacher_net())
    assert seen[0] and all(torch.equal(a, b) for a, b in zip(seen[0], seen[3], strict=True))
    leaps = [float((a - b).abs().max()) for a, b in zip(seen[3], seen[4], strict=True)]
    assert max(leaps) > 0 and (optimizer == "sgd" or max(leaps) < 1.2e-3)
