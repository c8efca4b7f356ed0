"""Pairs: rounds of real processes in turns, an end as soon as all can be told, and rules judged from what was stored."""

import json

import numpy as np
import pytest

from pipeline.artifact import Artifact
from pipeline.released import Released
from stages.baseline import accepted
from stages.evidence import Evidence, of_artifact
from stages.judged import judge, judge_one
from stages.measure import pairs
from stages.rules import Rule
from stages.validate import Validate
from tests.stages import small_line

RULE = {"metric": "p50_ms", "of": "engine", "against": "onnx", "at_most_ratio": 1.05}


def rounds(number, slower=0.0, cpu_slower=None, spread=0.005, reasons=(), seed=0, on_gpu=False):
    """As one_round leaves them; the candidate takes so much longer by the clock, and in processor time."""
    random, found = np.random.default_rng(seed), []
    for _ in range(number):
        one = {"order": "01", "on_gpu": on_gpu, "seen": {}, "reasons": list(reasons)}
        for channel in pairs.CHANNELS:
            more = slower if "cpu" not in channel or cpu_slower is None else cpu_slower
            times = 10 * np.exp(spread * random.standard_normal((2, 3)))
            one[channel] = {"candidate": (times[0] * (1 + more)).tolist(), "baseline": times[1].tolist()}
        found.append(one)
    return found


def stored(folder, entries):
    folder.mkdir(exist_ok=True)
    (folder / "pairs.json").write_text(json.dumps(entries))
    return Evidence({"classes": [], "models": {}}, folder)


def entry(found, **more):
    return {"candidate": "engine", "baseline": "onnx", "tolerance": 0.05, **pairs.conditions(found), "rounds": found} | more


def judged(folder, found, rule=RULE, **more):
    return judge_one(Rule.model_validate(rule), stored(folder, [entry(found, **more)]))


@pytest.mark.parametrize("slower, passed", [(0.0, True), (0.01, True), (0.08, False), (-0.2, True)])
def test_a_rule_on_a_pair_is_judged_by_its_rounds(tmp_path, slower, passed):
    found = judged(tmp_path, rounds(10, slower))
    assert found["passed"] is passed and found["value"] == pytest.approx(1 + slower, abs=0.01)
    assert found["value_against"] == pytest.approx(10, abs=0.1) and "in 10 rounds" in found["text"]


def test_changed_samples_change_the_verdict_and_too_few_leave_it_open(tmp_path):
    found = rounds(10)
    assert judged(tmp_path, found)["passed"] is True
    for one in found:
        one["image_ms"]["candidate"] = [1.1 * time for time in one["image_ms"]["candidate"]]
    assert judged(tmp_path, found)["passed"] is False
    assert judged(tmp_path, found, RULE | {"metric": "engine_p50_ms"})["passed"] is True  # another boundary
    assert judged(tmp_path, found[:9])["passed"] is None
    assert judged(tmp_path, found[:9], RULE | {"sure": False})["passed"] is False


def test_on_a_busy_machine_the_clock_decides_nothing_and_processor_time_does(tmp_path):
    found = rounds(10, 0.2, cpu_slower=0.0, reasons=["others ran"])
    told = judged(tmp_path, found)
    assert told["passed"] is None and "in 10 of 10 rounds the machine was not quiet, in the last: others ran" in told["text"]
    assert judged(tmp_path, found, RULE | {"metric": "cpu_p50_ms"})["passed"] is True
    mostly = rounds(8, 0.2) + rounds(2, 0.2, reasons=["others ran"])
    assert judged(tmp_path, mostly)["passed"] is False


