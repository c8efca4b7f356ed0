"""Makes a Dataset that holds its pixels: one array of images and one of labels per split, readable by memory map."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import Stopped

NAMES = "names.json"


def write_pixels(
    out: Path, counts: dict[str, int], samples: Callable[[str], Iterable[tuple]], classes: int, job: Any, meanwhile: Callable = lambda: None
) -> dict:
    """`samples(split)` yields counts[split] times (name, image (H, W, 3), label (H, W)), uint8 of one size. Returns facts.

    `meanwhile()` is called at the end of every split; it may raise what was found wrong.
    """
    total, done, shape, names, pixels = sum(counts.values()), 0, None, {}, {}
    for split in counts:
        names[split], histogram = [], np.zeros(256, np.int64)
        with open(out / f"{split}_images.npy", "wb") as images, open(out / f"{split}_labels.npy", "wb") as labels:
            for name, image, label in samples(split):
                if not names[split]:
                    write_header(images, (counts[split], *image.shape))
                    write_header(labels, (counts[split], *label.shape))
                shape = label.shape
                names[split].append(name)
                images.write(np.ascontiguousarray(image).tobytes())
                labels.write(np.ascontiguousarray(label).tobytes())
                histogram += np.bincount(label.ravel(), minlength=256)
                done += 1
                if done % 20 == 0 or done == total:
                    job.progress(done, total)
                if job.stop_asked():
                    raise Stopped("stopped while writing the data", job.stop_asked())
        meanwhile()
        pixels[split] = histogram[:classes].tolist()
    (out / NAMES).write_text(json.dumps(names, sort_keys=True, separators=(",", ":")), encoding="utf-8")
    return {"ignore": 255, "size": list(shape), "splits": dict(counts), "label_pixels": pixels}


def write_header(file: Any, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
