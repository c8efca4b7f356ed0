"""Training state on disk: what was saved comes back bit for bit, and damage is found and survived."""

import json
import os
import subprocess

import pytest
import torch

from pipeline.errors import BadStore
from stages import state
from stages.state import State


def made(step: int) -> State:
    torch.manual_seed(step)
    tensors = {
        "a": torch.randn(3, 4),
        "step": torch.tensor(float(step)),
        "counts": torch.arange(5),
        "nhwc": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "half": torch.randn(3).bfloat16(),
    }
    return State(step, tensors, {"curve": [0.1 + 0.2, 1e-30], "names": ["ce"]})


def same(a: State, b: State) -> bool:
    return (a.step, a.facts) == (b.step, b.facts) and a.tensors.keys() == b.tensors.keys() and all(map(torch.equal, *_values(a, b)))


def _values(a, b):
    return [[s.tensors[k] for k in sorted(a.tensors)] for s in (a, b)]


def quiet(text):
    raise AssertionError(f"nothing should be said, but: {text}")


def test_a_saved_state_comes_back_bit_for_bit(tmp_path):
    saved = made(7)
    state.save(tmp_path / "state", saved)
    assert same(state.newest(tmp_path / "state", quiet), saved)


def test_nothing_saved_is_no_error(tmp_path):
    assert state.newest(tmp_path / "missing", quiet) is None


