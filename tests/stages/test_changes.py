"""The images that are kept are those that cost most, and what is kept of each is what the two models really said."""

import json

import numpy as np
import pytest
from PIL import Image

from pipeline.artifact import Artifact
from pipeline.released import Released
from stages.baseline import accepted
from stages.measure.changes import changes, compared, lost
from stages.measure.miou import counts
from stages.measure.paired import drop, influence
from stages.measure.predict import open_session
from stages.measure.sure import parts
from stages.samples import open_samples
from stages.validate import Validate
from tests.stages import small_line

NAMES = ["road", "car", "pole", "sky"]


class Shots:
    """Twelve images of random labels."""

    classes, colours = NAMES, [[10 * k, 0, 0] for k in range(4)]

    def __init__(self):
        random = np.random.default_rng(3)
        self.labels = random.integers(0, 4, (12, 16, 24), dtype=np.uint8)
        self.labels[:, :2] = 255

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return np.zeros((16, 24, 3), np.uint8), self.labels[i]

    def name(self, i):
        return f"shot {i}"


class Maps(dict):
    def get(self, name, i):
        return self[name][i]


def noisy(labels, share, seed):
    """Other classes on so large a share of the pixels, everywhere alike: as of another training."""
    random = np.random.default_rng(seed)
    return np.where(random.random(labels.shape) < share, random.integers(0, 4, labels.shape), labels).astype(np.uint8)


def planted(job, samples, where, seed=1):
    """Both are wrong on a tenth of all pixels, each elsewhere; the engine has lost every car in the images `where`."""
    maps = Maps(student=noisy(samples.labels, 0.1, seed), engine=noisy(samples.labels, 0.1, seed + 1))
    for i in where:
        maps["engine"][i][samples.labels[i] == 1] = 2
    for name, found in maps.items():
        np.save(job.out / f"counts_{name}.npy", np.stack([counts(found[i], samples.labels[i], 4) for i in range(12)]))
    return maps


def test_damage_in_three_images_of_twelve_is_what_is_shown(tmp_path):
    job, samples = small_line.Job(tmp_path), Shots()
    maps = planted(job, samples, where := [2, 7, 8])
    [found] = changes([("engine", "student", 6)], samples, maps, {}, 3, None, job)
    assert {image["index"] for image in found["images"]} == set(where) and found["problem"] is None
    assert [next(iter(image["classes"])) for image in found["images"]] == ["car"] * 3 and found["images"][0]["name"].startswith("shot ")
    assert next(iter(found["classes"])) == "car" and found["classes"]["car"] > 20
    for i in where:
        assert (np.asarray(Image.open(job.out / f"changed_label_{i}.png")) == samples.labels[i]).all()
        assert (np.asarray(Image.open(job.out / f"changed_map_student_{i}.png")) == maps["student"][i]).all()
        assert (np.asarray(Image.open(job.out / f"changed_map_engine_{i}.png")) == maps["engine"][i]).all()
    assert len(list(job.out.glob("changed_*"))) == 12


def test_what_images_cost_adds_up_to_the_drop_and_an_unchanged_one_costs_nothing(tmp_path):
    job, samples = small_line.Job(tmp_path), Shots()
    maps = planted(job, samples, [4])
    maps["engine"][[i for i in range(12) if i != 4]] = maps["student"][[i for i in range(12) if i != 4]]
    one, other = (np.stack([counts(maps[name][i], samples.labels[i], 4) for i in range(12)]) for name in ("student", "engine"))
    cost = -parts(other, one)
    assert cost.sum(axis=0) == pytest.approx(influence(one).iou - influence(other).iou)
    assert cost.sum() / 4 == pytest.approx(drop(one, other).points)
    assert (cost[np.arange(12) != 4] == 0).all() and cost[4, 1] > 5
    assert lost(one, other, samples, 6)["images"][0]["index"] == 4 and len(lost(one, other, samples, 6)["images"]) == 1


def test_every_class_that_lost_much_has_its_image_though_another_lost_more():
    before = np.tile(np.array([90, 5, 5]), (12, 4, 1))
    after = before.copy()
    after[:6, 0] = [40, 5, 55]  # the road is lost in half of all images
    after[10, 3] = [70, 5, 25]  # the sky in one, by little
    found = lost(before, after, Shots(), 6)
    assert list(found["classes"]) == ["road", "sky"] and found["images"][0]["classes"] == {"road": pytest.approx(50 / 12, abs=1e-3)}
    assert 10 in [image["index"] for image in found["images"]] and len(found["images"]) == 6


def test_where_nothing_was_lost_nothing_is_kept(tmp_path):
    job, samples = small_line.Job(tmp_path), Shots()
    maps = planted(job, samples, [1])
    assert changes([("student", "student", 6)], samples, maps, {}, 6, None, job) == []
    assert changes([("engine", "student", 6)], samples, maps, {}, 0, None, job) == [] and not list(job.out.glob("changed_*"))


