"""What validate writes down equals what an independent count finds, for every kind of model, on the same images."""

import json

import numpy as np
import pytest
from onnx import TensorProto
from onnx import helper as onnx_helper
from PIL import Image

from pipeline.artifact import Artifact
from pipeline.errors import BadData, Stopped
from stages.measure.fingerprint import Fingerprint
from stages.measure.predict import open_session, weight_bytes
from stages.samples import open_samples
from stages.validate import Validate, chosen, said
from tests.stages import small_hops, small_line


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    folder = tmp_path_factory.mktemp("line")
    dataset = small_line.data(folder, val=5)
    student, teacher = small_line.checkpoint(folder, dataset), small_line.checkpoint(folder, dataset, "teacher", seed=1)
    onnx = small_line.exported(folder, dataset, student)
    engine = small_line.engine(folder, onnx, kind="onnxruntime", threads=1)
    inputs = {"data": dataset, "reference": student, "candidates": [teacher, onnx, engine], "latency_of": [engine]}
    settings = {"pictures": 4, "latency": {"runs": 4, "warmup_ms": 0, "threads": 1}}
    measured = small_line.made(stage(**settings), "measured", inputs, folder)
    return inputs, measured


def stage(**settings):
    names = {"data": "data", "reference": "student", "candidates": ["teacher", "onnx", "engine"], "latency_of": ["engine"]}
    return Validate.model_validate({"kind": "validate"} | names | settings)


def by_hand(prediction, label, classes):
    table = np.zeros((classes, 3), int)
    for c in range(classes):
        valid = label != 255
        table[c] = [
            ((prediction == c) & (label == c) & valid).sum(),
            ((prediction == c) & (label != c) & valid).sum(),
            ((prediction != c) & (label == c) & valid).sum(),
        ]
    return table


def test_counts_miou_and_agreement_equal_an_independent_count(line):
    inputs, measured = line
    found = measured.json("measurement.json")
    samples = open_samples(inputs["data"], "val")
    reference = [open_session(inputs["reference"])(samples[i][0][None])[0] for i in range(5)]
    for artifact in (inputs["reference"], *inputs["candidates"]):
        session, entry = open_session(artifact), found["models"][artifact.name]
        maps = [session(samples[i][0][None])[0] for i in range(5)]
        tables = np.stack([by_hand(maps[i], samples[i][1], len(samples.classes)) for i in range(5)])
        kept = np.load(measured.file(f"counts_{artifact.name}.npy"))
        assert kept.dtype == np.int64 and (kept == tables).all()
        union = tables.sum(0).sum(1)
        iou = [100 * t / u if u else None for t, u in zip(tables.sum(0)[:, 0], union, strict=True)]
        assert entry["iou"] == [pytest.approx(v) if v is not None else None for v in iou]
        assert entry["miou"] == pytest.approx(np.mean([v for v in iou if v is not None]))
        assert entry["agreement"] == pytest.approx(np.mean([(m == r).mean() for m, r in zip(maps, reference, strict=True)]))
        assert entry["artifact"] == artifact.kind and entry["ran"] == session.ran
        assert entry["parameters"] == found["models"]["student"]["parameters"] > 1000
    assert found["models"]["student"]["agreement"] == 1 and found["models"]["teacher"]["agreement"] < 0.9
    assert found["models"]["engine"]["agreement"] >= 0.9999


def test_pixels_that_differ_are_counted_per_image_and_split_where_the_reference_was_sure(line):
    import torch
    import torch.nn.functional as F

    inputs, measured = line
    found, samples = measured.json("measurement.json"), open_samples(inputs["data"], "val")
    assert found["mismatch"] == {"clear": 0.1, "why": None}
    reference, candidate = open_session(inputs["reference"]), open_session(inputs["candidates"][0])
    kept = np.load(measured.file("mismatch_teacher.npy"))
    for i in range(5):
        image, label = samples[i][0][None], samples[i][1]
        maps, logits = reference.with_logits(image)
        assert (maps == reference(image)).all()
        best = torch.topk(F.interpolate(logits, label.shape, mode="bilinear", align_corners=False)[0].softmax(0), 2, dim=0).values
        odds = (best[0] / best[1]).numpy()
        differs = (maps[0] != candidate(image)[0]) & (label != 255)
        assert kept[i].tolist() == [(label != 255).sum(), differs.sum(), (differs & (odds > np.exp(0.1))).sum()]
    pixels, differ, clear = kept.sum(axis=0)
    assert 0 < clear < differ and found["models"]["teacher"]["mismatch"] == pytest.approx(100 * differ / pixels)
    assert found["models"]["teacher"]["clear_mismatch"] == pytest.approx(100 * clear / pixels)
    assert found["models"]["student"]["mismatch"] == found["models"]["engine"]["clear_mismatch"] == 0


