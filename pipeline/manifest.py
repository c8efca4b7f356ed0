"""What an artifact's manifest promises, and whether the files beside it keep it: every byte is compared."""

import errno
import hashlib
import json
from pathlib import Path
from typing import Any

from . import fsops
from .errors import BadStore

SCHEMA = 1  # of manifests and of the whole store


class Damaged(Exception):
    """An artifact whose bytes are not what its manifest promises."""

    def __init__(self, id: str, what: str):
        super().__init__(f"artifact {id[:12]}: {what}")
        self.id, self.what = id, what


def manifest_in(folder: Path, id: str) -> dict[str, Any]:
    """Of an artifact that lies there, or Damaged."""
    try:
        if folder.is_symlink():
            raise Damaged(id, "its folder is a link")
        data = fsops.read(folder / "MANIFEST.json")
    except OSError as error:
        _require_readable(error)
        raise Damaged(id, "MANIFEST.json is missing") from None
    if hashlib.sha256(data).hexdigest() != id:  # before it is parsed: whatever it holds now, it is not ours
        raise Damaged(id, "MANIFEST.json does not match the artifact's id")
    manifest = json.loads(data)
    if manifest["schema"] > SCHEMA:
        raise BadStore(f"artifact {id[:12]} has schema {manifest['schema']}, this version reads up to {SCHEMA}: use a newer version")
    return manifest


def compare(id: str, manifest: dict[str, Any], folder: Path) -> None:
    """Every byte of a folder against a manifest; raises Damaged."""
    try:
        names = {entry.name for entry in folder.iterdir()} - {"MANIFEST.json"}
    except OSError as error:  # another run put it aside just now
        _require_readable(error)
        raise Damaged(id, "is missing") from None
    if names != set(manifest["files"]):
        raise Damaged(id, f"files differ from the manifest: {sorted(names ^ set(manifest['files']))}")
    for name, expected in manifest["files"].items():
        try:
            found = fsops.sha256(folder / name)
        except OSError as error:
            _require_readable(error)
            raise Damaged(id, f"{name}: {error.strerror}") from None
        if found != (expected["size"], expected["sha256"]):
            raise Damaged(id, f"{name} is not the file that was published")


def _require_readable(error: OSError) -> None:
    """What the system only refuses to open may be sound: to make it anew could cost days. A bad sector (EIO) is damage."""
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ETIMEDOUT):
        raise error
