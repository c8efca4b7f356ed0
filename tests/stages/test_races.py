"""A candidate that its builder may have made slow by chance is built three times more, and the build in the middle decides."""

import json
import sys
from dataclasses import replace

import pytest

from pipeline.errors import BadData, Stopped
from stages import machine, races, rebuilt
from stages.bundle_files import runtime_tensorrt
from stages.engines import TABLE
from stages.judged import judge_one
from stages.measure import pairs
from stages.rules import Rule
from tests.stages import cuda_double, nvinfer_double, small_line
from tests.stages.test_pairs import rounds, stored

RULE = {"metric": "p50_ms", "of": "engine", "against": "onnx", "at_most_ratio": 1.05}
LINEAGE = {"engine": {"onnx": ["onnx"], "timing": ["first"]}}


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """(ONNX file, an engine of it whose build had to measure everything, one that was given the other's timing cache)."""
    from stages.optimize import Optimize

    rtx = pytest.importorskip("tensorrt_rtx_bindings", reason="the double of TensorRT is made from it")
    folder, memory = tmp_path_factory.mktemp("line"), cuda_double.Memory()
    dataset = small_line.data(folder)
    onnx = small_line.exported(folder, dataset, small_line.checkpoint(folder, dataset))
    double = nvinfer_double.module(rtx, "10.9.0.34", "GPU A", memory)
    runtime_tensorrt.LOGGERS[double] = runtime_tensorrt.logger(rtx)  # the real builder inside keeps its first one
    with pytest.MonkeyPatch.context() as patch:
        for name, module in {"tensorrt": double, **cuda_double.cuda_python(memory)}.items():
            patch.setitem(sys.modules, name, module)
        patch.setattr(machine, "gpus", lambda: [{"name": "GPU A", "capability": "8.9", "memory_gb": 24.0}])
        first = small_line.engine(folder, onnx, name="first", kind="tensorrt")
        stage = Optimize.model_validate({"kind": "optimize", "onnx": "onnx", "engine": {"kind": "tensorrt"}, "timing": "first"})
        yield onnx, first, small_line.made(stage, "engine", {"onnx": onnx, "timing": first}, folder)


def raced(monkeypatch, tmp_path, line, slower, lineage=LINEAGE, given=None, against="onnx", **more):
    """The entry of pairs.json where the engine and its further builds take so much longer; and the models that were timed."""
    onnx, first, engine = line
    held, left, timed = given or (onnx, first, engine), iter(slower), []

    def measure(candidate, baseline, images, work, *, tolerance, **how):
        timed.append((candidate, json.loads(candidate.file("engine.timing").read_text())[2], baseline))
        found = rounds(20, next(left), on_gpu=True, **more)
        told = {"candidate": candidate.name, "baseline": baseline.name, "tolerance": tolerance}
        return told | pairs.conditions(found) | {"rounds": found}

    monkeypatch.setattr(pairs, "measure", measure)
    job = small_line.Job(tmp_path / "job")
    job.lineage = lineage
    [entry] = races.races([["engine", against]], held, [], job, {"tolerance": 0.05, "between": lambda done, total: None})
    return entry, timed, job


def verdict(tmp_path, entry, **rule):
    return judge_one(Rule.model_validate(RULE | rule), stored(tmp_path / "stored", [entry]))


def test_rows_that_pick_by_timing_say_so():
    assert [name for name, row in TABLE.rows().items() if not row.reproducible] == ["tensorrt", "tensorrt_rtx"]


def test_an_unlucky_build_is_found_out_by_three_more_of_the_same_file(monkeypatch, tmp_path, line):
    entry, timed, job = raced(monkeypatch, tmp_path, line, [0.08, 0.0, 0.09, 0.01])
    assert [model.name for model, _, _ in timed] == ["engine"] * 4 and len({model.folder for model, _, _ in timed}) == 4
    assert {baseline.name for _, _, baseline in timed} == {"onnx"} and len({str(baseline.folder) for _, _, baseline in timed}) == 1
    assert all(json.loads(json.dumps(model.facts["built"])) == line[2].facts["built"] for model, _, _ in timed)
    assert [measured for _, measured, _ in timed] == [2, 2, 2, 2]  # each began with the cache the recipe gives, none with what one left
    assert "builds by timing differ: 3 more of engine" in job.said[0] and "3 builds more: wall -0." in entry["told"].replace("+0.", "-0.")
    told = verdict(tmp_path, entry)
    assert told["passed"] is True and told["value"] == pytest.approx(1.01, abs=0.005)
    assert told["builds"]["first"] == pytest.approx(0.08, abs=0.01) and told["builds"]["standard_deviation"] == pytest.approx(
        0.05, abs=0.01
    )
    assert "the one in the middle of 3 builds more (" in told["text"] and "the one that was measured first takes +8." in told["text"]
    assert len(entry["builds"]) == 3 and all(len(build["rounds"]) == 20 for build in entry["builds"])


