"""Looks at OpenVINO's engine.xml and engine.bin before the runtime does: XML without declarations, and no data beyond the file.

XML can name other files and entities that grow without end, always through `<!`: an engine written by OpenVINO has none of that.
"""

import re
from pathlib import Path
from typing import Any
from xml.parsers import expat

from pipeline.errors import Refused

LARGEST = {"engine.xml": 64 << 20, "engine.bin": 8 << 30}  # bytes
DEEPEST = 32  # elements inside elements; If has bodies
MOST = 2_000_000  # elements
SETS = re.compile(r"opset\d{1,2}$")  # the runtime's own operators; others come with libraries
LOOPS = ("Loop", "TensorIterator")  # run as often as their data say
NUMBER = re.compile(r"\d{1,18}$")


def check(folder: Path) -> Path:
    """engine.xml of the folder, when it may be given to the runtime; Refused otherwise."""
    sizes = {name: size_of(folder / name) for name in LARGEST}
    file = folder / "engine.xml"
    content = file.read_bytes()
    try:
        content.decode("utf-8")
    except ValueError:
        raise Refused(f"{file} is not the XML that OpenVINO writes: its text is not UTF-8") from None
    if b"<!" in content or b"\0" in content:
        raise Refused(f"{file} declares things (<!...>), which an engine never does: XML of this kind can read other files")
    try:
        _walk(content, sizes["engine.bin"])
    except (expat.ExpatError, ValueError) as error:
        raise Refused(f"{file} is not an engine written by OpenVINO: {error}. Build it again") from None
    return file


def size_of(file: Path) -> int:
    if file.is_symlink() or not file.is_file():
        raise Refused(f"{file} is not a plain file; an engine is read from files without links")
    size = file.stat().st_size
    if size > LARGEST[file.name]:
        raise Refused(f"{file} has {size:,} bytes; at most {LARGEST[file.name]:,} are read")
    return size


def _walk(content: bytes, room: int) -> None:
    """ValueError for the first element that is not as it must be. `room`: bytes of engine.bin."""
    parser, path, seen = expat.ParserCreate("utf-8"), [], [0]

    def begin(tag: str, given: dict[str, str]) -> None:
        path.append(tag)
        seen[0] += 1
        if len(path) > DEEPEST or seen[0] > MOST:
            raise ValueError(f"more than {MOST} elements, or {DEEPEST} inside each other")
        if path[0] != "net":
            raise ValueError(f"it begins with <{tag[:40]}>")
        if tag == "layer":
            _layer(given)
        if tag == "data" and ("offset" in given or "size" in given):
            _span(given, room)

    parser.StartElementHandler = begin
    parser.EndElementHandler = lambda tag: path.pop()
    parser.Parse(content, True)


def _layer(given: dict[str, Any]) -> None:
    if not SETS.match(given.get("version", "")):
        raise ValueError(f"an operator of {given.get('version', 'no set')[:40]!r}, which is not the runtime's own")
    if given.get("type") in LOOPS:
        raise ValueError(f"a {given['type']}, which may run without end")


def _span(given: dict[str, Any], room: int) -> None:
    at, size = given.get("offset", ""), given.get("size", "")
    if not NUMBER.match(at) or not NUMBER.match(size) or int(at) + int(size) > room:
        raise ValueError(f"data from byte {at[:20]!r} on, {size[:20]!r} bytes long, in an engine.bin of {room}")
