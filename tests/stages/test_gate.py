"""Rules against a truth table, and what was not measured is a failed rule."""

import json

import pytest
from pydantic import ValidationError

from stages.evidence import Evidence
from stages.gate import METRICS, Gate, Rule, machine_of
from stages.judged import judge_one
from stages.validate import Validate
from tests.stages import small_line


def times(p50):
    return {p: p50 * k for p, k in (("p50", 1), ("p90", 2), ("p99", 3))}


MEASUREMENT = {
    "classes": ["road", "pole", "unseen"],
    "models": {
        "student": {"miou": 40.0, "iou": [70.0, 10.0, None], "agreement": 1.0, "size_mb": 8.0, "latency": None},
        "onnx": {
            "miou": 40.0,
            "iou": [70.0, 10.0, None],
            "agreement": 0.99995,
            "size_mb": 8.5,
            "latency": {"image_ms": times(10.0), "engine_ms": times(8.0)},
        },
        "engine": {
            "miou": 39.9,
            "iou": [70.5, 8.0, None],
            "agreement": 0.995,
            "size_mb": 2.0,
            "latency": {"image_ms": times(5.0), "engine_ms": times(4.0)},
        },
        "empty": {"miou": float("nan"), "iou": [0.0, 0.0, None], "agreement": 0.5, "size_mb": 0.0, "latency": None},
    },
}

TRUTH = [  # rule, holds?, value
    ({"metric": "miou", "of": "engine", "at_least": 39.9}, True, 39.9),
    ({"metric": "miou", "of": "engine", "at_least": 40}, False, 39.9),
    ({"metric": "miou", "of": "engine", "against": "student", "at_least": -0.2}, True, -0.1),
    ({"metric": "miou", "of": "engine", "against": "student", "at_least": -0.05}, False, -0.1),
    ({"metric": "miou", "of": "student", "against": "engine", "at_most": 0.2}, True, 0.1),
    ({"metric": "miou", "of": "student", "against": "engine", "at_most": 0.05}, False, 0.1),
    ({"metric": "agreement", "of": "onnx", "at_least": 0.9999}, True, 0.99995),
    ({"metric": "agreement", "of": "engine", "at_least": 0.9999}, False, 0.995),
    ({"metric": "iou.pole", "of": "engine", "against": "student", "at_least": -3}, True, -2.0),
    ({"metric": "iou.pole", "of": "engine", "against": "student", "at_least": -1}, False, -2.0),
    ({"metric": "iou.road", "of": "engine", "at_least": 60, "at_most": 71}, True, 70.5),
    ({"metric": "iou.road", "of": "engine", "at_least": 60, "at_most": 70}, False, 70.5),
    ({"metric": "p50_ms", "of": "engine", "at_most": 5, "sure": False}, True, 5.0),
    ({"metric": "p90_ms", "of": "engine", "at_most": 9, "sure": False}, False, 10.0),
    ({"metric": "p99_ms", "of": "engine", "against": "onnx", "at_most_ratio": 0.5, "sure": False}, True, 0.5),
    ({"metric": "engine_p50_ms", "of": "engine", "against": "onnx", "at_most_ratio": 0.4}, False, 0.5),
    ({"metric": "engine_p99_ms", "of": "onnx", "at_most": 24, "sure": False}, True, 24.0),
    ({"metric": "size_mb", "of": "student", "against": "engine", "at_least_ratio": 4}, True, 4.0),
    ({"metric": "size_mb", "of": "student", "against": "engine", "at_least_ratio": 4.1}, False, 4.0),
    ({"metric": "miou", "of": "engine", "against": "student", "at_least": -0.2, "at_least_ratio": 0.999}, False, -0.1),
    # not measured
    ({"metric": "iou.unseen", "of": "engine", "at_least": 0}, False, None),
    ({"metric": "iou.nothing", "of": "engine", "at_least": 0}, False, None),
    ({"metric": "p50_ms", "of": "student", "at_most": 1000}, False, None),
    ({"metric": "p50_ms", "of": "engine", "against": "student", "at_most_ratio": 1000}, False, None),
    ({"metric": "miou", "of": "somebody", "at_least": 0}, False, None),
    ({"metric": "miou", "of": "empty", "at_most": 1000}, False, None),
    ({"metric": "size_mb", "of": "engine", "against": "empty", "at_most_ratio": 1000}, False, None),
]


