"""A hop that was broken on purpose is the one that is named, and an unbroken line names nobody."""

import json

import numpy as np
import pytest

from pipeline.errors import BadData
from stages.measure import waterfall
from stages.measure.accuracy import same
from stages.samples import open_samples
from stages.validate import Validate
from tests.stages import small_hops, small_line


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    return small_hops.line(tmp_path_factory.mktemp("line"))


def measured(line, folder, lineage=small_hops.LINEAGE):
    names = [name for name in line if name not in ("data", "student")]
    stage = Validate.model_validate({"kind": "validate", "data": "data", "reference": "student", "candidates": names, "pictures": 0})
    inputs = {"data": line["data"], "reference": line["student"], "candidates": [line[n] for n in names], "latency_of": []}
    made = small_line.made(stage, "measured", inputs, folder, lineage=lineage)
    return made, json.loads(made.file("measurement.json").read_text())


def test_an_unbroken_line_names_nobody_and_tells_every_hop(line, tmp_path):
    images = [open_samples(line["data"], "train")[i][0] for i in range(16)]
    int8 = small_hops.quantised(line["onnx"], tmp_path / "int8", images)
    lineage = small_hops.LINEAGE | {"int8": {"onnx": ["onnx"]}}
    made, found = measured(line | {"int8": int8}, tmp_path, lineage)
    told = found["waterfall"]
    assert told["loses"] == made.facts["loses"] == [] and told["text"].startswith("no hop loses")
    hops = {one["name"]: one for one in told["hops"]}
    assert {name: one["from"] for name, one in hops.items()} == {
        "student": None,
        "student rewritten": "student",
        "onnx": "student rewritten",
        "engine": "onnx",
        "int8": "onnx",
    }
    assert made.facts["hops"] == {name: pytest.approx(one["change"], abs=1e-3) for name, one in hops.items() if one["from"]}
    assert hops["student"]["miou"] == found["models"]["student"]["miou"] > 15  # it has learned something to lose
    for name in ("student rewritten", "onnx", "engine"):
        assert hops[name]["agreement"] >= 0.9999 and abs(hops[name]["change"]) < 0.05 and hops[name]["precision"] == "f32"
    assert hops["int8"]["precision"] == "int8" and hops["int8"]["budget"] == {"drop": 1.0, "agreement": 0.97}
    assert 0.97 <= hops["int8"]["agreement"] < 1 and -1 < hops["int8"]["change"] != 0
    assert hops["int8"]["change"] == pytest.approx(hops["int8"]["miou"] - hops["onnx"]["miou"])
    worst = hops["int8"]["worst"]
    assert worst["change"] == min(c for c in hops["int8"]["classes"] if c is not None)
    assert hops["int8"]["classes"][found["classes"].index(worst["class"])] == worst["change"]
    assert found["models"]["int8"]["boundary_f"] == hops["int8"]["boundary_f"] > 5


def broken_normalisation(line, folder):
    onnx = small_hops.edited(line["onnx"], folder / "x", "model.onnx", small_hops.normalised_wrongly)
    return "onnx", onnx, "student rewritten"


def broken_corners(line, folder):
    flip = {"coordinate_transformation_mode": "align_corners"}
    return "onnx", small_hops.edited(line["onnx"], folder / "x", "model.onnx", lambda p: small_hops.resized(p, **flip)), "student rewritten"


def broken_calibration(line, folder):
    rng = np.random.default_rng(0)
    noise = [np.clip(rng.normal(127, 20, (*small_hops.SIZE, 3)), 0, 255).astype(np.uint8) for _ in range(4)]
    return "int8", small_hops.quantised(line["onnx"], folder / "x", noise), "onnx"


def broken_resize(line, folder):
    nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
    return "engine", small_hops.edited(line["engine"], folder / "x", "engine.onnx", lambda p: small_hops.resized(p, **nearest)), "onnx"


@pytest.mark.parametrize("broken", [broken_normalisation, broken_corners, broken_calibration, broken_resize])
def test_a_broken_hop_is_named_and_no_other(line, tmp_path, broken):
    name, artifact, before = broken(line, tmp_path)
    changed = {**line, name: artifact}
    if name == "onnx":  # what is built from a broken file is as broken, and not to blame
        changed["engine"] = small_line.engine(tmp_path, artifact, kind="onnxruntime", threads=1)
    lineage = small_hops.LINEAGE | {"int8": {"onnx": ["onnx"]}}
    made, found = measured(changed, tmp_path, lineage)
    assert found["waterfall"]["loses"] == made.facts["loses"] == [name]
    assert found["waterfall"]["text"].startswith(f"{name} ") and found["waterfall"]["text"].endswith(
        f"against {before}: that is where to look"
    )


