"""Rules on accuracy over counts per image: what many images show, what few cannot, and against the committed baseline."""

import json

import numpy as np
import pytest

from pipeline.artifact import Artifact
from pipeline.released import Released
from stages.baseline import accepted
from stages.evidence import Evidence, of_artifact
from stages.judged import judge, judge_one
from stages.measure.miou import miou
from stages.measure.paired import drop, error, influence
from stages.rules import Rule
from tests.stages.simulated import images

CLASSES = 6
NAMES = ["road", "wall", "tree", "car", "person", "pole"]
PRINT = {"images": 0, "image_digest": "a" * 64, "label_digest": "b" * 64, "ignore": 255, "classes": NAMES}


def measured(folder, counts, touched=None, fingerprint=None):
    """A Measurement of these counts, as validate leaves it; the first model is the reference."""
    folder.mkdir()
    models = {}
    for name, table in counts.items():
        mean, iou = miou(table.sum(axis=0))
        models[name] = {"miou": mean, "iou": iou, "latency": None, "boundary_f": 50.0, "agreement": 1.0, "size_mb": 2.0}
        models[name] |= {"precision": "f32", "runtime": "onnxruntime on CPU"}
        np.save(folder / f"counts_{name}.npy", table)
    for name, table in (touched or {}).items():
        np.save(folder / f"touched_{name}.npy", table)
    print_ = PRINT | {"images": len(table)} | (fingerprint or {})
    facts = {"classes": NAMES, "models": models, "reference": next(iter(counts)), "fingerprint": print_, "split": "val", "machine": {}}
    (folder / "measurement.json").write_text(json.dumps(facts))
    return Artifact("measured", "Measurement", "c" * 64, folder)


def pair(number, mismatch=0.01, harm=0.1, seed=0):
    return images(number, mismatch, harm, classes=CLASSES, clump=50, seed=seed, pixels=3000)


def judged(rule, folder, found, **more):
    artifact = measured(folder, {"student": found.reference, "engine": found.candidate}, **more)
    return judge_one(Rule.model_validate({"metric": "miou", "of": "engine", "against": "student"} | rule), of_artifact(artifact, None))


def test_many_images_must_show_that_a_drop_is_allowed_and_the_figure_alone_does_not(tmp_path):
    found = pair(200)
    lost, se = drop(found.reference, found.candidate)
    assert se > 0.01 and lost > 0
    clear = judged({"at_least": -(lost + 2 * se)}, tmp_path / "a", found)
    assert clear["passed"] is True and clear["low_power"] is (2 * 1.645 * se > lost + 2 * se)
    assert clear["confidence"]["at_least"]["edge"] == pytest.approx(-lost - 1.645 * se, abs=1e-3)
    near = judged({"at_least": -(lost + se)}, tmp_path / "b", found)
    assert near["passed"] is None and "`sure: false` judges the figure alone" in near["text"]
    assert judged({"at_least": -(lost + se), "sure": False}, tmp_path / "c", found)["passed"] is True
    assert judged({"at_least": -(lost - 0.01)}, tmp_path / "d", found)["passed"] is False
    assert judged({"of": "student", "against": "engine", "at_most": lost + 2 * se}, tmp_path / "e", found)["passed"] is True
    assert judged({"of": "student", "against": "engine", "at_most": lost + se}, tmp_path / "f", found)["passed"] is None


def test_few_images_leave_it_to_the_figure_and_say_what_they_cannot_see(tmp_path):
    found = pair(12)
    lost, se = drop(found.reference, found.candidate)
    limit = {"at_least": -(lost + se)}
    few = judged(limit, tmp_path / "a", found)
    assert few["passed"] is True and few["low_power"] is True
    assert f"low power: 12 images find a drop of {2 * 1.644854 * se:.2g} points, not a smaller one" in few["text"]
    assert judged(limit | {"sure": True}, tmp_path / "b", found)["passed"] is None


