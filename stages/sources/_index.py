"""Makes a Dataset of files that stay where they are: looks into every one of them and writes an index."""

import hashlib
import json
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.errors import Stopped
from stages.sources._classes import ClassTable, Mapping
from stages.sources._files import read_file, state
from stages.sources._images import check_pair, pixel_digest
from stages.sources._layout import Layout, Pair, chosen
from stages.sources._problems import Fault, Problems

FILE = "index.json"


def write_index(
    layout: Layout, table: ClassTable, out: Path, size: tuple[int, int] | None, limit: int | None, job: Any
) -> tuple[dict, dict]:
    """Checks every pair and writes `index.json`. Returns (facts, beside)."""
    home = layout.home()
    problems = Problems(str(home))
    pairs = {split: chosen(found, limit, key=lambda pair: pair[0]) for split, found in layout.pairs(problems).items()}
    listed = {path: state(home, path) for found in pairs.values() for _, *paths in found for path in paths}
    index = scan(home, pairs, table, problems, job)
    for path, before in listed.items():
        if state(home, path) != before:
            problems.add(path, Fault("changed while the data were looked at", "wait until nothing writes to it, then run again"))
    problems.stop()
    (out / FILE).write_text(json.dumps(index, sort_keys=True, separators=(",", ":"), ensure_ascii=True), encoding="utf-8")
    shapes = {tuple(entry["shape"]) for entries in index.values() for entry in entries}
    if size is None and len(shapes) == 1:
        size = next(iter(shapes))
    pixels = {split: np.sum([e["histogram"][:-1] for e in entries], axis=0).tolist() for split, entries in index.items()}
    facts = {
        **table.facts(),
        "size": list(size) if size else None,
        "splits": {split: len(entries) for split, entries in index.items()},
        "label_pixels": pixels,
    }
    return facts, {"root": str(home)}


def scan(home: Path, pairs: dict[str, list[Pair]], table: ClassTable, problems: Problems, job: Any) -> dict[str, list[dict]]:
    """The entries of every split; decoding runs in threads, since it does without the interpreter's lock."""
    mapping, twins = Mapping(table.facts()["labels"]), Twins(problems, job)
    work = [(split, pair) for split, found in pairs.items() for pair in found]
    index: dict[str, list[dict]] = {split: [] for split in pairs}
    with warnings.catch_warnings(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        results = pool.map(lambda item: inspect(home, item[1], table, mapping), work)
        for done, ((split, pair), (entry, digest, faults)) in enumerate(zip(work, results, strict=True), 1):
            for file, fault in faults:
                problems.add(file, fault)
            if entry:
                twins.see(split, pair[1], entry["image_sha256"], digest)
                index[split].append(entry)
            if done % 20 == 0 or done == len(work):
                job.progress(done, len(work))
            if job.stop_asked():
                pool.shutdown(wait=False, cancel_futures=True)
                raise Stopped("stopped while looking at the data", job.stop_asked())
    return index


def inspect(home: Path, pair: Pair, table: ClassTable, mapping: Mapping) -> tuple[dict | None, str, list[tuple[str, Fault]]]:
    """(entry of the index or None, digest of the pixels, faults with their files)."""
    name, *paths = pair
    data, faults = [], []
    for path in paths:
        try:
            data.append(read_file(home, path))
        except Fault as fault:
            faults.append((path, fault))
    if faults:
        return None, "", faults
    image, label, found = check_pair(*data, table, mapping)
    faults = [(paths[which == "label"], fault) for which, fault in found]
    if faults:
        return None, "", faults
    counts = np.bincount(label.ravel(), minlength=256)
    entry = {"name": name, "shape": list(label.shape), "histogram": [*counts[: len(table.names)].tolist(), int(counts[255])]}
    for kind, path, content in zip(("image", "label"), paths, data, strict=True):
        entry |= {kind: path, f"{kind}_bytes": len(content), f"{kind}_sha256": hashlib.sha256(content).hexdigest()}
    return entry, pixel_digest(image), []


class Twins:
    """Finds the same picture in two splits, as equal files or as equal pixels; inside one split it is only said."""

    def __init__(self, problems: Problems, job: Any):
        self.problems, self.job = problems, job
        self.first: dict[str, tuple[str, str]] = {}
        self.told = 0

    def see(self, split: str, file: str, file_digest: str, pixels_digest: str) -> None:
        known = self.first.get(file_digest) or self.first.get(pixels_digest)
        self.first.setdefault(file_digest, (split, file))
        self.first.setdefault(pixels_digest, (split, file))
        if known and known[0] != split:
            self.problems.add(
                file, Fault(f"the same picture as {known[1]} in {known[0]}", "keep it in one split, else the result means nothing")
            )
        elif known and self.told < 5:
            self.told += 1
            self.job.say(f"data: {file} is the same picture as {known[1]}")