@pytest.mark.parametrize("rule, passed, value", TRUTH)
def test_a_rule_holds_exactly_when_its_numbers_do(rule, passed, value):
    found = judge(Rule.model_validate(rule), MEASUREMENT)
    assert found["passed"] is passed
    assert found["value"] == (None if value is None else pytest.approx(value))
    assert (found["metric"], found["of"], found["against"]) == (rule["metric"], rule["of"], rule.get("against"))


def test_a_verdict_tells_the_numbers_in_one_sentence():
    found = judge(Rule(metric="miou", of="engine", against="student", at_least=-0.05), MEASUREMENT)
    assert found["text"] == "miou of engine is 39.90 points, of student 40.00, difference -0.1; at least -0.05 was asked"
    assert found["limit"] == "at_least -0.05" and (found["value_of"], found["value_against"]) == (39.9, 40.0)
    found = judge(Rule(metric="p50_ms", of="engine", against="onnx", at_most_ratio=1.05), MEASUREMENT)
    told = "p50_ms of engine is 5 ms, of onnx 10 ms, ratio 0.5; a ratio of at most 1.05 was asked"
    assert found["text"] == f"{told}; two figures, which tell nothing of chance"
    found = judge(Rule(metric="p50_ms", of="student", at_most=3), MEASUREMENT)
    assert found["text"] == "p50_ms of student was not measured; at most 3 was asked"


@pytest.mark.parametrize("limit, passed", [(-0.2, True), (-0.05, False)])
def test_the_verdict_is_written_and_never_raises(tmp_path, limit, passed):
    (tmp_path / "measurement.json").write_text(json.dumps(MEASUREMENT))
    measured = small_line.Artifact("measured", "Measurement", "x", tmp_path, {})
    rules = [
        {"metric": "miou", "of": "engine", "against": "student", "at_least": limit},
        {"metric": "size_mb", "of": "engine", "at_most": 3},
    ]
    gate = Gate.model_validate({"kind": "gate", "measured": "measured", "rules": rules})
    verdict = small_line.made(gate, "gate", {"measured": measured}, tmp_path)
    assert verdict.facts == {"passed": passed}
    written = verdict.json("verdict.json")
    assert written["passed"] is passed and [rule["passed"] for rule in written["rules"]] == [passed, True]


BUSY = {"valid": False, "reasons": ["in 56% of the time somebody waited for a core (at most 20%)"]}
CPU = {name: {"image_cpu_ms": {"p50": p50}, "engine_cpu_ms": {"p50": p50}} for name, p50 in (("onnx", 18.0), ("engine", 8.0))}


def judge(rule, measurement):
    return judge_one(rule, Evidence(measurement))


def busy():
    models = {n: m | ({"latency": m["latency"] | CPU[n]} if n in CPU else {}) for n, m in MEASUREMENT["models"].items()}
    return MEASUREMENT | {"models": models, "conditions": BUSY}


