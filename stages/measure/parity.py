"""How far two ways of running one network agree: the share of equal pixels, and the largest difference of logits."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np


class Parity(NamedTuple):
    images: int
    agreement: float  # share of equal pixels over all images
    worst: str  # name of the image with the lowest share
    worst_agreement: float


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Share of equal class numbers in two maps of one shape."""
    if one.shape != other.shape:
        raise ValueError(f"class maps of {one.shape} and {other.shape} are not compared: resizing one of them would hide differences")
    return float(np.count_nonzero(one == other) / one.size)


def compare(one: Callable, other: Callable, images: Iterable[tuple[str, np.ndarray]]) -> Parity:
    """`one` and `other` turn uint8 (1, H, W, 3) into uint8 (1, H, W); images are (name, uint8 (H, W, 3))."""
    shares, pixels = [], []
    for name, image in images:
        batch = image[None].copy()  # samples may be views of a read-only file
        shares.append((agreement(one(batch), other(batch)), name))
        pixels.append(image.shape[0] * image.shape[1])
    worst, name = min(shares)
    total = sum(share * n for (share, _), n in zip(shares, pixels, strict=True)) / sum(pixels)
    return Parity(len(shares), total, name, worst)


def probes(size: tuple[int, int], count: int = 4) -> list[tuple[str, np.ndarray]]:
    """Images that are the same everywhere and need no data: smooth colour fields with edges and noise, uint8 (H, W, 3)."""
    height, width = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    images = []
    for k in range(count):
        random = np.random.Generator(np.random.PCG64(k))
        image = np.zeros((height, width, 3))
        for _ in range(6):  # plane waves of a few periods
            fy, fx, phase = random.uniform(-6, 6) / height, random.uniform(-6, 6) / width, random.uniform(0, 2 * np.pi)
            image += np.sin(2 * np.pi * (fy * y + fx * x) + phase)[..., None] * random.uniform(-1, 1, 3)
        for _ in range(8):  # flat boxes, for edges
            top, left = random.integers(0, height), random.integers(0, width)
            image[top : top + max(2, height // 5), left : left + max(2, width // 8)] = random.uniform(-2, 2, 3)
        image += random.normal(0, 0.15, image.shape)
        images.append((f"probe {k}", np.clip(127.5 + 50 * image, 0, 255).astype(np.uint8)))
    return images
