"""Samples are checked whenever they are decoded, and decoding what was drawn costs next to nothing."""

import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.artifact import Artifact
from pipeline.errors import BadData
from stages.samples import open_samples


@pytest.fixture
def indexed(tmp_path):
    """An index of one pair written by hand, so that its faults are ours to choose."""
    root = tmp_path / "root"
    root.mkdir()
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    label = np.random.default_rng(1).choice(np.uint8([4, 9, 200]), (20, 30))
    Image.fromarray(image).save(root / "i.png")
    Image.fromarray(label).save(root / "l.png")

    def make(**change):
        sums = {f"{kind}_sha256": hashlib.sha256((root / f"{kind[0]}.png").read_bytes()).hexdigest() for kind in ("image", "label")}
        entry = {"name": "x", "image": "i.png", "label": "l.png", "shape": [20, 30], **sums, **change}
        folder = tmp_path / "artifact"
        folder.mkdir(exist_ok=True)
        (folder / "index.json").write_text(json.dumps({"val": [entry]}))
        labels = {"ids": [[4, 0], [9, 1], [200, 255]]}
        facts = {"classes": ["a", "b"], "colours": [[0, 0, 0], [9, 9, 9]], "size": [20, 30], "splits": {"val": 1}, "labels": labels}
        return open_samples(Artifact("data", "Dataset", "0", folder, facts, {"root": str(root)}), "val"), root

    return make, image, label


def test_an_indexed_sample_is_what_was_saved(indexed):
    make, image, label = indexed
    found = make()[0][0]
    assert np.array_equal(found[0], image)
    assert np.array_equal(found[1], np.select([label == 4, label == 9], [0, 1], 255))


@pytest.mark.parametrize("file", ["i.png", "l.png"])
def test_a_file_that_changed_since_is_named(indexed, file):
    samples, root = indexed[0]()
    data = bytearray((root / file).read_bytes())
    data[-20] ^= 1
    (root / file).write_bytes(data)
    with pytest.raises(BadData, match=rf"{file}: changed since the data stage indexed it: run again"):
        samples[0]


@pytest.mark.parametrize(
    "change", [lambda path: path.write_bytes(path.read_bytes() + b"more"), lambda path: os.truncate(path, 9), os.utime]
)
def test_a_file_that_changes_while_it_is_read_is_named(indexed, monkeypatch, change):
    samples, root = indexed[0]()
    seen = []

    def meddle(info):  # called for the name, and again once the file is open
        seen.append(info)
        if len(seen) == 2:
            change(root / "i.png")

    monkeypatch.setattr("stages.sources._files.check_regular", meddle)
    with pytest.raises(BadData, match=r"i\.png: changed while it was read: wait"):
        samples[0]


def test_a_part_of_the_path_that_is_swapped_for_a_link_is_not_followed(indexed, monkeypatch):
    make, _, _ = indexed
    samples, root = make(image="sub/i.png")
    (root / "sub").mkdir()
    (root.parent / "outside").mkdir()
    for folder in (root / "sub", root.parent / "outside"):
        (folder / "i.png").write_bytes((root / "i.png").read_bytes())

    def swap(real_root, real):  # just after the path was found to be below the root
        (root / "sub").rename(root / "gone")
        (root / "sub").symlink_to(root.parent / "outside")
        return True

    monkeypatch.setattr("stages.sources._files.inside", swap)
    with pytest.raises(BadData, match=r"sub/i\.png: (cannot be read|there is no such file)"):
        samples.source(0)


def test_a_file_that_vanished_is_named(indexed):
    samples, root = indexed[0]()
    (root / "l.png").unlink()
    with pytest.raises(BadData, match=r"l\.png: there is no such file"):
        samples[0]


def test_data_that_moved_are_found_through_a_link_in_their_place(indexed):
    make, image, _ = indexed
    samples, root = make()
    root.rename(root.with_name("moved"))
    root.symlink_to("moved")
    assert np.array_equal(samples[0][0], image)


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../secret.png", "", "a\0b", "x" * 300, "a\\..\\b"])
def test_an_index_cannot_lead_out_of_its_root(indexed, path):
    samples, root = indexed[0](image=path)
    Image.new("RGB", (30, 20)).save(root.parent / "secret.png")
    with pytest.raises(BadData, match=r"relative to the root|control characters"):
        samples.source(0)


def test_links_and_pipes_are_not_opened(indexed):
    make = indexed[0]
    samples, root = make(image="link.png")
    Image.new("RGB", (30, 20)).save(root.parent / "secret.png")
    (root / "link.png").symlink_to(root.parent / "secret.png")
    with pytest.raises(BadData, match="symbolic link leads out"):
        samples.source(0)
    os.mkfifo(root / "pipe.png")
    with pytest.raises(BadData, match="not a regular file"):
        make(image="pipe.png")[0].source(0)


def test_decoding_what_was_drawn_takes_less_than_a_fifth_of_a_millisecond(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (64, 64, 128, 3), dtype=np.uint8)
    np.save(tmp_path / "train_images.npy", images)
    np.save(tmp_path / "train_labels.npy", images[..., 0])
    facts = {"classes": ["a", "b"], "colours": [[0, 0, 0], [9, 9, 9]], "size": [64, 128], "splits": {"train": 64}}
    samples = open_samples(Artifact("data", "Dataset", "0", tmp_path, facts), "train")
    assert np.array_equal(samples[5][0], images[5])
    start = time.process_time()
    for i in range(300):
        samples[i % 64]
    assert (time.process_time() - start) / 300 < 0.2e-3


@pytest.mark.skipif("STILLHOUSE_CAMVID" not in os.environ, reason="STILLHOUSE_CAMVID names no folder with CamVid")
def test_real_camvid_has_its_published_counts(tmp_path):
    from stages.data import Data

    class Job:
        out, rehearsing = tmp_path, False
        say = progress = staticmethod(lambda *a, **k: None)
        stop_asked = staticmethod(lambda: 0)

    root = Path(os.environ["STILLHOUSE_CAMVID"])
    made = Data.model_validate({"kind": "data", "source": {"kind": "camvid", "root": str(root)}, "size": "native"}).run({}, Job())
    assert made.facts["splits"] == {"train": 367, "val": 101, "test": 233} and made.facts["size"] == [360, 480]
    assert made.facts["label_pixels"]["train"][:4] == [10682767, 14750079, 623349, 20076880]