def test_on_a_busy_machine_the_clock_decides_nothing_and_all_else_is_judged():
    found = judge(Rule(metric="p50_ms", of="engine", against="onnx", at_most_ratio=1.05), busy())
    assert (found["passed"], found["value"], found["value_of"]) == (None, None, 5.0)
    assert found["text"].endswith(f"a ratio of at most 1.05 was asked, which cannot be told: {BUSY['reasons'][0]}")
    assert judge(Rule(metric="engine_p99_ms", of="engine", at_most=1), busy())["passed"] is None
    assert judge(Rule(metric="p50_ms", of="student", at_most=1), busy())["passed"] is False  # not measured, busy or not
    ratio = judge(Rule(metric="cpu_p50_ms", of="engine", against="onnx", at_most_ratio=0.5), busy())
    assert ratio["passed"] is True and ratio["value"] == pytest.approx(8 / 18)
    assert judge(Rule(metric="engine_cpu_p50_ms", of="engine", at_most=7, sure=False), busy())["passed"] is False
    quiet = busy() | {"conditions": {"valid": True, "reasons": []}}
    assert judge(Rule(metric="p50_ms", of="engine", at_most=5, sure=False), quiet)["passed"] is True


def test_processor_time_compares_no_model_that_runs_on_a_gpu():
    measurement = busy()
    rule = Rule(metric="cpu_p50_ms", of="engine", against="onnx", at_most_ratio=0.5)
    assert judge(rule, measurement)["passed"] is True
    measurement["models"]["engine"]["latency"]["on_gpu"] = True
    told = judge(rule, measurement)
    assert told["passed"] is None and "nothing of what a GPU computes: ask for the time by the clock" in told["text"]
    assert judge(Rule(metric="cpu_p50_ms", of="engine", at_most=9, sure=False), measurement)["passed"] is True  # what it costs the host


@pytest.mark.parametrize("miou, passed", [(39, None), (41, False)])
def test_a_verdict_is_undecided_only_where_no_rule_is_broken(tmp_path, miou, passed):
    (tmp_path / "measurement.json").write_text(json.dumps(busy()))
    rules = [{"metric": "p50_ms", "of": "engine", "at_most": 5}, {"metric": "miou", "of": "engine", "at_least": miou}]
    gate = Gate.model_validate({"kind": "gate", "measured": "measured", "rules": rules})
    verdict = small_line.made(gate, "gate", {"measured": small_line.Artifact("measured", "Measurement", "x", tmp_path, {})}, tmp_path)
    assert verdict.facts["passed"] is passed is verdict.json("verdict.json")["passed"]
    assert gate.unsettled(verdict.facts) == (("measured",) if passed is None else ())  # what is broken is not asked again


def test_a_tail_against_another_model_is_undecided_unless_its_figures_shall_decide():
    rule = {"metric": "engine_p90_ms", "of": "engine", "against": "onnx", "at_most_ratio": 1.1}
    told = judge(Rule(**rule), MEASUREMENT)
    assert told["passed"] is None and "write at_most for engine_p90_ms of engine by itself, in ms, or engine_p50_ms with" in told["text"]
    assert judge(Rule(**rule, sure=False), MEASUREMENT)["passed"] is True
    timed = {"latency_of": ["onnx", "engine"], "latency": {"runs": 662}}
    measured = Validate.model_validate({"kind": "validate", "data": "d", "reference": "onnx", "candidates": ["engine"]} | timed)
    rules = [rule, rule | {"sure": False}, rule | {"metric": "p50_ms"}, {"metric": "p99_ms", "of": "engine", "at_most": 9.0}]
    gate = Gate.model_validate({"kind": "gate", "measured": "measured", "rules": rules})
    [(where, text)] = gate.problems({"measured": measured})
    assert where == ("rules", 0, "metric") and text.startswith("p90 of two models differs by chance more than by what is asked for")


def test_a_rule_needs_a_limit_and_a_ratio_needs_two_models():
    with pytest.raises(ValidationError, match="one of at_least, at_most"):
        Rule(metric="miou", of="engine")
    with pytest.raises(ValidationError, match="name the other one in against"):
        Rule(metric="miou", of="engine", at_most_ratio=1.0)
    for nonsense in (float("nan"), float("inf"), "0.2", True):
        with pytest.raises(ValidationError):
            Rule(metric="miou", of="engine", at_least=nonsense)


