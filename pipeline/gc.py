"""Frees the space of what nobody needs. Needed is what the journal of a kept run names, and what is pinned; nothing goes by its age.

Runs and publishers hold the store's lock shared for the moments in which they name what they keep; the decision here holds it
alone, and only renames: into trash/. Deleting comes after, and an interrupted sweep is finished by the next.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from . import fsops, locks
from .errors import BadStore
from .pins import pinned
from .store import Store


@dataclass(frozen=True)
class Swept:
    runs: list[str]  # whose journals go
    objects: list[str]  # ids
    others: list[Path]  # records, training state and leftovers
    bytes: int
    kept: int  # artifacts that stay


def sweep(store: Store, keep: int | None = None, dry_run: bool = False) -> Swept:
    """`keep`: only the newest so many runs of each recipe count, besides pinned ones and those at work; None: all."""
    store.require_writable()
    with store.exclusive():
        pins = pinned(store)
        runs = _dispensable(store, keep, pins)
        refs = {p.stem: store.id_of(p.stem) for p in store.root.glob("refs/cache/[!.]*.json")}
        keys, ids = _needed(store, set(store.runs()) - set(runs))
        ids |= {id for key, id in refs.items() if key in keys and id}  # made by a run that was killed before it could say so
        ids |= {id for pinned_ids in pins.values() for id in pinned_ids}
        objects = [p for p in store.root.glob("objects/sha256/*/*") if p.name not in ids]
        others = _leftovers(store, keys | {key for key, id in refs.items() if id in ids})
        size = sum(store.size(p.name) for p in objects) + sum(on_disk(p) for p in others)
        swept = Swept(runs, [p.name for p in objects], others, size, len(ids))
        if dry_run:
            return swept
        for path in (*(store.root / "refs/runs" / run for run in runs), *others):
            _throw_away(store, path)
        for path in objects:
            with contextlib.suppress(FileNotFoundError):
                path.chmod(0o700)  # a folder without write permission cannot be renamed
            _throw_away(store, path)
    fsops.sync_folder(store.root / "trash")  # what is deleted below must not come back under its old name, half gone
    for path in list((store.root / "trash").iterdir()):
        fsops.remove(path)
    return swept


def _dispensable(store: Store, keep: int | None, pins: dict[str, list[str]]) -> list[str]:
    if keep is None:
        return []
    old = []
    for recipe in {run.rpartition("-")[0] for run in store.runs()}:
        runs = store.runs(recipe)
        old += runs[: max(0, len(runs) - keep)]
    return sorted(run for run in old if run not in pins and locks.is_free(store.alone(run)))


def _needed(store: Store, runs: set[str]) -> tuple[set[str], set[str]]:
    """The keys and the ids that the journals of these runs name."""
    for run in runs:
        if bad := store.journal(run).damaged():
            raise BadStore(
                f"the journal of {run} has entries that cannot be read ({bad}): what they named is not known, so nothing may be swept. "
                "Run `store fsck --repair`, then its recipe again, or sweep with --keep N so that it no longer counts"
            )
    entries = [e for run in runs for e in store.journal(run).read() if e["event"] in ("stage", "starts")]
    return {e["key"] for e in entries}, {e["id"] for e in entries if e.get("id")}


def _leftovers(store: Store, keys: set[str]) -> list[Path]:
    """Records of keys that nobody needs, training state of finished or forgotten stages, and what killed runs left."""
    found = [p for folder in ("refs/cache", "keys") for p in store.root.glob(f"{folder}/[!.]*.json") if p.stem not in keys]
    unfinished = {key for key in keys if store.find(key) is None}  # also what was damaged and is being made anew
    found += [p for p in store.root.glob("state/*") if p.name not in unfinished and locks.is_free(store.alone(p.name))]
    found += [p for p in store.root.glob("tmp/*") if locks.is_free(store.alone(p.name.partition(".")[0]))]
    return found + [p for folder in ("refs/cache", "refs/pins", "keys") for p in store.root.glob(f"{folder}/.*")]


def _throw_away(store: Store, path: Path) -> None:
    place, n = store.root / "trash" / path.name, 1
    while place.exists():
        place, n = place.with_name(f"{path.name}.{n}"), n + 1
    with contextlib.suppress(FileNotFoundError):  # whoever held it has removed it, or put it aside
        path.rename(place)


def on_disk(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    total = 0
    for folder, _, names in os.walk(path):
        total += sum(_length(Path(folder, name)) for name in names)
    return total if path.is_dir() else _length(path)


def _length(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:  # whoever held it has removed it meanwhile
        return 0
