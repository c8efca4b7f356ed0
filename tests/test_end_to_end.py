"""The benchmark from image bytes to class map: what it races is the same network, and what is wrong gets no figure."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import end_to_end, racers, ready
from pipeline.errors import BadData
from stages.data import Data
from stages.models import open_model
from stages.models.tiny import Tiny
from tests.stages import small_line

NAMES, SIDE = ["sky", "road", "car"], 64
QUICK = ["--quick", "--threads", "1", "--only"]


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    """A folder in CamVid's form: two pictures of blocks per split."""
    root, rng = tmp_path_factory.mktemp("camvid"), np.random.default_rng(0)
    table = {"classes": [{"id": i, "name": n, "colour": [i, i, i]} for i, n in enumerate(NAMES)], "ignore_index": 3}
    (root / "classes.json").write_text(json.dumps(table))
    for split in ("train", "val", "test"):
        (root / f"{split}.txt").write_text("a\nb\n")
        for stem in "ab":
            blocks = np.resize(rng.permutation(16) % 4, (4, 4)).astype(np.uint8)
            image = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            for folder, pixels in ((f"images/{stem}.jpg", image), (f"labels/{stem}.png", blocks)):
                (root / split / folder).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(root / split / folder)
    return root


@pytest.fixture(scope="module")
def student(tmp_path_factory, camvid):
    folder = tmp_path_factory.mktemp("student")
    settings = {"kind": "data", "source": {"kind": "camvid", "root": str(camvid)}, "size": [SIDE, SIDE]}
    made = small_line.checkpoint(folder, small_line.made(Data.model_validate(settings), "data", {}, folder))
    (made.folder / "MANIFEST.json").write_text(json.dumps({"kind": made.kind, "facts": made.facts}))
    return ready.student_of(made.folder)


