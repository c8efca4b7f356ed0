"""A data set of five small pictures that is without fault until a test spoils it, and the bytes of pictures no program would save."""

import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from stages.data import Data

HIGH, WIDE = 32, 48
NAMES = ("road", "tree", "sky")
COLOURS = ((128, 64, 128), (107, 142, 35), (70, 130, 180))
STEMS = {"train": ("a1", "b2", "c3"), "val": ("d4", "e5")}


@dataclass(frozen=True)
class Kind:
    """A kind of fault."""

    spoil: Callable  # (DataSet) -> what the message must name: a word or several
    said: str  # a pattern that the message must hold
    when: str = "before"  # the data stage runs; or `meanwhile`; or `after`, when a later stage reads
    needs: dict | None = None  # what the data set must be like
    powerless: bool = False  # looked at without the right of root to read everything


class DataSet:
    """One seed decides everything: JPEG or PNG, ids or colours, with lists or without, and which pair is the victim."""

    def __init__(self, place, seed, painted=None, lists=None, images=None):
        self.root, self.seed = place / "data", seed
        rng = self.rng = random.Random(seed)
        self.ending = images or rng.choice(("jpg", "png"))
        self.painted = rng.random() < 0.4 if painted is None else painted
        self.lists = rng.random() < 0.4 if lists is None else lists
        self.table = self.root / rng.choice(("classes.json", "classes.yaml"))  # JSON is YAML too
        self.settings = {"kind": "folder", "root": str(self.root), "classes": self.table.name}
        self.settings |= {"images": f"{{split}}/images/{{stem}}.{self.ending}", "labels": "{split}/labels/{stem}.png"}
        self.settings |= {"lists": "{split}.txt"} if self.lists else {}
        self.split, self.other = rng.sample(list(STEMS), 2)
        self.stem, self.side = rng.choice(STEMS[self.split]), rng.randrange(2)
        self.write()

    def write(self):
        self.root.mkdir()
        self.write_table()
        for split, stems in STEMS.items():
            if self.lists:
                (self.root / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
            for stem in stems:
                image, label = self.pair(split, stem)
                for path in (image, label):
                    path.parent.mkdir(parents=True, exist_ok=True)
                image.write_bytes(encoded(self.pixels(), "JPEG" if self.ending == "jpg" else "PNG"))
                label.write_bytes(encoded(self.mask()))

    def write_table(self, **change):
        classes = [{"name": name, "colour": list(colour)} for name, colour in zip(NAMES, COLOURS, strict=True)]
        table = {"classes": classes, "masks": "colours" if self.painted else "ids", "ignore": [[0, 0, 0]] if self.painted else [255]}
        self.table.write_text(json.dumps(table | change))

    def pair(self, split=None, stem=None):
        folder, stem = self.root / (split or self.split), stem or self.stem
        return folder / "images" / f"{stem}.{self.ending}", folder / "labels" / f"{stem}.png"

    @property
    def image(self):
        return self.pair()[0]

    @property
    def label(self):
        return self.pair()[1]

    @property
    def either(self):
        """The image or the label of the victim: the same one whenever it is asked for."""
        return self.pair()[self.side]

    def turn(self, *choices):
        """The choices take turns with the seeds, so that none is left out."""
        return choices[self.seed % len(choices)]

    def name(self, path):
        return str(path.relative_to(self.root))

    def pixels(self):
        return np.random.default_rng(self.rng.getrandbits(32)).integers(0, 256, (HIGH, WIDE, 3), dtype=np.uint8)

    def ids(self, only=(0, 1, 2, 255)):
        """(HIGH, WIDE) in which all of these appear."""
        values = np.resize(np.array(only, np.uint8), HIGH * WIDE)
        return np.random.default_rng(self.rng.getrandbits(32)).permutation(values).reshape(HIGH, WIDE)

    def mask(self, only=(0, 1, 2, 255)):
        return painted(self.ids(only)) if self.painted else self.ids(only)

    def stage(self, **settings):
        return Data.model_validate({"kind": "data", "source": self.settings | settings, "size": "native"})


def painted(ids):
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(COLOURS)] = COLOURS
    return colours[ids]


def encoded(pixels, format="PNG", **how):
    """`pixels` is an array or a picture."""
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    out = io.BytesIO()
    picture.save(out, format=format, **how)
    return out.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(wide, high, depth, colour, rows=b"", extra=b"", interlaced=0):
    """A PNG whose checksums are right, whatever it says."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", wide, high, depth, colour, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def rows_of(pixels):
    """The rows of a PNG without filters."""
    return b"".join(b"\0" + row.tobytes() for row in pixels)


def resized_header(data, high, wide):
    """A JPEG whose frame header says another size."""
    at = next(i for i in range(len(data) - 1) if data[i] == 0xFF and data[i + 1] in (0xC0, 0xC1, 0xC2))
    return data[: at + 5] + struct.pack(">HH", high, wide) + data[at + 9 :]


def flipped(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
