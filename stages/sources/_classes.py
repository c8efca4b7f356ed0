"""Which pixel values of a mask mean which class: the class table, its file, and its use on pixels."""

import colorsys
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import BadData, BadRecipe
from pipeline.parse import parse
from pipeline.words import explained
from stages.sources._files import clipped, read_named
from stages.sources._problems import Fault, printable

IGNORE = 255  # in every label, from the data stage on
LARGEST = 256 * 1024  # bytes of a class file
Byte = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[Byte, Byte, Byte]


@dataclass(frozen=True)
class ClassTable:
    """Names and colours by train id, and what lies in masks: raw value (or colour) -> train id or IGNORE."""

    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    raw: tuple[tuple[int | Colour, int], ...]
    painted: bool = False  # masks are RGB pictures
    source: str = "the source"  # where a user adds a value, for messages

    def facts(self) -> dict[str, Any]:
        """The part of an artifact's facts from which `Mapping` decodes labels."""
        if self.painted:
            labels = {"colours": [[*colour, to] for colour, to in self.raw]}
        else:
            labels = {"ids": [[value, to] for value, to in self.raw]}
        return {"classes": list(self.names), "colours": [list(c) for c in self.colours], "ignore": IGNORE, "labels": labels}


def class_table(names, colours, raw, ignore, *, painted: bool = False, source: str = "the source") -> ClassTable:
    """`raw` holds for each class the values (or colours) that mean it. Every fault of the table is told at once."""
    faults = []
    if not 2 <= len(names) <= 255:
        faults.append(f"{len(names)} classes: there must be 2 to 255: add or merge some")
    for name in names:
        if not name.strip() or len(name) > 64 or not name.isprintable():
            faults.append(f"class name {name[:70]!r}: use 1 to 64 printable characters")
    faults += [f"class {name!r} is there {n} times: rename one" for name, n in Counter(names).items() if n > 1]
    if len(names) != len(raw) or len(names) != len(colours):
        faults.append(f"{len(names)} names, {len(colours)} colours, {len(raw)} rows of mask values: one of each per class")
    owner: dict[Any, str] = {}
    pairs = [(value, i, names[i]) for i, values in enumerate(raw[: len(names)]) for value in values]
    pairs += [(value, IGNORE, "ignore") for value in ignore]
    for value, _, name in pairs:
        if value in owner:
            faults.append(f"mask value {value} belongs to {owner[value]!r} and to {name!r}: keep one")
        owner[value] = name
        if not painted and not 0 <= value <= 255:
            faults.append(f"mask value {value} of {name!r}: masks have 8 bits, 0 to 255")
    faults += [f"class {name!r} has no mask value: give it at least one" for name, values in zip(names, raw, strict=False) if not values]
    same: dict[tuple, list[str]] = {}
    for name, colour in zip(names, colours, strict=False):
        same.setdefault(tuple(colour), []).append(repr(name))
    faults += [
        f"classes {', '.join(n)} have the colour {[*colour]}: give each its own, or none" for colour, n in same.items() if len(n) > 1
    ]
    if faults:
        head = f"the class table in {source} has {len(faults)} problem{'s' if len(faults) > 1 else ''}:"
        raise BadData("\n  ".join(map(printable, [head, *faults[:18]])))
    return ClassTable(tuple(names), tuple(map(tuple, colours)), tuple((value, to) for value, to, _ in pairs), painted, source)


