"""Varies a training image and its label alike: scale, crop, flip and colour, resampling only the part that will be seen."""

from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image

from stages.fit import Augment

IGNORE = 255
FILL = np.array([124, 116, 104], np.uint8)  # RGB beyond the image's edge: the mean of ImageNet
GREY = 128.0  # contrast turns about this value
Window = tuple[float, float, int, int]  # (a, b, u, v) of one axis: the source interval [a, b) fills the output interval [u, v)


class Variation(NamedTuple):
    """What is done to one sample."""

    rows: Window
    columns: Window
    flip: bool
    colour: tuple[float, float, float]  # factors of brightness, contrast, saturation


def augment(image: np.ndarray, label: np.ndarray, crop: tuple[int, int], settings: Augment, rng: Random) -> tuple[np.ndarray, np.ndarray]:
    """image uint8 (H, W, 3), label uint8 (H, W) -> the same at the crop's size. `rng` gives the same draws to every call alike."""
    rows, columns, flip, colour = drawn(label.shape, crop, settings, rng)
    picture = _cut(image, rows, columns, Image.Resampling.BILINEAR)
    pixels = _recoloured(picture, *colour) if settings.colour else np.asarray(picture)
    image = _placed(pixels, rows, columns, crop, FILL)
    label = _placed(np.asarray(_cut(label, rows, columns, Image.Resampling.NEAREST)), rows, columns, crop, IGNORE)
    return (image[:, ::-1], label[:, ::-1]) if flip else (image, label)


def drawn(shape: tuple[int, int], crop: tuple[int, int], settings: Augment, rng: Random) -> Variation:
    """What happens to a sample of that shape. All of chance is here: who does it, and where, does not matter."""
    low, high = settings.scale
    factor = low + (high - low) * rng.random()
    rows, columns = (_window(full, side, factor, rng.random()) for full, side in zip(shape, crop, strict=True))
    flip = rng.random() < settings.flip
    brightness, contrast, saturation = (1 + settings.colour * (2 * rng.random() - 1) for _ in range(3))
    return Variation(rows, columns, flip, (brightness, contrast, saturation))


def tones(brightness, contrast) -> np.ndarray:
    """What becomes of each of the 256 values: uint8 (256,), or (B, 256) for factors of shape (B, 1)."""
    values = (np.arange(256) * brightness - GREY) * contrast + GREY
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)


def _window(full: int, side: int, factor: float, draw: float) -> Window:
    """One axis, the scaled image lying at a drawn offset."""
    span = side / factor  # source pixels that a crop would cover
    if span <= full:
        start = draw * (full - span)
        if factor == 1:
            start = float(round(start))  # whole pixels: nothing is resampled
        return start, start + span, 0, side
    seen = max(1, round(full * factor))  # the whole axis, with room beside it
    u = int(draw * (side - seen + 1))
    return 0.0, float(full), u, u + seen


def _cut(pixels: np.ndarray, rows: Window, columns: Window, how: Image.Resampling) -> Image.Image:
    """The source box resized to its output size; only the pixels under the box are touched."""
    (a, b, u, v), (c, d, s, t) = rows, columns
    top, left = int(a), int(c)
    part = pixels[top : int(np.ceil(b)), left : int(np.ceil(d))]
    box = (c - left, a - top, min(d - left, part.shape[1]), min(b - top, part.shape[0]))
    return Image.fromarray(part).resize((t - s, v - u), how, box=box)


def _placed(pixels: np.ndarray, rows: Window, columns: Window, crop: tuple[int, int], fill) -> np.ndarray:
    if pixels.shape[:2] == tuple(crop):
        return pixels
    canvas = np.empty((*crop, *pixels.shape[2:]), np.uint8)
    canvas[:] = fill
    canvas[rows[2] : rows[3], columns[2] : columns[3]] = pixels
    return canvas


def _recoloured(picture: Image.Image, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    grey = picture.convert("L").convert("RGB")
    mixed = np.asarray(Image.blend(grey, picture, saturation))  # beyond 1: away from grey
    return np.take(tones(brightness, contrast), mixed)