def test_a_split_without_any_label_is_refused_for_nothing_could_be_lost_on_it(line, tmp_path):
    from stages.measure.accuracy import accuracy
    from stages.measure.waterfall import models

    class Unlabelled:
        def __init__(self, samples):
            self.samples, self.classes = samples, samples.classes

        def __len__(self):
            return 1

        def __getitem__(self, i):
            image, label = self.samples[i]
            return image, np.full_like(label, 255)

    inputs, _ = line
    with pytest.raises(BadData, match="no pixel of this split is labelled"):
        job = small_line.Job(tmp_path)
        accuracy(models(inputs["reference"], [], {}), "student", Unlabelled(open_samples(inputs["data"], "val")), job)


@pytest.mark.parametrize("logits", [True, False])
def test_a_reference_that_gives_no_logits_leaves_the_split_unmeasured_and_says_what_to_do(line, tmp_path, logits):
    inputs, measured = line
    onnx = inputs["candidates"][1]
    if logits:
        shape = onnx_helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", len(onnx.facts["classes"]), "h", "w"])
        onnx = small_hops.edited(onnx, tmp_path / "onnx", "model.onnx", lambda proto: proto.graph.output.append(shape))
    given = {"data": inputs["data"], "reference": onnx, "candidates": inputs["candidates"][:1], "latency_of": []}
    one = small_line.made(stage(reference="onnx", candidates=["teacher"], latency_of=[], pictures=0), "measured", given, tmp_path)
    found, teacher = one.json("measurement.json"), measured.json("measurement.json")["models"]["teacher"]
    model = found["models"]["teacher"]
    assert model["mismatch"] == pytest.approx(teacher["mismatch"], abs=0.01)
    if logits:
        assert model["clear_mismatch"] == pytest.approx(teacher["clear_mismatch"], abs=0.02) and found["mismatch"]["clear"] == 0.1
    else:
        assert model["clear_mismatch"] is found["mismatch"]["clear"] is None and np.load(one.file("mismatch_teacher.npy")).shape == (5, 2)
        assert found["mismatch"]["why"] == (
            "onnx gives no logits: take the checkpoint as reference, or an ONNX file exported with logits: true"
        )


def test_the_pass_that_counts_feeds_the_fingerprint_and_keeps_the_names(line, monkeypatch, tmp_path):
    inputs, measured = line
    samples, print_ = open_samples(inputs["data"], "val"), Fingerprint(inputs["data"].facts["classes"])
    for i in range(5):
        print_.add(*samples[i])
    assert measured.json("measurement.json")["fingerprint"] == print_.told()
    assert measured.json("names.json") == [samples.name(i) for i in range(5)]
    read = []
    decoded = type(samples).__getitem__
    monkeypatch.setattr(type(samples), "__getitem__", lambda self, i: read.append(i) or decoded(self, i))
    given = inputs | {"candidates": inputs["candidates"][:1], "latency_of": []}
    small_line.made(stage(candidates=["teacher"], latency_of=[], pictures=0), "m", given, tmp_path)
    assert read == [*range(5), *range(5)]  # once for every model, and never again


def test_the_measurement_holds_what_its_readers_look_for(line):
    inputs, measured = line
    found = measured.json("measurement.json")
    assert (found["split"], found["images"], found["reference"]) == ("val", 5, "student")
    assert list(found["models"]) == ["student", "teacher", "onnx", "engine"]
    assert [model["role"] for model in found["models"].values()] == ["reference", "candidate", "candidate", "candidate"]
    assert found["classes"] == inputs["data"].facts["classes"] and found["machine"]["cores"] >= 1
    sizes = {"student": "weights.safetensors", "onnx": "model.onnx", "engine": "engine.onnx"}
    for artifact in (inputs["reference"], *inputs["candidates"][1:]):
        assert found["models"][artifact.name]["size_mb"] == artifact.file(sizes[artifact.name]).stat().st_size / 1e6
    latency = found["models"]["engine"]["latency"]
    assert latency["threads"] == 1 and len(latency["samples_image_ms"]) == len(latency["samples_engine_ms"]) == 4
    assert 0 < latency["engine_ms"]["p50"] <= latency["engine_ms"]["p90"] <= latency["engine_ms"]["p99"]
    assert found["models"]["onnx"]["latency"] is None
    conditions = found["conditions"]
    assert conditions["valid"] is (conditions["reasons"] == []) is measured.facts["times_valid"] and conditions["order"] == ["engine"] * 4
    assert len(latency["samples_image_cpu_ms"]) == 4 and found["models"]["engine"]["runtime"] == "onnxruntime on CPUExecutionProvider"
    assert measured.facts["boundary_f"]["teacher"] == pytest.approx(found["models"]["teacher"]["boundary_f"], abs=1e-3)
    assert measured.facts["miou"]["engine"] == pytest.approx(found["models"]["engine"]["miou"], abs=1e-3)


def test_an_engine_is_as_large_as_what_runs_it(tmp_path):
    for name, size in {
        "engine.plan": 700,
        "engine.tail.onnx": 20,
        "engine.json": 3,
        "engine.timing": 5000,
        "engine.layers.json": 900,
    }.items():
        (tmp_path / name).write_bytes(bytes(size))
    assert weight_bytes(Artifact("engine", "Engine", "x", tmp_path, {})) == 720