def test_the_last_two_are_kept_and_the_newest_is_taken(tmp_path):
    for step in (1, 2, 3, 1000):
        state.save(tmp_path, made(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["round-0-step-000000003", "round-0-step-000001000"]
    assert state.newest(tmp_path, quiet).step == 1000


@pytest.mark.parametrize("file", [state.TENSORS, state.FACTS])
@pytest.mark.parametrize("harm", ["flip a bit", "cut", "empty", "delete"])
def test_a_damaged_newest_state_falls_back_to_the_one_before_and_says_so(tmp_path, file, harm):
    for step in (1, 2):
        state.save(tmp_path, made(step))
    damaged = tmp_path / "round-0-step-000000002" / file
    data = bytearray(damaged.read_bytes())
    if harm == "delete":
        damaged.unlink()
    else:
        data[len(data) // 2] ^= 1
        damaged.write_bytes({"flip a bit": data, "cut": data[:-7], "empty": b""}[harm])
    said = []
    assert same(state.newest(tmp_path, said.append), made(1))
    assert len(said) == 1 and "round-0-step-000000002 is damaged" in said[0]


def test_a_flipped_bit_of_the_facts_is_found_or_changes_nothing(tmp_path):
    state.save(tmp_path, made(1))
    file = tmp_path / "round-0-step-000000001" / state.FACTS
    clean, found = file.read_bytes(), 0
    for i in range(len(clean)):
        file.write_bytes(clean[:i] + bytes([clean[i] ^ 1]) + clean[i + 1 :])
        try:
            read = state._load(file.parent)
        except (ValueError, KeyError, TypeError):
            found += 1
        else:  # the 17th digit of a float may name the same float
            assert same(read, made(1))
    assert found > 0.99 * len(clean)


def test_if_all_states_are_damaged_it_is_an_error_that_says_what_to_do(tmp_path):
    state.save(tmp_path, made(1))
    (tmp_path / "round-0-step-000000001" / state.TENSORS).write_bytes(b"")
    with pytest.raises(BadStore, match=r"no saved training state in .* \(1 tried\); delete that folder to start over"):
        state.newest(tmp_path, lambda text: None)


def test_a_half_written_state_is_never_taken_and_is_cleared_by_the_next_saving(tmp_path):
    state.save(tmp_path, made(1))
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = [tmp_path / f"tmp-{pid}-0123abcd" for pid in (ended.pid, os.getpid())]
    for folder in left:
        folder.mkdir()
        (folder / state.TENSORS).write_bytes(b"half")
    assert state.newest(tmp_path, quiet).step == 1
    state.save(tmp_path, made(2))
    assert not any(folder.exists() for folder in left) and state.newest(tmp_path, quiet).step == 2


def test_what_a_process_at_work_is_writing_is_left_alone(tmp_path):
    other = subprocess.Popen(["sleep", "60"])
    theirs = tmp_path / f"tmp-{other.pid}-0123abcd"
    theirs.mkdir()
    try:
        state.save(tmp_path, made(1))
        assert theirs.exists()
    finally:
        other.kill()
        other.wait()
    state.save(tmp_path, made(2))
    assert not theirs.exists()


def test_two_processes_that_save_the_same_step_do_not_disturb_each_other(tmp_path, monkeypatch):
    """The second one saves while the first has written everything but the name."""
    original, nested = state._write, []

    def written(fresh, saved):
        original(fresh, saved)
        if not nested:
            nested.append(fresh)
            state._clear_half_written, kept = (lambda folder: None), state._clear_half_written  # the pid is the same only in this test
            state.save(tmp_path, made(5))
            state._clear_half_written = kept

    monkeypatch.setattr(state, "_write", written)
    state.save(tmp_path, made(5))
    assert same(state.newest(tmp_path, quiet), made(5)) and [p.name for p in tmp_path.iterdir()] == ["round-0-step-000000005"]


def test_milestones_outlive_savings_and_each_other_but_two(tmp_path):
    for step in (0, 3, 50, 70, 100, 120, 130):
        state.save(tmp_path, made(step)._replace(milestone=step % 50 == 0))
    names = ["round-0-step-000000050-milestone", "round-0-step-000000100-milestone", "round-0-step-000000120", "round-0-step-000000130"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert same(state.milestone(tmp_path, 0, 50, quiet), made(50))
    assert state.milestone(tmp_path, 0, 0, lambda text: None) is None


def test_a_later_round_comes_after_every_step_of_an_earlier_one_and_supersedes_its_milestones(tmp_path):
    for step in (50, 80):
        state.save(tmp_path, made(step)._replace(milestone=True))
    state.save(tmp_path, made(50)._replace(milestone=True, round=1))
    assert state.newest(tmp_path, quiet).round == 1
    assert state.newest(tmp_path, quiet, before=(1, 50)).step == 80
    assert sorted(p.name for p in tmp_path.iterdir()) == ["round-0-step-000000080-milestone", "round-1-step-000000050-milestone"]


def test_a_state_after_the_validation_of_its_step_comes_after_the_one_before_it(tmp_path):
    state.save(tmp_path, made(5))
    state.save(tmp_path, made(5)._replace(validated=True, facts={"now": "with a point"}))
    assert state.newest(tmp_path, quiet).facts == {"now": "with a point"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["round-0-step-000000005", "round-0-step-000000005-validated"]


def test_what_was_saved_before_is_left_as_it_is_and_made_anew_only_if_damaged(tmp_path):
    state.save(tmp_path, made(5))
    file = tmp_path / "round-0-step-000000005" / state.TENSORS
    before = file.stat().st_ino
    state.save(tmp_path, made(5))
    assert file.stat().st_ino == before
    file.write_bytes(b"rot")
    state.save(tmp_path, made(5))
    assert same(state.newest(tmp_path, quiet), made(5))


def test_what_would_come_after_the_newest_is_dropped(tmp_path):
    """It was damaged, or training went back behind it."""
    for step in (1, 9, 5):
        state.save(tmp_path, made(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["round-0-step-000000001", "round-0-step-000000005"]


def test_a_saving_that_fails_leaves_the_last_state_as_it_was(tmp_path, monkeypatch):
    state.save(tmp_path, made(1))
    monkeypatch.setattr(state.fsops, "write_new", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        state.save(tmp_path, made(2))
    assert state.newest(tmp_path, quiet).step == 1 and [p.name for p in tmp_path.iterdir()] == ["round-0-step-000000001"]


def test_there_is_no_pickle_in_a_state(tmp_path):
    state.save(tmp_path, made(1))
    files = sorted(p.name for p in (tmp_path / "round-0-step-000000001").iterdir())
    assert files == [state.FACTS, state.TENSORS]
    json.loads((tmp_path / "round-0-step-000000001" / state.FACTS).read_text())