@pytest.fixture(scope="module")
def pictures(student, camvid, tmp_path_factory):
    return ready.pictures_of(camvid, (SIDE, SIDE), "test", 0, student, tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def quick(student, camvid, tmp_path_factory):
    """What the command found; the table it printed is in `printed`."""
    file = tmp_path_factory.mktemp("told") / "found.json"
    command = [*QUICK, "onnxruntime int8", "openvino f32, graph", "--student", str(student.folder), "--data", str(camvid), "--no-random"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert end_to_end.main([*command, "--classes", "4", "5", "--json", str(file)]) == 0
    return json.loads(file.read_text()) | {"printed": printed.getvalue()}


def test_a_padded_classifier_gives_the_same_logits_and_rows_that_never_win(student, pictures):
    net, wide = open_model(student), ready.padded(student, 9, pictures)
    for image in pictures.images:
        own, all_of_it = ready.logits_of(net, image), ready.logits_of(wide, image)
        assert torch.allclose(all_of_it[:, :3], own, rtol=1e-6, atol=1e-6) and all_of_it.shape[1] == 9
        assert torch.equal(all_of_it.argmax(1), own.argmax(1))
        assert all_of_it[:, 3:].unique().numel() == 1 and (all_of_it[:, 3:] < own.amax(1, keepdim=True)).all()
    with pytest.raises(BadData, match="padding only adds"):
        ready.padded(student, 2, pictures)


def test_every_class_count_has_its_table_with_figures_bounds_and_mious(quick):
    names = ["conventional: onnxruntime f32, torch", "openvino f32, graph", "onnxruntime int8, native"]
    assert [result["classes"] for result in quick["results"]] == [4, 5] and quick["size"] == [64, 64] and quick["threads"] == 1
    for result in quick["results"]:
        assert set(result["racers"]) == set(names) and f"3 classes padded to {result['classes']}" in quick["printed"]
        plain = result["racers"][names[0]]
        assert plain["gain"] == [1.0, 1.0, 1.0] and plain["agreement"] == 1.0
        for name, v in result["racers"].items():
            median, low, high = v["median_ms"]
            assert 0 < low <= median <= high and len(v["ms"]) == 2 and v["exact"] == ("f32" in name)
            assert v["gain"][0] == pytest.approx(np.median([plain["ms"][r][0] / v["ms"][r][0] for r in range(2)]), rel=1e-6)
            assert f"{name:36}" in quick["printed"] and f"{median:.2f} [{low:.2f}, {high:.2f}]" in quick["printed"]
        assert result["racers"][names[1]]["agreement"] >= end_to_end.LEAST_AGREEMENT and plain["miou"] == plain["miou_conventional"]
    one, other = (result["racers"][names[0]]["miou"] for result in quick["results"])
    assert one == other > 0, "more padding changed mIoU"
    assert "AMD" in quick["printed"] or quick["machine"]["cpu"] in quick["printed"]
    for word in (
        "torch 2",
        "onnxruntime 1",
        "uint8 1 x 64 x 64 x 3",
        "1 threads",
        "2 pictures of test",
        "best of float32: openvino f32, graph",
    ):
        assert word in quick["printed"], word


def test_a_rewrite_that_changes_classes_ends_the_command_without_a_figure(monkeypatch, capsys):
    rewritten = Tiny.folded

    def wrong(self, module):
        double = rewritten(self, module)
        double.mean += 60
        return double

    monkeypatch.setattr(Tiny, "folded", wrong)
    assert end_to_end.main([*QUICK, "openvino f32, graph", "--classes", "4"]) == 1
    told = capsys.readouterr()
    assert "no speed is told" in told.err and "99.99% of pixels: openvino f32, graph on" in told.err
    assert "times faster" not in told.out and "best of" not in told.out


def test_bounds_are_the_order_statistics_that_hold_the_median():
    assert end_to_end.rank(15) == (4, pytest.approx(0.96484375))  # 1 - 2 (1 + 15 + 105 + 455) / 2^15
    assert end_to_end.rank(2) == (1, 0.5) and end_to_end.rank(6)[0] == 1 and end_to_end.rank(9)[0] == 2
    assert end_to_end.bounded([float(v) for v in range(15, 0, -1)]) == (8.0, 4.0, 12.0)


def test_reduced_precision_that_loses_more_than_asked_is_not_the_best():
    def racer(gain, miou, exact):
        return {"gain": (gain, gain, gain), "miou": miou, "miou_conventional": 50.0, "exact": exact}

    found = {racers.CONVENTIONAL.name: racer(1.0, 50.0, True), "a": racer(3.0, 50.0, True), "b": racer(9.0, 49.6, False)}
    assert end_to_end.verdicts({"classes": 19, "racers": found}) == [
        "  best of float32: a, 3.00 times (2.2 asked at 512 x 512)",
        "  best of reduced precision within 0.3 mIoU: none",
    ]
    found["c"] = racer(6.0, 49.75, False)
    found["broken"] = {"agreement": 0.53, "miou": 49.9, "miou_conventional": 50.0, "exact": False}  # was never timed
    assert end_to_end.verdicts({"classes": 19, "racers": found})[1].endswith("mIoU: c, 6.00 times (5.0 asked at 512 x 512)")


def test_what_is_broken_has_a_row_without_a_speed():
    plain = {"median_ms": (5.0, 4.0, 6.0), "gain": (1.0, 1.0, 1.0), "mean_cpu_ms": 9.0, "agreement": 1.0, "exact": True}
    broken = {"agreement": 0.53, "miou": 4.0, "miou_conventional": 16.5, "exact": False}
    lines = end_to_end.table({"network": "n", "classes": 19, "border": 0.1, "racers": {racers.CONVENTIONAL.name: plain, "int8": broken}})
    assert "5.00 [4.00, 6.00]" in lines[3] and "100.0000%" in lines[3]
    assert "broken: no speed is told" in lines[4] and "53.0000%" in lines[4] and lines[4].endswith("4.00  -12.50")
    assert len(lines[3]) + 16 == len(lines[4]), "columns do not line up"


def test_borders_are_pixels_beside_another_class():
    maps = np.zeros((1, 4, 4), np.uint8)
    maps[0, :, 2:] = 1
    assert end_to_end.borders(maps) == 4 / 16
