"""One contract for all sources: every row of the table goes through it; a row that needs files has an example here."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pipeline.artifact import Artifact
from pipeline.errors import BadData, Missing
from stages.data import Data
from stages.samples import open_samples
from stages.sources import TABLE
from stages.sources.cityscapes import CLASSES as CITYSCAPES
from stages.sources.cityscapes import IGNORED
from stages.sources.hf import names_in

SHAPE = (24, 40)  # of the little pictures made here
NAMES = ["road", "tree", "sky"]


class Job:
    """What the runner lends to a stage."""

    rehearsing = False

    def __init__(self, folder: Path, stop: int = 0):
        self.out, self.state, self.said, self.steps, self.stop = folder / "out", folder / "state", [], [], stop
        self.out.mkdir(parents=True)
        self.state.mkdir()

    def say(self, text):
        self.said.append(text)

    def progress(self, done, total, **figures):
        self.steps.append((done, total))

    def stop_asked(self):
        return self.stop


def picture(seed: int, shape=SHAPE) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((shape[1], shape[0]), Image.Resampling.BILINEAR))


def mask(seed: int, values, shape=SHAPE) -> np.ndarray:
    """Every value appears: rows of blocks in a seeded order."""
    order = np.random.default_rng(seed).permutation(np.resize(values, max(len(values), 16)))
    return np.repeat(np.resize(order, shape[1]), shape[0]).reshape(shape[1], shape[0]).T.astype(np.uint8).copy()


def save(path: Path, pixels: np.ndarray, **how) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **how)


def folder_example(root: Path) -> dict:
    table = {"classes": [{"name": n, "colour": [60 * i, 90, 200 - 50 * i]} for i, n in enumerate(NAMES)], "ignore": [255]}
    (root / "classes.json").write_text(json.dumps(table))
    for s, split in enumerate(("train", "val")):
        for i in range(3):
            save(root / split / "images" / f"p{i}.jpg", picture(10 * s + i))
            save(root / split / "labels" / f"p{i}.png", mask(10 * s + i, [0, 1, 2, 255]))
    return {"kind": "folder", "root": str(root), "classes": "classes.json"}


def camvid_example(root: Path) -> dict:
    table = {"classes": [{"id": i, "name": n, "colour": [i, i, i]} for i, n in enumerate(NAMES)], "ignore_index": 3, "image_size": [40, 24]}
    (root / "classes.json").write_text(json.dumps(table))
    for s, split in enumerate(("train", "val", "test")):
        (root / f"{split}.txt").write_text("b\na\n")
        for i, stem in enumerate("ab"):
            save(root / split / "images" / f"{stem}.jpg", picture(10 * s + i))
            save(root / split / "labels" / f"{stem}.png", mask(10 * s + i, [0, 1, 2, 3]))
    return {"kind": "camvid", "root": str(root)}


def cityscapes_example(root: Path) -> dict:
    for s, split in enumerate(("train", "val")):
        for i, stem in enumerate(("aachen/aachen_000000_000019", "bremen/bremen_000001_000019")):
            save(root / "leftImg8bit" / split / f"{stem}_leftImg8bit.png", picture(10 * s + i))
            save(root / "gtFine" / split / f"{stem}_gtFine_labelIds.png", mask(10 * s + i, [i for i in range(34)]))
            save(root / "gtFine" / split / f"{stem}_gtFine_color.png", picture(3))
    return {"kind": "cityscapes", "root": str(root)}


def hf_example(root: Path) -> dict:
    import datasets

    features = datasets.Features(
        {"photo": datasets.Image(), "mask": datasets.Image(), "kinds": datasets.List(datasets.ClassLabel(names=NAMES))}
    )
    for s, split in enumerate(("train", "val")):
        rows = [(Image.fromarray(picture(10 * s + i)), Image.fromarray(mask(10 * s + i, [0, 1, 2, 255])), [0]) for i in range(3)]
        columns = dict(zip(features, map(list, zip(*rows, strict=True)), strict=True))
        datasets.Dataset.from_dict(columns, features=features).to_parquet(str(root / f"{split}-0.parquet"))
    files = {split: [str(root / f"{split}-*.parquet")] for split in ("train", "val")}
    return {"kind": "hf", "files": files, "image": "photo", "label": "mask"}


def test_what_a_whole_image_shows_names_no_classes_of_pixels():
    import datasets

    columns = {"image": datasets.Image(), "mask": datasets.Image(), "label": datasets.ClassLabel(names=["benign", "malignant"])}
    of_each = columns | {"label": datasets.List(columns["label"])}
    tables = {"train": SimpleNamespace(features=datasets.Features(columns))}
    with pytest.raises(BadData, match="does not say what its classes are called"):
        names_in(tables, "mask")
    assert names_in({"train": SimpleNamespace(features=datasets.Features(of_each))}, "mask") == ["benign", "malignant"]


EXAMPLES = {
    "streets": lambda root: {"kind": "streets", "train": 12, "val": 3, "test": 2},
    "folder": folder_example,
    "camvid": camvid_example,
    "cityscapes": cityscapes_example,
    "hf": hf_example,
}


def made(tmp_path: Path, settings: dict, run: str = "run", **data) -> Artifact:
    stage = Data.model_validate({"kind": "data", "source": settings, **data})
    job = Job(tmp_path / run)
    result = stage.run({}, job)
    assert job.steps and job.steps[-1][0] == job.steps[-1][1], "progress reaches its end"
    return Artifact("data", "Dataset", "0" * 64, job.out, json.loads(json.dumps(result.facts)), json.loads(json.dumps(result.beside)))


@pytest.fixture(params=TABLE.names())
def settings(request, tmp_path):
    (tmp_path / "files").mkdir()
    example = EXAMPLES.get(request.param, lambda root: {"kind": request.param})
    return example(tmp_path / "files")


def test_a_source_fills_the_facts_that_every_stage_reads(settings, tmp_path):
    artifact = made(tmp_path, settings, size=[32, 64])
    facts = artifact.facts
    assert facts["source"] == settings["kind"] and facts["size"] == [32, 64] and facts["ignore"] == 255
    assert len(facts["classes"]) == len(facts["colours"]) == len(set(facts["classes"]))
    assert {"train", "val"} <= set(facts["splits"]) == set(facts["label_pixels"])
    assert all(path.is_file() for path in artifact.folder.iterdir()), "files lie flat"
    assert str(tmp_path) not in json.dumps(facts), "facts do not depend on where the data lie"


def test_samples_are_pixels_at_the_asked_size(settings, tmp_path):
    artifact = made(tmp_path, settings, size=[32, 64])
    for split, n in artifact.facts["splits"].items():
        samples = open_samples(artifact, split)
        assert len(samples) == n and samples.size == (32, 64) and samples.classes == artifact.facts["classes"]
        assert len({samples.name(i) for i in range(n)}) == n
        for i in range(n):
            image, label = samples[i]
            assert image.dtype == label.dtype == np.uint8
            assert image.shape == (32, 64, 3) and label.shape == (32, 64)
            assert set(np.unique(label)) <= {*range(len(samples.classes)), 255}
            assert samples.source(i).shape[2] == 3
            image[0, 0], label[0, 0] = 1, 1  # a caller may write into what it got


def test_the_counted_pixels_are_those_of_the_labels(settings, tmp_path):
    artifact = made(tmp_path, settings, size="native")
    for split, n in artifact.facts["splits"].items():
        samples = open_samples(artifact, split)
        counts = sum(np.bincount(samples[i][1].ravel(), minlength=256) for i in range(n))
        assert counts[: len(samples.classes)].tolist() == artifact.facts["label_pixels"][split]


def test_the_same_settings_give_the_same_bytes(settings, tmp_path):
    first, second = (made(tmp_path, settings, run, size=[32, 64]) for run in ("one", "two"))
    assert first.facts == second.facts
    assert {p.name: p.read_bytes() for p in first.folder.iterdir()} == {p.name: p.read_bytes() for p in second.folder.iterdir()}


def test_a_limit_keeps_a_fixed_part_of_each_split(settings, tmp_path):
    whole, part = made(tmp_path, settings, size=[32, 64]), made(tmp_path, settings, "part", size=[32, 64], limit=2)
    for split, n in whole.facts["splits"].items():
        a, b = open_samples(whole, split), open_samples(part, split)
        assert len(b) == min(2, n)
        images = [a[i][0].tobytes() for i in range(n)]
        places = [images.index(b[i][0].tobytes()) for i in range(len(b))]
        assert places == sorted(set(places))


def test_samples_travel_to_another_process_without_their_pixels(settings, tmp_path):
    samples = open_samples(made(tmp_path, settings, size=[32, 64]), "val")
    before = samples[1]
    packed = pickle.dumps(samples)
    assert len(packed) < 6000
    after = pickle.loads(packed)[1]
    assert np.array_equal(before[0], after[0]) and np.array_equal(before[1], after[1])


def test_an_unknown_split_is_answered_with_those_there_are(settings, tmp_path):
    with pytest.raises(BadData, match="no split 'dev': it has train, val"):
        open_samples(made(tmp_path, settings, size=[32, 64]), "dev")


def test_what_lies_outside_is_digested_and_a_touched_file_is_noticed(settings, tmp_path):
    source = TABLE.row(settings["kind"]).model_validate(settings)
    before = source.outside()
    assert before == source.outside()
    files = [p for p in (tmp_path / "files").rglob("*.p*") if p.is_file()]
    assert bool(files) == bool(before)
    if files:
        files[0].write_bytes(files[0].read_bytes() + b" ")
        assert source.outside() != before


def test_a_stop_is_obeyed(settings, tmp_path):
    from pipeline.errors import Stopped

    with pytest.raises(Stopped) as stopped:
        Data.model_validate({"kind": "data", "source": settings, "size": [32, 64]}).run({}, Job(tmp_path / "run", stop=15))
    assert stopped.value.code == 143


def test_rows_are_imported_without_numpy():
    code = "import sys, stages.data; print([m for m in ('numpy', 'torch', 'PIL', 'datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    assert done.stdout.strip() == "[]"


def test_cityscapes_ids_become_train_ids(tmp_path):
    artifact = made(tmp_path, cityscapes_example(tmp_path), size="native")
    samples = open_samples(artifact, "train")
    raw = mask(0, range(34))
    expected = np.full(SHAPE, 255, np.uint8)
    for train_id, (label_id, _) in enumerate(CITYSCAPES.values()):
        expected[raw == label_id] = train_id
    assert samples.name(0) == "aachen/aachen_000000_000019"
    assert np.array_equal(samples[0][1], expected)
    assert sorted([i for i, _ in CITYSCAPES.values()] + list(IGNORED)) == [*range(31), 31, 32, 33, 255], "every id of the data set, once"


def test_masks_painted_in_colours_become_train_ids(tmp_path):
    folder_example(tmp_path)
    colours = [[10, 20, 30], [10, 20, 31], [200, 0, 0]]
    table = "classes:\n" + "".join(f"  - {{name: {n}, colour: {c}}}\n" for n, c in zip(NAMES, colours, strict=True))
    (tmp_path / "classes.yaml").write_text(table + "masks: colours\nignore: [[0, 0, 0]]\n")
    for split in ("train", "val"):
        for i in range(3):
            raw = mask(i, [0, 1, 2, 3])
            save(tmp_path / split / "labels" / f"p{i}.png", np.array([*colours, [0, 0, 0]], np.uint8)[raw])
    samples = open_samples(made(tmp_path, {"kind": "folder", "root": str(tmp_path)}, size="native"), "val")
    for i in range(3):
        raw = mask(i, [0, 1, 2, 3])
        assert np.array_equal(samples[i][1], np.where(raw == 3, 255, raw))


def test_several_values_may_mean_one_class_and_palette_masks_are_ids(tmp_path):
    settings = folder_example(tmp_path)
    table = {"classes": [{"name": "a", "id": [0, 2]}, {"name": "b", "id": 1}], "ignore": [255]}
    (tmp_path / "classes.json").write_text(json.dumps(table))
    label = Image.fromarray(mask(0, [0, 1, 2, 255]))
    label.putpalette([v for i in range(256) for v in (255 - i, i, 7)])  # the colours of a palette mean nothing
    label.save(tmp_path / "train" / "labels" / "p0.png")
    artifact = made(tmp_path, settings, size="native")
    raw = mask(0, [0, 1, 2, 255])
    assert np.array_equal(open_samples(artifact, "train")[0][1], np.select([raw == 255, raw == 1], [255, 1], 0))


def test_images_are_resized_bilinearly_and_labels_to_the_nearest(tmp_path):
    samples = open_samples(made(tmp_path, folder_example(tmp_path), size=[16, 48]), "train")
    image, label = samples[1]
    whole = Image.open(tmp_path / "train" / "images" / "p1.jpg").convert("RGB")
    assert np.array_equal(image, np.asarray(whole.resize((48, 16), Image.Resampling.BILINEAR)))
    assert np.array_equal(
        label, np.asarray(Image.open(tmp_path / "train" / "labels" / "p1.png").resize((48, 16), Image.Resampling.NEAREST))
    )
    assert np.array_equal(samples.source(1), np.asarray(whole))


def test_native_pictures_of_several_sizes_keep_them(tmp_path):
    settings = folder_example(tmp_path)
    save(tmp_path / "train" / "images" / "p2.jpg", picture(2, (30, 30)))
    save(tmp_path / "train" / "labels" / "p2.png", mask(2, [0, 1, 2], (30, 30)))
    artifact = made(tmp_path, settings, size="native")
    samples = open_samples(artifact, "train")
    assert artifact.facts["size"] is None and samples.size is None
    assert samples[2][0].shape == (30, 30, 3) and samples[0][0].shape == (*SHAPE, 3)


def test_lists_choose_and_order_the_samples(tmp_path):
    settings = folder_example(tmp_path) | {"lists": "{split}.txt"}
    (tmp_path / "train.txt").write_text("p2\r\np0\r\n\r\n")
    (tmp_path / "val.txt").write_text("p1")
    samples = open_samples(made(tmp_path, settings), "train")
    assert [samples.name(i) for i in range(len(samples))] == ["p2", "p0"]


def test_hf_reads_arrow_files_too_and_offsets_ids(tmp_path):
    import datasets

    for s, split in enumerate(("train", "val")):
        rows = {
            "image": [Image.fromarray(picture(10 * s + i)) for i in range(2)],
            "label": [Image.fromarray(mask(i, [0, 1, 2])) for i in range(2)],
        }
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / split))
    files = {split: [str(tmp_path / split / "*.arrow")] for split in ("train", "val")}
    settings = {"kind": "hf", "files": files, "classes": ["a", "b"], "first": 1, "ignore": [0]}
    samples = open_samples(made(tmp_path, settings, size="native"), "train")
    assert np.array_equal(samples[1][1], mask(1, [255, 0, 1])), "0 is ignored, 1 and 2 are the classes"
    assert np.array_equal(samples[1][0], picture(1)), "PNG inside the table keeps every pixel"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": "masks"}, "no column 'masks': it has photo, mask, kinds"),
        ({"files": {"train": ["nowhere.parquet"]}}, "no such file nowhere.parquet"),
        ({"classes": ["a", "b"]}, "val row 0 mask|train row 0 mask"),
    ],
)
def test_hf_names_what_is_wrong_with_a_table(tmp_path, change, said):
    with pytest.raises(BadData, match=said):
        made(tmp_path, hf_example(tmp_path) | change)


def test_hf_names_the_row_whose_native_size_differs(tmp_path):
    import datasets

    settings = hf_example(tmp_path)
    rows = {
        "photo": [Image.fromarray(picture(i, shape)) for i, shape in enumerate((SHAPE, (16, 16)))],
        "mask": [Image.fromarray(mask(i, [0, 1, 2], shape)) for i, shape in enumerate((SHAPE, (16, 16)))],
    }
    features = datasets.Features({"photo": datasets.Image(), "mask": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "train-0.parquet"))
    with pytest.raises(BadData, match=r"train row 1: 16x16 pixels, but train_00000 has 40x24: set size"):
        made(tmp_path, settings | {"classes": NAMES}, size="native")


def test_hf_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    settings = hf_example(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(Missing, match="pip install datasets"):
        made(tmp_path, settings)


def test_for_tuning_a_drive_of_the_train_split_becomes_val_and_the_written_val_and_test_stay_away(tmp_path):
    settings = camvid_example(tmp_path)
    artifact = made(tmp_path, settings | {"tune_split": "b"})
    splits = artifact.json("index.json")
    assert {split: [entry["image"] for entry in entries] for split, entries in splits.items()} == {
        "train": ["train/images/a.jpg"],
        "val": ["train/images/b.jpg"],
    }
    with pytest.raises(BadData, match=r"0 of 2 pictures begin with 0016E5: name one of a, b"):
        made(tmp_path, settings | {"tune_split": "0016E5"}, "again")


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "hf"},
        {"kind": "hf", "hub": "org/name"},
        {"kind": "hf", "hub": "org/name", "revision": "main"},
        {"kind": "folder", "root": ".", "images": "{split}/x.jpg"},
        {"kind": "folder", "root": ".", "images": "../{split}/{stem}.jpg"},
        {"kind": "folder", "root": ".", "images": "/data/{split}/{stem}.jpg"},
        {"kind": "folder", "root": ".", "images": "{stem}.jpg"},
        {"kind": "folder", "root": ".", "images": "{split}/{name}/{stem}.jpg"},
        {"kind": "folder", "root": ".", "images": "{split}/{stem}.png", "labels": "{split}/{stem}.png"},
        {"kind": "folder", "root": ".", "splits": []},
        {"kind": "folder", "root": ".", "splits": ["train", "train"]},
        {"kind": "folder"},
        {"kind": "camvid"},
        {"kind": "streets", "tain": 3},
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_runs(wrong):
    with pytest.raises(ValueError):
        Data.model_validate({"kind": "data", "source": wrong})
