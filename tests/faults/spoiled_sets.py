"""What can be wrong between the files of a data set, with its lists and classes, and with files that change later.

Each function spoils a DataSet and returns what the message must name.
"""

import os

import numpy as np
from PIL import Image
from small_data import COLOURS, HIGH, NAMES, STEMS, WIDE, Kind, chunk, encoded, flipped, png, rows_of
from spoiled import bind

# -- what belongs together


def twins(data):
    twin = data.pair(data.other, data.rng.choice(STEMS[data.other]))[0]
    pixels = Image.open(data.image).convert("RGB")
    twin.unlink()
    if data.turn(0, 1, 2, 3) == 0:
        os.link(data.image, twin)
    else:
        again = encoded(pixels, "PNG", compress_level=data.seed % 10)
        other_bytes = png(WIDE, HIGH, 8, 2, rows_of(np.asarray(pixels)), chunk(b"tEXt", b"Author\0me"))
        twin.write_bytes(data.turn(b"", data.image.read_bytes(), again, other_bytes))
    return data.name(data.image), data.name(twin)


def shared(data):
    what = data.turn("two endings", "one label", "other case", "other accents", "other letters")
    if what == "two endings":
        second = data.image.with_suffix(data.rng.choice((".jpeg", ".bmp", ".JPG")))
        second.write_bytes(data.image.read_bytes())
        data.settings["images"] = "{split}/images/{stem}.*"
        return data.name(data.image), data.name(second)
    if what == "one label":
        other = data.pair("val", "d4")[0]
        other.rename(other.with_stem("a1"))
        (data.root / "labels").mkdir()
        for label in list(data.root.glob("*/labels/*")):
            label.rename(data.root / "labels" / label.name)
        data.settings["labels"] = "labels/{stem}.png"
        return "labels/a1.png", data.name(other.with_stem("a1"))
    first, second = {"other case": (data.stem, data.stem.upper()), "other accents": ("\u00e9", "e\u0301")}.get(
        what, ("stra\u00dfe", "strasse")
    )
    for path, pixels in zip(data.pair(), (data.pixels(), data.mask()), strict=True):
        path.rename(path.with_stem(first))
        path.with_stem(second).write_bytes(encoded(pixels, "JPEG" if path.suffix == ".jpg" else "PNG"))
    return data.name(data.image.with_stem(first)), data.name(data.image.with_stem(second))


def strange_names(data):
    names = ("\x1b[2J\x1b]0;owned\x07", "line\nbreak", "\u202egpj", os.fsdecode(b"\xff\xfe"), "tab\t")
    strange = data.turn(*names)
    for path in data.pair():
        path.rename(path.with_stem(strange))
    return "".join(c if c.isprintable() else "?" for c in data.name(data.image.with_stem(strange)))


# -- lists


def absent_stem(data):
    stem = data.turn("zz", "A1", "a1.png", "a 1", "a1/", data.stem)
    path, line = added(data, stem)
    return (path, line) if stem == data.stem else (path, f"{data.split}/images/{stem}.")


def stem_outside(data):
    return added(
        data,
        data.turn(
            "../a1", "/etc/passwd", "x/../../a1", "a\0b", "n" * 300, "a\\..\\b", "a\x0bb", "a\x1c", "a\u00a0", "\x1b[31m", "d/" * 600 + "a"
        ),
    )


def unreadable_list(data):
    path = data.root / f"{data.split}.txt"
    path.unlink()
    content = data.turn(b"a\xff1\n", None, "folder", "a1\n".encode("utf-16"), b"", b" \r\n\t\n")
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    return path.name


# -- classes, splits, root


def no_table(data):
    texts = (
        "{",
        "[1, 2]",
        '{"classes": [], "classes": []}',
        "x" * 300_000,
        "[" * 5000,
        b"\xff\xfe\0",
        "",
        "classes: [&x {name: a}, *x]",
        None,
        ".txt",
        "3",
    )
    text = data.turn(*texts)
    data.table.unlink()
    if text == ".txt":
        data.settings["classes"] = "classes.txt"
        (data.root / "classes.txt").write_text("road")
        return "classes.txt"
    if text is not None:
        data.table.write_bytes(text if isinstance(text, bytes) else text.encode())
    return data.table.name