def test_times_of_one_gate_share_their_false_alarms(tmp_path):
    one, other = entry(rounds(10, 0.08)), entry(rounds(20, 0.08, cpu_slower=0.0, seed=1), baseline="student")
    evidence = stored(tmp_path, [one, other])
    asked = [RULE, RULE | {"metric": "cpu_p50_ms"}, RULE | {"metric": "engine_p50_ms"}, RULE | {"sure": True}]
    asked += [RULE | {"against": "student"}, RULE | {"metric": "cpu_p50_ms", "against": "student"}]

    def passed(*numbers):
        return [found["passed"] for found in judge([Rule.model_validate(asked[k]) for k in numbers], evidence)["rules"]]

    assert passed(0) == passed(0, 3)[:1] == [False]  # the same times twice are one chance
    assert passed(0, 1) == [False, False] and passed(0, 1, 2) == [None, None, None]
    assert passed(0, 4, 5) == [False, False, True]  # 20 rounds stand among three, and leave two
    told = judge([Rule.model_validate(rule) for rule in asked[:3]], evidence)["rules"][0]["text"]
    assert "is too little to stand, one of 3 times that share their false alarms; the next look is after 20 rounds" in told


def test_it_ends_at_the_first_look_at_which_all_that_can_be_told_is_told(monkeypatch, tmp_path):
    def measured(found, **more):
        left = iter(found)
        monkeypatch.setattr(pairs, "one_round", lambda *_: next(left))
        models = [Artifact(name, "Engine", "x", tmp_path) for name in ("engine", "onnx")]
        how = {"size": None, "tolerance": 0.05, "runs": 3, "warmup_ms": 0, "threads": None}
        return len(pairs.measure(*models, [], tmp_path, **how, **more)["rounds"])

    assert measured(rounds(60)) == 10 and measured(rounds(60, 0.2)) == 20  # a loss shall stand among four times
    assert measured(rounds(60, 0.2), cells=2) == 10
    assert measured(rounds(60, 0.04, spread=0.03)) > 10
    loud, quiet = rounds(60, spread=1.0), rounds(60)
    half = [one | {key: other[key] for key in ("image_cpu_ms", "engine_cpu_ms")} for one, other in zip(loud, quiet, strict=True)]
    assert measured(half) == 60  # the clock cannot tell, and the machine seemed quiet
    assert measured([one | {"reasons": ["others ran"]} for one in half]) == 10  # it could not have told, and is not waited for
    assert measured([one | {"reasons": ["slowed down"], "on_gpu": True} for one in loud]) == 10
    assert measured(loud, most=1) == 1


def test_measuring_goes_on_until_the_engine_alone_can_be_told_too(tmp_path):
    calm, loud = rounds(60), rounds(60, spread=0.5, seed=5)
    mixed = [one | {key: other[key] for key in ("engine_ms", "engine_cpu_ms")} for one, other in zip(calm, loud, strict=True)]
    assert pairs.decided(mixed[:10], 0.05, 4, ("image_ms", "image_cpu_ms")) and not pairs.decided(mixed[:10], 0.05, 4)
    assert judged(tmp_path, mixed[:10], RULE | {"metric": "engine_p50_ms"})["passed"] is None


def test_a_processors_clock_that_stood_still_tells_nothing_and_breaks_nothing(tmp_path):
    found = rounds(10)
    for one in found:
        one["image_cpu_ms"] = {"candidate": [0.0] * 3, "baseline": [0.0] * 3}
    assert pairs.decided(found, 0.05, 4) and "CPU" not in pairs.told(entry(found))
    told = judged(tmp_path, found, RULE | {"metric": "cpu_p50_ms"})
    assert told["passed"] is None and "too coarse" in told["text"] and judged(tmp_path, found)["passed"] is True
    on_gpu = judged(tmp_path, rounds(10, on_gpu=True), RULE | {"metric": "cpu_p50_ms"})
    assert on_gpu["passed"] is None and "nothing of what a GPU computes" in on_gpu["text"]


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    folder = tmp_path_factory.mktemp("line")
    dataset = small_line.data(folder, val=2)
    onnx = small_line.exported(folder, dataset, small_line.checkpoint(folder, dataset))
    return {"data": dataset, "reference": onnx, "candidates": [small_line.engine(folder, onnx, kind="onnxruntime", threads=1)]}


