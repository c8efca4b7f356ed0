"""Images and labels of a Dataset artifact as arrays, whatever the source: the one door through which stages read data."""

import hashlib
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.artifact import Artifact
from pipeline.errors import BadData
from stages.sources._classes import Mapping
from stages.sources._files import read_file
from stages.sources._images import decode_image, decode_label, resize_image, resize_label
from stages.sources._index import FILE
from stages.sources._pixels import NAMES
from stages.sources._problems import Fault, printable


def open_samples(artifact: Artifact, split: str) -> "Samples":
    """The samples of one split. They can be pickled; arrays and files are opened on first use, in whichever process."""
    splits = artifact.facts["splits"]
    if split not in splits:
        raise BadData(f"{artifact.name} has no split {split!r}: it has {', '.join(splits)}")
    return (Indexed if artifact.file(FILE).is_file() else Pixels)(artifact, split)


class Samples:
    """len(s); s[i] -> image uint8 (H, W, 3) RGB and label uint8 (H, W) with 255 for ignored, both at `size`."""

    def __init__(self, artifact: Artifact, split: str):
        facts = artifact.facts
        self.classes: list[str] = facts["classes"]
        self.colours: list[list[int]] = facts["colours"]
        self.size: tuple[int, int] | None = tuple(facts["size"]) if facts["size"] else None  # None: every image has its own
        self.artifact, self.split = artifact, split

    def __len__(self) -> int:
        return self.artifact.facts["splits"][self.split]

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError

    def name(self, i: int) -> str:
        raise NotImplementedError

    def source(self, i: int) -> np.ndarray:
        """The decoded image before any resizing, uint8 (h, w, 3)."""
        raise NotImplementedError

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key in ("classes", "colours", "size", "artifact", "split")}


class Pixels(Samples):
    """Pixels inside the artifact, already at their size, read through memory maps."""

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self.images[i]), np.array(self.labels[i])

    def name(self, i: int) -> str:
        return self.names[i]

    def source(self, i: int) -> np.ndarray:
        return np.array(self.images[i])

    @cached_property
    def images(self) -> np.ndarray:
        return mapped(self.artifact.file(f"{self.split}_images.npy"), 4)

    @cached_property
    def labels(self) -> np.ndarray:
        return mapped(self.artifact.file(f"{self.split}_labels.npy"), 3)

    @cached_property
    def names(self) -> list[str]:
        return self.artifact.json(NAMES)[self.split]


def mapped(path: Path, dimensions: int) -> np.ndarray:
    """Bytes in an .npy file, without reading them yet; anything else under that name is refused."""
    try:
        found = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OverflowError, MemoryError) as error:
        raise BadData(f"{path} is not a sound npy array: {str(error).splitlines()[0][:200]}") from None
    if found.dtype != np.uint8 or found.ndim != dimensions:
        raise BadData(f"{path} is not the npy array that was expected: uint8 of {dimensions} dimensions")
    return found.view(np.ndarray)


class Indexed(Samples):
    """Files that stayed where they were, each compared with its sha256 before it is decoded."""

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        image, label = self.source(i), self.label(i)
        if self.size is None:
            return image, label
        return resize_image(image, self.size), resize_label(label, self.size)

    def name(self, i: int) -> str:
        return self.entries[i]["name"]

    def source(self, i: int) -> np.ndarray:
        return self.decode(i, "image", decode_image)

    def label(self, i: int) -> np.ndarray:
        return self.mapping(self.decode(i, "label", lambda data: decode_label(data, self.mapping.painted)))

    def decode(self, i: int, kind: str, decoder) -> np.ndarray:
        path = self.entries[i][kind]
        try:
            data = read_file(self.root, path)
            if hashlib.sha256(data).hexdigest() != self.entries[i][f"{kind}_sha256"]:
                raise Fault("changed since the data stage indexed it", "run again")
            return decoder(data)
        except Fault as fault:
            raise BadData(printable(f"{self.root / path}: {fault}")) from None

    @cached_property
    def entries(self) -> list[dict]:
        return self.artifact.json(FILE)[self.split]

    @cached_property
    def mapping(self) -> Mapping:
        return Mapping(self.artifact.facts["labels"])

    @cached_property
    def root(self) -> Path:
        return Path(self.artifact.beside["root"]).resolve()  # the data may have moved, with a link left in their place
