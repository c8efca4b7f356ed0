"""Time is measured in processes of their own, in turns, and the two boundaries mean what they say."""

import sys
import time

import numpy as np
import pytest

from pipeline.errors import BadData, Refused, Stillhouse
from stages.measure import latency
from stages.samples import open_samples
from tests.stages import small_line

COMMON = {"size": list(small_line.SIZE), "warmup_ms": 0, "threads": 1}


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    folder = tmp_path_factory.mktemp("line")
    dataset = small_line.data(folder)
    student = small_line.checkpoint(folder, dataset)
    onnx = small_line.exported(folder, dataset, student)
    images = [open_samples(dataset, "val").source(i) for i in range(2)]
    return student, onnx, images


def common(images, work):
    for k, image in enumerate(images):
        np.save(work / f"image_{k}.npy", image)
    return {**COMMON, "images": [str(work / f"image_{k}.npy") for k in range(len(images))]}


def test_only_the_runtime_asked_for_is_in_the_child(line, tmp_path):
    student, onnx, images = line
    child = latency.Child(onnx, common(images, tmp_path), tmp_path)
    try:
        child.opened()
        child.warm()
        assert child.modules == ["onnxruntime"] and child.ran["threads"] == 1
        found = child.timed(3)
    finally:
        child.end()
    assert found.keys() == {"image_ms", "engine_ms", "image_cpu_ms", "engine_cpu_ms"}
    assert all(len(v) == 3 and min(v) > 0 for v in found.values())
    assert child.process.returncode is not None
    reference = latency.Child(student, common(images, tmp_path), tmp_path)
    reference.opened()
    reference.end()
    assert "torch" in reference.modules


def test_models_take_turns_and_nobody_always_comes_first(line, tmp_path, monkeypatch):
    _, onnx, images = line
    order = []
    timed = latency.Child.timed

    def seen(self, runs):
        order.append((self.name, runs))
        return timed(self, runs)

    monkeypatch.setattr(latency.Child, "timed", seen)
    other = small_line.Artifact("other", onnx.kind, "x", onnx.folder, onnx.facts)
    progress, watch = [], latency.Watch()
    found = latency.measure(
        [onnx, other],
        images,
        small_line.SIZE,
        tmp_path,
        runs=24,
        warmup_ms=0,
        threads=1,
        between=lambda done, total: progress.append((done, total)),
        watch=watch,
    )
    order = [one for one in order if one[1]]  # without warming up
    assert order == [(("onnx", "other")[k], runs) for k, runs in latency.in_turns(2, 24)]
    assert watch.end()["order"] == [name for name, _ in order]
    assert progress == [(k, 20) for k in range(1, 21)]
    for name in ("onnx", "other"):
        assert found[name]["image_ms"]["n"] == len(found[name]["samples_image_ms"]) == len(found[name]["samples_image_cpu_ms"]) == 24
        assert found[name]["engine_ms"]["p50"] == pytest.approx(np.median(found[name]["samples_engine_ms"]), rel=1e-3)
        assert found[name]["threads"] == 1 and found[name]["on_gpu"] is False


def test_every_round_has_each_model_once_in_an_order_drawn_from_one_seed():
    turns = latency.in_turns(3, 64)
    rounds = [turns[k : k + 3] for k in range(0, 30, 3)]
    assert len(turns) == 30 and all(sorted(k for k, _ in one) == [0, 1, 2] for one in rounds)
    assert len({tuple(k for k, _ in one) for one in rounds}) > 3 and turns == latency.in_turns(3, 64)
    assert sum(runs for k, runs in turns if k == 1) == 64 and {runs for _, runs in turns} == {6, 7}
    assert [runs for _, runs in latency.in_turns(1, 4)] == [1, 1, 1, 1]


def test_processor_time_counts_work_and_no_waiting():
    def work():
        end = time.process_time() + 0.01
        while time.process_time() < end:
            pass

    found = latency.times({"image_ms": [lambda: time.sleep(0.01)], "engine_ms": [work]}, 3)
    assert max(found["image_cpu_ms"]) < 5 < 10 <= min(found["image_ms"]) and min(found["engine_cpu_ms"]) >= 10


