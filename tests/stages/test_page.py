import base64
import io
import json
import math
import random
import re
from html.parser import HTMLParser

import pytest
from PIL import Image, ImageDraw

from pipeline.artifact import Artifact
from stages.page import charts, graph, render, words
from stages.page.markup import el, json_block

CLASSES = ["sky", "building", "road", "sidewalk", "tree", "pole", "car", "pedestrian"]
COLOURS = [[70, 130, 180], [70, 70, 70], [128, 64, 128], [244, 35, 232], [107, 142, 35], [220, 190, 40], [0, 0, 142], [220, 20, 60]]
SIZE = (128, 256)  # height, width
MODELS = {  # stage: (points below the perfect map, parameters, MB, p50 ms or None)
    "teacher": (20.0, 2_431_112, 9.78, 38.2),
    "baseline": (31.5, 152_456, 0.66, None),
    "student": (28.6, 152_456, 0.66, None),
    "onnx": (28.6, 152_456, 0.64, 6.43),
    "engine": (28.9, 152_456, 0.41, 4.12),
}


def fake_run(folder, classes=CLASSES, colours=COLOURS, pictures=2, size=SIZE, run=None):
    """A finished run of the quickstart's shape with small drawn pictures: (run, artifacts)."""
    story = fake_story(len(classes)) | (run or {})
    artifacts = {s["name"]: fake_artifact(folder / s["name"], s, classes, colours, pictures, size) for s in story["stages"]}
    return story, artifacts


def fake_story(classes):
    inputs = {
        "data": ("data", {}),
        "teacher": ("train", {"data": ["data"]}),
        "baseline": ("train", {"data": ["data"]}),
        "student": ("distill", {"data": ["data"], "teacher": ["teacher"]}),
        "onnx": ("export", {"data": ["data"], "checkpoint": ["student"]}),
        "engine": ("optimize", {"onnx": ["onnx"]}),
        "measured": (
            "validate",
            {"data": ["data"], "reference": ["student"], "candidates": ["teacher", "baseline", "onnx", "engine"], "latency_of": ["engine"]},
        ),
        "gate": ("gate", {"measured": ["measured"]}),
        "bundle": ("bundle", {"data": ["data"], "onnx": ["onnx"], "engine": ["engine"], "measured": ["measured"], "verdict": ["gate"]}),
    }
    seconds = [9.1, 88.4, 41.2, 63.9, 4.4, 1.2, 20.5, 0.1, 0.6]
    stages = [
        {"name": n, "kind": k, "id": f"{i:02x}" * 32, "kept": i < 2, "seconds": seconds[i], "state": "done", "inputs": taken}
        for i, (n, (k, taken)) in enumerate(inputs.items())
    ]
    big, small = {"kind": "tiny", "size": "large"}, {"kind": "tiny", "size": "small"}
    models = {"teacher": big, "baseline": small, "student": small}
    resolved = {s["name"]: {"kind": s["kind"]} | ({"model": models[s["name"]]} if s["name"] in models else {}) for s in stages}
    return {
        "run": "quickstart-3",
        "recipe": "quickstart",
        "profile": None,
        "rehearsal": False,
        "started": "2026-07-01T09:30:00Z",
        "seconds": 229.4,
        "exit": 0,
        "resolved": {"name": "quickstart", "stages": resolved},
        "stages": stages,
        "machine": {"cpu": "Xeon", "cores": 2, "gpus": [], "instructions": ["avx2", "avx512f"], "memory_gb": 8.2},
        "versions": {"stillhouse": "0.1.0", "torch": "2.13.0", "openvino": "2026.1"},
    }


def fake_artifact(folder, stage, classes, colours, pictures, size):
    folder.mkdir(parents=True)
    about = {"classes": classes, "colours": colours, "size": list(size)}
    kind, name = stage["kind"], stage["name"]
    facts = {}
    if kind == "data":
        pixels = [1000 * (i % 5 + 1) for i in range(len(classes))]
        facts = about | {"splits": {"train": 400, "val": 60}, "source": "streets", "label_pixels": {"train": pixels, "val": pixels}}
    elif kind in ("train", "distill"):
        facts = about | {
            "model": {"kind": "tiny", "size": "large" if name == "teacher" else "small", "align_corners": False},
            "steps": 1000,
        }
        facts["val"] = fake_accuracy(name, len(classes))
        (folder / "curves.json").write_text(json.dumps(fake_curves(name)))
    elif kind == "export":
        facts = about | {"opset": 20, "source": {"model": {"kind": "tiny", "size": "small"}}}
    elif kind == "optimize":
        facts = about | {"engine": {"kind": "openvino", "precision": "bf16", "threads": 2}}
    elif kind == "validate":
        (folder / "measurement.json").write_text(json.dumps(fake_measurement(classes, colours, pictures)))
        draw_pictures(folder, len(classes), colours, pictures, size)
    elif kind == "gate":
        facts = {"passed": True}
        (folder / "verdict.json").write_text(json.dumps(fake_verdict()))
    makes = {"data": "Dataset", "train": "Checkpoint", "distill": "Checkpoint", "export": "OnnxModel", "optimize": "Engine"}
    makes |= {"validate": "Measurement", "gate": "Verdict", "bundle": "Bundle"}
    return Artifact(name, makes[kind], stage["id"], folder, facts, {})


def fake_accuracy(name, classes):
    iou = [round(100 - MODELS[name][0] * (0.2 + 1.6 * i / (classes - 1 or 1)), 3) for i in range(classes)]
    return {"miou": round(sum(iou) / classes, 4), "iou": iou}


