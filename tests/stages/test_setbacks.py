"""What happens when numbers are not finite: steps are skipped, training goes back and on more slowly, and nothing of it is published."""

import json

import pytest
import torch
from torch import nn

from pipeline.errors import BadStore, Diverged, Stopped
from stages import loop, setbacks, state
from stages.batches import names_at
from stages.fit import Fit
from stages.guard import Guard
from stages.loop import fit
from stages.pupil import optimizer_for
from tests.stages.small_fit import Job, Memory, Net, digest, forget_accelerate, settings, terms_of


@pytest.fixture(autouse=True)
def fresh_accelerate():
    forget_accelerate()


@pytest.fixture(autouse=True)
def near_milestones(monkeypatch):
    monkeypatch.setattr(setbacks, "MILESTONE_STEPS", 5)


NAN, INF = float("nan"), float("inf")


def spoil(monkeypatch, bad, harm="loss"):
    """`bad(round, step)` tells which steps go wrong, and `harm` how."""
    original = loop.Loop._terms

    def spoilt(self, images, labels):
        terms, task = original(self, images, labels)
        if not bad(self.setbacks.round, self.done):
            return terms, task
        if harm == "loss":
            terms = {name: term * NAN for name, term in terms.items()}
        elif harm == "gradient":  # of a finite loss
            self.pupil.student.first.weight.register_hook(lambda grad: grad * INF)
        elif harm == "buffer":  # of a finite loss with finite gradients
            self.pupil.student.norm.running_var.data[1] = NAN  # unseen by autograd
        return terms, task

    monkeypatch.setattr(loop.Loop, "_terms", spoilt)


class OneUse(Net):
    """Forgets hooks of the step before."""

    def forward(self, image):
        self.first.weight._backward_hooks = None
        return super().forward(image)


def run(folder, s=None, stop_at=None):
    torch.manual_seed(1)
    job = Job(folder, stop_at)
    return fit(OneUse(), terms_of(), Memory(), Memory(5, 1), s or settings(), job), job


def stopped(folder, s, stop):
    with pytest.raises(Stopped):
        run(folder, s, stop_at=stop)
    return state.newest(folder / "state", print)


HARMS = ("loss", "gradient", "buffer")


@pytest.mark.parametrize("changes", [{}, {"optimizer": "sgd"}, {"accumulate": 2}, {"clip": None}], ids=str)
@pytest.mark.parametrize("harm", HARMS)
def test_a_step_with_numbers_that_are_not_finite_changes_nothing(tmp_path, monkeypatch, harm, changes):
    spoil(monkeypatch, lambda round, step: step == 3, harm)
    s = settings(validate_every=0, **changes)
    before, after = stopped(tmp_path / "before", s, 3), stopped(tmp_path / "after", s, 4)
    assert (before.step, after.step) == (3, 4)
    for name, value in before.tensors.items():
        assert name.endswith("num_batches_tracked") or torch.equal(value, after.tensors[name]), name
    last = stopped(tmp_path / "next", s, 5)
    assert not torch.equal(last.tensors["student/first.weight"], after.tensors["student/first.weight"])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_very_first_step_can_be_skipped(tmp_path, monkeypatch, optimizer):
    """The moments of the optimiser do not exist before it."""
    spoil(monkeypatch, lambda round, step: step == 0)
    torch.full((1 << 16,), NAN)  # what fresh memory may hold
    done, _ = run(tmp_path, settings(optimizer=optimizer, validate_every=0, ema=0.5))
    assert all(value.isfinite().all() for value in done.weights.values())
    assert [p["step"] for p in done.curves["train"]] == list(range(2, 13))


def test_skipped_steps_are_said_with_their_samples_and_listed_in_the_curves(tmp_path, monkeypatch):
    spoil(monkeypatch, lambda round, step: step in (2, 3, 4, 8))
    done, job = run(tmp_path)
    names = {step: sorted(set(names_at(step, Memory(), settings()))) for step in (2, 3, 4, 8)}
    assert done.curves["events"] == [{"step": step + 1, "event": "skipped", "samples": names[step]} for step in names]
    said = [f"step {step + 1} is skipped: its loss or gradients are not finite; its batch was {', '.join(names[step])}" for step in names]
    assert [line for line in job.said if "skipped" in line] == said
    json.dumps(done.curves, allow_nan=False)
    assert [p["step"] for p in done.curves["train"]] == [1, 2, 6, 7, 8, 10, 11, 12]


