"""What can be wrong with one file of a data set. Each function spoils a DataSet and returns what the message must name."""

import os
import socket
import stat
import zlib
from contextlib import chdir

import numpy as np
from PIL import Image
from small_data import COLOURS, HIGH, WIDE, Kind, chunk, encoded, flipped, painted, png, resized_header, rows_of

# -- files that are not there, or are no files


def missing(data):
    data.either.unlink()
    return data.name(data.either)


def dangling(data):
    path = data.either
    path.unlink()
    path.symlink_to(data.turn(data.root / "gone.png", path))
    return data.name(path)


def link_out(data):
    path = data.turn(data.either, data.either.parent, data.either.parent.parent, data.table)
    path.rename(data.root.parent / "elsewhere")
    path.symlink_to(data.turn("../" * (len(path.relative_to(data.root).parts)) + "elsewhere", data.root.parent / "elsewhere"))
    return data.name(path)


def not_a_file(data):
    path, what = data.either, data.turn("folder", "socket", "device", "link to a folder")
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "socket":
        bind(path)
    elif what == "device" and os.geteuid() == 0:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # what /dev/zero is: reading it never ends
    else:
        (data.root / "folder").mkdir()
        path.symlink_to(data.root / "folder")
    return data.name(path)


def fifo(data):
    path = data.turn(data.image, data.label, data.table, data.root / f"{data.split}.txt")
    path.unlink()
    os.mkfifo(path)
    return data.name(path)


def no_right(data):
    path = data.turn(data.either, data.table, data.either.parent)
    path.chmod(0)
    return data.name(path)


# -- bytes


def empty(data):
    path = data.turn(data.image, data.label, data.table)
    path.write_bytes(b"")
    return data.name(path)


def cut_off(data):
    whole = data.either.read_bytes()
    data.either.write_bytes(whole[: data.turn(data.rng.randrange(1, len(whole)), -data.rng.randrange(1, 14))])  # anywhere, or near the end
    return data.name(data.either)


def flipped_before(data):
    whole = data.either.read_bytes()
    data.either.write_bytes(flipped(whole, data.rng.randrange(8 * len(whole))))
    return data.name(data.either)


def rows_missing(data):
    pixels = data.pixels() if data.either == data.image else data.ids()
    rows = rows_of(pixels)[: -data.rng.randrange(1, pixels[0].size)]
    data.either.write_bytes(png(WIDE, HIGH, 8, 2 if data.either == data.image else 0, rows))
    return data.name(data.either)


def other_format(data):
    picture = Image.fromarray(data.pixels())
    formats = [encoded(picture, format) for format in ("GIF", "BMP", "TIFF", "WEBP", "PDF", "PPM", "ICO", "JPEG2000", "TGA")]
    formats += [b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"version https://git-lfs.github.com/spec/v1\nsize 9", b"<html>404</html>"]
    formats += [b"\0\0\0\x20ftypavif" + bytes(40), b"\x93NUMPY" + bytes(40), b"PK\3\4" + bytes(40), zlib.compress(bytes(999)), bytes(999)]
    data.either.write_bytes(data.turn(*formats))
    return data.name(data.either)


# -- pictures of the wrong kind


def too_large(data):
    high, wide = data.turn((8001, 8000), (65000, 65000), (9000, 9000), (65000, 1000))
    if data.rng.random() < 0.5:
        data.image.write_bytes(resized_header(encoded(data.pixels(), "JPEG"), high, wide))
        return data.name(data.image)
    data.either.write_bytes(png(wide * data.rng.choice((1, 10)), high, 8, data.rng.choice((0, 2, 3))))
    return data.name(data.either)


def swelling(data):
    zeros = zlib.compress(bytes(40_000_000))
    what = data.turn(b"zTXt", b"iCCP", b"iTXt", "rows", "scans")
    if what == "scans":
        data.image.write_bytes(many_scans(data))
        return data.name(data.image)
    if what == "rows":
        data.either.write_bytes(png(8000, 8000, 8, 0, bytes(40_000_000)))  # 64 million pixels are announced
    else:
        extra = chunk(what, {b"iTXt": b"x\0\1\0\0\0"}.get(what, b"x\0\0") + zeros)
        data.either.write_bytes(png(WIDE, HIGH, 8, 0, rows_of(data.ids()), extra))
    return data.name(data.either)


