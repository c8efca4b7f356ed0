"""With what a run was made: its code, its packages, its machine, noted when it begins, so that later any difference can be named."""

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

from .report import versions

PROJECT = Path(__file__).resolve().parent.parent
FOLDERS = ("pipeline", "stages", "kernels")
CODE = (".py", ".c", ".cpp", ".cu")
REVISION = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


def origin(machine: dict[str, Any]) -> dict[str, Any]:
    """What `begin` notes in the journal: {"code", "versions", "machine"}."""
    return {"code": code(), "versions": versions(), "machine": machine}


@cache
def code() -> dict[str, str | None]:
    """The commit that is checked out (None: installed as a package), and a digest of each folder, where uncommitted edits show."""
    return {"revision": revision(PROJECT / ".git"), **{folder: _digest(PROJECT / folder) for folder in FOLDERS}}


def revision(git: Path) -> str | None:
    """Read from git's own files: a run needs no git."""
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if REVISION.fullmatch(head):
            return head
        name = head.removeprefix("ref: ")
        if (git / name).is_file():
            return _sha((git / name).read_text(encoding="utf-8").strip())
        packed = (line.split() for line in (git / "packed-refs").read_text(encoding="utf-8").splitlines())
        return next((_sha(words[0]) for words in packed if words[1:] == [name]), None)
    except (OSError, ValueError):
        return None


def _sha(text: str) -> str | None:
    return text if REVISION.fullmatch(text) else None


def _digest(folder: Path) -> str:
    whole = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix in CODE and not file.name.startswith(".") and file.is_file():  # editors leave links that lead nowhere
            data = file.read_bytes()
            whole.update(f"{file.relative_to(folder).as_posix()}\0{len(data)}\0".encode() + data)
    return whole.hexdigest()