@pytest.mark.parametrize("harm", HARMS)
def test_four_in_a_row_lead_back_to_the_milestone_before_them_and_on_with_half_the_learning_rate(tmp_path, monkeypatch, harm):
    whole, _ = run(tmp_path / "whole")
    spoil(monkeypatch, lambda round, step: round == 0 and step >= 6, harm)
    done, job = run(tmp_path / "back")
    assert [e["step"] for e in done.curves["events"]] == [7, 8, 9, 10, 10]
    assert done.curves["events"][-1] == {"step": 10, "event": "went back", "to": 5, "lr_factor": 0.5}
    assert any("Going back to step 5, and on with half the learning rate" in line for line in job.said)
    rates = [settings().rate(step) * (1 if step < 5 else 0.5) for step in range(12)]
    assert [p["lr"] for p in done.curves["train"]] == pytest.approx(rates)
    assert [p["step"] for p in done.curves["train"]] == list(range(1, 13))
    assert [p["loss"] for p in done.curves["train"]][:5] == [p["loss"] for p in whole.curves["train"]][:5]


def test_it_learns_after_going_back_what_it_would_have_learnt_with_that_rate_from_the_milestone_on(tmp_path, monkeypatch):
    original, s = Fit.rate, settings()
    monkeypatch.setattr(Fit, "rate", lambda self, step: original(self, step) * (1 if step < 5 else 0.5))
    slower, _ = run(tmp_path / "slower", s)
    monkeypatch.setattr(Fit, "rate", original)
    spoil(monkeypatch, lambda round, step: round == 0 and step >= 6)
    back, _ = run(tmp_path / "back", s)
    assert digest(back.weights) == digest(slower.weights) and back.curves["train"] == slower.curves["train"]