def test_maps_of_two_shapes_are_an_error_and_never_resized():
    with pytest.raises(BadData, match=r"engine gives maps of \(4, 6\) and onnx of \(8, 12\)"):
        same(np.zeros((4, 6), np.uint8), np.zeros((8, 12), np.uint8), "engine", "onnx")


def artifact(name, kind, **facts):
    return small_line.Artifact(name, kind, name, None, facts)


def test_every_model_is_compared_with_the_nearest_measured_one_it_was_made_from():
    student, teacher = artifact("student", "Checkpoint"), artifact("teacher", "Checkpoint")
    given = [
        artifact("quick", "Engine", engine={"kind": "openvino"}),  # its ONNX file int8 is measured, the ONNX file before is not
        artifact("int8", "OnnxModel", precision="int8", quantized={"how": "post-training"}),
        artifact("eager", "Engine", engine={"kind": "pytorch"}),
        artifact("aware", "OnnxModel", precision="int8", quantized={"how": "aware"}),
        teacher,
    ]
    lineage = {
        "student": {"data": ["data"], "teacher": ["teacher"]},
        "onnx": {"data": ["data"], "checkpoint": ["student"]},
        "int8": {"onnx": ["onnx"]},
        "quick": {"onnx": ["int8"], "checkpoint": []},
        "eager": {"checkpoint": ["student"]},
        "aware": {"teacher": ["teacher"], "checkpoint": ["student"]},
    }
    found = waterfall.models(student, given, lineage)
    assert [(one.name, one.before, one.first) for one in found] == [
        ("student", None, None),
        ("student rewritten", "student", "student"),
        ("int8", "student rewritten", "student"),
        ("quick", "int8", "student"),
        ("eager", "student", "student"),
        ("aware", "student", "student"),
        ("teacher", None, None),
    ]
    assert [one.rewritten for one in found] == [False, True, False, False, False, False, False]
    alone = waterfall.models(given[0], [given[1]], lineage)  # the reference may stand anywhere in its line
    assert [(one.name, one.before) for one in alone] == [("int8", None), ("quick", "int8")]
    assert [one.before for one in waterfall.models(student, given, {})] == [None] * 6  # nobody says what was made from what


FULL = {"name": "onnx", "from": "rewritten", "change": 0.0, "standard_error": 0.0, "most_lost": 0.0, "agreement": 1.0}
FULL |= {"budget": {"drop": 0.2, "agreement": 0.995}}


@pytest.mark.parametrize(
    "changes, state, text",
    [
        ({}, "keeps", "onnx keeps what rewritten knows"),
        (
            {"change": -12.34, "standard_error": 2.0, "most_lost": 40.0},
            "loses",
            "onnx loses 12.3 points of mIoU (asked at most 0.2) against",
        ),
        ({"change": -12.34, "standard_error": 8.0, "most_lost": 40.0}, "unclear", "-12.3 points of mIoU against rewritten ± 13.2"),
        ({"change": -0.19, "standard_error": 0.03, "most_lost": 1.0}, "unclear", "too few images to tell 0.2 from none"),
        ({"change": -0.1, "standard_error": 0.03, "most_lost": 1.0}, "keeps", ""),
        ({"change": -0.1, "standard_error": 9.0, "most_lost": 0.15}, "keeps", ""),  # certain, whatever the error
        ({"change": 0.4, "standard_error": 0.1, "most_lost": 3.0, "agreement": 0.96}, "loses", "onnx changes 4.00% of the pixels (asked"),
        ({"change": -1.0, "standard_error": None, "most_lost": 3.0}, "unclear", "of one image alone"),
        ({"change": -0.5, "standard_error": 0.01, "most_lost": 0.9}, "loses", "0.5 points"),
    ],
)
def test_a_loss_is_told_from_noise(changes, state, text):
    found = waterfall.judged(FULL | changes)
    assert found["state"] == state and text in found["text"]


def test_of_two_losing_hops_the_one_that_loses_more_is_told_first():
    first = {"name": "onnx", "from": "a", "state": "loses", "change": -1.0, "text": "onnx loses 1.0"}
    worse = {"name": "int8", "from": "onnx", "state": "loses", "change": -3.0, "text": "int8 loses 3.0"}
    found = waterfall.summary([{"name": "a", "from": None}, first, worse])
    assert found["loses"] == ["int8", "onnx"] and found["text"] == "int8 loses 3.0; onnx loses 1.0"
