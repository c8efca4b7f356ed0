"""Takes pictures out of the rows of a table, checks them like files, and writes their pixels."""

import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from stages.sources._classes import ClassTable, Mapping
from stages.sources._images import check_pair, pixel_digest, resize_image, resize_label
from stages.sources._index import Twins
from stages.sources._layout import chosen
from stages.sources._pixels import write_pixels
from stages.sources._problems import Fault, Problems


def write_rows(
    tables: dict, columns: tuple[str, str], table: ClassTable, out: Path, size: tuple | None, limit: int | None, job: Any
) -> dict:
    """`tables` holds a datasets.Dataset per split. Returns facts."""
    problems = Problems("the data set")
    reader = Reader(columns, table, size, problems, job)
    rows = {split: chosen(list(range(len(data))), limit) for split, data in tables.items()}
    for split, numbers in rows.items():
        if not numbers:
            problems.add(split, Fault("the split is empty", "correct splits or files"))
    problems.stop()
    tables = {split: undecoded(data, columns) for split, data in tables.items()}
    counts = {split: len(numbers) for split, numbers in rows.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        facts = write_pixels(
            out, counts, lambda split: reader.read(split, tables[split], rows[split]), len(table.names), job, problems.stop
        )
    return facts


class Reader:
    """Yields the samples of a split and notes what is wrong with its rows."""

    def __init__(self, columns: tuple[str, str], table: ClassTable, size: tuple | None, problems: Problems, job: Any):
        self.columns, self.table, self.size, self.problems = columns, table, size, problems
        self.mapping, self.twins = Mapping(table.facts()["labels"]), Twins(problems, job)

    def read(self, split: str, data: Any, numbers: list[int]) -> Iterator[tuple]:
        for number in numbers:
            row, name = data[number], f"{split}_{number:05d}"
            content = [(row[column] or {}).get("bytes") for column in self.columns]
            for column, found in zip(self.columns, content, strict=True):
                if found is None:
                    self.problems.add(f"{split} row {number} {column}", Fault("holds no picture bytes", "store the files inside the table"))
            if None in content:
                continue
            image, label, faults = check_pair(*content, self.table, self.mapping)
            for which, fault in faults:
                self.problems.add(f"{split} row {number} {self.columns[which == 'label']}", fault)
            if faults:
                continue
            self.twins.see(split, f"{split} row {number}", hashlib.sha256(content[0]).hexdigest(), pixel_digest(image))
            if self.size is None:
                self.size = label.shape
                self.native = name
            elif hasattr(self, "native") and label.shape != self.size:
                sizes = f"{label.shape[1]}x{label.shape[0]} pixels, but {self.native} has {self.size[1]}x{self.size[0]}"
                self.problems.add(f"{split} row {number}", Fault(sizes, "set size of the data stage instead of native"))
                continue
            yield name, resize_image(image, self.size), resize_label(label, self.size)


def undecoded(data: Any, columns: tuple[str, str]) -> Any:
    """The same rows with pictures as the bytes that were stored."""
    import datasets

    for column in columns:
        data = data.cast_column(column, datasets.Image(decode=False))
    return data.select_columns(list(columns))