TROUBLES = {
    "one step": lambda round, step: step == 6,
    "three in a row": lambda round, step: 4 <= step < 7,
    "four in a row": lambda round, step: round == 0 and 6 <= step < 10,
    "over a milestone": lambda round, step: round == 0 and step >= 8,
    "from the start": lambda round, step: round == 0,
    "twice": lambda round, step: (round == 0 and step >= 6) or (round == 1 and step >= 7),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_with_setbacks_too_it_can_be_stopped_anywhere_and_ends_in_the_same_bytes(tmp_path, monkeypatch, trouble):
    spoil(monkeypatch, TROUBLES[trouble])
    s = settings(ema=0.9)
    whole, _ = run(tmp_path / "whole", s)
    for every in (1, 2, 3, 5):
        folder = tmp_path / str(every)
        for _ in range(60):
            try:
                done, _ = run(folder, s, stop_at=every + 2)  # two are asked by the validation
                break
            except Stopped:
                pass
        assert digest(done.weights) == digest(whole.weights) and done.curves == whole.curves, every


@pytest.mark.parametrize("seconds", [1e-9, 1e9], ids=["always", "never"])
def test_when_somebody_looks_or_saves_does_not_change_what_is_done(tmp_path, monkeypatch, seconds):
    spoil(monkeypatch, TROUBLES["twice"])
    whole, _ = run(tmp_path / "whole")
    monkeypatch.setattr(loop, "LOOK_SECONDS", seconds)
    other, _ = run(tmp_path / "other", settings(save_every=seconds))
    assert digest(other.weights) == digest(whole.weights) and other.curves == whole.curves


def test_when_going_back_twice_has_not_helped_it_ends_and_names_steps_and_samples(tmp_path, monkeypatch):
    spoil(monkeypatch, lambda round, step: step >= 6)
    job = Job(tmp_path)
    with pytest.raises(Diverged) as raised:
        fit(OneUse(), terms_of(), Memory(), None, settings(steps=4000), job)
    names = ", ".join(sorted(set(names_at(6, Memory(), settings(steps=4000)))))
    text = "training diverged: the loss or the gradients of steps 7 to 10 are not finite, after going back 2 times to learn more slowly"
    assert str(raised.value).startswith(f"{text}; the batch of step 7 was {names}. Lower fit.lr")
    assert not list(job.out.iterdir())
    for folder in (job.state).iterdir():
        assert all(value.isfinite().all() for value in state._load(folder).tensors.values())
    with pytest.raises(Diverged, match="of steps 7 to 10 are not finite, after going back 2 times"):  # the same again: nothing is forgotten
        fit(OneUse(), terms_of(), Memory(), None, settings(steps=4000), Job(tmp_path))


@pytest.mark.parametrize("at", [5, 12], ids=["at a milestone", "at the end"])
def test_weights_that_are_not_finite_lead_back_too(tmp_path, monkeypatch, at):
    whole, _ = run(tmp_path / "whole")
    spoil_weights(monkeypatch, lambda round, done: round == 0 and done == at)
    done, job = run(tmp_path / "x")
    assert done.curves["events"][0] == {"step": at, "event": "went back", "to": 0 if at == 5 else 10, "lr_factor": 0.5}
    assert any("1 weights of the student are not finite, the first is norm.running_var" in line for line in job.said)
    assert all(value.isfinite().all() for value in done.weights.values()) and digest(done.weights) != digest(whole.weights)


def test_weights_that_stay_not_finite_are_never_published(tmp_path, monkeypatch):
    spoil_weights(monkeypatch, lambda round, done: done == 12)
    with pytest.raises(Diverged, match=r"weights of the student are not finite, the first is norm.running_var, after going back 2 times"):
        run(tmp_path)


def test_a_start_that_is_not_finite_is_refused_at_once(tmp_path):
    net = Net()
    with torch.no_grad():
        net.first.bias[0] = INF
    with pytest.raises(Diverged, match=r"diverged: 1 weights of the student are not finite, the first is first.bias. Lower"):
        fit(net, terms_of(), Memory(), None, settings(), Job(tmp_path))


def test_a_stop_while_weights_are_not_finite_saves_nothing_bad(tmp_path, monkeypatch):
    spoil_weights(monkeypatch, lambda round, done: round == 0 and done == 7)
    whole, _ = run(tmp_path / "whole")
    with pytest.raises(Stopped, match="stopped at step 7 of 12; the same command goes on from what was saved last"):
        run(tmp_path / "x", stop_at=9)
    assert state.newest(tmp_path / "x" / "state", print).step == 5
    done, _ = run(tmp_path / "x")
    assert digest(done.weights) == digest(whole.weights) and done.curves == whole.curves


def spoil_weights(monkeypatch, when):
    original = loop.Loop.report_if_due

    def spoilt(self):
        original(self)
        if when(self.setbacks.round, self.done):
            with torch.no_grad():
                self.pupil.student.norm.running_var[1] = INF

    monkeypatch.setattr(loop.Loop, "report_if_due", spoilt)


@pytest.mark.parametrize("harm", ["damaged", "missing"])
def test_a_milestone_that_is_gone_is_made_anew_and_the_result_stays_the_same(tmp_path, monkeypatch, harm):
    spoil(monkeypatch, TROUBLES["four in a row"])
    whole, _ = run(tmp_path / "whole")
    stopped(tmp_path / "x", settings(), 8)
    needed = tmp_path / "x" / "state" / "round-0-step-000000005-milestone"
    if harm == "damaged":
        (needed / state.TENSORS).write_bytes(b"rot")
    else:
        for file in needed.iterdir():
            file.unlink()
        needed.rmdir()
    done, job = run(tmp_path / "x")
    assert any("round-0-step-000000005-milestone cannot be used" in line for line in job.said)
    assert digest(done.weights) == digest(whole.weights) and done.curves == whole.curves


def test_if_no_earlier_state_is_left_either_it_says_so(tmp_path, monkeypatch):
    spoil(monkeypatch, TROUBLES["from the start"])
    stopped(tmp_path, settings(), 2)
    (tmp_path / "state" / "round-0-step-000000000-milestone" / state.TENSORS).write_bytes(b"rot")
    with pytest.raises(BadStore, match=r"the milestone at step 0 in .* cannot be read, and nothing before it is left; delete that folder"):
        run(tmp_path)


# fp16: the scaler of gradients skips steps of its own


def half_step(guard, net, scale_of_loss=1.0, spoil_loss=False):
    guard.begin()
    loss = net(torch.ones(2, 3)).sum() * scale_of_loss
    guard.scaler.scale(loss).backward()
    return guard.update([loss.detach() * (NAN if spoil_loss else 1.0)]).item()


def scaled(init_scale):
    net = nn.Linear(3, 1)
    optimizer = optimizer_for(net, nn.Module(), settings(optimizer="sgd", lr=1.0), ())
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
    return net, Guard((net,), optimizer, None, scaler)


def test_an_overflow_of_the_scaled_gradients_is_skipped_and_does_not_count():
    net, guard = scaled(2.0**16)
    before = net.weight.clone()
    assert half_step(guard, net, scale_of_loss=1e36) == 0.0
    assert torch.equal(net.weight, before) and guard.scaler.get_scale() == 2.0**15
    assert half_step(guard, net) == 0.0 and not torch.equal(net.weight, before)


def test_where_the_scale_cannot_be_to_blame_any_more_it_counts():
    net, guard = scaled(0.5)
    before = net.weight.clone()
    assert half_step(guard, net, scale_of_loss=INF) == 1.0 and torch.equal(net.weight, before)


def test_a_loss_that_is_not_finite_counts_and_skips_under_a_scaler_too():
    net, guard = scaled(2.0**16)
    before = net.weight.clone()
    assert half_step(guard, net, spoil_loss=True) == 1.0 and torch.equal(net.weight, before)