class Mapping:
    """Masks as files hold them -> labels uint8 (H, W) with IGNORE. Built from the `labels` of an artifact's facts."""

    def __init__(self, labels: dict[str, list]):
        self.painted = "colours" in labels
        if self.painted:
            rows = sorted((r << 16 | g << 8 | b, to) for r, g, b, to in labels["colours"])
            self.codes = np.array([code for code, _ in rows], np.int32)
            self.values = np.array([to for _, to in rows], np.uint8)
        else:
            self.lut = np.full(256, IGNORE, np.uint8)
            self.known = np.zeros(256, bool)
            for value, to in labels["ids"]:
                self.lut[value], self.known[value] = to, True

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        """`raw` is uint8 (H, W) of ids, or uint8 (H, W, 3) of colours."""
        if not self.painted:
            return self.lut[raw]
        place, hit = self.place(codes_of(raw))
        return np.where(hit, self.values[place], np.uint8(IGNORE))

    def strangers(self, raw: np.ndarray) -> list[tuple[str, int]]:
        """Values that are neither a class nor ignored, with the number of their pixels, most frequent first."""
        if self.painted:
            codes = codes_of(raw)
            values, counts = np.unique(codes[~self.place(codes)[1]], return_counts=True)
            found = [(f"[{v >> 16}, {v >> 8 & 255}, {v & 255}]", int(n)) for v, n in zip(values.tolist(), counts, strict=True)]
        else:
            counts = np.bincount(raw.ravel(), minlength=256)
            found = [(str(v), int(counts[v])) for v in np.nonzero((counts > 0) & ~self.known)[0]]
        return sorted(found, key=lambda item: -item[1])

    def place(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        place = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        return place, self.codes[place] == codes


def codes_of(raw: np.ndarray) -> np.ndarray:
    wide = raw.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def palette(n: int) -> list[Colour]:
    """Colours that differ, for classes that came without: hues a golden section apart."""
    return [
        tuple(round(255 * c) for c in colorsys.hsv_to_rgb(i * 0.618034 % 1.0, 0.55 + 0.4 * (i % 2), 0.95 - 0.12 * (i % 4)))
        for i in range(n)
    ]


class ClassRow(BaseModel):
    """One class of a class file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(description="Name, up to 64 printable characters.")
    colour: Colour | None = Field(None, strict=False, description="RGB colour in pictures, and in masks if `masks` is `colours`.")
    id: Byte | list[Byte] | None = Field(None, description="Value or values in masks; left out: its position, from 0.")
    painted: list[Annotated[Colour, Field(strict=False)]] | None = Field(None, description="RGB colours in masks; left out: `colour`.")


class ClassFile(BaseModel):
    """A class file as a person writes it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    classes: list[ClassRow] = Field(description="The classes in the order of their train ids.")
    masks: Literal["ids", "colours"] = Field("ids", description="Whether masks hold ids or are painted in colours.")
    ignore: list[Byte | Annotated[Colour, Field(strict=False)]] | None = Field(
        None, description="Ids or colours that belong to no class; left out: 255 for ids, none for colours."
    )


def read_class_table(home: Path, name: str) -> ClassTable:
    """The class table of a JSON or YAML file; `name` is relative to `home`, or leads elsewhere if the recipe says so."""
    content, path = read_table_file(home, name), printable(str(home / name))
    try:
        file = ClassFile.model_validate(content)
    except ValidationError as error:
        mistakes = explained(ClassFile, content, error)[:18]
        lines = [clipped(f"{'.'.join(map(str, m.path)) or 'the file'}: {m.text}", 200) for m in mistakes]
        raise BadData("\n  ".join([f"the class table {path} cannot be used, correct it:", *lines])) from None
    painted = file.masks == "colours"
    ignore = file.ignore if file.ignore is not None else [] if painted else [IGNORE]
    wrong = [v for v in ignore if isinstance(v, tuple) != painted]
    if wrong:
        raise BadData(f"the class table {path}: ignore holds {wrong[0]}, but masks are {file.masks}: write {file.masks} there too")
    if painted:
        missing = [row.name for row in file.classes if not row.colour and not row.painted]
        if missing:
            raise BadData(f"the class table {path}: masks are colours, but class {missing[0]!r} has none: add its colour")
        raw = [[tuple(c) for c in row.painted or [row.colour]] for row in file.classes]
    else:
        ids = [i if row.id is None else row.id for i, row in enumerate(file.classes)]
        raw = [v if isinstance(v, list) else [v] for v in ids]
    return class_table([row.name for row in file.classes], filled(file.classes), raw, ignore, painted=painted, source=path)


def filled(rows: list[ClassRow]) -> list[Colour]:
    """The colours of a class file, and for classes without one a colour that no other has."""
    taken = {row.colour for row in rows}
    spare = (colour for colour in palette(len(rows)) if colour not in taken)
    return [row.colour or next(spare, (0, 0, 0)) for row in rows]  # they suffice for 255 classes; more are an error


def read_table_file(home: Path, name: str) -> Any:
    """JSON or YAML by suffix, as plain data without duplicate keys, anchors and tags; BadData with the place of a fault."""
    path = printable(str(home / name))
    suffix = Path(name).suffix.lower()
    if suffix not in (".json", ".yaml", ".yml"):
        raise BadData(f"the class table {path}: give a .json or .yaml file")
    try:
        text = read_named(home, name, LARGEST)
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=once) if suffix == ".json" else parse(text, path)[0]
    except Fault as fault:
        raise BadData(f"the class table {path} cannot be read: {fault.what}: give a JSON or YAML file with the classes") from None
    except BadRecipe as error:
        raise BadData(f"the class table cannot be read, correct it:\n{error}") from None
    except (ValueError, RecursionError) as error:
        reason = clipped(" ".join(str(error).split()), 300)
        raise BadData(f"the class table {path} is not valid: {reason}: correct it, or save it as UTF-8") from None


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} is there twice")
    return content
