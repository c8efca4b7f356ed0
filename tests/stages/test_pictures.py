"""What is unusual about a picture but no fault is taken, with the pixels that were saved; nothing but a Fault says no."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from stages.sources._classes import ClassRow, Mapping, class_table, filled, palette
from stages.sources._containers import check_whole
from stages.sources._images import check_pair, decode_image, decode_label
from stages.sources._problems import Fault

TABLE = class_table(["road", "tree", "sky"], palette(3), [[0], [1], [2]], [255])
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
IDS = np.random.default_rng(1).choice(np.uint8([0, 1, 2, 255]), (24, 40))
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def saved(pixels, format="PNG", **how):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format=format, **how)
    return out.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(pixels, interlaced, missing=0):
    """Rows without filters, or in seven passes from coarse to fine; the last `missing` bytes are left out."""
    passes = PASSES if interlaced else ((0, 0, 1, 1),)
    rows = b"".join(b"\0" + row.tobytes() for x, y, dx, dy in passes for row in pixels[y::dy, x::dx] if len(row))
    rows = rows[: len(rows) - missing]
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2 if pixels.ndim == 3 else 0, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


FINE = {
    "grayscale image": (saved(IDS), saved(IDS)),
    "grayscale JPEG": (saved(IDS, "JPEG"), saved(IDS)),
    "interlaced image": (png(PIXELS, 1), saved(IDS)),
    "interlaced label": (saved(PIXELS), png(IDS, 1)),
    "progressive JPEG": (saved(PIXELS, "JPEG", progressive=True), saved(IDS)),
    "JPEG with restarts": (saved(PIXELS, "JPEG", restart_marker_blocks=1), saved(IDS)),
    "bytes after the end of a JPEG": (saved(PIXELS, "JPEG") + b"trailer", saved(IDS)),
    "bytes after the end of a PNG": (saved(PIXELS), saved(IDS) + b"trailer"),
}


@pytest.mark.parametrize("kind", FINE)
def test_what_is_unusual_but_whole_is_taken(kind):
    image, label, faults = check_pair(*FINE[kind], TABLE, Mapping(TABLE.facts()["labels"]))
    assert not faults
    assert np.array_equal(image, np.asarray(Image.open(io.BytesIO(FINE[kind][0])).convert("RGB")))
    assert np.array_equal(label, IDS)


@pytest.mark.parametrize("shape", [(24, 40), (1, 1), (3, 5), (9, 2)])
def test_the_rows_of_an_interlaced_png_are_counted_pass_by_pass(shape):
    pixels = PIXELS[: shape[0], : shape[1]]
    check_whole(png(pixels, 1))
    assert np.array_equal(decode_image(png(pixels, 1)), pixels)
    with pytest.raises(Fault, match="its rows are missing"):
        check_whole(png(pixels, 1, missing=1))


def test_missing_pixels_are_never_filled_in_even_if_a_library_allowed_it(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    whole = saved(PIXELS, "JPEG")
    with pytest.raises(Fault, match="damaged or cut off"):
        decode_image(whole[: len(whole) // 2])


def test_classes_without_a_colour_get_one_that_no_other_has():
    given = palette(3)[0]
    colours = filled([ClassRow(name="road"), ClassRow(name="tree", colour=given), ClassRow(name="sky")])
    assert colours[1] == given and len(set(colours)) == 3


def test_random_damage_is_a_fault_or_a_picture_and_nothing_else():
    rng = random.Random(0)
    whole = [pair for pairs in FINE.values() for pair in pairs]
    said = 0
    for _ in range(600):
        data = bytearray(rng.choice(whole))
        for _ in range(rng.choice((1, 3, 9))):
            at = min(rng.randrange(len(data)), rng.choice((len(data) - 1, 60)))
            data[at : at + rng.choice((0, 1, 4))] = rng.randbytes(rng.choice((0, 1, 4)))
        for decode in (decode_image, lambda content: decode_label(content, False), lambda content: decode_label(content, True)):
            try:
                check_whole(bytes(data))
                assert decode(bytes(data)).dtype == np.uint8
            except Fault:
                said += 1
    assert said > 900
