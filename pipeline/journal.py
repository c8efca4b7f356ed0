"""What happened in a run, one line per event, only ever appended: a torn last line is ignored, a damaged one is seen."""

import json
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import fsops


class Journal:
    def __init__(self, path: Path):
        self.path = path

    def write(self, event: str, **facts: Any) -> None:
        # The line starts with a newline of its own, so that a torn line before it spoils nothing but itself.
        entry = {"event": event, "at": datetime.now(UTC).isoformat(timespec="seconds"), **facts}
        body = json.dumps(entry, separators=(",", ":"), allow_nan=False).encode()  # in the order given: stages stand as in the recipe
        fsops.append(self.path, b"\n%08x %s\n" % (zlib.crc32(body), body))

    def read(self) -> list[dict[str, Any]]:
        return [entry for line in self.lines() if (entry := _decode(line)) is not None]

    def damaged(self) -> str:
        """The numbers of entries that cannot be read, but for the last: a kill may tear that one."""
        return ", ".join(str(n) for n, line in enumerate(self.lines()[:-1], 1) if not whole(line))

    def lines(self) -> list[bytes]:
        """As written, damaged ones too. None where the run was swept, which may be at this very moment."""
        try:
            return [line for line in self.path.read_bytes().split(b"\n") if line]
        except FileNotFoundError:
            return []


def whole(line: bytes) -> bool:
    return _decode(line) is not None


def _decode(line: bytes) -> dict[str, Any] | None:
    check, _, body = line.partition(b" ")
    try:
        return json.loads(body) if check == b"%08x" % zlib.crc32(body) else None
    except ValueError:
        return None
