"""Reading picture files that nobody vouches for: what is wrong with a file is said before its pixels are used."""

import hashlib
import io
import os
import stat
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from stages.sources._classes import ClassTable, Mapping
from stages.sources._layout import check_relative
from stages.sources._problems import Fault

LARGEST = 64_000_000  # pixels of one picture, by its header
HEAVIEST = 1 << 30  # bytes of one file
ORIENTATION = 0x0112  # EXIF tag
OTHERS = {b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"RIFF": "WebP", b"\0\0\0\x0cjP": "JPEG 2000", b"%PDF": "PDF"}


def read_file(root: Path, path: str) -> bytes:
    """The bytes of a regular file below `root` (itself free of links); Fault for anything else."""
    try:
        check_relative(path)
    except ValueError as error:
        raise Fault(str(error), "correct the list or the index") from None
    real = os.path.realpath(root / path)
    if not real.startswith(f"{root}{os.sep}"):
        raise Fault("a symbolic link leads out of the root", "put the file itself there, or make its folder the root")
    try:
        handle = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            info = os.fstat(handle)
            if not stat.S_ISREG(info.st_mode) or info.st_size > HEAVIEST:
                raise Fault("not a regular file of less than 1 GiB", "replace it")
            return file.read()
    except FileNotFoundError:
        raise Fault("there is no such file", "put it back, or leave the pair out") from None
    except OSError as error:
        raise Fault(f"cannot be read ({error.strerror})", "check permissions and the disk") from None


def decode_image(data: bytes) -> np.ndarray:
    """uint8 (H, W, 3) RGB of a PNG or JPEG."""
    picture = open_picture(data)
    if picture.mode not in ("RGB", "L"):
        raise Fault(f"an image of mode {mode_of(picture, data)}", "save it as 8-bit RGB")
    return np.array(loaded(picture).convert("RGB"))


def decode_label(data: bytes, painted: bool) -> np.ndarray:
    """uint8 (H, W) of ids, or (H, W, 3) of colours when masks are painted."""
    picture = open_picture(data)
    mode = mode_of(picture, data)
    if picture.format != "PNG":
        raise Fault("a mask saved as JPEG, which changes values", "save masks as PNG")
    if painted:
        if picture.mode not in ("RGB", "P"):
            raise Fault(f"a mask of mode {mode} where colours are expected", "save it as 8-bit RGB, or set masks: ids in the class table")
        return np.array(loaded(picture).convert("RGB"))
    if mode.startswith("grayscale"):
        raise Fault(f"a {mode} mask, whose values would be scaled on reading", "save it as 8-bit grayscale")
    if picture.mode == "RGB":
        pixels = np.asarray(loaded(picture))
        if (pixels == pixels[..., :1]).all():
            raise Fault("an RGB mask with three equal channels where ids are expected", "save one channel as 8-bit grayscale")
        raise Fault("an RGB mask where ids are expected", "set masks: colours in the class table, or save ids as 8-bit grayscale")
    if picture.mode not in ("L", "P"):
        raise Fault(f"a mask of mode {mode} where ids are expected", "save it as 8-bit grayscale or palette PNG")
    return np.array(loaded(picture))


def check_pair(image_data: bytes, label_data: bytes, table: ClassTable, mapping: Mapping) -> tuple:
    """(image or None, label or None, [(which file, Fault)]): everything that can be said about a pair from its bytes."""
    image = label = raw = None
    faults = []
    try:
        check_whole(image_data)
        image = decode_image(image_data)
    except Fault as fault:
        faults.append(("image", fault))
    try:
        check_whole(label_data)
        raw = decode_label(label_data, table.painted)
    except Fault as fault:
        faults.append(("label", fault))
    if raw is not None:
        label = mapping(raw)
        faults += [("label", fault) for fault in value_faults(raw, label, table, mapping)]
        if image is not None and image.shape[:2] != raw.shape[:2]:
            sizes = f"{raw.shape[1]}x{raw.shape[0]} pixels, but its image has {image.shape[1]}x{image.shape[0]}"
            faults.append(("label", Fault(sizes, "make them equal: masks with the nearest neighbour")))
    return image, label, faults


