"""Reads one table of vectors from a .npy or .safetensors file that may come from anywhere, and writes those of a TextMatrix.

A header is held against the size of its file before anything is allocated. An array of Python objects is a pickle, and is refused.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import BadData, Refused
from stages import tensorfile

if TYPE_CHECKING:
    from torch import Tensor

MAGIC = b"\x93NUMPY"
LONGEST = 1000  # bytes of a .npy header; one of numpy has 118
# What numpy writes for a table of floats. It is matched, not evaluated: nothing else is a table of vectors.
HEADER = re.compile(
    rb"\{'descr': '[<>|=]?f([248])', 'fortran_order': (?:True|False), 'shape': \(([0-9]{1,9}), ([0-9]{1,9})\),? ?\}[ \n]*", re.ASCII
)
ROWS, WIDTH = 10_000, 8_192  # at most
FLOATS = ("F16", "BF16", "F32", "F64")
LONGEST_NAME = 200  # characters


def look(path: Path) -> Path:
    """The path itself where it may be read. Knows the file by its content, whatever its name says."""
    if not path.is_file():
        found = "is no plain file" if path.exists() else f"was not found (looked from {Path.cwd()})"
        raise BadData(f"file: {path} {found}")
    with path.open("rb") as f:
        head = f.read(len(MAGIC) + 6 + LONGEST)
    if not head.startswith(MAGIC):
        if path.suffix.lower() == ".npz":
            raise Refused(f"{path} is an archive of arrays, and archives are not opened here: save the one array as .npy")
        return tensorfile.check(path)
    long = 2 if head[6:7] == b"\x01" else 4  # bytes that hold the length of the header
    start = len(MAGIC) + 2 + long
    length = int.from_bytes(head[start - long : start], "little")
    header = head[start : start + length]
    if re.search(rb"'descr': *'[^']*O", header):
        raise Refused(f"{path} holds Python objects, which is a pickle: opening one can run code hidden in it. Save the numbers alone")
    found = HEADER.fullmatch(header) if length <= LONGEST else None
    if not found:
        raise BadData(f"{path} must hold one table of floating-point numbers (rows, width); its header says {header[:120]!r}")
    size, rows, width = map(int, found.groups())
    require_sane(path, rows, width)
    if path.stat().st_size != start + length + size * rows * width:
        raise BadData(f"{path} has {path.stat().st_size:,} bytes, which does not fit {rows} rows of {width} numbers: fetch it again")
    return path


def read(path: Path) -> "tuple[Tensor, list[str] | None]":
    """(rows, width) as the file holds them, and what its metadata call the rows."""
    import numpy as np
    import torch

    with look(path).open("rb") as f:
        if f.read(len(MAGIC)) == MAGIC:
            table = np.load(path, allow_pickle=False)
            return torch.from_numpy(table.astype(table.dtype.newbyteorder("="), order="C")), None
    from stages.weights import headers, read_safetensors

    found = headers(path)
    if len(found) != 1 or not all(h.dtype in FLOATS and len(h.shape) == 2 for h in found.values()):
        held = ", ".join(f"{key[:60]!r} {h.dtype} {list(h.shape)}" for key, h in list(found.items())[:5])
        raise BadData(f"{path} must hold one tensor of floating-point numbers (rows, width); it holds {len(found)}: {held}")
    ((key, header),) = found.items()
    require_sane(path, *header.shape)
    return read_safetensors(path)[key], names_in(path)


def require_sane(path: Path, rows: int, width: int) -> None:
    if not (1 <= rows <= ROWS and 2 <= width <= WIDTH):
        raise BadData(f"{path} holds {rows} rows of {width} numbers; 1 to {ROWS:,} of 2 to {WIDTH:,} are read. Is it the right file?")


def names_in(path: Path) -> list[str] | None:
    """The names of the rows that a safetensors file brings, a JSON list under "names"."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as f:
        text = (f.metadata() or {}).get("names")
    if text is None:
        return None
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(n, str) and 0 < len(n) <= LONGEST_NAME for n in names):
        raise BadData(f'{path}: "names" of its metadata must be a JSON list of texts: write rows: [NAME, ...], which comes before it')
    return names


def save(folder: Path, vectors: "Tensor", classes: list[str]) -> list[str]:
    """Writes text.safetensors with unit rows in float32; returns what a person should know about them."""
    import torch
    from safetensors.torch import save_file

    wide = vectors.double()
    lengths = wide.norm(dim=1)
    bad = [c for c, n in zip(classes, lengths.tolist(), strict=True) if not 1e-9 < n < float("inf")]
    if bad:
        raise BadData(f"no direction: the vectors of {', '.join(bad[:10])} are zero, or hold numbers that are not finite")
    unit = wide / lengths[:, None]
    save_file({"text": unit.float().contiguous()}, folder / "text.safetensors", metadata={"names": json.dumps(classes)})
    alike = (unit @ unit.mT).fill_diagonal_(-1)
    mean = float(alike[~torch.eye(len(classes), dtype=torch.bool)].mean())
    i, j = divmod(int(alike.argmax()), len(classes))
    lines = [
        f"{len(classes)} classes, {wide.shape[1]} numbers each; mean cosine {mean:.2f}, {classes[i]} and {classes[j]} {alike[i, j]:.2f}"
    ]
    if alike[i, j] > 1 - 1e-6:
        lines.append(f"WARNING: {classes[i]} and {classes[j]} have the same vector: nothing that language says tells them apart")
    return lines