def test_a_baseline_that_is_built_by_timing_is_built_again_for_each_of_them(monkeypatch, tmp_path, line):
    lineage, calls = LINEAGE | {"first": {"onnx": ["onnx"]}}, []
    _, timed, job = raced(monkeypatch, tmp_path / "a", line, [0.08, 0.0, 0.0, 0.0], lineage, against="first")
    assert len({baseline.folder for _, _, baseline in timed}) == 4 and job.said[0].endswith("3 more of engine and first")
    assert [json.loads(baseline.file("engine.timing").read_text())[2] for _, _, baseline in timed] == [1] * 4

    def released(name, known, work):
        calls.append((name, work.name))
        return replace(line[1], name="released")

    monkeypatch.setattr(rebuilt, "rebuilt", released)
    raced(monkeypatch, tmp_path / "b", line, [0.08, 0.0, 0.0, 0.0], against="released")
    assert calls == [("engine", "released_0")] + [("engine", f"build_{k}_released") for k in range(3)]


def test_a_loss_that_most_builds_show_is_the_changes(monkeypatch, tmp_path, line):
    entry, _, _ = raced(monkeypatch, tmp_path, line, [0.08, 0.07, 0.0, 0.09])
    told = verdict(tmp_path, entry)
    assert told["passed"] is False and told["value"] == pytest.approx(1.07, abs=0.005)
    for build in entry["builds"][:2]:
        build["valid"], build["reasons"] = False, ["slowed down"]
    assert verdict(tmp_path, entry)["passed"] is None


def test_without_a_loss_or_where_building_is_no_lottery_nothing_is_built_again(monkeypatch, tmp_path, line):
    assert "builds" not in raced(monkeypatch, tmp_path / "a", line, [0.01])[0]
    assert "builds" not in raced(monkeypatch, tmp_path / "b", line, [0.08], reasons=["slowed down"])[0]  # no loss that can be told
    monkeypatch.setattr(TABLE.row("tensorrt"), "reproducible", True)
    assert "builds" not in raced(monkeypatch, tmp_path / "c", line, [0.08])[0]


def test_where_it_cannot_be_built_again_that_is_said_and_the_loss_stands(monkeypatch, tmp_path, line):
    onnx, _, engine = line
    for k, (lineage, held, why) in enumerate(
        [
            ({}, None, "engine is made of no ONNX file"),
            ({"engine": {"onnx": ["fp16"]}}, None, "engine is made of fp16, which is not measured here: add that to candidates"),
            (LINEAGE, (onnx, engine), "the build of engine began with the timing cache of first, which is not measured here"),
        ]
    ):
        entry, timed, _ = raced(monkeypatch, tmp_path / str(k), line, [0.08], lineage, held)
        told = verdict(tmp_path / str(k), entry)
        assert told["passed"] is False and f"another build may tell otherwise, and there is none: {why}" in told["text"]
        assert len(timed) == 1 and why in entry["told"]


def test_a_further_build_that_fails_costs_no_round_that_was_measured(monkeypatch, tmp_path, line):
    def fails(*_):
        raise BadData("out of memory")

    monkeypatch.setattr(rebuilt, "built", fails)
    entry, timed, _ = raced(monkeypatch, tmp_path, line, [0.08])
    assert entry["not_rebuilt"] == "out of memory" and len(entry["rounds"]) == 20 and len(timed) == 1


def test_between_two_builds_it_can_be_stopped(monkeypatch, tmp_path, line):
    job = small_line.Job(tmp_path / "job")
    job.lineage = {"engine": {"onnx": ["onnx"], "timing": ["first"]}}
    lost = {"baseline": "onnx", "valid": True, "tolerance": 0.05, "rounds": rounds(20, 0.08, on_gpu=True), "told": ""}
    onnx, first, engine = line

    def stop(done, total):
        raise Stopped("stopped", 2)

    with pytest.raises(Stopped):
        races.built_more([engine, onnx], {"onnx": onnx, "first": first}, lost, job, stop, lambda models: pytest.fail("was measured"))
