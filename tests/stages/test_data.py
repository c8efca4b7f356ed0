"""Every kind of fault that a data set can have is found before training and told with its file: a generator makes them."""

import json
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import BadData
from stages.data import Data

NAMES = ["road", "tree", "sky"]
SHAPE = (24, 40)


class Job:
    rehearsing = False

    def __init__(self, folder):
        self.out, self.state, self.said = folder / "out", folder / "state", []
        self.out.mkdir(parents=True)

    def say(self, text):
        self.said.append(text)

    def progress(self, done, total, **figures):
        pass

    def stop_asked(self):
        return 0


class Tree:
    """A little data set without fault, and one pair in it, the victim, chosen by seed."""

    def __init__(self, root, seed):
        self.root, self.rng = root, np.random.default_rng(seed)
        self.write_table()
        for split in ("train", "val"):
            for stem in ("a", "b", "c"):
                self.save(split, stem)
        split, self.stem = ("train", "val")[seed % 2], "abc"[seed % 3]
        self.split, self.other = split, "val" if split == "train" else "train"
        self.image, self.label = root / split / "images" / f"{self.stem}.jpg", root / split / "labels" / f"{self.stem}.png"

    def write_table(self, **change):
        table = {"classes": [{"name": n, "colour": [i, 9, 200]} for i, n in enumerate(NAMES)], "ignore": [255]} | change
        (self.root / "classes.json").write_text(json.dumps(table))

    def pixels(self):
        return self.rng.integers(0, 256, (*SHAPE, 3), dtype=np.uint8)

    def ids(self):
        return np.resize(self.rng.permutation([0, 1, 2, 255]), SHAPE).astype(np.uint8)

    def save(self, split, stem):
        for kind in ("images", "labels"):
            (self.root / split / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.pixels()).save(self.root / split / "images" / f"{stem}.jpg", quality=90)
        Image.fromarray(self.ids()).save(self.root / split / "labels" / f"{stem}.png")

    def run(self, tmp_path, limit=None, **settings):
        source = {"kind": "folder", "root": str(self.root), "classes": "classes.json", **settings}
        job = Job(tmp_path / "job")
        stage = Data.model_validate({"kind": "data", "source": source, "size": "native", "limit": limit})
        stage.outside()
        return stage.run({}, job), job