def test_a_handful_of_changed_pixels_is_certain_whatever_the_number_of_images(tmp_path):
    found = pair(3, mismatch=0)
    touched = np.zeros((3, CLASSES), np.int64)
    touched[1, 0] = 2
    union = found.reference.sum(axis=(0, 2))[0]
    most = 100 * 2 / union / CLASSES
    kept = judged({"at_least": -most - 1e-6, "sure": True}, tmp_path / "a", found, touched={"engine": touched})
    assert kept["passed"] is True and "kept for certain" in kept["text"] and kept["low_power"] is False
    touched[1] = 400
    other = pair(3, mismatch=0.02, seed=4)
    unsure = judged({"at_least": -5, "sure": True}, tmp_path / "b", other, touched={"engine": touched})
    assert unsure["confidence"]["at_least"]["certain"] < 0


def test_a_floor_and_a_kept_share_are_judged_on_their_lower_bound(tmp_path):
    found = pair(150)
    mean, _ = miou(found.candidate.sum(axis=0))
    floor = {"against": None, "at_least": mean - 0.01}
    assert judged(floor, tmp_path / "a", found)["passed"] is None
    assert judged(floor | {"at_least": mean - 5}, tmp_path / "b", found)["passed"] is True
    assert judged(floor | {"at_least": mean + 0.01}, tmp_path / "c", found)["passed"] is False
    kept = mean / miou(found.reference.sum(axis=0))[0]
    share = judged({"at_least_ratio": kept - 0.02}, tmp_path / "d", found)
    assert share["passed"] is True and kept - 0.02 < share["confidence"]["at_least_ratio"]["edge"] < kept
    assert judged({"at_least_ratio": kept - 1e-5}, tmp_path / "e", found)["passed"] is None
    assert judged({"at_least_ratio": kept + 1e-5}, tmp_path / "f", found)["passed"] is False


def swapped(found, number, share=0.5):
    """The candidate misses so much more of one class, which becomes road, in every image."""
    table = found.reference.copy()
    lost = (table[:, number, 0] * share).astype(int)
    table[:, number, 0] -= lost
    table[:, number, 2] += lost
    table[:, 0, 1] += lost
    return found._replace(candidate=table)


def test_a_class_that_lost_is_named_and_one_that_only_swung_is_undecided(tmp_path):
    rules = [Rule(metric=f"iou.{name}", of="engine", against="student", at_least=-2.0) for name in NAMES[1:]]
    one = measured(tmp_path / "a", dict(zip(("student", "engine"), swapped(pair(200), 3)[:2], strict=True)))
    assert [rule["passed"] for rule in judge(rules, of_artifact(one, None))["rules"]] == [True, True, False, True, True]
    found = pair(200, mismatch=0)
    table = found.candidate.copy()
    [*_, image] = np.flatnonzero(table[:, 5, 0] > 0)  # a single image loses all of its poles
    table[image, 5] = [0, 0, table[image, 5, 0] + table[image, 5, 2]]
    _, before = miou(found.reference.sum(axis=0))
    _, after = miou(table.sum(axis=0))
    limit = (after[5] - before[5]) / 2
    rule = Rule(metric="iou.pole", of="engine", against="student", at_least=limit)
    two = of_artifact(measured(tmp_path / "b", {"student": found.reference, "engine": table}), None)
    swung = judge([rule], two)
    assert swung["passed"] is None and "do not show that it is no chance" in swung["rules"][0]["text"]
    assert judge([rule.model_copy(update={"sure": False})], two)["passed"] is False


def test_several_floors_together_are_judged_as_several_chances_to_be_wrong(tmp_path):
    found = pair(200)
    evidence = of_artifact(measured(tmp_path / "a", {"engine": found.candidate}), None)
    lean = influence(found.candidate)
    floors = [float(lean.iou[c]) + 1.9 * error(lean.image[:, c]) for c in range(1, CLASSES)]  # each p 0.029
    rules = [Rule(metric=f"iou.{name}", of="engine", at_least=floor) for name, floor in zip(NAMES[1:], floors, strict=True)]
    assert judge(rules[:1], evidence)["passed"] is False
    assert [rule["passed"] for rule in judge(rules, evidence)["rules"]] == [None] * 5


RULE = {"metric": "miou", "of": "engine", "against": "released", "at_least": -0.5}


@pytest.fixture
def released(tmp_path):
    found = pair(200)
    before = measured(tmp_path / "before", {"student": found.reference, "engine": found.reference})
    verdict = Artifact("gate", "Verdict", "d" * 64, tmp_path, {"passed": True})
    content = {"recipe": "r", "profile": None, "run": "r-1"}
    content |= accepted({"rules": [RULE]}, {"measured": before}, {"gate": verdict}, {})
    return found, Released("r.json", json.loads(json.dumps(content)), "", {before.id: before})