def test_a_sleep_of_known_length_is_measured_and_images_take_turns():
    called = []

    def call(k):
        called.append(k)
        time.sleep(0.005)

    found = latency.times({"image_ms": [lambda: call(0), lambda: call(1)], "engine_ms": [lambda: called.append("engine")]}, 4)
    assert len(found["image_ms"]) == 4 and all(5 <= value < 100 for value in found["image_ms"])
    assert max(found["engine_ms"]) < 2
    assert called[2 * latency.REWARM_RUNS :] == [0, "engine", 1, "engine", 0, "engine", 1, "engine"]
    called.clear()
    latency.times({"image_ms": [lambda: call(0), lambda: call(1)]}, 1, done=3)
    assert called[latency.REWARM_RUNS :] == [1]  # where the last turn ended


def test_warming_up_takes_ten_runs_and_the_time_asked_for():
    called = []
    latency.warm([lambda: called.append(0)], 1e-9)
    assert len(called) == 10
    latency.warm([lambda: called.append(0)], 0)  # a rehearsal
    assert len(called) == 11
    start = time.perf_counter()
    latency.warm([lambda: time.sleep(0.001)], 50)
    assert time.perf_counter() - start >= 0.05


def test_the_image_boundary_includes_resizing_and_the_engine_boundary_does_not(monkeypatch, tmp_path):
    """With an engine that takes no time, and a resize that takes 4 ms."""

    class Instant:
        ran = {"threads": 1}

        def __call__(self, images):
            assert images.shape == (1, 8, 8, 3)
            return np.zeros((1, 8, 8), np.uint8)

        def bind(self, images):
            assert images.shape == (1, 8, 8, 3)
            return lambda: None

    def slow(image, size):
        time.sleep(0.004)
        return np.zeros((*size, 3), np.uint8)

    monkeypatch.setattr(latency, "open_session", lambda artifact, threads: Instant())
    monkeypatch.setattr(latency, "fitted", slow)
    np.save(tmp_path / "image.npy", np.zeros((16, 16, 3), np.uint8))
    artifact = {"name": "x", "kind": "Engine", "id": "x", "folder": str(tmp_path), "facts": {}}
    spec = {"artifact": artifact, "threads": None, "size": [8, 8], "warmup_ms": 0, "images": [str(tmp_path / "image.npy")]}
    answers = []
    latency.main(spec, ["3\n"], answers.append)
    assert min(answers[1]["image_ms"]) >= 4 and max(answers[1]["engine_ms"]) < 2


def opened(*given):
    child = latency.Child(*given)
    try:
        child.opened()
    finally:
        child.end()


def test_what_goes_wrong_in_a_child_is_said_by_its_stage(line, tmp_path):
    _, onnx, images = line
    broken = small_line.Artifact("b", "OnnxModel", "x", tmp_path, onnx.facts)
    with pytest.raises(Refused, match=r"b: .*not a plain file"):
        opened(broken, common(images, tmp_path), tmp_path)
    wrong = small_line.Artifact("w", "Nonsense", "x", tmp_path, {})
    with pytest.raises(Stillhouse, match="the process of w ended with 1: KeyError"):
        opened(wrong, common(images, tmp_path), tmp_path)


def test_no_child_is_left_when_the_stage_is_stopped(line, tmp_path, monkeypatch):
    _, onnx, images = line
    children, start = [], latency.Child.__init__

    def remember(self, *given):
        children.append(self)
        start(self, *given)

    monkeypatch.setattr(latency.Child, "__init__", remember)

    def stop(done, total):
        raise BadData("stop here")

    with pytest.raises(BadData, match="stop here"):
        latency.measure([onnx], images, small_line.SIZE, tmp_path, runs=20, warmup_ms=0, threads=1, between=stop)
    assert [child.process.poll() is not None for child in children] == [True]


def test_the_child_leaves_when_nobody_asks_any_more(line, tmp_path):
    _, onnx, images = line
    child = latency.Child(onnx, common(images, tmp_path), tmp_path)
    child.process.stdin.close()
    assert child.process.wait(timeout=20) == 0
    child.process.stdout.close()
    assert sys.executable in child.process.args
