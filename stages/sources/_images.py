"""Reading picture files that nobody vouches for: what is wrong with a file is said before its pixels are used."""

import hashlib
import io

import numpy as np
from PIL import Image, ImageFile

from stages.sources._classes import ClassTable, Mapping
from stages.sources._containers import LARGEST, check_whole, name_of
from stages.sources._problems import Fault

ORIENTATION = 0x0112  # EXIF tag


def decode_image(data: bytes) -> np.ndarray:
    """uint8 (H, W, 3) RGB of a PNG or JPEG, whichever its name says; grayscale pictures get three equal channels."""
    picture = open_picture(data)
    mode = mode_of(picture, data)
    if picture.mode not in ("RGB", "L") or mode == "16-bit":
        raise Fault(f"an image of mode {mode}", "save it as 8-bit RGB")
    return np.array(loaded(picture).convert("RGB"))


def decode_label(data: bytes, painted: bool) -> np.ndarray:
    """uint8 (H, W) of ids, or (H, W, 3) of colours when masks are painted."""
    picture = open_picture(data)
    mode = mode_of(picture, data)
    if picture.format != "PNG":
        raise Fault("a mask saved as JPEG, which changes values", "save masks as PNG")
    if painted:
        if picture.mode not in ("RGB", "P") or mode == "16-bit":
            raise Fault(f"a mask of mode {mode} where colours are expected", "save it as 8-bit RGB, or set masks: ids in the class table")
        if picture.mode == "P":
            check_palette(picture)
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
        if name := name_of(data):
            raise Fault(f"a {name} file", "save it as PNG or JPEG") from None
        if data.startswith(b"version https://git-lfs"):
            raise Fault("a pointer of Git LFS, not the picture", "run git lfs pull") from None
        raise Fault("not a readable PNG or JPEG", "copy it again") from None
    if orientation in range(2, 9):  # 1 is upright; 0 and others say nothing
        raise Fault(f"EXIF orientation {orientation}: viewers turn it, masks do not", "turn the pixels and remove the tag")
    return picture


def loaded(picture: Image.Image) -> Image.Image:
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # other libraries turn it on for the whole process; missing pixels would come out grey
    try:
        picture.load()
    except Exception as error:  # as above, for damaged pixels
        raise Fault(f"damaged or cut off ({str(error)[:80]})", "copy it again") from None
    return picture


def check_palette(picture: Image.Image) -> None:
    """A pixel beyond the palette would come out black, which may well be the colour of a class."""
    colours = len(picture.palette.palette) // 3 if picture.palette else 0
    highest = np.asarray(loaded(picture)).max()
    if highest >= colours:
        raise Fault(f"a pixel has colour {highest} of a palette of {colours}", "save it as 8-bit RGB")


def mode_of(picture: Image.Image, data: bytes) -> str:
    """The mode in words that say more than PIL's: without a word it scales grayscale of fewer than 8 bits, and halves 16 bits."""
    depth, colour = data[24:26] if picture.format == "PNG" else (8, 2)
    if colour == 0 and depth < 8:
        return f"grayscale {depth}-bit"
    return "16-bit" if depth == 16 or picture.mode.startswith("I") else picture.mode