def test_candidates_are_compared_with_the_reference_and_it_with_other_trainings():
    student, plain, engine = (
        Artifact(n, k, n, None, {}, {}) for n, k in (("student", "Checkpoint"), ("plain", "Checkpoint"), ("engine", "Engine"))
    )
    pairs = [("engine", "released", 6), ("plain", "student", 3), ("engine", "student", 6), ("student", "plain", 3)]
    assert compared(student, [plain, engine], [["engine", "released"], ["engine", "student"]]) == pairs


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A line whose engine was accepted, and the engine of another training: (data, all that is now measured, the baseline)."""
    folder = tmp_path_factory.mktemp("released")
    data = small_line.data(folder, size=(32, 64), val=12)
    student, other = (small_line.checkpoint(folder, data, name, seed=seed) for seed, name in enumerate(("student", "other")))
    onnx = small_line.exported(folder, data, student)
    was = {"student": student, "onnx": onnx, "engine": small_line.engine(folder, onnx, kind="onnxruntime", threads=1)}
    now = {name: Artifact(name, "Checkpoint", name, other.folder, other.facts, {}) for name in ("student", "engine")}
    measured = measure(data, was, folder / "measured before", None)
    was["onnx"] = identified(was["onnx"], "a" * 64)
    gate = Artifact("gate", "Verdict", "d" * 64, folder, {"passed": True})
    rules = {"rules": [{"metric": "miou", "of": "engine", "against": "released", "at_least": -1.0}]}
    made = {"gate": gate, **was}
    content = {"recipe": "r", "profile": None, "run": "r-1"} | accepted(rules, {"measured": measured}, made, {"engine": {"onnx": ["onnx"]}})
    kept = {"a" * 64: was["onnx"], measured.id: measured}
    return data, {"before": was, "now": now}, Released("r.json", json.loads(json.dumps(content)), "", kept)


def identified(artifact, id):
    return Artifact(artifact.name, artifact.kind, id, artifact.folder, artifact.facts, artifact.beside)


def measure(data, line, folder, baseline, pairs=()):
    names = {"data": "data", "reference": "student", "candidates": ["engine"]}
    stage = Validate.model_validate({"kind": "validate", "pictures": 3, "pairs": list(pairs)} | names)
    inputs = {"data": data, "reference": line["student"], "candidates": [line["engine"]], "latency_of": []}
    return identified(small_line.made(stage, "measured", inputs, folder, released=baseline), "b" * 64)


def test_before_is_what_the_released_engine_says_and_after_what_the_new_one_does(released, tmp_path, monkeypatch):
    data, lines, baseline = released
    monkeypatch.setattr("stages.races.races", lambda *_: [])  # takes processes of its own, and is no matter here
    measured = measure(data, lines["now"], tmp_path, baseline, [["engine", "released"]])
    changed = {(one["of"], one["against"]): one for one in measured.json("measurement.json")["changes"]}
    assert list(changed) == [("engine", "released")]  # nothing was lost on the way from the student
    found, samples = changed["engine", "released"], open_samples(data, "val")
    assert found["problem"] is None and len(found["images"]) == 3 and all(image["as_accepted"] for image in found["images"])
    for image in found["images"]:
        shot = samples[image["index"]][0]
        for file, line in (
            (f"changed_released_engine_{image['index']}.png", "before"),
            (f"changed_map_engine_{image['index']}.png", "now"),
        ):
            expected = open_session(lines[line]["engine"])(shot[None])[0]
            assert (np.asarray(Image.open(measured.file(file))) == expected).all()


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda b: Released(b.file, None, "r.json does not exist: accept a run"), "r.json does not exist: accept a run"),
        (lambda b: Released(b.file, b.content, "", {k: v for k, v in b.artifacts.items() if k[0] == "a"}), f"store pull DIR {'b' * 64}"),
        (lambda b: Released(b.file, b.content, "", {k: v for k, v in b.artifacts.items() if k[0] == "b"}), f"store pull DIR {'a' * 64}"),
        (
            lambda b: Released(b.file, b.content | {"fingerprint": b.content["fingerprint"] | {"images": 7}}, "", b.artifacts),
            "other images",
        ),
        (lambda b: Released(b.file, b.content | {"models": {}}, "", b.artifacts), "no engine"),
    ],
    ids=["no baseline", "no counts", "no ONNX file", "other images", "another model"],
)
def test_without_a_released_engine_the_reason_and_what_to_do_are_kept(released, tmp_path, spoil, said):
    data, _, baseline = released
    job, samples = small_line.Job(tmp_path), open_samples(data, "val")
    before = baseline.artifacts["b" * 64]
    table = np.load(before.file("counts_engine.npy"))
    table[..., 0], table[..., 2] = 0, table[..., 0] + table[..., 2]  # finds nothing any more
    np.save(job.out / "counts_engine.npy", table)
    fingerprint = before.json("measurement.json")["fingerprint"]
    [found] = changes([("engine", "released", 6)], samples, None, fingerprint, 3, spoil(baseline), job)
    assert said in found["problem"] and found["images"] == [] and not list(job.out.glob("changed_*"))


def test_a_released_engine_that_rounds_otherwise_here_is_marked_and_one_of_another_size_costs_no_measurement(tmp_path, monkeypatch):
    job, samples = small_line.Job(tmp_path), Shots()
    maps = planted(job, samples, [2, 7])
    kept = np.load(job.out / "counts_student.npy")
    monkeypatch.setattr("stages.measure.changes.released_counts", lambda *_: kept)
    monkeypatch.setattr("stages.measure.changes.opened", lambda *_: lambda image: maps["student"][0])
    [found] = changes([("engine", "released", 2)], samples, maps, {}, 6, None, job)
    assert [image["as_accepted"] for image in found["images"]] == [False, False]  # both got the map of another image
    monkeypatch.setattr("stages.measure.changes.opened", lambda *_: lambda image: np.zeros((8, 8), np.uint8))
    [found] = changes([("engine", "released", 2)], samples, maps, {}, 6, None, job)
    assert "a class map of (8, 8) pixels cannot be judged by a label of (16, 24)" in found["problem"] and found["images"] == []
