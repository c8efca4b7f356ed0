"""What `diff` says of two runs' artifacts: written by hand, small, and odd where runs can be odd."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.artifact import Artifact
from pipeline.comparing import Story
from stages.compare import compare

CLASSES = ["road", "sky", "person", "<script>alert(1)</script>"]
COLOURS = [[10, 20, 30], [40, 50, 60], [70, 80, 90], [1, 2, 3]]
SETTINGS = {"measured": {"kind": "validate"}, "gate": {"kind": "gate", "measured": "measured"}}
TIMES = {f"{boundary}_ms": {"p50": 2.0, "p90": 3.0, "p99": 4.0} for boundary in ("image", "engine", "image_cpu", "engine_cpu")}


def counts(right, images=40, seed=0):
    """(N, C, 3) of labels with 100 pixels of every class in every image, of which about `right` per class are found; the rest get lost."""
    drawn = np.random.default_rng(seed).normal(0, 2, (images, len(right))).round().astype(np.int64)
    tp = np.clip(np.array(right) + drawn, 0, 100)
    return np.stack([tp, np.zeros_like(tp), 100 - tp], axis=-1)


def measured(folder, found, classes=CLASSES, shift=0, names=("a", "b"), **more):
    """The artifact of a measurement with the networks `student` and `engine`, whose maps differ by `shift` columns."""
    folder.mkdir()
    iou = (100 * found[..., 0].sum(axis=0) / found.sum(axis=(0, 2))).tolist()
    models = {}
    for model in ("student", "engine"):
        np.save(folder / f"counts_{model}.npy", found)
        models[model] = {"miou": float(np.mean(iou)), "iou": iou, "size_mb": 1.0, "parameters": 1000, "latency": TIMES}
        for k in range(len(names)):
            Image.fromarray(label(shift)).save(folder / f"map_{model}_{k}.png")
    for k, image in enumerate(names):
        Image.fromarray(np.full((8, 16, 3), 20 + len(image), np.uint8)).save(folder / f"image_{k}.png")
        Image.fromarray(label(0)).save(folder / f"label_{k}.png")
    told = {"classes": classes, "colours": COLOURS, "images": len(found), "models": models, "machine": {"cpu": "one", "cores": 2}}
    told |= {"fingerprint": {"images": len(found), "label_digest": "x", "classes": classes}}
    told |= {"pictures": [{"name": image, "index": k} for k, image in enumerate(names)]} | more
    (folder / "measurement.json").write_text(json.dumps(told))
    return Artifact("measured", "Measurement", folder.name, folder, {"images": len(found)}, {})


def label(shift):
    found = np.zeros((8, 16), np.uint8)
    found[:, 8 + shift :] = 1
    return found


def verdict(folder, *rules):
    folder.mkdir()
    (folder / "verdict.json").write_text(json.dumps({"passed": None, "rules": list(rules)}))
    return Artifact("gate", "Verdict", folder.name, folder, {}, {})


def story(**more):
    runs = [{"run": run, "outcome": "passed", "started": "2026-07-01T09:30:00Z"} for run in ("r-1", "r-2")]
    empty = {"recipe": [], "code": [], "stages": [], "same": [], "figures": [], "notes": []}
    at = [{"measured": "2026-07-01T09:30:00Z"}, {"measured": "2026-07-02T09:30:00Z"}]
    return Story(**{"runs": runs, **empty, "inputs": [SETTINGS, SETTINGS], "at": at} | more)


def told(one, two, **more):
    """Sections by title, the page, its facts."""
    found = compare(story(**more), *({a.name: a for a in side} for side in (one, two)))
    return {s.title: s.lines for s in (*found.causes, *found.effects)}, found.html, found.facts


@pytest.fixture(scope="module")
def better(tmp_path_factory):
    """One class gains twenty points, give or take; the others stay."""
    folder = tmp_path_factory.mktemp("better")
    before, after = counts((80, 60, 30, 50)), counts((80, 60, 30, 50))
    after[:, 2] = counts((50,), seed=1)[:, 0]
    return told([measured(folder / "a", before, shift=2)], [measured(folder / "b", after, shift=-1, names=("b", "c"))])


def test_accuracy_is_paired_and_networks_that_changed_alike_share_a_line(better):
    line, note = better[0]["accuracy"]
    assert re.fullmatch(r"student, engine: mIoU 55\.\d\d -> (59|60)\.\d\d  \+[45]\.\d\d ± 0\.[12]\d", line) and "over 40 images" in note
    row = better[2]["accuracy"]["models"][0]
    assert row["beyond"] and row["change"] == pytest.approx(5, abs=0.3)
    assert row["margin"] == pytest.approx(1.96 * 2 * 2**0.5 / 4 / 40**0.5, rel=0.3)  # two draws of sd 2, one class of four, 40 images


def test_classes_come_by_change_what_is_beyond_chance_is_marked_and_the_rest_folded(better):
    head, first, *rest = better[0]["classes"]
    assert head.startswith("IoU of engine") and first.startswith("person") and "+20" in first and first.endswith("*")
    assert rest == ["3 classes within 0.3"]


def test_a_class_in_few_images_is_not_judged(tmp_path):
    pair = [counts((80, 60, 30, 50), images=20, seed=s) for s in (0, 1)]
    for found, right in zip(pair, (10, 90), strict=True):
        found[6:, 3] = 0
        found[:6, 3] = (right, 0, 100 - right)
    lines = told([measured(tmp_path / "a", pair[0])], [measured(tmp_path / "b", pair[1])])[0]["classes"]
    assert lines[1].startswith("<script>") and lines[1].endswith("?")


def test_times_are_told_by_percentile_with_what_an_unpaired_comparison_is_worth(tmp_path):
    slow = {key: {p: 2 * v for p, v in value.items()} for key, value in TIMES.items()}
    same = counts((80, 60, 30, 50))
    one, two = measured(tmp_path / "a", same), measured(tmp_path / "b", same, machine={"cpu": "other", "cores": 2})
    found = json.loads((tmp_path / "b/measurement.json").read_text())
    found["models"]["engine"]["latency"] = slow
    found["pairs"] = [{"candidate": "engine", "baseline": "released", "told": "slower by 4 %"}]
    found["conditions"] = {"valid": False, "reasons": ["somebody else was at work"]}
    (tmp_path / "b/measurement.json").write_text(json.dumps(found))
    lines = told([one], [two])[0]["time"]
    assert "p50, ms" in lines[0] and re.fullmatch(r"engine, image +2->4 \+100% +3->6 \+100% +4->8 \+100%", lines[1])
    rest = "\n".join(lines[4:])
    assert "measured on different machines (cpu one -> other)" in rest and "; what was paired says more" in rest
    assert "clock times of r-2 are inconclusive: somebody else was at work" in rest
    assert "paired in r-2: engine against released: slower by 4 %" in rest and "student" not in rest


def test_other_images_are_said_and_nothing_is_paired(tmp_path):
    one = measured(tmp_path / "a", counts((80, 60, 30, 50)))
    two = measured(tmp_path / "b", counts((80, 60, 50, 50), images=30), fingerprint={"images": 30, "label_digest": "y", "classes": CLASSES})
    sections, _, facts = told([one], [two])
    assert "the number of images; the labels" in sections["accuracy"][1] and facts["accuracy"]["models"][0]["margin"] is None
    assert not any(line.endswith("*") for line in sections["classes"])


def test_labels_that_differ_under_an_equal_fingerprint_are_not_paired_either(tmp_path):
    other = counts((80, 60, 50, 50))
    other[0, 0, 2] += 1
    facts = told([measured(tmp_path / "a", counts((80, 60, 30, 50)))], [measured(tmp_path / "b", other)])[2]
    assert facts["accuracy"]["models"][0]["margin"] is None


def test_another_class_table_is_compared_by_name_and_without_pictures(tmp_path):
    one = measured(tmp_path / "a", counts((80, 60, 30, 50)))
    two = measured(tmp_path / "b", counts((80, 60, 30, 50))[:, [2, 0, 1, 3]], classes=["person", "road", "sky", "car"])
    sections, _, facts = told([one], [two])
    assert sections["classes"] == ["IoU of engine", "measured in one run only: <script>alert(1)</script>, car", "3 classes within 0.3"]
    assert facts["scenes"] == [] and "class tables differ" in facts["notes"][0]


def test_only_pictures_that_both_kept_are_shown(better):
    _, html, facts = better
    assert [scene["name"] for scene in facts["scenes"]] == ["b"]
    assert facts["scenes"][0]["shares"] == {"worse": 1 / 16, "better": 2 / 16, "other": 0}
    assert "r-1 kept 2 pictures, r-2 2; the 1 of images that both kept are shown" in facts["notes"]
    assert html.count('<img src="data:') == 5 and "What became worse and better of b" in html


@pytest.mark.parametrize("file", ["image_0.png", "label_0.png", "map_engine_0.png"])
def test_pictures_of_another_image_label_or_size_are_not_laid_side_by_side(tmp_path, file):
    one, two = measured(tmp_path / "a", counts((80, 60, 30, 50))), measured(tmp_path / "b", counts((80, 60, 50, 50)), shift=1)
    other = Image.open(tmp_path / "b" / file).copy()
    other.paste(7, (0, 0, 1, 1))
    (other if file[0] != "m" else other.resize((8, 4))).save(tmp_path / "b" / file)
    assert [scene["name"] for scene in told([one], [two])[2]["scenes"]] == ["b"]


def test_sizes_and_hops_are_told_where_they_changed(tmp_path):
    def waterfall(change, state):
        first = {"name": "student", "from": None}
        return {"hops": [first, {"name": "engine", "from": "student", "change": change, "state": state}]}

    one, two = (
        measured(tmp_path / name, counts((80, 60, 30, 50)), waterfall=waterfall(*hop))
        for name, hop in (("a", (-0.01, "keeps")), ("b", (-2.0, "loses")))
    )
    found = json.loads((tmp_path / "b/measurement.json").read_text())
    found["models"]["engine"] |= {"size_mb": 0.25, "parameters": 4000}
    (tmp_path / "b/measurement.json").write_text(json.dumps(found))
    sections = told([one], [two])[0]
    assert sections["hops"] == ["student to engine: -0.01 -> -2.00 points, keeps -> loses"]
    assert sections["size"] == ["engine: 1.00 MB -> 0.25 MB (-75 %), 1.0 k parameters -> 4.0 k parameters (4.0 times)"]
    assert sections["accuracy"] == sections["classes"] == sections["time"] == []


def test_the_network_that_changed_decides(tmp_path):
    """Here the student; the engine is the same in both."""
    one, two = measured(tmp_path / "a", counts((80, 60, 30, 50))), measured(tmp_path / "b", counts((80, 60, 50, 50)))
    (tmp_path / "b/counts_engine.npy").write_bytes((tmp_path / "a/counts_engine.npy").read_bytes())
    found, before = (json.loads((tmp_path / name / "measurement.json").read_text()) for name in "ba")
    found["models"]["engine"] = before["models"]["engine"]
    (tmp_path / "b/measurement.json").write_text(json.dumps(found))
    sections = told([one], [two])[0]
    assert sections["classes"][0].startswith("IoU of student") and sections["accuracy"][0].startswith("student: ")


def test_comparing_needs_no_torch():
    code = "import sys, stages.compare.accuracy, stages.compare.pictures, stages.compare.times; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])


def test_names_are_text_on_the_page(better):
    html = better[1]
    assert "&lt;script&gt;alert(1)" in html and "<script>alert" not in html and html.count("<script") == 1  # the block of facts


def test_rules_are_matched_by_what_they_ask(tmp_path):
    def rule(passed, value, limit="at_least 20", of="engine"):
        return {"metric": "miou", "of": of, "against": None, "limit": limit, "passed": passed, "value": value, "text": "words"}

    one = verdict(tmp_path / "a", rule(True, 30.0), rule(True, 1.0, "at_least 0"), rule(True, 1.0, "at_most 5"))
    two = verdict(tmp_path / "b", rule(False, 10.0), rule(True, 2.0, "at_least 0"), rule(None, 1.0, "at_least 9"))
    lines = told([one], [two])[0]["verdict"]
    assert lines[0] == "miou of engine at_least 20: passed -> FAILED (30 -> 10)" and lines[-1] == "as before: 1 passed"
    assert set(lines[1:3]) == {"no longer asked: miou of engine at_most 5: passed", "new: miou of engine at_least 9: undecided"}


def test_masks_that_are_read_otherwise_are_no_other_pictures(tmp_path):
    labels = ({"ids": [[0, 0], [1, 1]]}, {"colours": [[0, 0, 0, 0], [9, 9, 9, 1]]})
    sides = [[Artifact("data", "Dataset", str(k), tmp_path, {"classes": ["a", "b"], "labels": labels[k]}, {})] for k in (0, 1)]
    assert told(*sides)[0]["data"] == ["data: class table: other values of masks"]


def test_data_sets_are_told_by_splits_classes_and_files(tmp_path):
    sides = []
    for k, files in enumerate(({"a.png": "1", "b.png": "2", "c.png": "3"}, {"a.png": "1", "b.png": "9", "d.png": "4"})):
        folder = tmp_path / str(k)
        folder.mkdir()
        index = {"val": [{"image": f, "image_sha256": "same", "label_sha256": sha} for f, sha in files.items()]}
        (folder / "index.json").write_text(json.dumps(index))
        facts = {"source": "folder", "size": [64, 128], "splits": {"val": 3 + k}, "classes": ["road", "sky"] if k else ["sky", "road"]}
        sides.append([Artifact("data", "Dataset", str(k), folder, facts, {})])
    assert told(*sides)[0]["data"] == [
        "data: split val 3 -> 4 images",
        "data: class table 2 -> 2, in another order",
        "data: split val: 1 new: d.png",
        "data: split val: 1 gone: c.png",
        "data: split val: 1 with another label: b.png",
    ]


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"models": {"student": {"miou": "x", "iou": 3, "latency": [1]}}, "classes": 7, "pictures": {}}', "null"]
)
def test_an_odd_measurement_is_no_traceback(tmp_path, content):
    one, two = measured(tmp_path / "a", counts((80, 60, 30, 50))), measured(tmp_path / "b", counts((80, 60, 50, 50)))
    (tmp_path / "b/measurement.json").write_text(content)
    sections, html, facts = told([one], [two])
    assert "<html" in html and not sections.get("time") and (facts["notes"] or sections["accuracy"])


def test_a_run_without_a_measurement_says_so(tmp_path):
    sections, html, facts = told([measured(tmp_path / "a", counts((80, 60, 30, 50)))], [])
    assert facts["notes"] == ["r-2 has no measurement to compare"] and not any(sections.values()) and "no measurement to compare" in html