def fake_curves(name):
    end = MODELS[name][0]
    steps = range(10, 1001, 10)
    noise = random.Random(name)
    train = []
    for s in steps:
        task = 0.2 + 1.9 * math.exp(-s / 150) + noise.random() * 0.08
        terms = {"ce": task} | ({"pixel": 0.5 * task, "cwd": 0.2 * task} if name == "student" else {})
        ratios = {k: v / task for k, v in terms.items() if k != "ce"}
        train.append({"step": s, "loss": sum(terms.values()), "terms": terms, "ratios": ratios, "lr": 1e-3 * (1 - s / 1000)})
    val = [{"step": s, "miou": (100 - end) * (1 - 0.7 * math.exp(-s / 250))} for s in range(100, 1001, 100)]
    return {"train": train, "val": val}


def fake_measurement(classes, colours, pictures):
    models = {}
    for name, (_, parameters, megabytes, p50) in MODELS.items():
        image = None if p50 is None else {"p50": p50, "p90": p50 * 1.11, "p99": p50 * 1.46, "mean": p50 * 1.02, "n": 200}
        engine = None if p50 is None else {k: v if k == "n" else v * 0.8 for k, v in image.items()}
        latency = None if p50 is None else {"image_ms": image, "engine_ms": engine, "threads": 2, "samples_image_ms": [p50] * 200}
        kind = {"onnx": "OnnxModel", "engine": "Engine"}.get(name, "Checkpoint")
        models[name] = {
            "artifact": kind,
            "role": "reference" if name == "student" else "candidate",
            "ran": {"provider": "CPU", "precision": "bf16", "argmax": "graph"} if name == "engine" else {},
            "agreement": {"student": 1.0, "onnx": 0.999999, "engine": 0.9972}.get(name, 0.91),
            "size_mb": megabytes,
            "parameters": parameters,
            "latency": latency,
        } | fake_accuracy(name, len(classes))
    shots = [{"name": f"val/street_{k:04}", "index": k, "agreement": 0.997} for k in range(pictures)]
    return {
        "split": "val",
        "images": 60,
        "classes": classes,
        "colours": colours,
        "reference": "student",
        "models": models,
        "pictures": shots,
        "machine": {"cpu": "Xeon", "cores": 2},
        "waterfall": fake_waterfall(classes),
        "conditions": {"valid": True, "reasons": []},
    }


def fake_waterfall(classes):
    """The ONNX file loses 12 points; what was made from it loses nothing more."""
    first = {"name": "student", "from": None, "first": None, "precision": "f32", "miou": 71.4, "boundary_f": 55.0}
    hop = {"first": "student", "precision": "f32", "standard_error": 0.4, "agreement_first": 0.8, "boundary_change": 0.0, "state": "keeps"}
    hop |= {"change": 0.0, "agreement": 1.0, "classes": [0.0] * len(classes), "worst": {"change": 0.0, "class": classes[0]}}
    text = "onnx loses 12.3 points of mIoU (asked at most 0.05) against student rewritten: that is where to look"
    broken = {"state": "loses", "change": -12.34, "agreement": 0.8, "boundary_f": 41.0, "boundary_change": -14.0, "text": text}
    return {
        "hops": [
            first,
            first | hop | {"name": "student rewritten", "from": "student", "agreement_first": 1.0},
            first
            | hop
            | broken
            | {"name": "onnx", "from": "student rewritten", "miou": 59.1, "worst": {"change": -31.0, "class": classes[-1]}},
            first | hop | {"name": "engine", "from": "onnx", "precision": "bf16", "miou": 59.1, "boundary_f": 41.0, "state": "unclear"},
        ],
        "loses": ["onnx"],
        "text": text,
    }


def fake_verdict():
    rule = {
        "metric": "miou",
        "of": "engine",
        "against": "student",
        "limit": "at_least -0.5",
        "value": -0.3,
        "value_of": 71.1,
        "value_against": 71.4,
    }
    rules = [
        rule | {"passed": True, "text": "miou of engine is 71.1, 0.3 below student's 71.4; at most 0.5 below was asked"},
        {"metric": "p50_ms", "of": "engine", "against": "onnx", "limit": "at_most_ratio 1.05", "value": 0.641, "value_of": 4.12}
        | {"value_against": 6.43, "passed": True, "text": "p50_ms of engine is 4.12, 0.64 of onnx's 6.43; at most 1.05 was asked"},
    ]
    return {"passed": True, "rules": rules}


def draw_pictures(folder, classes, colours, pictures, size):
    """A street per picture; each network has blobs of its own wrong, the engine those of the student and one more."""
    height, width = size
    for k in range(pictures):
        label = draw_street(k, classes, height, width)
        photo = paint(label, colours).convert("RGB")
        noise = Image.effect_noise((width, height), 60)
        Image.blend(photo, Image.merge("RGB", [noise] * 3), 0.25).save(folder / f"image_{k}.png")
        paint(label, colours).save(folder / f"label_{k}.png")
        student = label.copy()
        blobs(student, 9, classes, f"student{k}")
        engine = student.copy()
        blobs(engine, 1, classes, f"engine{k}")
        teacher, baseline = label.copy(), label.copy()
        blobs(teacher, 4, classes, f"teacher{k}")
        blobs(baseline, 14, classes, f"baseline{k}")
        for name, drawn in {"teacher": teacher, "baseline": baseline, "student": student, "onnx": student, "engine": engine}.items():
            paint(drawn, colours).save(folder / f"map_{name}_{k}.png")