def test_pictures_show_colours_and_hold_class_numbers(line):
    inputs, measured = line
    found, samples = measured.json("measurement.json"), open_samples(inputs["data"], "val")
    assert len(found["pictures"]) == 4 and len({p["index"] for p in found["pictures"]}) == 4
    for k, picture in enumerate(found["pictures"]):
        image, label = samples[picture["index"]]
        assert picture["name"] == samples.name(picture["index"])
        assert (np.asarray(Image.open(measured.file(f"image_{k}.png"))) == image).all()
        kept = Image.open(measured.file(f"label_{k}.png"))
        assert kept.mode == "P" and (np.asarray(kept) == label).all()
        colours = np.array([*samples.colours, *[[0, 0, 0]] * (256 - len(samples.colours))], np.uint8)
        assert (np.asarray(kept.convert("RGB")) == colours[label]).all()
        for artifact in (inputs["reference"], *inputs["candidates"]):
            expected = open_session(artifact)(image[None])[0]
            assert (np.asarray(Image.open(measured.file(f"map_{artifact.name}_{k}.png"))) == expected).all()


def test_half_of_the_pictures_are_spread_evenly_and_half_are_where_models_differ_most():
    equal = np.array([[100 - i % 7, 100] for i in range(100)])
    found = chosen(equal, 6)
    assert found[:3] == [16, 50, 83] and found[3:] == [6, 13, 20]
    assert sorted(chosen(equal[:3], 6)) == [0, 1, 2] and chosen(equal, 0) == [] and len(chosen(equal[:1], 5)) == 1
    assert chosen(equal, 1) == [50]


def test_models_of_other_classes_or_sizes_are_not_compared(line, tmp_path):
    inputs, _ = line
    engine = inputs["candidates"][2]
    other = small_line.Artifact("engine", "Engine", "x", engine.folder, engine.facts | {"size": [32, 32]})
    with pytest.raises(BadData, match="export again"):
        small_line.made(stage(), "measured", inputs | {"candidates": [other]}, tmp_path / "a")
    other = small_line.Artifact("engine", "Engine", "x", engine.folder, engine.facts | {"classes": engine.facts["classes"][::-1]})
    with pytest.raises(BadData, match="different classes"):
        small_line.made(stage(), "measured", inputs | {"candidates": [other]}, tmp_path / "b")


def test_an_unknown_split_is_named_and_a_stop_is_heard(line, tmp_path):
    inputs, _ = line
    with pytest.raises(BadData, match="train, val"):
        small_line.made(stage(split="exam"), "measured", inputs, tmp_path / "a")
    job = small_line.Job(tmp_path / "b")
    job.stop = 15
    with pytest.raises(Stopped) as caught:
        stage().run(inputs, job)
    assert caught.value.code == 143


def test_one_model_alone_is_measured_without_candidates_or_time(line, tmp_path):
    inputs, measured = line
    alone = small_line.made(stage(candidates=[], latency_of=[]), "m", inputs | {"candidates": [], "latency_of": []}, tmp_path)
    found = alone.json("measurement.json")
    assert list(found["models"]) == ["student"] and found["models"]["student"]["latency"] is found["conditions"] is None
    assert found["models"]["student"]["miou"] == measured.json("measurement.json")["models"]["student"]["miou"]
    assert len(found["pictures"]) == 5 and alone.file("map_student_4.png").is_file()


def test_names_that_are_not_measured_or_are_twice_are_problems():
    assert stage().problems({}) == []
    found = stage(candidates=["onnx", "onnx", "student"], latency_of=["onnx", "engine", "onnx"]).problems({})
    assert [path for path, _ in found] == [("candidates", 1), ("candidates", 2), ("latency_of", 1), ("latency_of", 2)]


def test_the_machine_is_part_of_the_key_only_when_time_is_measured():
    assert stage(latency_of=[]).environment() == {}
    assert {"cpu", "cores", "gpu", "runtimes"} == stage().environment().keys()


def test_a_rehearsal_measures_little():
    brief = stage().rehearsed()
    assert (brief.latency.runs, brief.latency.warmup_ms, brief.pictures) == (3, 0, 2)
    assert json.loads(brief.model_dump_json())["candidates"] == ["teacher", "onnx", "engine"]


def test_what_is_said_at_once_and_what_a_rehearsal_leaves_out():
    busy = {"valid": False, "reasons": ["it was busy"]}
    models = {"student": {"miou": 40.0}, "int8": {"miou": 39.0, "kept": {"kept": False, "why": "not kept, it is no faster"}}}
    found = {"models": models, "waterfall": {"hops": [{}], "text": "onnx loses"}, "conditions": busy}
    assert said(found, rehearsing=False) == [
        "mIoU student 40.00, int8 39.00",
        "onnx loses",
        "int8: INT8 not kept, it is no faster",
        "times are inconclusive: it was busy. If that leaves a gate undecided, the next run measures again",
    ]
    assert said(found, rehearsing=True) == ["mIoU student 40.00, int8 39.00"]
