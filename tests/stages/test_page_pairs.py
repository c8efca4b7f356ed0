"""The section of the page on models that took turns: every round where it belongs, and nothing where nothing was measured."""

import copy
import json
import random

import pytest

from stages.page import charts, render
from tests.stages.test_page import Seen, assert_harmless, fake_run
from tests.stages.test_pairs import entry, rounds


@pytest.fixture(scope="module")
def pairs():
    disturbed = rounds(20, 0.01, cpu_slower=-0.04)
    for k in (2, 6):
        disturbed[k]["reasons"] = ["somebody waited for a core"]
    builds = [entry(rounds(20, slower, seed=k, on_gpu=True)) for k, slower in enumerate((0.0, 0.09, 0.01), 1)]
    slow = entry(rounds(20, 0.08, on_gpu=True), baseline="released", builds=builds)
    return [entry(disturbed), slow, {"candidate": "onnx", "baseline": "released", "problem": "no baseline was given", "told": "x"}]


def shown(folder, pairs):
    run, artifacts = fake_run(folder, pictures=0)
    artifacts["measured"].file("pairs.json").write_text(json.dumps(pairs))
    html, facts = render(run, artifacts)
    return html, facts["pairs"], facts["notes"]


def test_every_round_is_a_point_and_those_that_were_disturbed_are_hollow_and_say_why(tmp_path, pairs):
    html, [one, _, _], _ = shown(tmp_path, pairs[:1] + pairs[2:] * 2)
    assert len(one["channels"]["wall"]["changes"]) == 20 and one["looks"] == [10, 20]
    assert one["channels"]["wall"]["change"] == pytest.approx(0.01, abs=0.005)
    assert one["channels"]["processor"]["low"] < -0.04 < one["channels"]["processor"]["high"] < 0
    assert one["disturbed"] == {"3": "somebody waited for a core", "7": "somebody waited for a core"}
    assert html.count('class="dot s-model hollow"') == 2 * 3 and html.count('class="dot s-model"') == 2 * (20 - 2 + 1)  # 1: the legend's
    assert html.count("; somebody waited for a core</title>") == 4
    assert "% longer (+" in html and "% shorter (−" in html and "5 % allowed" in html and "disturbed (2)" in html
    assert html.count('class="look"') == 4 and html.count('class="limit"') == html.count('class="half"') == 2
    assert "Not measured: no baseline was given" in html


def test_builds_stand_beside_each_other_and_a_processor_that_waits_for_a_gpu_has_no_chart(tmp_path, pairs):
    html, [one], _ = shown(tmp_path, pairs[1:2])
    assert one["channels"]["processor"] is None and [build["processor"] for build in one["builds"]] == [None] * 3
    assert [round(build["wall"]["change"], 2) for build in one["builds"]] == [0.0, 0.09, 0.01]
    assert "By the clock, by build" in html and "Processor time" not in html.split("In turns")[1].split("<h2>")[0]
    assert [f"{label}: " in html for label in ("measured first", "build 1", "build 3", "build 4")] == [True, True, True, False]
    pairs = [pairs[0] | {"valid": False, "reasons": ["others ran"], "not_rebuilt": "it is made of no ONNX file"}]
    html, _, _ = shown(tmp_path / "other", pairs)
    assert "Times by the clock are inconclusive: others ran." in html and "there is none: it is made of no ONNX file" in html


def test_points_and_lines_lie_where_their_values_are():
    marks = [{"y": y, "hollow": False, "title": ""} for y in (-0.02, 0.0, 0.06)]
    svg = charts.rounds(marks, {"low": -0.01, "change": 0.0, "high": 0.05}, [(0.05, "limit")], [3], "round", "longer, %")
    tags = Seen(svg).tags
    dots = [(float(a["cx"]), float(a["cy"])) for tag, a in tags if tag == "circle"]
    place = {a["class"]: float(a["y1"]) for tag, a in tags if tag == "line" and a["class"] in ("limit", "centre")}
    [band] = [a for tag, a in tags if tag == "rect"]
    assert dots[0][1] > dots[1][1] > dots[2][1] and dots[1][0] - dots[0][0] == pytest.approx(dots[2][0] - dots[1][0], abs=0.02)
    assert place["centre"] == dots[1][1] > place["limit"] > dots[2][1]
    assert float(band["y"]) == place["limit"] and float(band["y"]) + float(band["height"]) > place["centre"]


def test_without_pairs_there_is_no_section_and_what_cannot_be_read_is_named(tmp_path, pairs):
    run, artifacts = fake_run(tmp_path / "none", pictures=0)
    html, facts = render(run, artifacts)
    assert "In turns" not in html and facts["pairs"] == []
    html, found, notes = shown(tmp_path / "list", {"no": "list"})
    assert found == [] and "In turns" not in html and any(note.startswith("pairs.json of measured") for note in notes)
    broken = copy.deepcopy(pairs[:1])
    broken[0]["rounds"][4]["image_ms"] = {"candidate": [1e-300], "baseline": [1e300]}
    html, [one], _ = shown(tmp_path / "far", broken)
    assert one["channels"]["wall"] is None and one["channels"]["processor"] is not None


def test_odd_values_never_break_the_section(tmp_path, pairs):
    odd = [None, True, -1, 0, 1e300, float("nan"), "7", [], {}, [[]], {"a": 1}]
    chance = random.Random(3)

    def spoil(value):
        if chance.random() < 0.02:
            return chance.choice(odd)
        if isinstance(value, dict):
            return {key: spoil(v) for key, v in value.items()}
        return [spoil(v) for v in value] if isinstance(value, list) else value

    small = [pairs[0] | {"rounds": pairs[0]["rounds"][:3]}, pairs[1] | {"rounds": pairs[1]["rounds"][:2]}, pairs[2]]
    small[1]["builds"] = [build | {"rounds": build["rounds"][:1]} for build in small[1]["builds"]]
    for k in range(25):
        html, found, _ = shown(tmp_path / str(k), spoil(small))
        assert_harmless(html)
        assert json.loads(json.dumps(found, allow_nan=False)) == found
