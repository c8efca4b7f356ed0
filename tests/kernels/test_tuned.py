"""Configurations measured on a device are used there, never under deterministic algorithms, and only where their numbers are right."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from kernels import bench, choose, tune, tuned
from kernels.channel_kl import channel_kl, triton_

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
HERE, KEY = "kernels.channel_kl", "to 64 pixels, float32"
SHIPPED = {"largest": triton_.LARGEST, "waves": triton_.WAVES, "each": triton_.EACH}
OTHER, THIRD = triton_.SPACE["sums"][0], triton_.SPACE["sums"][1]
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy on lanes beyond a row's end, which are dropped


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own, and a process that has read nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path
    anew()


def anew():
    tuned.stored.cache_clear()
    tuned.measured.cache_clear()


def record(config, kernel="sums", key=KEY):
    return {"operation": "channel_kl", "source": tuned.digest(HERE), "kernel": kernel, "key": key, "config": config}


def launched(monkeypatch, batch=1):
    """With which configuration of `sums` a step is launched; its numbers are right."""
    seen, part = [], triton_._part

    def spy(rows, pixels, device, largest, waves):
        seen.append((largest, waves))
        return part(rows, pixels, device, largest, waves)

    z, t = torch.randn(2, batch, 3, 7, 9, device=DEVICE)
    with monkeypatch.context() as patch:
        patch.setattr(triton_, "_part", spy)
        found = channel_kl(z, t, temperature=2.0, using="triton")
    torch.testing.assert_close(found, channel_kl(z, t, temperature=2.0, using="reference"), rtol=1e-5, atol=1e-6)
    return dict(zip(("largest", "waves"), seen[0], strict=True))


def of(config):
    return {name: config[name] for name in ("largest", "waves")}


def test_what_was_measured_is_used_for_any_batch_and_what_was_not_is_launched_as_shipped(monkeypatch):
    assert launched(monkeypatch) == of(SHIPPED)
    tuned.store(DEVICE, [record(OTHER)])
    anew()
    assert launched(monkeypatch) == launched(monkeypatch, batch=3) == of(OTHER) != of(SHIPPED)
    tuned.store(DEVICE, [record(OTHER, key="to 128 pixels, float32"), record(None)])  # the shipped one was the fastest
    anew()
    assert launched(monkeypatch) == of(SHIPPED)


def test_under_deterministic_algorithms_the_shipped_configuration_is_launched(monkeypatch):
    tuned.store(DEVICE, [record(OTHER)])
    anew()
    torch.use_deterministic_algorithms(True)
    try:
        assert launched(monkeypatch) == of(SHIPPED) and tuned.used(HERE, DEVICE) == "shipped"
    finally:
        torch.use_deterministic_algorithms(False)
    assert launched(monkeypatch) == of(OTHER) and tuned.used(HERE, DEVICE) == "tuned"


def test_the_record_of_a_run_tells_which_set_of_configurations_was_used(monkeypatch):
    monkeypatch.setattr(choose, "variant", lambda operation, *_: "triton" if operation.endswith("_kl") else "reference")
    tuned.store(DEVICE, [record(OTHER)])
    anew()
    told = choose.choices(DEVICE)
    assert (told["channel_kl"], told["upsample_ce_kl"], told["label_histogram"]) == ("triton, tuned", "triton, shipped", "reference")


BAD = {
    "empty": lambda told: "",
    "cut off": lambda told: json.dumps(told)[:-20],
    "no text": lambda told: "\0\1",
    "a list": lambda told: "[]",
    "nested without end": lambda told: "[" * 100_000,
    "nothing measured": lambda told: json.dumps(told | {"measured": None}),
    "another device": lambda told: json.dumps(told | {"device": "NVIDIA Other"}),
    "another Triton": lambda told: json.dumps(told | {"triton": "1.0"}),
    "a record of nothing": lambda told: json.dumps(told | {"measured": [{"config": OTHER}]}),
    "a record that is a number": lambda told: json.dumps(told | {"measured": [3]}),
    "a record without a configuration": lambda told: json.dumps(told | {"measured": [{**record(OTHER), "config": {}}]}),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_file_that_cannot_be_used_is_told_once_in_one_line_and_ignored(bad, monkeypatch, caplog):
    tuned.store(DEVICE, [record(OTHER)])
    path = tuned.file(DEVICE)
    path.write_text(bad(json.loads(path.read_text())))
    anew()
    with caplog.at_level(logging.WARNING):
        assert launched(monkeypatch) == launched(monkeypatch) == of(SHIPPED)
    assert len(caplog.messages) == 1 and "\n" not in caplog.text.strip()
    assert str(path) in caplog.text and "python -m kernels.tune" in caplog.text
    tuned.store(DEVICE, [record(OTHER)])  # which writes it anew
    anew()
    assert launched(monkeypatch) == of(OTHER)


def test_a_record_of_other_source_or_outside_the_space_is_not_used(monkeypatch):
    for foreign in (record(OTHER) | {"source": "of yesterday"}, record({**OTHER, "each": 7}), record(OTHER, kernel="gone"), record(3)):
        tuned.store(DEVICE, [foreign])
        anew()
        assert launched(monkeypatch) == of(SHIPPED)


def test_a_folder_that_is_not_absolute_is_no_folder(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    assert tuned.file(DEVICE).is_absolute() and ".cache/stillhouse/kernels" in tuned.file(DEVICE).as_posix()


def measured_with(times: dict, monkeypatch, space=None):
    """{kernel: record}, with a clock that says what each configuration of `sums` takes; any other, the shipped one too, takes 1 ms."""
    monkeypatch.setattr(triton_, "SPACE", {"sums": space or [OTHER, THIRD], "gradient": triton_.SPACE["gradient"][:1]})
    anew()

    def step(contender, given, device):
        now = tuned.measured(HERE, DEVICE).get(("sums", KEY))
        gradient = bench.step(contender, given, device)[2]
        return next((ms for config, ms in times.items() if now and config == tuple(now.values())), 1.0) / 2, 0.0, gradient

    found = tune.search("channel_kl", DEVICE, "tiny", rounds=(1, 1), step=step)
    return {each["kernel"]: each for each in found}


def test_the_fastest_configuration_is_found_remembered_and_launched(monkeypatch):
    found = measured_with({tuple(OTHER.values()): 0.9, tuple(THIRD.values()): 0.6}, monkeypatch)
    assert (found["sums"]["config"], found["sums"]["ms"], found["sums"]["shipped_ms"]) == (THIRD, 0.3, 0.5)
    assert found["gradient"]["config"] is None and found["sums"]["key"] == KEY and found["sums"]["on"] == "tiny, fp32"
    tuned.store(DEVICE, list(found.values()))
    anew()
    assert tuned.configuration(HERE, "sums", ("to 64 pixels", "float32"), SHIPPED, DEVICE) == THIRD


def test_what_gains_less_than_noise_leaves_the_shipped_configuration_in_its_place(monkeypatch):
    assert measured_with({tuple(THIRD.values()): 0.99}, monkeypatch)["sums"]["config"] is None


def test_a_configuration_whose_numbers_are_wrong_or_that_does_not_launch_is_never_chosen(monkeypatch):
    part = triton_._part

    def breaks(rows, pixels, device, largest, waves):
        if largest == 1:
            raise RuntimeError("out of resource: shared memory")
        return part(rows, pixels, device, largest, waves)

    forward = triton_.forward

    def lies(*given):
        kl, ls, lt = forward(*given)
        wrong = tuned.measured(HERE, DEVICE).get(("sums", KEY)) == OTHER
        return kl, ls + 0.02 * wrong, lt  # only the gradient shows it

    monkeypatch.setattr(triton_, "_part", breaks)
    monkeypatch.setattr(triton_, "forward", lies)
    dead = {**OTHER, "largest": 1}
    found = measured_with(
        {tuple(OTHER.values()): 0.1, tuple(dead.values()): 0.1, tuple(THIRD.values()): 0.8}, monkeypatch, [OTHER, dead, THIRD]
    )
    assert found["sums"]["config"] == THIRD
    assert ["gradient is off" in found["sums"]["wrong"][0], "shared memory" in found["sums"]["wrong"][1]] == [True, True]


def test_where_what_ships_is_wrong_nothing_is_measured(monkeypatch):
    forward = triton_.forward
    monkeypatch.setattr(triton_, "forward", lambda *given: (forward(*given)[0] * 1.01, *forward(*given)[1:]))
    with pytest.raises(SystemExit, match="what ships is wrong here"):
        measured_with({}, monkeypatch)


@pytest.mark.parametrize("operation", tune.tunable())
def test_every_configuration_of_a_space_can_be_written_and_read_and_is_named_once(operation):
    space = __import__(f"kernels.{operation}.triton_", fromlist=["SPACE"]).SPACE
    assert json.loads(json.dumps(space)) == space
    for configs in space.values():
        assert len({tuple(config.items()) for config in configs}) == len(configs) > 1


def test_the_command_writes_what_it_finds_into_the_cache_folder(cache):
    command = [sys.executable, "-m", "kernels.tune", "--tiny", "--device", DEVICE.type, "channel_kl"]
    done = subprocess.run(command, cwd=Path(tune.__file__).parents[1], env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path = tuned.file(DEVICE)
    assert path.is_relative_to(cache) and str(path) in done.stdout and list(path.parent.iterdir()) == [path]
    told = json.loads(path.read_text())
    assert told["triton"] and told["device"] and told["driver"]
    assert [(each["kernel"], each["key"], each["tried"]) for each in told["measured"]] == [("sums", KEY, 2), ("gradient", KEY, 2)]
    assert tuned.stored(DEVICE) == told["measured"]