def test_what_a_recipe_gets_wrong_is_found_before_anything_runs():
    measured = Validate(kind="validate", data="data", reference="student", candidates=["onnx", "engine"], latency_of=["engine"])
    rules = [
        {"metric": "miou", "of": "engine", "against": "student", "at_least": -0.2},
        {"metric": "p50ms", "of": "engine", "at_most": 3},
        {"metric": "miou", "of": "engin", "at_least": 3},
        {"metric": "p50_ms", "of": "engine", "against": "onnx", "at_most_ratio": 1.0},
        {"metric": "iou.", "of": "engine", "at_least": 1},
        {"metric": "iou.pole", "of": "engine", "against": "teacher", "at_least": 1},
    ]
    gate = Gate.model_validate({"kind": "gate", "measured": "measured", "rules": rules})
    found = dict(gate.problems({"measured": measured}))
    assert list(found) == [
        ("rules", 1, "metric"),
        ("rules", 2, "of"),
        ("rules", 3, "against"),
        ("rules", 4, "metric"),
        ("rules", 5, "against"),
    ]
    assert "did you mean p50_ms?" in found["rules", 1, "metric"] and all(metric in found["rules", 4, "metric"] for metric in METRICS)
    assert "student, onnx, engine" in found["rules", 2, "of"] and "latency_of" in found["rules", 3, "against"]


def test_a_time_against_the_released_engine_needs_its_pair_and_one_tolerance():
    settings = {"kind": "validate", "data": "data", "reference": "student", "candidates": ["engine"]}
    rule = {"metric": "cpu_p50_ms", "of": "engine", "against": "released", "at_most_ratio": 1.05}

    def problems(rule, **more):
        measured = Validate.model_validate(settings | {"pairs": [["engine", "released"]]} | more)
        gate = Gate.model_validate({"kind": "gate", "measured": "measured", "rules": [rule]})
        return [(path[-1], text) for path, text in gate.problems({"measured": measured})]

    assert problems(rule) == []
    [(field, text)] = problems(rule, pairs=[])
    assert field == "against" and "add [engine, released] to pairs of measured" in text
    assert [field for field, _ in problems(rule | {"metric": "p99_ms"})] == ["against"]
    assert [field for field, _ in problems(rule | {"at_most_ratio": 0.9})] == ["metric"]
    [(field, text)] = problems(rule, latency={"tolerance": 0.02})
    assert field == "at_most_ratio" and "until 0.02 can be told, this asks for 0.05" in text
    assert problems({"metric": "miou", "of": "engine", "against": "released", "at_least": -1.0}, pairs=[]) == []
    assert [field for field, _ in problems(rule | {"of": "released"})] == ["of", "against", "of"]


def test_a_split_of_mismatch_needs_a_reference_that_gives_logits_and_no_second_model():
    from stages.export import Export
    from stages.optimize import Optimize
    from stages.quantize import Quantize

    settings = {"kind": "validate", "data": "data", "reference": "onnx", "candidates": ["engine"]}
    measured = Validate.model_validate(settings)

    def problems(reference, metric="clear_mismatch"):
        rule = {"metric": metric, "of": "engine", "at_most": 0.01}
        gate = Gate.model_validate({"kind": "gate", "measured": "measured", "rules": [rule]})
        return [(path[-1], text) for path, text in gate.problems({"measured": measured, "onnx": reference})]

    plain = Export(kind="export", data="data", checkpoint="student")
    [(field, text)] = problems(plain)
    assert field == "metric" and text.startswith(
        "onnx, the reference of measured, gives no logits: take a checkpoint, or an ONNX file exported"
    )
    assert problems(plain, "mismatch") == problems(plain.model_copy(update={"logits": True})) == []
    assert (
        problems(Quantize.model_validate({"kind": "quantize", "data": "data", "onnx": "o", "to": "fp16", "runtime": "onnxruntime"})) == []
    )
    eager = {"kind": "optimize", "checkpoint": "student", "engine": {"kind": "pytorch"}}
    assert problems(Optimize.model_validate(eager)) == []
    assert len(problems(Optimize.model_validate({"kind": "optimize", "onnx": "o", "engine": {"kind": "onnxruntime"}}))) == 1
    with pytest.raises(ValidationError, match="compares with the reference of the measurement: leave against out"):
        Rule(metric="mismatch", of="engine", against="student", at_most=1.0)