def no_pixels(data):
    high, wide = data.turn((0, WIDE), (HIGH, 0), (0, 0))
    if data.rng.random() < 0.5:
        data.image.write_bytes(resized_header(encoded(data.pixels(), "JPEG"), high, wide))
        return data.name(data.image)
    data.either.write_bytes(png(wide, high, 8, 2))
    return data.name(data.either)


def other_mode(data):
    picture, ids = Image.fromarray(data.pixels()), data.ids()
    modes = [encoded(picture.convert("CMYK"), "JPEG"), encoded(picture.convert("RGBA")), encoded(picture.convert("LA"))]
    modes += [encoded(picture.convert("P")), encoded(picture.convert("1")), encoded(ids.astype(np.uint16)), wide_rgb(data.pixels())]
    data.image.write_bytes(data.turn(*modes))
    return data.name(data.image)


def wide_label(data):
    if data.painted:
        data.label.write_bytes(wide_rgb(data.mask()))
    else:
        data.label.write_bytes(encoded(data.ids().astype(np.uint16) * data.turn(1, 257)))
    return data.name(data.label)


def packed_label(data):
    picture = Image.fromarray(data.ids())
    depth = data.turn(1, 2, 4)
    packed = png(WIDE, HIGH, depth, 0, (b"\0" + bytes(WIDE * depth // 8)) * HIGH)
    data.label.write_bytes(data.turn(encoded(picture.convert("RGBA")), encoded(picture.convert("LA")), packed))
    return data.name(data.label)


def jpeg_label(data):
    data.label.write_bytes(encoded(data.mask(), "JPEG", quality=data.turn(95, 60)))
    return data.name(data.label)


def colours_or_ids(data):
    ids = data.ids()
    if data.painted:
        data.label.write_bytes(encoded(ids))
    else:
        data.label.write_bytes(encoded(data.turn(painted(ids), np.repeat(ids[..., None], 3, axis=2))))
    return data.name(data.label)


def palette(data):
    picture = Image.fromarray(np.where(data.ids() == 255, 0, data.ids() % 3).astype(np.uint8))
    if data.painted:
        short = chunk(b"PLTE", bytes(v for colour in COLOURS[:2] for v in colour))
        data.label.write_bytes(png(WIDE, HIGH, 8, 3, rows_of(np.asarray(picture)), data.turn(short, b"")))
    else:
        strange = Image.fromarray(np.asarray(picture) + np.uint8(data.rng.randrange(3, 250)))
        strange.putpalette([v for i in range(256) for v in (i, 255 - i, 9)])
        data.label.write_bytes(encoded(strange))
    return data.name(data.label)


def unknown_value(data):
    mask = data.mask()
    strange = data.rng.randrange(3, 255)
    spots = data.rng.sample(range(HIGH * WIDE), data.turn(1, 7, HIGH * WIDE))
    mask.reshape(HIGH * WIDE, -1)[spots] = [1, 2, strange] if data.painted else strange
    data.label.write_bytes(encoded(mask))
    return data.name(data.label), f"[1, 2, {strange}]" if data.painted else f"value {strange}"


def other_size(data):
    mask = data.mask()
    others = (mask[:-1], mask[:, 1:], np.swapaxes(mask, 0, 1), np.repeat(mask, 2, axis=0), mask[:1, :1])
    data.label.write_bytes(encoded(np.ascontiguousarray(data.turn(*others))))
    return data.name(data.label)


def all_ignored(data):
    data.label.write_bytes(encoded(data.mask(only=[255])))
    return data.name(data.label)


def turned_by_exif(data):
    exif = Image.Exif()
    exif[0x0112] = data.turn(2, 3, 4, 5, 6, 7, 8)
    data.image.write_bytes(encoded(data.pixels(), data.rng.choice(("JPEG", "PNG")), exif=exif))
    return data.name(data.image)


def several_pictures(data):
    frames = [Image.fromarray(data.mask() if data.either == data.label else data.pixels()) for _ in range(data.turn(2, 3))]
    container = "MPO" if data.either == data.image and data.seed % 2 else "PNG"
    data.either.write_bytes(encoded(frames[0], container, save_all=True, append_images=frames[1:]))
    return data.name(data.either)


def bind(path):
    """A socket; its name is bound from its folder, since a path of more than 107 bytes cannot be."""
    with chdir(path.parent), socket.socket(socket.AF_UNIX) as held:
        held.bind(path.name)


def wide_rgb(pixels):
    """The same colours with 16 bits per channel; the lower 8 say something else."""
    return png(WIDE, HIGH, 16, 2, rows_of(np.stack([pixels, ~pixels], axis=-1)))


def many_scans(data):
    """A progressive JPEG that draws its last scan a thousand times."""
    whole = encoded(data.pixels(), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * 1000 + whole[-2:]


KINDS = {
    "an image or a label missing": Kind(missing, r"no such (image|label)|a label without its image"),
    "a link to nowhere, or in a circle": Kind(dangling, r"no such file|a link, not a regular file|cannot be read \(Too many levels"),
    "a link out of the root": Kind(link_out, r"a symbolic link leads out of the root|no such (image|label)|a link to a folder"),
    "a folder, a socket or a device in place of a file": Kind(
        not_a_file, r"no such (image|label|file)|not a regular file|a label without its image"
    ),
    "a FIFO in place of a file": Kind(fifo, r"a FIFO, not a regular file", needs={"lists": True}),
    "no right to read": Kind(no_right, r"Permission denied", powerless=True),
    "an empty file": Kind(empty, r"an empty file|cannot be read|not valid|classes: Field required|is empty|was found"),
    "a file cut off at a random byte": Kind(cut_off, r"cut off|not a readable"),
    "a bit of a PNG flipped before it is seen": Kind(flipped_before, r"damaged|cut off|not a readable", needs={"images": "png"}),
    "rows missing inside a whole PNG": Kind(rows_missing, r"its rows are missing", needs={"images": "png", "painted": False}),
    "another format under the name of a picture": Kind(
        other_format, r"an? ([A-Z]\w+|JPEG 2000|HEIC or AVIF) file|not a readable|a pointer of Git LFS"
    ),
    "too many pixels by its header": Kind(too_large, r"64 million"),
    "a small file that swells": Kind(swelling, r"not a readable|more than 100 scans|its rows are missing"),
    "no pixels by its header": Kind(no_pixels, r"a picture of \d+x\d+ pixels|not a readable|cut off|damaged"),
    "an image of another mode": Kind(other_mode, r"an image of mode|mode 16-bit"),
    "a label with 16 bits": Kind(wide_label, r"16-bit"),
    "a label with transparency, or packed": Kind(
        packed_label, r"a mask of mode|a grayscale \d-bit mask|mode 1\b|1-bit", needs={"painted": False}
    ),
    "a label saved as JPEG": Kind(jpeg_label, r"a mask saved as JPEG"),
    "colours where ids are meant, or ids where colours are": Kind(
        colours_or_ids, r"three equal channels|an RGB mask|where colours are expected"
    ),
    "a palette that says more or less than there is": Kind(palette, r"is no class and not ignored|of a palette of"),
    "a value or colour that is no class": Kind(unknown_value, r"in [\d,]+ pixels is no class and not ignored"),
    "a label of another size": Kind(other_size, r"\d+x\d+ pixels, but its image has 48x32"),
    "a label that is ignored everywhere": Kind(all_ignored, r"every pixel is ignored"),
    "an image that viewers turn": Kind(turned_by_exif, r"EXIF orientation \d"),
    "several pictures in one file": Kind(several_pictures, r"with several pictures in it"),
}