@pytest.fixture
def tree(tmp_path):
    def plant(seed=0):
        root = tmp_path / "data"
        root.mkdir()
        return Tree(root, seed)

    return plant


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(wide, high, depth, colour, rows=b"", extra=b""):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", wide, high, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def bits(depth):
    """A grayscale PNG with fewer than 8 bits: ids 0..1 packed."""
    row = b"\0" + bytes(SHAPE[1] * depth // 8)
    return png(SHAPE[1], SHAPE[0], depth, 0, row * SHAPE[0])


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def flip(path):
    data = bytearray(path.read_bytes())
    at = data.find(b"IDAT") + 12
    data[at] ^= 1
    path.write_bytes(data)


def turned(tree, path, orientation=6):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(tree.pixels()).save(path, exif=exif)


def linked_outside(tree, path):
    outside = tree.root.parent / "elsewhere.jpg"
    os.replace(path, outside)
    path.symlink_to(outside)


def same_pixels_other_file(tree):
    """The victim's pixels, saved by another encoder in the other split."""
    pixels = Image.open(tree.image).convert("RGB")
    pixels.save(tree.root / tree.other / "images" / "b.jpg", format="PNG")


def animate(path):
    frames = [Image.fromarray(np.full(SHAPE, v, np.uint8)) for v in (0, 1)]
    frames[0].save(path, format="PNG", save_all=True, append_images=frames[1:])


# name -> (what is done to the tree, which path the message must name, a word it must say)
FAULTS = {
    "label missing": (lambda t: t.label.unlink(), "label", "no such label"),
    "image missing": (lambda t: t.image.unlink(), "label", "without its image"),
    "label in other case": (lambda t: t.label.rename(t.label.with_name(f"{t.stem.upper()}.png")), "label", "no such label"),
    "folder instead of label": (lambda t: (t.label.unlink(), t.label.mkdir()), "label", "no such label"),
    "empty image": (lambda t: t.image.write_bytes(b""), "image", "empty"),
    "empty label": (lambda t: t.label.write_bytes(b""), "label", "empty"),
    "text as image": (lambda t: t.image.write_text("<html>not found</html>"), "image", "not a readable"),
    "zeros as label": (lambda t: t.label.write_bytes(bytes(200)), "label", "not a readable"),
    "image cut off": (lambda t: cut(t.image, 0.6), "image", "cut off"),
    "image without its last bytes": (lambda t: t.image.write_bytes(t.image.read_bytes()[:-2]), "image", "cut off"),
    "image cut in its header": (lambda t: t.image.write_bytes(t.image.read_bytes()[:30]), "image", "cut off"),
    "label cut off": (lambda t: cut(t.label, 0.6), "label", "cut off"),
    "label without its last chunk": (lambda t: t.label.write_bytes(t.label.read_bytes()[:-12]), "label", "cut off"),
    "a bit of a label flipped": (lambda t: flip(t.label), "label", "damaged"),
    "label of another size": (lambda t: Image.fromarray(t.ids()[:-1]).save(t.label), "label", "40x23"),
    "label turned": (lambda t: Image.fromarray(t.ids().T.copy()).save(t.label), "label", "24x40"),
    "id beyond the classes": (
        lambda t: Image.fromarray(np.where(t.ids() == 0, 7, 1).astype(np.uint8)).save(t.label),
        "label",
        "value 7 in 240 ",
    ),
    "ids that start at 1": (lambda t: Image.fromarray(np.resize([1, 2, 3], SHAPE).astype(np.uint8)).save(t.label), "label", "value 3"),
    "RGB mask": (lambda t: Image.fromarray(t.pixels()).save(t.label), "label", "masks: colours"),
    "RGB mask of equal channels": (lambda t: Image.fromarray(t.ids()).convert("RGB").save(t.label), "label", "three equal channels"),
    "RGBA mask": (lambda t: Image.fromarray(t.ids()).convert("RGBA").save(t.label), "label", "mode RGBA"),
    "16-bit mask": (lambda t: Image.fromarray(t.ids().astype(np.uint16)).save(t.label), "label", "16-bit"),
    "4-bit mask": (lambda t: t.label.write_bytes(bits(4)), "label", "4-bit"),
    "2-bit mask": (lambda t: t.label.write_bytes(bits(2)), "label", "2-bit"),
    "1-bit mask": (lambda t: Image.fromarray(t.ids() > 1).save(t.label), "label", "1-bit"),
    "JPEG mask": (lambda t: Image.fromarray(t.ids()).save(t.label, format="JPEG"), "label", "JPEG"),
    "animated mask": (lambda t: animate(t.label), "label", "several pictures"),
    "all ignored": (lambda t: Image.fromarray(np.full(SHAPE, 255, np.uint8)).save(t.label), "label", "every pixel is ignored"),
    "EXIF orientation": (lambda t: turned(t, t.image), "image", "EXIF orientation 6"),
    "70 million pixels by header": (lambda t: t.image.write_bytes(png(10_000, 7_000, 8, 2)), "image", "64 million"),
    "a billion pixels by header": (lambda t: t.image.write_bytes(png(40_000, 30_000, 8, 2)), "image", "64 million"),
    "GIF": (lambda t: Image.fromarray(t.ids()).save(t.image, format="GIF"), "image", "GIF file"),
    "BMP": (lambda t: Image.fromarray(t.pixels()).save(t.image, format="BMP"), "image", "BMP file"),
    "TIFF": (lambda t: Image.fromarray(t.pixels()).save(t.image, format="TIFF"), "image", "TIFF file"),
    "WebP": (lambda t: t.image.write_bytes(b"RIFF\x10\0\0\0WEBPVP8 " + bytes(16)), "image", "WebP file"),
    "CMYK image": (lambda t: Image.fromarray(t.pixels()).convert("CMYK").save(t.image), "image", "mode CMYK"),
    "RGBA image": (lambda t: Image.fromarray(t.pixels()).convert("RGBA").save(t.image, format="PNG"), "image", "mode RGBA"),
    "16-bit image": (lambda t: Image.fromarray(t.ids().astype(np.uint16)).save(t.image, format="PNG"), "image", "16-bit"),
    "link out of the root": (lambda t: linked_outside(t, t.image), "image", "symbolic link"),
    "dangling link": (lambda t: (t.label.unlink(), t.label.symlink_to(t.root / "gone.png")), "label", "no such file"),
    "same file in two splits": (
        lambda t: (t.root / t.other / "images" / "b.jpg").write_bytes(t.image.read_bytes()),
        "val",
        "same picture as",
    ),
    "same pixels in two splits": (same_pixels_other_file, "val", "same picture as"),
}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_found_and_its_file_named(kind, seed, tree, tmp_path):
    tree = tree(seed)
    break_it, named, said = FAULTS[kind]
    break_it(tree)
    with pytest.raises(BadData) as found:
        tree.run(tmp_path)
    paths = {"image": f"{tree.split}/images/{tree.stem}.jpg", "label": f"{tree.split}/labels/{tree.stem}.png", "val": "val/images/"}
    assert paths[named] in str(found.value) and said in str(found.value), str(found.value)
    assert not (tmp_path / "job" / "out" / "index.json").exists(), "nothing half-made is left"


def test_without_a_fault_nothing_is_said_to_be_wrong(tree, tmp_path):
    made, job = tree(3).run(tmp_path)
    assert made.facts["splits"] == {"train": 3, "val": 3} and len(job.said) == 1


def test_a_picture_whose_orientation_is_unknown_and_a_name_with_a_narrow_space_are_taken(tree, tmp_path):
    tree = tree(2)
    turned(tree, tree.image, 0)
    for path in (tree.image, tree.label):
        path.rename(path.with_stem("at 3.14\u202fPM"))
    assert tree.run(tmp_path)[0].facts["splits"] == {"train": 3, "val": 3}


@pytest.mark.parametrize("kind", ["image", "label"])
def test_a_link_that_stays_below_the_root_is_followed(kind, tree, tmp_path):
    tree = tree(2)
    path = getattr(tree, kind)
    (tree.root / "kept").mkdir()
    os.replace(path, tree.root / "kept" / path.name)
    path.symlink_to(f"../../kept/{path.name}")
    assert tree.run(tmp_path)[0].facts["splits"] == {"train": 3, "val": 3}


def test_a_class_table_may_lie_where_the_recipe_says_but_not_where_the_data_lead(tree, tmp_path):
    tree = tree()
    elsewhere = tmp_path / "elsewhere.json"
    (tree.root / "classes.json").rename(elsewhere)
    for i, name in enumerate((str(elsewhere), "../elsewhere.json")):
        assert tree.run(tmp_path / str(i), classes=name)[0].facts["classes"] == NAMES
    (tree.root / "classes.json").symlink_to(elsewhere)
    with pytest.raises(BadData, match=r"classes\.json cannot be read: a symbolic link leads out of the root"):
        tree.run(tmp_path / "link")


def test_a_folder_that_leads_out_of_the_root_is_not_even_listed(tree, tmp_path):
    tree = tree()
    (tree.root / "train" / "images").rename(tmp_path / "elsewhere")
    (tree.root / "train" / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadData, match=r"train/images: a symbolic link leads out of the root: put the folder itself there") as found:
        tree.run(tmp_path)
    assert "a.jpg: a symbolic link" not in str(found.value)


@pytest.mark.parametrize(("field", "name"), [("lists", "{split}\0.txt"), ("classes", "\0.json"), ("classes", "/\0.json"), ("root", "a\0")])
def test_a_name_with_nul_is_answered_like_any_other(field, name, tree, tmp_path):
    with pytest.raises(BadData, match=r"is not a folder|cannot be read"):
        tree().run(tmp_path, **{field: name})


TABLES = {
    "a name twice": ({"classes": [{"name": "x"}, {"name": "x"}]}, "class 'x' is there 2 times"),
    "a value twice": ({"classes": [{"name": "x", "id": 1}, {"name": "y", "id": [1, 2]}]}, "mask value 1 belongs to 'x' and to 'y'"),
    "a class that is ignored": ({"ignore": [2]}, "mask value 2 belongs to 'sky' and to 'ignore'"),
    "a class without a value": ({"classes": [{"name": "x"}, {"name": "y", "id": []}]}, "class 'y' has no mask value"),
    "one class": ({"classes": [{"name": "x"}]}, "1 classes: there must be 2 to 255"),
    "no class": ({"classes": []}, "0 classes"),
    "too many classes": ({"classes": [{"name": f"c{i}", "id": [i % 256]} for i in range(300)]}, "300 classes"),
    "a value beyond 8 bits": ({"ignore": [256]}, "at most 255"),
    "a colour of two numbers": ({"classes": [{"name": "x", "colour": [1, 2]}, {"name": "y"}]}, "classes.0.colour"),
    "an unknown key": ({"classes": [{"name": "x", "color": [1, 2, 3]}, {"name": "y"}]}, "classes.0.color"),
    "a name of control characters": ({"classes": [{"name": "\x1b[31m"}, {"name": "y"}]}, "printable"),
    "a long name": ({"classes": [{"name": "n" * 65}, {"name": "y"}]}, "1 to 64"),
    "painted without colour": ({"masks": "colours", "ignore": [], "classes": [{"name": "x"}, {"name": "y"}]}, "class 'x' has none"),
    "ids ignored in painted masks": ({"masks": "colours"}, "ignore holds 255, but masks are colours"),
    "another kind of masks": ({"masks": "rgb"}, "masks"),
    "an id as text": ({"classes": [{"name": "x", "id": "1"}, {"name": "y"}]}, "classes.0.id"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_fault_of_the_class_table_is_named_with_its_file(kind, tree, tmp_path):
    tree = tree()
    change, said = TABLES[kind]
    tree.write_table(**change)
    with pytest.raises(BadData) as found:
        tree.run(tmp_path)
    assert "classes.json" in str(found.value) and said in str(found.value), str(found.value)
    assert "\x1b" not in str(found.value)


def test_a_fault_of_the_class_table_is_told_in_plain_words_with_what_was_meant(tree, tmp_path):
    tree = tree()
    tree.write_table(masks="colors", classes=[{"name": "sky", "color": [0, 0, 0]}, "road"])
    with pytest.raises(BadData) as found:
        tree.run(tmp_path)
    said = str(found.value)
    assert 'masks: found "colors", expected ids or colours; did you mean colours?' in said
    assert "classes.0.color: is no key here; did you mean colour?" in said
    assert 'classes.1: found "road", expected a mapping (name, colour, id and painted)' in said


TEXTS = {
    "classes.yaml": [
        ("classes: [{name: a, name: b}, {name: c}]", "stands here again"),
        ("classes: [&x {name: a}, *x]", "anchor|alias"),
        ("classes: !!python/object:os.system [a]", "tag"),
        ("classes: [", "classes.yaml"),
        ("[1, 2]", "classes.yaml"),
        ("a: " + "[" * 3000, "classes.yaml"),
    ],
    "classes.json": [('{"classes": [], "classes": []}', "'classes' is there twice"), ("{", "not valid"), ("x" * 300_000, "256 KiB")],
    "classes.txt": [("road", "give a .json or .yaml file")],
}


@pytest.mark.parametrize(("file", "text", "said"), [(f, *case) for f, cases in TEXTS.items() for case in cases])
def test_a_class_file_that_cannot_be_read_is_named(file, text, said, tree, tmp_path):
    tree = tree()
    (tree.root / file).write_text(text)
    with pytest.raises(BadData, match=f"(?i){said}") as found:
        tree.run(tmp_path, classes=file)
    assert file in str(found.value)


def test_a_class_file_that_is_not_there_is_named(tree, tmp_path):
    with pytest.raises(BadData, match=r"nothing\.yaml cannot be read"):
        tree().run(tmp_path, classes="nothing.yaml")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("../../etc/passwd", r"train\.txt line 1: .*without \.\."),
        ("a\n/etc/passwd", r"train\.txt line 2: .*relative"),
        ("a\nb\x07", r"train\.txt line 2"),
        ("a\na", r"a stands in the list twice"),
        ("a\nz", r"train/images/z\.jpg: there is no such image, named in train\.txt"),
        ("", r"split train is empty"),
        (None, r"train\.txt: the list cannot be read"),
    ],
)
def test_a_fault_of_a_list_is_named_with_its_line(lines, said, tree, tmp_path):
    tree = tree()
    (tree.root / "val.txt").write_text("a\n")
    if lines is not None:
        (tree.root / "train.txt").write_text(lines)
    with pytest.raises(BadData, match=said):
        tree.run(tmp_path, lists="{split}.txt")


def test_a_picture_in_two_lists_is_named(tree, tmp_path):
    tree = tree()
    for split, lines in (("train", "a\nb"), ("val", "c\nb")):
        (tree.root / f"{split}.txt").write_text(lines)
    patterns = {"images": "train/images/{stem}.jpg", "labels": "train/labels/{stem}.png"}
    with pytest.raises(BadData, match=r"train/images/b\.jpg: stands in train and in val"):
        tree.run(tmp_path, lists="{split}.txt", **patterns)


def test_two_files_for_one_stem_are_named(tree, tmp_path):
    tree = tree()
    Image.fromarray(tree.pixels()).save(tree.root / "train" / "images" / "a.png")
    with pytest.raises(BadData, match=r"train/images/a\.jpg: train/images/a\.png matches the same"):
        tree.run(tmp_path, images="{split}/images/{stem}.*")


def test_an_empty_split_says_what_the_root_holds(tree, tmp_path):
    with pytest.raises(BadData, match=r"split dev is empty: root holds classes\.json, train, val"):
        tree().run(tmp_path, splits=["train", "dev"])


def test_a_root_that_is_not_there_is_named_before_anything_runs(tmp_path):
    with pytest.raises(BadData, match=r"nowhere is not a folder"):
        Data.model_validate({"kind": "data", "source": {"kind": "camvid", "root": str(tmp_path / "nowhere")}}).outside()


def test_a_class_without_pixels_is_an_error_in_train_and_said_in_val(tree, tmp_path):
    tree = tree()
    no_sky = np.resize([0, 1], SHAPE).astype(np.uint8)
    for stem in "abc":
        Image.fromarray(no_sky).save(tree.root / "val" / "labels" / f"{stem}.png")
    _, job = tree.run(tmp_path / "one")
    assert any("split val has no pixel of sky" in line for line in job.said)
    for stem in "abc":
        Image.fromarray(no_sky).save(tree.root / "train" / "labels" / f"{stem}.png")
    with pytest.raises(BadData, match=r"no pixel of split train \(3 images\) is sky"):
        tree.run(tmp_path / "two")
    _, job = tree.run(tmp_path / "three", limit=2)
    assert any("split train has no pixel of sky" in line for line in job.said), "a part of the data is not judged"


def test_many_problems_are_told_together_on_one_screen(tree, tmp_path):
    tree = tree()
    for i in range(40):
        (tree.root / "train" / "images" / f"n{i:02d}.jpg").write_bytes(b"nothing")
    with pytest.raises(BadData) as found:
        tree.run(tmp_path)
    lines = str(found.value).splitlines()
    assert len(lines) == 20 and "has 40 problems" in lines[0] and lines[-1].strip() == "... and 22 more"


def test_names_with_escape_sequences_do_not_reach_the_terminal(tree, tmp_path):
    tree = tree()
    (tree.root / "train" / "images" / "x\x1b[2J.jpg").write_bytes(b"nothing")
    (tree.root / "train" / "labels" / "x\x1b[2J.png").write_bytes(b"nothing")
    with pytest.raises(BadData) as found:
        tree.run(tmp_path)
    assert "\x1b" not in str(found.value) and "x?[2J.jpg" in str(found.value)


def test_hidden_files_of_the_operating_system_are_passed_over(tree, tmp_path):
    tree = tree()
    for name in (".DS_Store", "._a.jpg"):
        (tree.root / "train" / "images" / name).write_bytes(b"junk")
    made, _ = tree.run(tmp_path)
    assert made.facts["splits"]["train"] == 3


def test_a_rehearsal_takes_four_images_of_each_split():
    stage = Data.model_validate({"kind": "data", "source": {"kind": "streets"}, "size": [64, 128]})
    assert stage.rehearsed().limit == 4 and stage.rehearsed().size == (64, 128)
    assert stage.model_copy(update={"limit": 2}).rehearsed().limit == 2


@pytest.mark.parametrize("size", [[64], [64, 128, 3], [0, 64], ["64", 128], "large", [64.5, 128], 64])
def test_a_size_is_two_whole_numbers_or_native(size):
    with pytest.raises(ValueError):
        Data.model_validate({"kind": "data", "source": {"kind": "streets"}, "size": size})