def measurement(line, folder, name, released=None, **settings):
    names = {"kind": "validate", "data": "data", "reference": "onnx", "candidates": ["engine"], "pictures": 0}
    stage = Validate.model_validate(names | {"latency": {"runs": 2, "warmup_ms": 0}} | settings)
    lent = {"rehearsing": True, "released": released}
    return stage, small_line.made(stage, name, line | {"latency_of": []}, folder, **lent)


def test_the_released_engine_is_built_here_from_its_onnx_file_and_takes_turns(line, tmp_path):
    _, before = measurement(line, tmp_path, "before")
    rules = [RULE | {"against": "released"}]
    artifacts = {"onnx": line["reference"], "engine": line["candidates"][0]}
    artifacts = {
        name: Artifact(name, a.kind, digit * 64, a.folder, a.facts) for (name, a), digit in zip(artifacts.items(), "ab", strict=True)
    }
    before = Artifact("measured", "Measurement", "c" * 64, before.folder)
    artifacts["gate"] = Artifact("gate", "Verdict", "d" * 64, tmp_path, {"passed": True})
    content = {"recipe": "r", "profile": None, "run": "r-1"}
    content |= accepted({"rules": rules}, {"measured": before}, artifacts, {"engine": {"onnx": ["onnx"]}})
    assert content["models"]["engine"]["onnx"]["id"] == "a" * 64 and content["models"]["engine"]["engine"]["threads"] == 1
    assert content["artifacts"] == {"c" * 64: "Measurement", "a" * 64: "OnnxModel"}
    known = Released("r.json", json.loads(json.dumps(content)), "", {"a" * 64: artifacts["onnx"], "c" * 64: before})

    stage, after = measurement(line, tmp_path, "after", known, pairs=[["engine", "released"]])
    assert stage.names_released() and "cpu" in stage.environment()
    [found] = after.json("pairs.json")
    [one] = found["rounds"]
    assert found["source"] == "a" * 64 and len(one["order"]) == 2 and one["seen"]["cores"] >= 1
    assert all(len(one[channel][side]) == 2 for channel in pairs.CHANNELS for side in pairs.SIDES)
    assert after.json("measurement.json")["pairs"][0]["told"].startswith("wall ")
    rule = Rule.model_validate(rules[0])
    assert judge_one(rule, of_artifact(after, known))["passed"] is None  # one round tells nothing
    other = json.loads(json.dumps(content))
    other["models"]["engine"]["engine"]["threads"] = 2
    text = judge_one(rule, of_artifact(after, Released("r", other, "", {})))["text"]
    assert "an engine of other settings than that of r: run the recipe with that file as its committed baseline" in text
    content["models"]["engine"]["onnx"]["id"] = "e" * 64
    assert "not that of r: run the recipe with that file" in judge_one(rule, of_artifact(after, Released("r", content, "", {})))["text"]

    gone = Released("r.json", known.content, "", {"c" * 64: before})
    _, without = measurement(line, tmp_path, "without", gone, pairs=[["engine", "released"]])
    told = judge_one(rule, of_artifact(without, gone))
    assert told["passed"] is None and f"store pull DIR {'a' * 64}" in told["text"]


def test_pairs_that_cannot_be_are_problems_of_the_recipe():
    stage = Validate.model_validate(
        {"kind": "validate", "data": "data", "reference": "onnx", "candidates": ["engine"]}
        | {"pairs": [["engine", "onnx"], ["engine", "relesed"], ["released", "onnx"], ["onnx", "onnx"], ["engine", "onnx"]]}
    )
    found = dict(stage.problems({}))
    assert list(found) == [("pairs", 1, 1), ("pairs", 2, 0), ("pairs", 3), ("pairs", 4)]
    assert "did you mean released?" in found["pairs", 1, 1]
