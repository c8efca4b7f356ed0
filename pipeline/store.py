"""The content-addressed store: an artifact is absent or complete at every instant, and no byte is served unverified.

store.json                      {"schema": 1, "hash": "sha256"}
objects/sha256/ab/<id>/         MANIFEST.json and the files of one artifact, read-only, used in place; id = sha256 of the manifest
refs/cache/<key>.json           which artifact a key gave, and what was recorded beside it
refs/runs/<run>/journal.jsonl   what happened in a run; logs/ beside it
keys/<key>.json                 the pre-image of the key: what `why` compares
state/<key>/                    training state of an unfinished stage
tmp/  locks/  quarantine/       being written; who is working on a key; what was found damaged
"""

import json
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import fsops
from .artifact import Artifact
from .errors import BadStore
from .journal import Journal
from .keys import canonical, digest

SCHEMA = 1
FOLDERS = ("objects/sha256", "refs/cache", "refs/runs", "keys", "state", "tmp", "locks", "quarantine")
FILE_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Damaged(Exception):
    """An artifact whose bytes are not what its manifest promises."""

    def __init__(self, id: str, what: str):
        super().__init__(f"artifact {id[:12]}: {what}")
        self.id, self.what = id, what


class Store:
    def __init__(self, root: Path):
        self.root = root.absolute()
        self._verified: set[str] = set()

    def prepare(self) -> "Store":
        """Makes the folders of a new store, or checks that this one can be used."""
        if not (self.root / "store.json").exists() and self._strangers():  # another run may be making this store right now
            raise BadStore(f"{self.root} holds {self._strangers()[0]!r} and is not a store: choose another folder with --store")
        for folder in FOLDERS:
            fsops.make_folder(self.root / folder)
        if not (self.root / "store.json").exists():
            fsops.replace(self.root / "store.json", canonical({"schema": SCHEMA, "hash": "sha256"}))
        self._check_schema()
        return self

    # -- what is there

    def find(self, key: str, name: str = "") -> Artifact | None:
        """The artifact that this key gave, if its manifest is intact. Its files are verified when a stage opens them."""
        ref = self._json(self.root / "refs/cache" / f"{key}.json")
        if ref is None:
            return None
        try:
            manifest = self.manifest(ref["id"])
        except Damaged:
            return None
        return Artifact(name, manifest["kind"], ref["id"], self.folder(ref["id"]), manifest["facts"], ref["beside"])

    def folder(self, id: str) -> Path:
        return self.root / "objects/sha256" / id[:2] / id

    def manifest(self, id: str) -> dict[str, Any]:
        """Raises Damaged where the manifest is missing or does not hash to the id."""
        try:
            data = (self.folder(id) / "MANIFEST.json").read_bytes()
        except OSError:
            raise Damaged(id, "MANIFEST.json is missing") from None
        manifest = _parse(data)
        if manifest is None or digest(manifest) != id or canonical(manifest) != data:
            raise Damaged(id, "MANIFEST.json does not match the artifact's id")
        if manifest["schema"] > SCHEMA:
            raise BadStore(f"artifact {id[:12]} has schema {manifest['schema']}, this version reads up to {SCHEMA}: use a newer version")
        return manifest

    def verify(self, id: str) -> None:
        """Every byte against the manifest; raises Damaged. Once per process and artifact."""
        if id in self._verified:
            return
        manifest, folder = self.manifest(id), self.folder(id)
        names = {entry.name for entry in folder.iterdir()} - {"MANIFEST.json"}
        if names != set(manifest["files"]):
            raise Damaged(id, f"files differ from the manifest: {sorted(names ^ set(manifest['files']))}")
        for name, expected in manifest["files"].items():
            try:
                found = fsops.sha256(folder / name)
            except OSError as error:
                raise Damaged(id, f"{name}: {error.strerror}") from None
            if found != (expected["size"], expected["sha256"]):
                raise Damaged(id, f"{name} is not the file that was published")
        self._verified.add(id)

    def complete(self, prefix: str) -> str:
        """The full id of an artifact from its first characters."""
        found = [p.name for p in self.root.glob(f"objects/sha256/*/{prefix}*")] if re.fullmatch("[0-9a-f]{4,64}", prefix) else []
        if len(found) != 1:
            raise BadStore(f"{prefix!r} names {len(found)} artifacts in {self.root}; give at least 4 characters of an id shown by `ls`")
        return found[0]

    # -- adding

    @contextmanager
    def workplace(self, key: str) -> Iterator[Path]:
        """An empty private folder to write an artifact into; gone afterwards unless it was published."""
        folder = self.root / "tmp" / f"{key[:16]}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
        fsops.make_folder(folder)
        try:
            yield folder
        finally:
            fsops.remove(folder)

    def publish(self, key: str, image: dict[str, Any], folder: Path, kind: str, facts: dict[str, Any], beside: dict[str, Any]) -> str:
        """Makes a finished folder an artifact and lets the key point to it. Returns its id."""
        for file in folder.iterdir():
            if not FILE_NAME.fullmatch(file.name) or file.is_symlink() or not file.is_file():
                raise BadStore(f"a stage left {file.name!r}: only plain files whose names match {FILE_NAME.pattern} can be published")
            fsops.sync_file(file)
        files = {f.name: dict(zip(("size", "sha256"), fsops.sha256(f), strict=True)) for f in sorted(folder.iterdir())}
        manifest = {"schema": SCHEMA, "kind": kind, "facts": facts, "files": files}
        id = digest(manifest)
        fsops.write_new(folder / "MANIFEST.json", canonical(manifest))
        fsops.freeze(folder)
        fsops.sync_folder(folder)
        target = self.folder(id)
        fsops.make_folder(target.parent)
        if fsops.rename_folder(folder, target):
            os.chmod(target, 0o555)
            self._verified.add(id)
        else:
            self._keep_the_sound_one(id, folder)
        fsops.replace(self.root / "keys" / f"{key}.json", canonical(image))
        fsops.replace(self.root / "refs/cache" / f"{key}.json", canonical({"id": id, "beside": beside}))
        return id

    def quarantine(self, damage: Damaged) -> Path:
        """Moves a damaged artifact out of the way, so that the stage that made it runs again. Nothing is deleted."""
        n = 1
        while (place := self.root / "quarantine" / f"{damage.id}.{n}").exists():
            n += 1
        if (folder := self.folder(damage.id)).exists():
            os.chmod(folder, 0o700)
            fsops.rename_folder(folder, place)
        else:
            fsops.make_folder(place)
        fsops.replace(place.with_suffix(f".{n}.reason.json"), canonical({"id": damage.id, "what": damage.what}))
        self._verified.discard(damage.id)
        return place

    # -- state, keys, runs

    def state(self, key: str) -> Path:
        """The folder in which an unfinished stage keeps what it needs to go on."""
        folder = self.root / "state" / key
        fsops.make_folder(folder)
        return folder

    def forget_state(self, key: str) -> None:
        fsops.remove(self.root / "state" / key)

    def pre_image(self, key: str) -> dict[str, Any] | None:
        return self._json(self.root / "keys" / f"{key}.json")

    def new_run(self, name: str) -> str:
        """Claims the next number of this recipe's runs: `quickstart-3`."""
        number = max((n for _, n in _numbered(self.runs(), name)), default=0) + 1
        while True:
            try:
                os.mkdir(self.root / "refs/runs" / f"{name}-{number}", 0o700)
                fsops.sync_folder(self.root / "refs/runs")
                return f"{name}-{number}"
            except FileExistsError:
                number += 1

    def runs(self, name: str | None = None) -> list[str]:
        """All runs, oldest first, or those of one recipe."""
        folder = self.root / "refs/runs"
        found = [p.name for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
        if name is not None:
            return [run for run, _ in sorted(_numbered(found, name), key=lambda pair: pair[1])]
        return sorted(found, key=lambda run: (run.rpartition("-")[0], int(run.rpartition("-")[2])))

    def journal(self, run: str) -> Journal:
        return Journal(self.root / "refs/runs" / run / "journal.jsonl")

    # -- inside

    def _keep_the_sound_one(self, id: str, folder: Path) -> None:
        """The same artifact is there already: use it if it is sound, else put this copy in its place."""
        try:
            self.verify(id)
        except Damaged as damage:
            self.quarantine(damage)
            fsops.rename_folder(folder, self.folder(id))

    def _strangers(self) -> list[str]:
        ours = {folder.partition("/")[0] for folder in FOLDERS}
        return [p.name for p in self.root.iterdir() if p.name not in ours and "store.json" not in p.name] if self.root.exists() else []

    def _check_schema(self) -> None:
        found = self._json(self.root / "store.json") or {}
        if found.get("schema") != SCHEMA:
            raise BadStore(f"{self.root} has store schema {found.get('schema')!r}, this version reads {SCHEMA}")

    def _json(self, path: Path) -> Any:
        try:
            return _parse(path.read_bytes())
        except OSError:
            return None


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def _numbered(runs: list[str], name: str) -> list[tuple[str, int]]:
    return [(run, int(run[len(name) + 1 :])) for run in runs if re.fullmatch(re.escape(name) + r"-\d+", run)]