def test_what_would_always_hold_or_has_no_bound_is_a_problem_of_the_recipe():
    settings = {"kind": "validate", "data": "d", "reference": "student", "candidates": ["onnx", "engine"], "latency_of": ["engine"]}
    measured = Validate.model_validate(settings | {"pairs": [["engine", "onnx"]]})

    def problem(**rule):
        gate = Gate.model_validate({"kind": "gate", "measured": "measured", "rules": [rule]})
        return [text for _, text in gate.problems({"measured": measured})]

    assert "compared with itself" in problem(metric="miou", of="engine", against="engine", at_least=-1.0)[0]
    assert "compared with itself" in problem(metric="mismatch", of="student", at_most=1.0)[0]
    assert problem(metric="p50_ms", of="engine", at_most=5.0) == [] and problem(metric="p99_ms", of="engine", at_most=5.0, sure=False) == []
    [text] = problem(metric="p99_ms", of="engine", at_most=5.0)
    assert text.startswith("a bound on p99 takes 662 runs, and engine is timed in 60: write latency: {runs: 662}")
    assert "one limit, at_most" in problem(metric="p50_ms", of="engine", at_most=5.0, at_least=0.0)[0]
    assert "whether it is slower by so much" in problem(metric="p50_ms", of="engine", against="onnx", at_most_ratio=0.95)[0]


def test_the_runs_that_a_bound_takes_are_those_of_its_statistics():
    from stages.measure.order import samples_needed
    from stages.rules import LEAST_RUNS
    from stages.timed import QUANTILES

    assert {name: samples_needed(q) for name, q in QUANTILES.items()} == LEAST_RUNS


def test_a_promise_that_the_figures_cannot_make_is_undecided():
    rule = {"metric": "p50_ms", "of": "engine", "against": "onnx", "at_most_ratio": 0.95}
    assert judge(Rule(**rule), MEASUREMENT)["passed"] is True
    assert judge(Rule(**rule, sure=True), MEASUREMENT)["passed"] is None
    assert judge(Rule(metric="miou", of="engine", at_least=1.0, sure=True), MEASUREMENT)["passed"] is None
    assert judge(Rule(metric="p50_ms", of="engine", at_most=50.0), MEASUREMENT)["passed"] is None  # no single runs


def test_only_what_nothing_but_noise_left_open_is_measured_again(tmp_path):
    rules = [{"metric": "p50_ms", "of": "engine", "at_most": 5}, {"metric": "miou", "of": "engine", "at_least": 30, "sure": True}]
    (tmp_path / "measurement.json").write_text(json.dumps(busy()))
    measured = small_line.Artifact("measured", "Measurement", "x", tmp_path, {})
    for k, expected in ((1, ("measured",)), (2, ())):  # the second is undecided for want of counts
        gate = Gate.model_validate({"kind": "gate", "measured": "measured", "rules": rules[:k]})
        verdict = small_line.made(gate, f"gate{k}", {"measured": measured}, tmp_path)
        assert verdict.facts["passed"] is None and gate.unsettled(verdict.facts) == expected


def test_a_verdict_names_the_machine_and_the_target_it_rests_on():
    here, there = {"cpu": "EPYC", "cores": 2, "gpus": []}, {"cpu": "Cortex", "cores": 1, "gpus": [{"name": "Orin"}]}
    assert machine_of({"machine": here}) == "EPYC, 2 cores, no GPU" and machine_of({}) == "not known"
    found = machine_of({"machine": here, "target": {"name": "jetson", "facts": there}})
    assert found == "EPYC, 2 cores, no GPU; target jetson: Cortex, 1 core, Orin"