def odd_table(data):
    rows = [{"name": name, "colour": list(colour)} for name, colour in zip(NAMES, COLOURS, strict=True)]
    wrong = data.turn(
        ("is there 2 times", {"classes": [*rows, {**rows[0], "colour": [1, 1, 1]}]}),
        ("have the colour", {"classes": [*rows, {"name": "copy", "colour": rows[1]["colour"], "id": 7}], "masks": "ids", "ignore": [255]}),
        ("colour", {"classes": [{**rows[0], "colour": [0, 256, 0]}, *rows[1:]]}),
        ("colour", {"classes": [{**rows[0], "colour": [0, -1, 0]}, *rows[1:]]}),
        ("colour", {"classes": [{**rows[0], "colour": [1, 2]}, *rows[1:]]}),
        ("300 classes", {"classes": [{"name": f"c{i}", "colour": [i % 256, i // 256, 7]} for i in range(300)]}),
        ("1 classes", {"classes": rows[:1]}),
        ("", {"classes": [{**rows[0], "name": "road\x1b[31m"}, *rows[1:]]}),  # JSON and YAML refuse it in their own words
        ("printable", {"classes": [{**rows[0], "name": "n" * 65}, *rows[1:]]}),
        ("", {"classes": [{**rows[0], "\x1b]0;x\x07": 1}, *rows[1:]]}),
        ("belongs to", {"classes": [{**rows[0], "id": 1}, *rows[1:]], "masks": "ids", "ignore": [255]}),
        ("ignore", {"ignore": ["255"]}),
    )
    data.write_table(**wrong[1])
    return data.table.name, wrong[0]


def unseen_class(data):
    gone = data.rng.randrange(3)
    for stem in STEMS["train"]:
        data.pair("train", stem)[1].write_bytes(encoded(data.mask(only=[i for i in range(3) if i != gone])))
    return f"is {NAMES[gone]}", "split train"


def empty_split(data):
    what = data.turn("another asked for", "no files", "no folder")
    if what == "another asked for":
        data.settings |= {"splits": ["train", "dev"]}
        return "split dev"
    for path in data.root.glob(f"{data.split}/*/*"):
        path.unlink()
    if data.lists:
        (data.root / f"{data.split}.txt").write_text("")
    for folder in data.root.glob(f"{data.split}/*") if what == "no folder" else ():
        folder.rmdir()
    return f"split {data.split}"


def no_root(data):
    data.root.rename(data.root.parent / "moved")
    what = data.turn("missing", "a file", "a dangling link", "x" * 300, "~nobody-of-this-name/x", "x\0", "x\x1b[2J")
    if what == "a file":
        data.root.write_text("a file")
    elif what == "a dangling link":
        data.root.symlink_to("nowhere")
    elif what != "missing":
        data.settings["root"] = what if what.startswith("~") else str(data.root / what)
    return "source.root", "".join(c if c.isprintable() else "?" for c in data.settings["root"])


# -- later


def changing(data):
    path, what = data.either, data.turn("grows", "shrinks", "replaced by the same", "goes", "rewritten")
    whole, before = path.read_bytes(), path.stat()
    if what == "grows":
        path.write_bytes(whole + bytes(99))
    elif what == "shrinks":
        os.truncate(path, len(whole) // 2)
    elif what == "replaced by the same":
        path.with_suffix(".new").write_bytes(whole)
        os.utime(path.with_suffix(".new"), ns=(0, before.st_mtime_ns))
        path.with_suffix(".new").replace(path)
    elif what == "goes":
        path.unlink()
    else:
        path.write_bytes(encoded(data.pixels() if path == data.image else data.mask()))
    return data.name(path)


def flipped_after(data):
    whole = data.either.read_bytes()
    before = data.either.stat()
    data.either.write_bytes(flipped(whole, data.rng.randrange(8 * len(whole))))
    os.utime(data.either, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a disk would do it: nothing else tells
    return data.name(data.either)


def replaced_after(data):
    whole = data.either.read_bytes()
    fresh = encoded(data.pixels() if data.either == data.image else data.mask(), "JPEG" if data.either.suffix == ".jpg" else "PNG")
    data.either.write_bytes(data.turn(fresh, whole[:-1], whole + b"\0", b"", whole[: len(whole) // 2]))
    return data.name(data.either)


def gone_after(data):
    path = data.either
    moved = data.root.parent / path.name
    path.rename(moved)
    what = data.turn("gone", "folder", "FIFO", "socket", "link out", "folder out", "root gone")
    if what == "folder":
        path.mkdir()
    elif what == "FIFO":
        os.mkfifo(path)
    elif what == "socket":
        bind(path)
    elif what == "link out":
        path.symlink_to(moved)
    elif what == "folder out":
        moved.rename(path)
        path.parent.rename(data.root.parent / "labels-or-images")
        path.parent.symlink_to(data.root.parent / "labels-or-images")
    elif what == "root gone":
        data.root.rename(data.root.parent / "moved")
        return data.name(data.image)  # which is read first
    return data.name(path)


def added(data, stem):
    """A further line in the victim's list."""
    path = data.root / f"{data.split}.txt"
    path.write_bytes(path.read_bytes() + os.fsencode(stem) + b"\r\n")
    return path.name, f"line {len(STEMS[data.split]) + 1}"


KINDS = {
    "the same picture in two splits": Kind(twins, r"the same picture as"),
    "two files for one name, or one label for two images": Kind(
        shared, r"matches the same pattern and stem|the label of \S+ and of \S+|only in case or in how accents", needs={"lists": False}
    ),
    "names that act on a terminal": Kind(strange_names, r"control characters", needs={"lists": False}),
    "a list that names what is not there": Kind(absent_stem, r"no such image, named in|stands in the list twice", needs={"lists": True}),
    "a list that leads elsewhere": Kind(stem_outside, r"relative to the root|control characters", needs={"lists": True}),
    "a list that cannot be read": Kind(unreadable_list, r"the list cannot be read|is empty", needs={"lists": True}),
    "a class table that is missing or no table": Kind(
        no_table, r"(class table|classes\.).*(cannot be (read|used)|not valid|KiB|give a \.json)|stands here again"
    ),
    "a class table at odds with itself": Kind(odd_table, r"the class table"),
    "a class that training never sees": Kind(unseen_class, r"no pixel of split train \(3 images\) is (road|tree|sky): add images"),
    "an empty or missing split": Kind(empty_split, r"split \w+ is empty"),
    "a root that is no folder": Kind(no_root, r"is not a folder|cannot be looked at"),
    "a file that changes while the data are looked at": Kind(
        changing, r"changed while|there is no such file|cut off|not a readable|an empty file", when="meanwhile"
    ),
    "a bit flipped after indexing": Kind(flipped_after, r"changed since the data stage indexed it: run again", when="after"),
    "a file replaced, cut or grown after indexing": Kind(
        replaced_after, r"changed since the data stage indexed it: run again", when="after"
    ),
    "a file gone or turned into something else after indexing": Kind(
        gone_after, r"no such file|not a regular file|leads out of the root", when="after"
    ),
}