def against(released, folder, table, rule=RULE, **more):
    artifact = measured(folder, {"student": table, "engine": table}, **more)
    return judge_one(Rule.model_validate(rule), of_artifact(artifact, released))


def test_the_released_model_is_compared_image_by_image(released, tmp_path):
    found, baseline = released
    same = against(baseline, tmp_path / "a", found.reference, RULE | {"at_least": 0.0, "sure": True})
    assert same["passed"] is True and same["value"] == 0.0
    worse = against(baseline, tmp_path / "b", swapped(found, 3).candidate)
    assert worse["passed"] is False and worse["value"] < -3
    pole = {"metric": "iou.pole", "of": "engine", "against": "released", "at_least": -1.0}
    assert against(baseline, tmp_path / "c", found.reference, pole)["passed"] is True


def test_what_cannot_be_compared_with_the_baseline_is_undecided_and_says_what_to_do(released, tmp_path):
    found, baseline = released
    gone = Released("r.json", baseline.content, "", {})
    told = against(gone, tmp_path / "a", found.reference)
    assert told["passed"] is None and f"store pull DIR {'c' * 64}" in told["text"]
    none = Released("r.json", None, "recipes/baselines/r.json does not exist: accept a run")
    assert "does not exist: accept a run" in against(none, tmp_path / "b", found.reference)["text"]
    assert against(None, tmp_path / "c", found.reference)["passed"] is None
    other = against(baseline, tmp_path / "d", found.reference, fingerprint={"label_digest": "e" * 64})
    assert other["passed"] is None and "other images" in other["text"] and "the labels" in other["text"]
    strange = Released("r.json", baseline.content | {"models": {"engine": 3}}, "", baseline.artifacts)
    assert "models.engine" in against(strange, tmp_path / "e", found.reference)["text"]
    np.save(baseline.artifacts["c" * 64].folder / "counts_engine.npy", found.candidate)  # not what was accepted
    assert "does not hold the counts of engine" in against(baseline, tmp_path / "f", found.reference)["text"]


def test_a_model_never_measured_fails_and_one_that_the_baseline_lacks_is_undecided(released, tmp_path):
    found, baseline = released
    assert against(baseline, tmp_path / "a", found.reference, RULE | {"of": "int8"})["passed"] is False
    assert against(baseline, tmp_path / "b", found.reference, RULE | {"of": "student"})["passed"] is None


def test_a_limit_on_a_time_is_held_against_what_other_runs_would_take():
    def at(limit, runs=600, sure=None):
        samples = [10.0 + (7 * k % 100) / 100 for k in range(runs)]  # 10.00 to 10.99, median 10.5
        latency = {"image_ms": {"p50": 10.5, "p99": 10.98}, "samples_image_ms": samples}
        model = {"miou": 1.0, "iou": [], "latency": latency}
        rule = Rule(metric="p99_ms" if sure is not None else "p50_ms", of="engine", at_most=limit, sure=sure)
        return judge_one(rule, Evidence({"classes": [], "models": {"engine": model}}))

    assert (at(10.6)["passed"], at(10.4)["passed"], at(10.51)["passed"]) == (True, False, None)
    short = at(11.0, 60, sure=True)
    assert short["passed"] is None and "p99 has no upper bound after 60 runs, it takes 662" in short["text"]
    assert at(11.0, 60, sure=False)["passed"] is True


def test_changed_samples_change_the_verdict(tmp_path):
    found = pair(200, harm=0.0, mismatch=0.001)
    artifact = measured(tmp_path / "a", {"student": found.reference, "engine": found.candidate})
    rules = [Rule(metric="miou", of="engine", against="student", at_least=-0.5)]
    first = judge(rules, of_artifact(artifact, None))
    assert first["passed"] is True and judge(rules, of_artifact(artifact, None)) == first
    noisy = found.candidate.copy()
    noisy[::2, 1] = found.reference[::2, 1]
    noisy[1::2, 1, 1] += 3000  # the same figures stand in measurement.json
    np.save(artifact.folder / "counts_engine.npy", noisy)
    assert judge(rules, of_artifact(artifact, None))["passed"] is None
