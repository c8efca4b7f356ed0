"""Several processes of one training: what they say is passed on, they stop together, and what goes wrong in one of them is told."""

import os
import signal
import time

import pytest

from pipeline.errors import BadData, Missing, Stillhouse, Stopped
from stages import group
from tests.stages.small_fit import Job

HERE = "tests.stages.test_group:"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The processes are forked here, which is cheaper, and wait for each other only a little."""
    import torch
    import torch.distributed

    torch.set_num_threads(1)
    monkeypatch.setattr(group, "START", "fork")
    monkeypatch.setattr(group, "TIMEOUT", 3.0)
    monkeypatch.setattr(group, "LINGER", 2.0)


def run(work, folder, *given, job=None):
    return group.together(HERE + work, given, 2, job or Job(folder))


def rank():
    return int(os.environ["RANK"])


def meet():
    """A sum over both processes."""
    import torch

    value = torch.ones(1)
    torch.distributed.all_reduce(value)
    return value.item()


def talks(job):
    job.say(f"hello from {rank()}")
    job.progress(1, 1, loss=0.5)
    return meet()


def test_both_work_together_and_the_first_one_speaks(tmp_path):
    job = Job(tmp_path)
    assert run("talks", tmp_path, job=job) == 2.0
    assert job.said == ["hello from 0"] and job.shown == [(1, 1, {"loss": 0.5})]


def fails(which, error, job):
    if rank() == which:
        raise error
    meet()


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    "error", [BadData("street_3.png is broken"), OSError(28, "No space left on device", "state")], ids=["data", "disk"]
)
def test_what_one_of_them_found_is_what_is_told(tmp_path, which, error):
    job = Job(tmp_path)
    with pytest.raises(type(error)) as raised:
        run("fails", tmp_path, which, error, job=job)
    assert str(raised.value) == str(error) and job.said == []


@pytest.mark.parametrize("which", [0, 1])
def test_a_bug_in_one_of_them_is_a_bug_and_nothing_is_started_again(tmp_path, which):
    job = Job(tmp_path)
    with pytest.raises(Stillhouse, match="KeyError: 'tap'") as raised:
        run("fails", tmp_path, which, KeyError("tap"), job=job)
    assert raised.value.code == 1 and job.said == []


def dies(saves, job):
    """The first time, and every time unless something new was `saves`d."""
    (job.state / f"{os.getpid()}-{rank()}").mkdir(parents=True) if saves else None
    first = not (job.out / "been").exists()
    if rank() == 1 and (first or saves > 1):
        (job.out / "been").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return meet()


def test_one_that_dies_is_started_again_with_the_others_if_there_is_something_to_go_on_from(tmp_path):
    job = Job(tmp_path)
    assert run("dies", tmp_path, 1, job=job) == 2.0
    assert len(job.said) == 1 and "process 2 of 2 was ended by signal 9" in job.said[0]
    assert job.said[0].endswith("all 2 are started again from the last saved state")


def test_without_anything_new_it_is_not_started_again(tmp_path):
    with pytest.raises(
        Missing, match=r"process 2 of 2 was ended by signal 9, and nothing new had been saved since .* set fit\.processes: 1"
    ):
        run("dies", tmp_path, 0)


def test_it_is_started_again_twice_at_most(tmp_path):
    job = Job(tmp_path)
    with pytest.raises(Missing, match="signal 9, and it was started again and again"):
        run("dies", tmp_path, 2, job=job)
    assert len(job.said) == group.AGAIN


def stalls(job):
    if rank() == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    return meet()


def test_one_that_falls_silent_does_not_hold_up_the_others_forever(tmp_path):
    began = time.monotonic()
    with pytest.raises(Missing, match="process 1 of 2 fell silent; process 2 of 2 said: "):
        run("stalls", tmp_path)
    assert time.monotonic() - began < 3 + 10


def waits(job):
    (job.out / f"pid-{os.getpid()}").touch()
    job.say("waiting")
    while not (number := job.stop_asked()):
        time.sleep(0.01)
    meet()
    raise Stopped("stopped at step 3", number)


class Asked(Job):
    """Somebody asks it to stop once both wait."""

    def stop_asked(self):
        return signal.SIGTERM if len(list(self.out.glob("pid-*"))) == 2 else 0


def test_a_signal_reaches_all_of_them(tmp_path):
    with pytest.raises(Stopped, match="stopped at step 3") as raised:
        run("waits", tmp_path, job=Asked(tmp_path))
    assert raised.value.code == 143
    for file in (tmp_path / "out").iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.name[4:]), 0)