def draw_street(k, classes, height, width):
    chance = random.Random(k)
    image = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(image)
    top = height * 0.45
    x = 0
    while x < width:
        wide = chance.randint(width // 12, width // 5)
        draw.rectangle((x, top - chance.randint(height // 8, height // 3), x + wide, height * 0.6), fill=1 % classes)
        x += wide + chance.randint(0, width // 20)
    draw.polygon(
        [(width * 0.4, height * 0.55), (width * 0.6, height * 0.55), (width * 1.1, height), (-width * 0.1, height)], fill=2 % classes
    )
    draw.polygon([(0, height * 0.6), (width * 0.4, height * 0.55), (-width * 0.1, height)], fill=3 % classes)
    for i in range(4, classes):
        x, y = chance.randint(0, width), chance.randint(int(height * 0.4), int(height * 0.8))
        draw.rectangle((x, y, x + width // (20 if i % 2 else 9), y + height // 6), fill=i)
    draw.rectangle((0, height - height // 20, width, height), fill=255)
    return image


def blobs(image, many, classes, seed):
    chance = random.Random(seed)
    for _ in range(many):
        x, y, r = chance.randrange(image.width), chance.randrange(image.height), chance.randint(image.height // 40, image.height // 12)
        ImageDraw.Draw(image).ellipse((x - r, y - r, x + r, y + r), fill=chance.randrange(classes))


def paint(ids, colours):
    image = Image.frombytes("P", ids.size, ids.tobytes())
    flat = [v for c in colours for v in c]
    image.putpalette(flat + [0] * (768 - len(flat)))
    return image


class Seen(HTMLParser):
    """What a browser would make of a page: its elements, its text, the text of every table."""

    VOID = {"meta", "img", "br"}

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.texts, self.tables, self.data = [], [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.data.append(data)
        elif self.open[-1:] != ["style"]:
            self.texts.append(data)
            if {"td", "th"} & set(self.open):
                self.tables[-1][-1][-1] += data + "|"

    def handle_comment(self, data):
        raise AssertionError("no comment was written")

    def text(self):
        return " ".join(self.texts)

    def all(self, tag):
        return [attributes for t, attributes in self.tags if t == tag]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run, artifacts = fake_run(tmp_path_factory.mktemp("run"))
    html, facts = render(run, artifacts)
    return html, facts, Seen(html)


def test_the_first_line_says_what_came_of_it(finished):
    _, facts, seen = finished
    sentence = "Passed: the engine keeps 71.1 of the student's 71.4 mIoU and answers in 4.1 ms."
    assert facts["verdict"] == {"state": "passed", "sentence": sentence} and sentence in seen.texts
    assert [(h["value"], h["unit"]) for h in facts["headline"]] == [("−8.9", "mIoU"), ("+2.9", "mIoU"), ("16×", "smaller"), ("4.1", "ms")]


def test_roles_are_found_from_the_recipe(finished):
    _, facts, _ = finished
    assert [(row["stage"], row["role"]) for row in facts["table"]] == [(n, n) for n in ("teacher", "baseline", "student", "onnx", "engine")]
    assert facts["table"][0]["what"] == "tiny large" and facts["table"][4]["what"] == "openvino bf16"


def test_a_network_of_another_architecture_is_no_baseline(tmp_path):
    run, artifacts = fake_run(tmp_path)
    run["resolved"]["stages"]["baseline"]["model"] = {"kind": "tiny", "size": "large"}
    _, facts = render(run, artifacts)
    assert {row["stage"]: row["role"] for row in facts["table"]}["baseline"] == "model"
    assert all("without a teacher" not in h["says"] for h in facts["headline"])


def test_the_table_shows_the_measurement(finished):
    _, _, seen = finished
    measured = fake_measurement(CLASSES, COLOURS, 2)["models"]
    rows = {line[0].split("|")[0]: [cell.strip("|") for cell in line[1:]] for line in seen.tables[0][2:]}
    titles = {"Teacher": "teacher", "No-KD baseline": "baseline", "Student": "student", "ONNX": "onnx", "Engine": "engine"}
    assert list(rows) == list(titles)
    assert "openvino bf16|ran: CPU, bf16, argmax: graph" in next(line[0] for line in seen.tables[0][2:] if line[0].startswith("Engine"))
    for title, name in titles.items():
        model = measured[name]
        miou, to_teacher, to_student, agreement, parameters, megabytes, *latency = rows[title]
        assert miou == f"{model['miou']:.1f}"
        for other, cell in (("teacher", to_teacher), ("student", to_student)):
            if other != name:
                assert float(cell.translate({0x2212: "-", 0xB1: None})) == pytest.approx(model["miou"] - measured[other]["miou"], abs=0.051)
        if name == "student":
            assert agreement == "reference"
        else:
            assert float(agreement.rstrip(" %")) == pytest.approx(100 * model["agreement"], abs=0.01)
        assert parameters == (f"{model['parameters'] / 1e6:.1f} M" if name == "teacher" else f"{model['parameters'] / 1e3:.1f} k")
        assert megabytes == f"{model['size_mb']:.2f} MB"
        wanted = [model["latency"][b][p] if model["latency"] else None for b in ("image_ms", "engine_ms") for p in ("p50", "p90", "p99")]
        assert latency == ["–" if v is None else f"{v:.1f}" for v in wanted]


def test_the_hop_that_loses_is_marked(finished):
    _, facts, seen = finished
    assert facts["waterfall"]["loses"] == ["onnx"] and facts["waterfall"]["text"] + "." in seen.texts
    rows = [[cell.strip("|") for cell in row] for row in seen.tables[1]]
    assert rows[1] == ["student |as trained", "71.4", "", "–", "–", "–", "55.0", "–", "–"]
    assert rows[3][0] == "onnx |✗ loses|from student rewritten, f32"
    assert rows[3][1:] == ["59.1", "", "−12.3 ± 0.7", "80.00 %", "80.00 %", "41.0", "−14.0", "pedestrian −31.0"]
    assert rows[4][0] == "engine |? unclear|from onnx, bf16" and [row[0].count("loses") for row in rows[1:]] == [0, 0, 1, 0]


def test_every_iou_is_on_the_page_as_a_figure_and_as_a_bar(finished):
    _, _, seen = finished
    per_class = seen.tables[2]
    assert [line[0].strip("|") for line in per_class[1:]] == CLASSES
    models = fake_measurement(CLASSES, COLOURS, 2)["models"]
    for i, line in enumerate(per_class[1:]):
        assert [c.strip("|") for c in line[1:5]] == [f"{models[m]['iou'][i]:.1f}" for m in ("teacher", "baseline", "student", "engine")]
    widths = [float(a["width"]) for a in seen.all("rect") if a.get("class") == "s-engine"]
    assert widths == pytest.approx(models["engine"]["iou"], abs=0.01)


def test_a_class_without_pixels_has_no_figure(tmp_path):
    run, artifacts = fake_run(tmp_path, pictures=1)
    measurement = artifacts["measured"].json("measurement.json")
    for model in measurement["models"].values():
        model["iou"][3] = None
    artifacts["measured"].file("measurement.json").write_text(json.dumps(measurement))
    html, facts = render(run, artifacts)
    assert [c.strip("|") for c in Seen(html).tables[2][4][:5]] == ["sidewalk", "–", "–", "–", "–"]
    assert facts["table"][0]["iou"][3] is None


def test_the_page_holds_its_own_facts_as_json(finished):
    _, facts, seen = finished
    assert json.loads("".join(seen.data)) == facts == json.loads(json.dumps(facts, allow_nan=False))
    assert seen.all("script") == [{"type": "application/json", "id": "facts"}]


def test_curves_are_those_of_the_checkpoints(finished):
    _, facts, seen = finished
    assert [c["stage"] for c in facts["curves"]] == ["teacher", "baseline", "student"]
    told = fake_curves("student")
    assert facts["curves"][2]["val"] == told["val"]
    assert [p["terms"] for p in facts["curves"][2]["train"]] == [p["terms"] for p in told["train"]]
    assert sum("curve t-" in a.get("class", "") and "d" in a for a in seen.all("path")) >= 3 + 3  # three totals, three terms of the student


def test_steps_that_were_skipped_and_going_back_are_told(tmp_path):
    run, artifacts = fake_run(tmp_path, pictures=0)
    skipped = [{"step": s, "event": "skipped", "samples": ["<b>"]} for s in (41, 42)]
    went = {"step": 42, "event": "went back", "to": 0, "lr_factor": 0.5}
    artifacts["teacher"].file("curves.json").write_text(json.dumps(fake_curves("teacher") | {"events": [*skipped, went, "no event", {}]}))
    html, facts = render(run, artifacts)[:2]
    assert facts["curves"][0]["setbacks"] == {"skipped": 2, "back": [{"step": 42, "to": 0, "lr_factor": 0.5}]}
    assert html.count("2 steps left the weights alone") == html.count("After step 42 training went back to step 0, with 0.5 of") == 1
    assert html.count("left the weights alone") == 1, "nothing is said where nothing happened"


def test_a_long_curve_becomes_means_of_buckets(tmp_path):
    run, artifacts = fake_run(tmp_path, pictures=0)
    train = [{"step": s, "loss": float(s), "terms": {"ce": 1.0}, "ratios": {}} for s in range(1, 16_001)]
    artifacts["teacher"].file("curves.json").write_text(json.dumps({"train": train, "val": []}))
    shown = render(run, artifacts)[1]["curves"][0]["train"]
    assert len(shown) == 200 and shown[-1]["step"] == 16_000
    assert shown[0] == {"step": 80, "loss": 40.5, "terms": {"ce": 1.0}, "ratios": {}}


def images_of(seen):
    """The pictures of a page, decoded as a browser would: [(alt, image)]."""
    found = []
    for a in seen.all("img"):
        head, data = a["src"].split(",", 1)
        assert head in ("data:image/png;base64", "data:image/jpeg;base64")
        image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        image.load()
        found.append((a["alt"], image))
    return found


def test_pictures_are_the_measured_ones(finished, tmp_path):
    _, facts, seen = finished
    assert [t["what"] for t in facts["pictures"][0]["tiles"]] == [
        *("image", "label", "teacher", "baseline", "student", "engine"),
        *("student-teacher", "engine-student"),
    ]
    shown = images_of(seen)
    assert len(shown) == 16
    draw_pictures(tmp_path, len(CLASSES), COLOURS, 1, SIZE)
    for place, name in ((1, "label_0"), (2, "map_teacher_0"), (5, "map_engine_0")):
        with Image.open(tmp_path / f"{name}.png") as drawn:
            assert shown[place][1].convert("RGB").tobytes() == drawn.convert("RGB").tobytes(), name


def test_the_map_of_differences_marks_exactly_the_pixels_that_differ(finished, tmp_path):
    _, facts, seen = finished
    draw_pictures(tmp_path, len(CLASSES), COLOURS, 2, SIZE)
    student, engine = (Image.open(tmp_path / f"map_{m}_1.png").tobytes() for m in ("student", "engine"))
    differ = [a != b for a, b in zip(student, engine, strict=True)]
    assert 0 < sum(differ) < len(differ) / 20
    assert facts["pictures"][1]["tiles"][7]["share"] == pytest.approx(sum(differ) / len(differ), abs=1e-6)
    drawn = images_of(seen)[15][1].convert("RGB").tobytes()
    red = [drawn[3 * i] - drawn[3 * i + 1] > 110 for i in range(len(differ))]
    assert sum(a != b for a, b in zip(red, differ, strict=True)) < 0.15 * sum(differ)  # the edge of a mark is soft in a JPEG


def test_shrinking_hides_no_differing_pixel():
    from stages.page.pictures import _uri

    mask = Image.new("L", (2048, 1024))
    mask.putpixel((777, 333), 255)
    uri = _uri({"mask": mask, "under": None}, 480)
    small = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    assert small.size == (480, 240)
    red, green, _ = small.getpixel((777 * 480 // 2048, 333 * 240 // 1024))
    assert red - green > 60


def test_six_large_pictures_stay_within_three_megabytes(tmp_path):
    many = 60
    colours = [[i * 37 % 256, i * 91 % 256, i * 53 % 256] for i in range(many)]
    run, artifacts = fake_run(tmp_path, [f"class {i}" for i in range(many)], colours, pictures=8, size=(512, 1024))
    for k in range(8):  # the worst case: maps that are noise
        for name in ("label", "map_teacher", "map_baseline", "map_student", "map_engine"):
            noise = Image.frombytes("L", (1024, 512), random.Random(k).randbytes(1024 * 512)).point([v % many for v in range(256)])
            paint(noise, colours).save(artifacts["measured"].file(f"{name}_{k}.png"), compress_level=1)
    html, facts = render(run, artifacts)
    assert len(facts["pictures"]) == 6 and len(html) < 3_000_000
    assert "2 of 8 pictures of measured are not shown here." in facts["notes"]


def test_without_a_gate_the_first_line_is_one_sentence(tmp_path):
    run, artifacts = fake_run(tmp_path, pictures=0)
    run["stages"] = [stage for stage in run["stages"] if stage["kind"] not in ("gate", "bundle")]
    del artifacts["gate"], artifacts["bundle"]
    sentence = render(run, artifacts)[1]["verdict"]["sentence"]
    assert sentence.startswith("Not judged: the recipe has no gate; the engine keeps ") and sentence.endswith(" ms.")


@pytest.mark.parametrize("profile, rehearsal", [("cpu", False), (None, True), ("fast", False), (None, False)])
def test_a_badge_says_when_figures_are_not_the_recipes(tmp_path, profile, rehearsal):
    html, _ = render(*fake_run(tmp_path, pictures=0, run={"profile": profile, "rehearsal": rehearsal}))
    badges = [t for t in Seen(html).texts if "profile" in t or "rehearsal" in t]
    assert ("cpu profile: proves that the line runs; its figures are not the recipe's" in badges) == (profile == "cpu")
    assert any(t.startswith("rehearsal") for t in badges) == rehearsal
    assert any(t.startswith("profile fast") for t in badges) == (profile == "fast")


def test_a_broken_rule_is_the_first_line(tmp_path):
    run, artifacts = fake_run(tmp_path, pictures=0, run={"exit": 3})
    verdict = fake_verdict()
    verdict["passed"] = verdict["rules"][1]["passed"] = False
    artifacts["gate"].file("verdict.json").write_text(json.dumps(verdict))
    html, facts = render(run, artifacts)
    assert facts["verdict"] == {"state": "failed", "sentence": f"Failed: {verdict['rules'][1]['text']}"}
    assert [c[0].strip("|") for c in Seen(html).tables[0][1:]] == ["✗ fail", "✓ pass"]


def test_a_rule_that_could_not_be_told_is_neither_passed_nor_failed(tmp_path):
    run, artifacts = fake_run(tmp_path, pictures=0, run={"exit": 4})
    verdict = fake_verdict()
    verdict["passed"] = verdict["rules"][1]["passed"] = None
    artifacts["gate"].file("verdict.json").write_text(json.dumps(verdict))
    html, facts = render(run, artifacts)
    assert facts["verdict"] == {"state": "undecided", "sentence": f"Undecided: {verdict['rules'][1]['text']}"}
    assert [c[0].strip("|") for c in Seen(html).tables[0][1:]] == ["? undecided", "✓ pass"]
    assert "1 of 2 rules hold" in Seen(html).text()


def test_the_state_of_the_machine_the_bounds_and_what_int8_brought_are_shown(tmp_path):
    run, artifacts = fake_run(tmp_path, pictures=0)
    measurement = artifacts["measured"].json("measurement.json")
    seen = {"waited": 0.56, "running": 3.2, "throttled": 0, "stolen": None, "mhz": [800.0, 3100.0]}
    measurement["conditions"] = {"valid": False, "reasons": ["somebody waited", "it was hot"]} | seen
    engine = measurement["models"]["engine"]
    engine["latency"]["image_ms"] |= {"p50_low": 4.0, "p50_high": 4.3, "p90_most": 5.5, "p99_most": None}
    engine["latency"]["image_cpu_ms"] = {"p50": 7.7}
    engine["kept"] = {"kept": False, "why": "not kept, it is no faster: 4.1 ms against 3.9 ms"}
    artifacts["measured"].file("measurement.json").write_text(json.dumps(measurement))
    seen = Seen(render(run, artifacts)[0])
    row = next(line for line in seen.tables[0] if line[0].startswith("Engine"))
    assert [c.strip("|") for c in row[7:10]] == ["4.1|4.0 to 4.3", "4.6|≤ 5.5", "6.0"]
    assert "processor time 7.7 ms an image|INT8 not kept, it is no faster: 4.1 ms against 3.9 ms" in row[0]
    assert "inconclusive: somebody waited; it was hot." in seen.text()
    assert "ms); inconclusive: the machine was not quiet" in seen.text()
    assert "somebody waited for a core 0.56" in seen.text() and "MHz 800 to 3100" in seen.text()
    measurement["conditions"] = {"valid": True, "reasons": [], "not_watched": {"target": "jetson", "models": ["engine"], "reasons": []}}
    measurement["target"] = {"name": "jetson", "facts": {"cpu": "Cortex-A78AE", "gpus": [], "packages": {"numpy": "numpy 2.0"}}}
    artifacts["measured"].file("measurement.json").write_text(json.dumps(measurement))
    text = Seen(render(run, artifacts)[0]).text()
    assert "inconclusive" not in text and "not watched engine: timed on target jetson" in text
    assert "measured on target jetson: cpu Cortex-A78AE" in text and "numpy 2.0" not in text


UNREADABLE = ["", "[]", "{}", '{"passed": true}', '{"passed": false, "rules": []}', '{"passed": 1, "rules": [{}]}', "[" * 5000]


@pytest.mark.parametrize("content", UNREADABLE, ids=range(len(UNREADABLE)))
def test_a_verdict_that_cannot_be_read_never_passes(tmp_path, content):
    run, artifacts = fake_run(tmp_path, pictures=0)
    artifacts["gate"].file("verdict.json").write_text(content)
    assert render(run, artifacts)[1]["verdict"]["state"] == "failed"


@pytest.mark.parametrize("last", range(9))
@pytest.mark.parametrize("state", ["failed", "stopped"])
def test_a_run_that_ended_early_shows_what_there_is(tmp_path, last, state):
    run, artifacts = fake_run(tmp_path, pictures=1)
    run |= {"exit": 6, "error": f"{run['stages'][last]['name']}: \x1b[31mloss is not finite\n  at step 12"}
    for i, stage in enumerate(run["stages"][last:]):
        stage |= {"state": "missing" if i else state, "id": None}
        del artifacts[stage["name"]]
    html, facts = render(run, artifacts)
    seen = Seen(html)
    broken = run["stages"][last]["name"]
    assert facts["verdict"]["state"] == "unfinished" and f"the stage {broken}" in facts["verdict"]["sentence"]
    assert ("failed: loss is not finite" in facts["verdict"]["sentence"]) == (state == "failed")
    assert facts["stages"][last]["error"] == f"{broken}: loss is not finite\nat step 12"  # in lines, as it was said
    for stage in run["stages"]:
        mentioned = any(f"The stage {stage['name']} " in note for note in facts["notes"])
        assert mentioned == (stage["state"] != "done")
    assert (len(seen.all("img")) > 0) == ("measured" in artifacts)
    assert [row["stage"] for row in facts["table"]] == [n for n in MODELS if n in artifacts]


def test_before_a_measurement_the_table_shows_what_training_found(tmp_path):
    run, artifacts = fake_run(tmp_path)
    del artifacts["measured"], artifacts["gate"], artifacts["bundle"]
    html, _ = render(run, artifacts)
    wanted = [f"{fake_accuracy(n, 8)['miou']:.1f}" for n in ("teacher", "baseline", "student")]
    assert [line[1].strip("|") for line in Seen(html).tables[0][1:4]] == wanted
    assert "training itself noted" in html


def test_damaged_files_are_named_and_never_fatal(tmp_path):
    run, artifacts = fake_run(tmp_path)
    (tmp_path / "student" / "curves.json").write_text("{")
    (tmp_path / "measured" / "map_teacher_0.png").write_bytes(b"no picture")
    (tmp_path / "measured" / "image_1.png").unlink()
    (tmp_path / "measured" / "label_1.png").write_bytes((tmp_path / "measured" / "label_1.png").read_bytes()[:60])
    html, facts = render(run, artifacts)
    Seen(html)
    for part in ("curves.json of student", "map_teacher_0.png", "image_1.png", "label_1.png"):
        assert any(part in note for note in facts["notes"]), part
    assert [t["what"] for t in facts["pictures"][1]["tiles"]][:2] == ["teacher", "baseline"]


def test_odd_values_never_break_the_page(tmp_path):
    odd = [None, True, float("nan"), float("inf"), -1, 0, 1e300, "7", [], {}, [[]], {"a": {"b": 1}}, "x" * 100_000]
    chance = random.Random(5)

    def spoil(value):
        if chance.random() < 0.06:
            return chance.choice(odd)
        if isinstance(value, dict):
            return {k: spoil(v) for k, v in value.items()}
        return [spoil(v) for v in value] if isinstance(value, list) else value

    for i in range(60):
        run, artifacts = fake_run(tmp_path / str(i), pictures=0)
        for stage, file in (("measured", "measurement.json"), ("gate", "verdict.json"), ("student", "curves.json")):
            spoiled = spoil({k: v[:5] if isinstance(v, list) else v for k, v in artifacts[stage].json(file).items()})
            artifacts[stage].file(file).write_text(json.dumps(spoiled))
        changed = {n: Artifact(a.name, a.kind, a.id, a.folder, spoil(a.facts)) for n, a in artifacts.items()}
        changed = {n: a if isinstance(a.facts, dict) else artifacts[n] for n, a in changed.items()}
        html, facts = render(run, changed)
        assert json.loads("".join(Seen(html).data)) == facts


PAYLOADS = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "<!--<script>",
    "--><img src=x onerror=alert(1)>",
    "]]><svg/onload=alert(1)>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<iframe src=javascript:alert(1)>",
    "<a href=javascript:alert(1)>x</a>",
    "<base href=//evil.example/>",
    "<meta http-equiv=refresh content=0;url=//evil.example>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<object data=//evil.example>",
    "<embed src=//evil.example>",
    "<form action=//evil.example><input name=x></form>",
    "<style>@import '//evil.example'</style>",
    "<details open ontoggle=alert(1)>",
    "<video src=x onerror=alert(1)>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "<template><img src=x onerror=alert(1)></template>",
    "<plaintext>",
    "<xmp><p title='</xmp><svg/onload=alert(1)>'>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "'\"><b onmouseover=alert(1)>",
    '" onmouseover="alert(1)" x="',
    "' onfocus='alert(1)' autofocus='",
    "` onerror=`alert(1)`",
    '"style="background:url(https://evil.example)"',
    "red;background:url(https://evil.example/x)",
    "</title><script>alert(1)</script>",
    "</textarea><script>alert(1)</script>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;alert(1)&#60;/script&#62;",
    "\u003cscript\u003ealert(1)\u003c/script\u003e",
    "\\u003cscript\\u003ealert(1)",
    "＜script＞alert(1)＜/script＞",
    "<scr\x00ipt>alert(1)</scr\x00ipt>",
    "<scr\tipt>alert(1)</scr\nipt>",
    "\x1b]0;owned\x07<b>",
    "\x1b[2J\x1b[31m<i>red</i>",
    "\u202egnp.exe<u>",
    "\u2028<script>alert(1)</script>\u2029",
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "https://evil.example/steal",
    "//evil.example/x.js",
    "../../../etc/passwd",
    "{{7*7}}${7*7}<%= 7*7 %>",
    "%3Cscript%3Ealert(1)%3C/script%3E",
    "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16") + "<b>",
]
ELEMENTS = """html head meta title style body main header section div h1 h2 h3 h4 p b span small br i table thead tbody tr th td code pre
    details summary dl dt dd ul li figure figcaption img svg g rect path circle line text script"""
WITH = """class lang charset http-equiv content name id type src alt style scope rowspan colspan open title role width height viewbox
    x y x1 x2 y1 y2 cx cy r rx d transform text-anchor aria-label aria-hidden preserveaspectratio"""
TAGS, ATTRIBUTES = set(ELEMENTS.split()), set(WITH.split())
CSP = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def assert_harmless(html):
    """Only our elements and attributes, nothing that runs, nothing that loads."""
    seen = Seen(html)
    for tag, attributes in seen.tags:
        assert tag in TAGS and set(attributes) <= ATTRIBUTES, (tag, attributes)
        if tag == "script":
            assert attributes == {"type": "application/json", "id": "facts"}
        for key, value in attributes.items():
            if key == "src":
                assert re.fullmatch(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+", value)
            if key == "style":
                assert re.fullmatch(r"background:rgb\(\d{1,3},\d{1,3},\d{1,3}\)", value)
            if key in ("class", "d", "transform", "viewbox", "width", "id"):
                assert re.fullmatch(r"[A-Za-z0-9 .,()-]*", value), (key, value)
    assert [a for a in seen.all("meta") if a.get("http-equiv")] == [{"http-equiv": "Content-Security-Policy", "content": CSP}]
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style and "//" not in style
    assert html.count("<script") == 1 and html.count("</script") == 1 and html.count("<style") == 1
    for sign in "<>&":
        assert sign not in "".join(seen.data)
    return seen


def hostile(folder, payload, stage_name):
    """Every text that a stranger could choose is the payload; one stage is named after it too."""
    run, artifacts = fake_run(folder, classes=[payload, *CLASSES[1:]], pictures=1, size=(20, 40))
    run |= dict.fromkeys(("recipe", "run", "profile", "started"), payload)
    run |= {"machine": {payload: payload, "list": [payload, {"a": payload}]}, "versions": {payload: payload}}
    run["resolved"][payload] = [payload]
    measurement = artifacts["measured"].json("measurement.json")
    measurement |= {"split": payload, "machine": {payload: payload}, "reference": payload}
    measurement["pictures"][0]["name"] = payload
    measurement["waterfall"]["text"] = payload
    measurement["changes"] = [dict.fromkeys(("of", "against", "problem"), payload)]
    far = {"target": payload, "models": [payload]}
    measurement["conditions"] = {"valid": payload, "reasons": [payload], "not_watched": far}
    measurement["target"] = {"name": payload, "facts": {payload: payload}}
    measurement["models"]["engine"]["kept"] = {"kept": payload, "why": payload}
    measurement["waterfall"]["hops"][2] |= dict.fromkeys(("name", "from", "precision", "state"), payload) | {"worst": {"class": payload}}
    measurement["models"]["engine"]["ran"] = {payload: payload}
    measurement["models"][payload] = measurement["models"]["engine"]
    artifacts["measured"].file("measurement.json").write_text(json.dumps(measurement))
    times = {key: {"candidate": [2.0], "baseline": [1.0]} for key in ("image_ms", "image_cpu_ms")}
    pair = dict.fromkeys(("candidate", "baseline", "told", "not_rebuilt"), payload) | {"tolerance": 0.05, "valid": False}
    pair |= {"reasons": [payload], "rounds": [times | {"reasons": [payload]}], "builds": [{"rounds": [times]}]}
    artifacts["measured"].file("pairs.json").write_text(json.dumps([pair, {"candidate": payload, "problem": payload}]))
    verdict = fake_verdict()
    verdict["rules"].append(dict.fromkeys(("metric", "of", "against", "limit", "text"), payload) | {"passed": False})
    verdict["rules"].append(verdict["rules"][-1] | {"metric": f"iou.{payload}", "passed": None})
    artifacts["gate"].file("verdict.json").write_text(json.dumps(verdict))
    curves = artifacts["student"].json("curves.json")
    for point in curves["train"]:
        point["terms"][payload] = point["ratios"][payload] = 0.5
    artifacts["student"].file("curves.json").write_text(json.dumps(curves))
    artifacts["data"].facts["source"] = artifacts["engine"].facts["engine"]["kind"] = payload
    rename(run, artifacts, stage_name, payload)
    run["stages"][-1] |= {"state": payload, "kind": payload, "error": payload, "id": payload}
    run["stages"][4] |= {"state": "failed", "error": payload}
    return run, artifacts


def rename(run, artifacts, old, new):
    for stage in run["stages"]:
        stage["name"] = new if stage["name"] == old else stage["name"]
        stage["inputs"] = {field: [new if n == old else n for n in names] for field, names in stage["inputs"].items()}
    a = artifacts[old]
    artifacts |= {new: Artifact(new, a.kind, a.id, a.folder, a.facts)}
    del artifacts[old]
    run["resolved"]["stages"][new] = run["resolved"]["stages"].pop(old)


@pytest.mark.parametrize("stage_name, before", [("student", ""), ("engine", "'\">"), ("measured", "</td></svg></pre>")])
def test_hostile_texts_stay_texts(tmp_path, stage_name, before):
    for i, payload in enumerate(PAYLOADS):  # 3 x 52 payloads in about 30 places each
        html, facts = render(*hostile(tmp_path / str(i), before + payload, stage_name))
        seen = assert_harmless(html)
        assert json.loads("".join(seen.data)) == facts
        assert len(facts["classes"][0]["name"]) <= 64 and facts["classes"][0]["name"].isprintable()
        assert seen.tables[3][1][0].strip("|") == facts["classes"][0]["name"]
        assert "\x1b" not in html and "\u202e" not in html and "\x00" not in html


def test_an_ordinary_page_is_harmless_and_names_no_address(finished):
    html, _, _ = finished
    assert_harmless(html)
    assert "http:" not in html and "https:" not in html


def test_names_are_cut_at_64_printable_characters():
    assert words.name("a" * 65) == "a" * 63 + "…"
    assert words.name("\x1b[31mred\x1b[0m\x00") == "red\ufffd"
    assert words.name("") == "(no name)"
    assert words.name("straße 道路") == "straße 道路"


def test_elements_escape_all_but_what_was_built_here():
    assert el("p", "<b>", el("i", "&"), class_='"x"') == '<p class="&quot;x&quot;">&lt;b&gt;<i>&amp;</i></p>'
    assert json.loads(json_block({"a": "</script>&"}).split(">", 1)[1].rsplit("<", 1)[0]) == {"a": "</script>&"}


@pytest.mark.parametrize(
    "written, wanted",
    [
        (words.signed(-0.04), "±0.0"),
        (words.signed(-0.06), "−0.1"),
        (words.percent(0.999999), "99.99 %"),
        (words.percent(1.0), "100 %"),
        (words.ms(0.4216), "0.42"),
        (words.ms(1234.5), "1,234"),
        (words.count(84_594_451), "84.6 M"),
        (words.count(812), "812"),
        (words.duration(59.97), "1 min 00 s"),
        (words.duration(7325), "2 h 02 min"),
        (words.tick(20000), "20k"),
    ],
)
def test_figures_are_written_as_people_read_them(written, wanted):
    assert written == wanted


def test_ticks_are_few_round_and_inside():
    chance = random.Random(0)
    for _ in range(500):
        low = chance.uniform(-100, 100)
        high = low + 10 ** chance.uniform(-4, 6)
        ticks = charts.nice_ticks(low, high)
        assert 2 <= len(ticks) <= 6, (low, high, ticks)
        assert low - 1e-6 <= ticks[0] and ticks[-1] <= high * (1 + 1e-9) + 1e-6
        step = ticks[1] - ticks[0]
        assert f"{step:.6e}"[0] in "125" and f"{step:.3e}"[2:5] == "000"


def test_stages_are_told_in_the_order_of_their_making_however_they_come(tmp_path):
    run, artifacts = fake_run(tmp_path, pictures=0)
    run["stages"].sort(key=lambda s: s["name"])
    _, facts = render(run, artifacts)
    order = [s["name"] for s in facts["stages"]]
    assert all(order.index(n) < order.index(s["name"]) for s in facts["stages"] for names in s["inputs"].values() for n in names)
    assert order == ["data", "baseline", "teacher", "student", "onnx", "engine", "measured", "gate", "bundle"]


def test_points_are_drawn_where_their_values_are():
    points = [{"x": x, "y": y, "role": "student", "label": "s", "title": "s"} for x, y in ((1, 10), (2, 20), (3, 30))]
    circles = Seen(charts.scatter(points, "x", "y")).all("circle")
    xs, ys = [float(c["cx"]) for c in circles], [float(c["cy"]) for c in circles]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.02) and xs[0] < xs[1]
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.02) and ys[0] > ys[1]


def test_every_point_is_named_and_names_do_not_cover_each_other():
    chance = random.Random(3)
    roles = ("teacher", "baseline", "student", "onnx", "engine")
    for _ in range(200):
        places = [(chance.choice((1, 1.02, 2, 9)), chance.choice((70, 70.2, 74))) for _ in roles]
        points = [{"x": x, "y": y, "role": r, "label": r, "title": ""} for (x, y), r in zip(places, roles, strict=True)]
        drawn = re.findall(r'<text x="([-\d.]+)" y="([-\d.]+)" text-anchor="(\w+)" class="label">([^<]*)', charts.scatter(points, "x", "y"))
        assert sorted(r for *_, text in drawn for r in text.split(", ")) == sorted(roles)
        boxes = []
        for x, y, anchor, text in drawn:
            left = float(x) - {"start": 0, "middle": 0.5, "end": 1}[anchor] * 6.8 * len(text)
            boxes.append((left, float(y) - 11, left + 6.8 * len(text), float(y) + 3))
            assert left >= 0 and left + 6.8 * len(text) <= charts.WIDTH
        assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for i, a in enumerate(boxes) for b in boxes[:i])


def test_lineage_draws_every_stage_and_only_arrows_that_no_longer_path_implies():
    stages = fake_story(8)["stages"]
    before = graph._direct(graph._before(stages))
    assert before["student"] == ["teacher"] and before["measured"] == ["baseline", "engine"] and before["bundle"] == ["gate"]
    seen = Seen(graph.lineage(stages))
    assert [t for t in seen.texts if t in before] == list(before)
    assert len([p for p in seen.all("path") if p["class"] == "arrow"]) == sum(map(len, before.values())) == 9
    places = {(a["x"], a["y"]) for a in seen.all("rect")}
    assert len(places) == len(stages), "no two boxes at one place"
