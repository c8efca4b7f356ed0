"""Reads a store from end to end and compares every byte with what was promised; can put aside what does not hold."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import fsops, locks
from .journal import whole
from .keys import canonical, digest, unseal
from .manifest import SCHEMA, Damaged
from .secrets import HIDDEN
from .store import Store, identity


@dataclass(frozen=True)
class Finding:
    where: str
    what: str
    repaired: bool


def examine(store: Store, n: int = 1, t: int = 1, repair: bool = False) -> Iterator[Finding]:
    """Every record, and the n-th of t parts of the artifacts. A repair deletes nothing: what is damaged goes to quarantine/."""
    if repair:
        store.require_writable()
        fsops.make_folder(store.root / "locks")  # copies of a store may lack empty folders
    checks = (_identity(store, repair), _artifacts(store, n, t, repair), _records(store, repair), _journals(store, repair))
    for check in checks:
        yield from check


def _identity(store: Store, repair: bool) -> Iterator[Finding]:
    file = store.root / "store.json"
    try:
        found = identity(fsops.read(file))
    except OSError:
        found = None
    if found is not None:
        store.check_schema()  # a newer store is none to judge, still less to repair
        return
    if repair:
        if os.path.lexists(file):
            _put_aside(store, file)
        fsops.replace(file, canonical({"schema": SCHEMA, "hash": "sha256"}))
    yield Finding("store.json", "is missing or damaged", repair)


def _artifacts(store: Store, n: int, t: int, repair: bool) -> Iterator[Finding]:
    fresh = Store(store.root)  # remembers nothing as verified
    for folder in sorted(store.root.glob("objects/sha256/*/*")):
        if _part(folder.name, t) != n - 1:
            continue
        if folder != store.folder(folder.name):
            if repair:
                _put_aside(store, folder)
            yield Finding(str(folder.relative_to(store.root)), "is no artifact", repair)
            continue
        try:
            fresh.verify(folder.name)
        except Damaged as damage:
            if not os.path.lexists(folder):  # swept or put aside meanwhile
                continue
            if repair:
                fresh.quarantine(damage)
            yield Finding(f"artifact {folder.name[:12]}", damage.what, repair)


def _records(store: Store, repair: bool) -> Iterator[Finding]:
    """Refs, pre-images of keys, and pins: whole, and true to the name they carry."""
    for folder in ("refs/cache", "keys", "refs/pins"):
        for file in sorted(store.root.glob(f"{folder}/[!.]*.json")):
            with store.exclusive() if repair else contextlib.nullcontext():  # a run may be replacing it by a good one
                wrong = _wrong(folder, file, store)
                if wrong and repair:
                    _put_aside(store, file)
            if wrong:
                yield Finding(f"{folder}/{file.name}", wrong, repair)


def _wrong(folder: str, file: Path, store: Store) -> str | None:
    name = file.stem
    try:
        record = unseal(fsops.read(file))
    except OSError:
        record = None
    if record is None:
        return "is damaged" if os.path.lexists(file) else None  # swept meanwhile
    if folder == "keys":
        redacted = HIDDEN in canonical(record).decode()  # a password was struck out of it
        return None if redacted or digest(record) == name else "is the pre-image of another key"
    if folder == "refs/cache" and record["key"] != name:
        return "is the ref of another key"
    ids = record["ids"] if folder == "refs/pins" else [record["id"]]
    missing = [id[:12] for id in ids if not store.folder(id).is_dir()]
    return f"names {', '.join(missing)}, which is not there" if missing else None


def _journals(store: Store, repair: bool) -> Iterator[Finding]:
    """A line that a power cut tore is among them: readers skip it, and a repair takes it out."""
    for run in store.runs():
        file, lines = store.journal(run).path, store.journal(run).lines()
        bad = [n for n, line in enumerate(lines, 1) if not whole(line)]
        if not bad or (repair and not locks.is_free(store.alone(run))):  # what a run at work adds meanwhile would be lost
            continue
        if repair:
            _put_aside(store, file, copy=True)
            fsops.replace(file, b"".join(b"\n" + line + b"\n" for line in lines if whole(line)))
        yield Finding(f"refs/runs/{run}/journal.jsonl", f"entries that cannot be read: {', '.join(map(str, bad))} of {len(lines)}", repair)


def _put_aside(store: Store, file: Path, copy: bool = False) -> None:
    place = store.root / "quarantine" / "-".join(file.relative_to(store.root).parts)
    fsops.make_folder(place.parent)
    n = 1
    while (target := place.with_name(f"{place.name}.{n}")).exists():
        n += 1
    if copy:
        fsops.write_new(target, file.read_bytes())
    else:
        file.rename(target)
        fsops.sync_folder(target.parent)


def _part(id: str, t: int) -> int:
    """Spreads artifacts evenly over t parts, the same way every time."""
    return int(digest(id)[:8], 16) % t
