"""An INT8 engine is kept only where it is faster than its sibling and loses little, and the page can say why not."""

import pytest

from stages.measure.kept import kept


def model(precision, miou, p50, runtime="openvino on CPU", artifact="Engine", first="student", threads=2):
    latency = None if p50 is None else {"image_ms": {"p50": p50}, "threads": threads}
    return {"artifact": artifact, "precision": precision, "runtime": runtime, "first": first, "miou": miou, "latency": latency}


STUDENT = model("f32", 40.0, 90.0, "torch on cpu", "Checkpoint", None)
F32, BF16 = model("f32", 40.0, 30.0), model("bf16", 39.9, 20.0)


def why(others, disturbed=(), **changes):
    one = model("int8", 39.5, 15.0) | changes
    found = kept({"student": STUDENT, **others, "int8": one}, disturbed)
    assert found.keys() == {"int8"}
    return found["int8"]["kept"], found["int8"]["why"]


def test_one_that_is_faster_and_within_its_budget_is_kept():
    assert why({"f32": F32, "bf16": BF16}) == (
        True,
        "kept, 1.33 times as fast: 15 ms against 20 ms of bf16 (bf16), 0.50 points of mIoU below student",
    )
    assert why({"f32": F32}, miou=40.25)[1].endswith("of f32 (f32), 0.25 points of mIoU above student")


def test_one_that_is_slower_than_bf16_is_not_kept_though_it_is_faster_than_f32():
    verdict, text = why({"f32": F32, "bf16": BF16}, latency={"image_ms": {"p50": 25.0}, "threads": 2})
    assert verdict is False and text.startswith("not kept, it is no faster: 25 ms against 20 ms of bf16")


def test_one_that_loses_more_than_int8_may_is_not_kept_however_fast():
    assert why({"bf16": BF16}, miou=38.5) == (False, "not kept: 1.50 points of mIoU below student, and INT8 may lose 1.0")
    assert why({}, ["int8"], miou=38.5)[0] is False  # a busy machine does not change what it loses


@pytest.mark.parametrize(
    "others, changes",
    [
        ({"f32": F32 | {"runtime": "onnxruntime on CPUExecutionProvider"}}, {}),
        ({"f32": F32 | {"first": "baseline"}}, {}),
        ({"f32": F32 | {"latency": None}}, {}),
        ({"f32": model("f32", 40, 30, threads=1)}, {}),
        ({"f32": F32}, {"latency": None}),
        ({"f32": F32, "bf16": BF16}, {"first": None}),
    ],
    ids=["another runtime", "another network", "not timed", "other threads", "itself not timed", "nobody knows of what it was made"],
)
def test_without_a_sibling_nothing_is_told(others, changes):
    verdict, text = why(others, **changes)
    assert verdict is None and text.startswith("cannot be told")


def test_on_a_busy_machine_speed_is_not_told():
    for disturbed in (["int8"], ["bf16"]):
        verdict, text = why({"bf16": BF16}, disturbed)
        assert verdict is None and "not quiet" in text and "15 ms against 20 ms" in text
    assert why({"bf16": BF16}, ["onnx"])[0] is True


def test_an_onnx_file_that_was_timed_on_the_same_runtime_is_a_sibling_and_other_engines_are_not_judged():
    onnx = model("f32", 40.0, 10.0, artifact="OnnxModel")
    assert why({"onnx": onnx})[0] is False
    assert kept({"student": STUDENT, "f32": F32, "bf16": BF16, "q": model("int8", 40, 1.0, artifact="OnnxModel")}) == {}
