"""Training can be stopped anywhere and goes on to the same bytes, and what it needs for that is never trusted blindly."""

import json
import signal

import pytest
import torch
from torch import nn

from pipeline.errors import BadStore, Stopped
from stages import state
from stages.loop import fit
from tests.stages.small_fit import KD, Job, Memory, Net, digest, forget_accelerate, settings, teacher_net, terms_of, trained


@pytest.fixture(autouse=True)
def fresh_accelerate():
    forget_accelerate()


CHANGES = [{}, {"ema": 0.9, "accumulate": 2}, {"optimizer": "sgd", "channels_last": True}, {"data": "device"}]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
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


def test_weights_that_wait_for_their_loss_go_on_to_the_same_bytes_too(tmp_path):
    losses = [{"kind": "cirkd", "queue": 16, "when": {"start": 0.4}}]  # from the step numbered 5 on
    undisturbed, _ = trained(tmp_path / "whole", losses=losses, teacher=teacher_net())
    for stop in (3, 5, 6):
        with pytest.raises(Stopped):
            trained(tmp_path / f"stop{stop}", losses=losses, teacher=teacher_net(), stop_at=stop)
        done, _ = trained(tmp_path / f"stop{stop}", losses=losses, teacher=teacher_net())
        assert digest(done.weights) == digest(undisturbed.weights) and done.curves == undisturbed.curves


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
