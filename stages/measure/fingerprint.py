"""What two measurements must have in common before their figures may be compared: the very same pixels, labels and classes."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from pipeline.errors import BadData
from stages.measure.miou import IGNORE

WORDS = {
    "images": "the number of images",
    "image_digest": "the images, or how they were brought to their size",
    "label_digest": "the labels",
    "ignore": "the ignored label",
    "classes": "the classes or their order",
}


def fingerprint(samples: Iterable[tuple[np.ndarray, np.ndarray]], classes: list[str], ignore: int = IGNORE) -> dict[str, Any]:
    """Of (image, label) as the models got them, in order: shapes and bytes."""
    images, labels, number = hashlib.sha256(), hashlib.sha256(), 0
    for image, label in samples:
        number += 1
        for digest, array in ((images, image), (labels, label)):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    found = {"images": number, "image_digest": images.hexdigest(), "label_digest": labels.hexdigest()}
    return found | {"ignore": ignore, "classes": list(classes)}


def require_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Names everything that differs between two fingerprints."""
    if differs := differing(one, other):
        raise BadData(f"the two were not measured on the same images; what differs: {'; '.join(differs)}. Measure both with one data stage")


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [f"{words} ({shown(one[key])} and {shown(other[key])})" for key, words in WORDS.items() if one[key] != other[key]]


def shown(value: Any) -> str:
    text = f"{len(value)} names" if isinstance(value, list) else str(value)
    return text[:12]
