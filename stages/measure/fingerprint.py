"""What two measurements must have in common before their figures may be compared: the very same pixels, labels and classes."""

import hashlib
from typing import Any

import numpy as np

from stages.measure.miou import IGNORE

WORDS = {
    "images": "the number of images",
    "image_digest": "the images, or how they were brought to their size",
    "label_digest": "the labels",
    "ignore": "the ignored label",
    "classes": "the classes or their order",
}


class Fingerprint:
    """Fed with (image, label) as the models get them, in order: shapes and bytes."""

    def __init__(self, classes: list[str], ignore: int = IGNORE):
        self.classes, self.ignore = list(classes), ignore
        self.images, self.labels, self.number = hashlib.sha256(), hashlib.sha256(), 0

    def add(self, image: np.ndarray, label: np.ndarray) -> None:
        self.number += 1
        for digest, array in ((self.images, image), (self.labels, label)):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)

    def told(self) -> dict[str, Any]:
        found = {"images": self.number, "image_digest": self.images.hexdigest(), "label_digest": self.labels.hexdigest()}
        return found | {"ignore": self.ignore, "classes": self.classes}


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Everything that differs between two fingerprints, in words."""
    return [f"{words} ({shown(one[key])} and {shown(other[key])})" for key, words in WORDS.items() if one[key] != other[key]]


def shown(value: Any) -> str:
    text = f"{len(value)} names" if isinstance(value, list) else str(value)
    return text[:12]
