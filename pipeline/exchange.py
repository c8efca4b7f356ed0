"""Hands artifacts from store to store through a plain folder (a CI cache, a release's files, a mounted share): `store push`, `store pull`.

The folder holds <id>/ with MANIFEST.json and the files. An id is the digest of its manifest and the manifest holds the digest of every
file, so both ends are verified byte by byte, and a folder that somebody changed is found out, whoever holds it.
"""

import argparse
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

from . import finding, fsops, pins, released
from .errors import BadRecipe, BadStore, Refused, Stillhouse
from .manifest import Damaged, compare, manifest_in
from .store import FILE_NAME, Store

NATIVE = ("Engine", "Bundle")  # code for the machine that built them; a stranger's is never opened
ID = re.compile("[0-9a-f]{64}")


def push(asked: argparse.Namespace, parts: Any) -> None:
    """Copies an artifact (an id, or RUN/STAGE), or all that a baseline's FILE.json names, into a plain folder for `store pull`."""
    store = Store(asked.store, asked.allow_network_fs).guarded()
    for id in named(asked.what, store) or [finding.artifact(store, asked.what)]:
        _push(store, id, asked.dir)


def pull(asked: argparse.Namespace, parts: Any) -> None:
    """Takes an artifact, or all that a baseline's FILE.json names, from a folder that `store push` filled, verifies and pins it."""
    store = Store(asked.store, asked.allow_network_fs).prepare()
    for id in named(asked.what, store) or [asked.what]:
        _pull(store, _pushed(asked.dir, id), asked.dir)


def named(what: str, store: Store) -> list[str]:
    """The artifacts that a committed baseline names; [] where `what` is no file."""
    if not what.endswith(".json"):
        return []
    if not Path(what).exists():
        raise BadRecipe(f"{what} does not exist: name a committed baseline's file, or an artifact as RUN/STAGE or by its id")
    found = released.read(Path(what), store)
    if not found.content or not found.content["artifacts"]:
        raise BadRecipe(found.problem or f"{what} names no artifact")
    return list(found.content["artifacts"])


def _push(store: Store, id: str, folder: Path) -> None:
    try:
        store.verify(id)
    except Damaged as damage:
        raise BadStore(f"{damage}: run its recipe again, it will be made anew") from None
    target = folder / id
    if target.exists():
        examined(target, id, BadStore)
        print(f"{target}: was there, and is sound")
        return
    fresh = folder / f".{id[:12]}.{secrets.token_hex(4)}"
    try:
        fresh.mkdir(parents=True)
        for file in store.folder(id).iterdir():
            shutil.copyfile(file, fresh / file.name)
            fsops.sync_file(fresh / file.name)
        examined(fresh, id, BadStore)
        if not fsops.rename_folder(fresh, target):  # another push was quicker
            examined(target, id, BadStore)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    print(f"{target}: {store.kind(id)}, {store.size(id)} bytes")


def _pull(store: Store, id: str, source: Path) -> None:
    kind = examined(source / id, id, Refused)["kind"]
    if kind in NATIVE:
        raise Refused(f"{id[:12]} is of kind {kind}, which is code for the machine that built it: pull its ONNX file and build it here")
    with store.shared(), store.workplace(id) as folder:  # until it is pinned, sweeping would take it for what nobody needs
        for file in (source / id).iterdir():
            shutil.copyfile(file, folder / file.name)
        examined(folder, id, Refused)  # what was copied, not what was looked at before
        store.adopt(id, folder)
        pins.pin(store, id)
    print(f"{store.folder(id)}: {kind}, pinned (`store pin {id} --off` lets it go)")


def examined(folder: Path, id: str, problem: type[Stillhouse]) -> dict[str, Any]:
    """The manifest of a copy whose every byte was compared."""
    try:
        manifest = manifest_in(folder, id)
        if not isinstance(manifest["kind"], str) or not isinstance(manifest["facts"], dict):
            raise TypeError
        if strange := [name for name in manifest["files"] if not FILE_NAME.fullmatch(name)]:  # a stranger's manifest may name any path
            raise Damaged(id, f"a file is called {strange[0][:60]!r}")
        compare(id, manifest, folder)
    except Damaged as damage:
        raise problem(f"{damage} in {folder}: remove that folder and push it again from a store that holds it") from None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise problem(f"{folder} holds no artifact: its manifest cannot be read") from None
    return manifest


def _pushed(folder: Path, what: str) -> str:
    found = sorted(p.name for p in folder.glob("*") if ID.fullmatch(p.name)) if folder.is_dir() else []
    if not folder.is_dir():
        raise BadRecipe(f"{folder} is no folder: name the one that `store push` was given")
    fit = [name for name in found if re.fullmatch("[0-9a-f]{4,64}", what) and name.startswith(what)]
    if len(fit) != 1:
        raise BadRecipe(f"{what!r} names {len(fit)} of the {len(found)} artifacts in {folder}; push it there first, or give its whole id")
    return fit[0]