def value_faults(raw: np.ndarray, label: np.ndarray, table: ClassTable, mapping: Mapping) -> list[Fault]:
    strangers = mapping.strangers(raw)
    kind = "colour" if table.painted else "value"
    faults = [
        Fault(
            f"{kind} {value} in {pixels:,} pixels is no class and not ignored",
            f"add ignore: [{value}] in {table.source}, or correct the mask",
        )
        for value, pixels in strangers[:3]
    ]
    if len(strangers) > 3:
        faults.append(Fault(f"{len(strangers) - 3} further {kind}s are no class", "is this the right kind of mask for this class table?"))
    if not strangers and (label == 255).all():
        faults.append(Fault("every pixel is ignored", "leave the pair out, or correct the mask"))
    return faults


def pixel_digest(image: np.ndarray) -> str:
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, to (height, width)."""
    if image.shape[:2] == tuple(size):
        return image
    return np.array(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest neighbour, to (height, width)."""
    if label.shape == tuple(size):
        return label
    return np.array(Image.fromarray(label).resize((size[1], size[0]), Image.Resampling.NEAREST))


def open_picture(data: bytes) -> Image.Image:
    """The header alone, checked: format, number of pixels, frames, orientation."""
    if not data:
        raise Fault("an empty file", "copy it again")
    try:
        picture = Image.open(io.BytesIO(data), formats=["PNG", "JPEG"])
        if picture.width * picture.height > LARGEST:
            raise Fault(f"{picture.width}x{picture.height} pixels, more than 64 million", "make it smaller")
        if picture.format not in ("PNG", "JPEG") or getattr(picture, "n_frames", 1) > 1:
            raise Fault(f"a {picture.format} with several pictures in it", "save one picture as PNG or JPEG")
        orientation = picture.getexif().get(ORIENTATION, 1)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Fault("more than 64 million pixels by its header", "make it smaller") from None
    except Fault:
        raise
    except Exception:  # PIL raises many kinds on damaged headers; all of them mean the same to the owner of the file
        name = next((name for magic, name in OTHERS.items() if data.startswith(magic)), None)
        if name:
            raise Fault(f"a {name} file", "save it as PNG or JPEG") from None
        raise Fault("not a readable PNG or JPEG", "copy it again") from None
    if orientation != 1:
        raise Fault(f"EXIF orientation {orientation}: viewers turn it, masks do not", "turn the pixels and remove the tag")
    return picture


def loaded(picture: Image.Image) -> Image.Image:
    try:
        picture.load()
    except Exception as error:  # as above, for damaged pixels
        raise Fault(f"damaged or cut off ({str(error)[:80]})", "copy it again") from None
    return picture


def mode_of(picture: Image.Image, data: bytes) -> str:
    """The mode in words that say more than PIL's: it scales grayscale of fewer than 8 bits without a word."""
    if picture.format == "PNG" and data[25] == 0 and data[24] < 8:
        return f"grayscale {data[24]}-bit"
    return "16-bit" if picture.mode.startswith("I") else picture.mode


def check_whole(data: bytes) -> None:
    """Decoders forgive missing ends and flipped bits; the containers tell. Once, when data are first seen."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        check_png(memoryview(data))
    elif data.startswith(b"\xff\xd8"):
        check_jpeg(data)


def check_png(data: memoryview) -> None:
    """Walks the chunks to IEND and checks their sums."""
    at = 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            break
        if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise Fault("damaged: a checksum inside the PNG is wrong", "copy it again")
        if data[at + 4 : at + 8] == b"IEND":
            return
        at = end
    raise Fault("cut off before the end of the PNG", "copy it again")


def check_jpeg(data: bytes) -> None:
    """Walks the segments to the first scan, after which an end marker must come."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == 0xFF:  # filling
            at += 1
            continue
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        at += 2 + length
        if marker == 0xDA and data.find(b"\xff\xd9", at) > 0:
            return
        if marker == 0xDA:
            break
    raise Fault("cut off before the end of the JPEG", "copy it again")
