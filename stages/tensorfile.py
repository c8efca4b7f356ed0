"""Looks at a safetensors file before any parser does: the header is JSON of sane size, and its tensors fill the file exactly.

What is no safetensors file is refused by its content, whatever its name says: a pickle runs code when it is opened.
"""

import json
import shlex
from pathlib import Path
from typing import Any

from pipeline.errors import BadData, Refused

LARGEST = 32 << 30  # bytes of one file
LONGEST = 8 << 20  # bytes of a header; a network of ten thousand weights has one of a megabyte
RANK = 16  # dimensions of one tensor
BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64, "BF16": 16}
BITS |= {f"{kind}{bits}": bits for kind in "IU" for bits in (8, 16, 32, 64)} | {f"F{bits}": bits for bits in (16, 32, 64)}
BITS |= {f"F8_{kind}": 8 for kind in ("E4M3", "E5M2", "E8M0", "E4M3FNUZ", "E5M2FNUZ")}
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
ARCHIVES = ((0, b"\x1f\x8b"), (0, b"BZh"), (0, b"\xfd7zXZ"), (0, b"7z\xbc\xaf"), (0, b"\x28\xb5\x2f\xfd"), (257, b"ustar"))


def check(file: Path) -> Path:
    """The path itself when the file may be given to a parser; Refused otherwise."""
    size = file.stat().st_size
    with file.open("rb") as f:
        head = f.read(9)
        length = int.from_bytes(head[:8], "little")
        if length > size - 8 or head[8:] != b"{":
            raise Refused(what_else(file, head + f.read(512), size))
        if size > LARGEST or length > LONGEST:
            raise Refused(
                f"{file} has {size:,} bytes, {length:,} of them in its header; weights are read up to {LARGEST:,} and {LONGEST:,}. "
                "Is it the right file?"
            )
        header = b"{" + f.read(length - 1)
    try:
        check_header(json.loads(header, object_pairs_hook=once), size - 8 - length)
    except (ValueError, RecursionError) as error:
        why = "its header is nested too deep" if isinstance(error, RecursionError) else str(error)[:200]
        raise Refused(f"{file} is not a sound safetensors file: {why}. Fetch it again") from None
    return file


def check_header(header: dict[str, Any], room: int) -> None:
    """ValueError unless the tensors follow each other without gap or overlap and end where the file does."""
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise ValueError("its metadata are not texts")
    spans = sorted(span_of(key, entry) for key, entry in header.items())
    at = 0
    for begin, end, key in spans:
        if begin != at:
            raise ValueError(f"{key!r} begins at byte {begin} of the data and the one before ends at {at}")
        at = end
    if at != room:
        raise ValueError(f"its tensors take {at} bytes and {room} follow the header")


def span_of(key: str, entry: Any) -> tuple[int, int, str]:
    """(first byte, end, key) of one tensor in the data."""
    try:
        kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sound = len(entry) == 3 and kind in BITS and len(shape) <= RANK and all(type(n) is int and n >= 0 for n in [*shape, begin, end])
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise ValueError(f"{key!r} is described by {str(entry)[:100]}")
    bits = BITS[kind]
    for n in shape:
        bits *= n
    if bits != 8 * (end - begin):
        raise ValueError(f"{key!r} of {kind} {shape} has {end - begin} bytes")
    return begin, end, key


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def what_else(file: Path, head: bytes, size: int) -> str:
    """Why a file that does not begin like safetensors is not read, and the way out."""
    if head[:4] == b"PK\x03\x04" or head[:1] == b"\x80" or file.suffix in PICKLES:
        return advice(file)
    if any(head[at : at + len(magic)] == magic for at, magic in ARCHIVES):
        return f"{file} is an archive, and archives are not opened here: unpack it, and name the .safetensors file or folder in it"
    return f"{file} ({size} bytes) does not begin like a safetensors file: it is damaged, or something else"


def advice(file: Path) -> str:
    """The refusal of a pickle with the command that converts it. torch opens weights alone (weights_only); before 2.10 that had holes."""
    target = file.with_suffix(".safetensors")
    if target == file:  # a pickle under a false name stays what it is
        target = file.with_name(f"{file.stem}.converted.safetensors")
    code = (
        "import torch; from safetensors.torch import save_file; "
        "assert tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 10), 'update torch first: older ones run code while reading'; "
        f"s = torch.load(open({str(file)!r}, 'rb'), map_location='cpu', weights_only=True); "
        "s = next((s[k] for k in ('state_dict', 'model') if isinstance(s.get(k), dict)), s); "
        f"save_file({{k: v.clone().contiguous() for k, v in s.items() if isinstance(v, torch.Tensor)}}, {str(target)!r})"
    )
    return (
        f"{file} is not safetensors but a pickle (PyTorch's older format): opening one can run code hidden in it, so it is refused.\n"
        f"Convert it once, in a place you trust: python -c {shlex.quote(code)}"
    )


def read_object(file: Path, most: int) -> dict[str, Any]:
    """A JSON object of at most `most` bytes."""
    with file.open("rb") as f:
        content = f.read(most + 1)
    if len(content) > most:
        raise BadData(f"{file} is larger than {most >> 10:,} KiB: is it the right file?")
    try:
        found = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        why = "nested too deep" if isinstance(error, RecursionError) else str(error)[:200]
        raise BadData(f"{file} is not JSON: {why}") from None
    if not isinstance(found, dict):
        raise BadData(f"{file} must hold a JSON object")
    return found
