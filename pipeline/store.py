"""The content-addressed store: an artifact is absent or complete at every instant, and no byte is served unverified.

store.json                      {"schema": 1, "hash": "sha256"}
objects/sha256/ab/<id>/         MANIFEST.json and the files of one artifact, read-only, used in place; id = sha256 of the manifest
refs/cache/<key>.json           which artifact a key gave, and what was recorded beside it
refs/runs/<run>/journal.jsonl   what happened in a run; the logs of its stages beside it
refs/pins/<name>.json           artifacts that sweeping must keep
keys/<key>.json                 the pre-image of the key: what `why` compares
state/<key>/                    training state of an unfinished stage
tmp/  locks/  trash/            being written; who is at work; being deleted
quarantine/                     what was found damaged: never deleted here
ballast                         space that is given up on a full disk, so that a run can still say how it ended
"""

import json
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from . import fsops, locks, room
from .artifact import Artifact
from .errors import BadRecipe, BadStore
from .journal import Journal
from .keys import canonical, digest, seal, unseal
from .manifest import SCHEMA, Damaged, compare, manifest_in

FOLDERS = ("objects/sha256", "refs/cache", "refs/runs", "refs/pins", "keys", "state", "tmp", "locks", "trash", "quarantine")
RUN = re.compile(r".+-\d+", re.A)
FILE_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
BALLAST = 1 << 20  # bytes


class Store:
    def __init__(self, root: Path, network: bool = False):
        """`network`: a network file system is accepted, with what it lacks."""
        self.root, self.network = root.absolute(), network
        self.read_only = room.is_read_only(self.root)
        self._verified: set[str] = set()

    def prepare(self) -> "Store":
        """Makes the folders of a new store, or checks that this one can be used. A read-only one is used as it is."""
        if not (self.root / "store.json").exists() and self._strangers():  # another run may be making this store right now
            raise BadStore(f"{self.root} holds {self._strangers()[0]!r} and is not a store: choose another folder with --store")
        self.guarded()
        if (self.root / "store.json").exists():
            self.check_schema()  # before anything is added to it
        if not self.read_only:
            for folder in FOLDERS:
                fsops.make_folder(self.root / folder)
            if not (self.root / "store.json").exists():
                self._begin()
            self._load_ballast()
        self.check_schema()
        return self

    def guarded(self) -> "Store":
        """Refuses a store that others may write to, or whose file system promises too little."""
        room.require_ours(self.root)
        room.require_local(self.root, self.network)
        return self

    def require_writable(self) -> None:
        if self.read_only:
            raise BadStore(f"{self.root} is read-only: what it holds can be used, nothing can be added; choose another store with --store")

    def shared(self) -> AbstractContextManager[None]:
        """Held while an artifact gets its name and its ref, and while a run notes what it keeps: sweeping waits."""
        return locks.held(self.root / "locks/store.lock", exclusive=False)

    def exclusive(self) -> AbstractContextManager[None]:
        """Held while sweeping decides what nobody needs."""
        return locks.held(self.root / "locks/store.lock", exclusive=True)

    def alone(self, name: str) -> Path:
        """The lock of one key or one run."""
        return self.root / "locks" / f"{name}.lock"

    # -- what is there

    def find(self, key: str, name: str = "", id: str | None = None) -> Artifact | None:
        """The artifact that this key gave, if its manifest is intact. Its files are verified when a stage opens them.

        `id`: the one that it gave in some run, whatever it gave since.
        """
        ref = self._ref(key)
        if ref is None and id is None:
            return None
        id, beside = (ref["id"], ref["beside"]) if ref and id in (None, ref["id"]) else (id, {})
        try:
            manifest = self.manifest(id)
        except Damaged:
            return None
        return Artifact(name, manifest["kind"], id, self.folder(id), manifest["facts"], beside)

    def id_of(self, key: str) -> str | None:
        """The id that a key points to, whether or not the artifact is there and sound."""
        ref = self._ref(key)
        return ref["id"] if ref else None

    def kind(self, id: str) -> str:
        try:
            return self.manifest(id)["kind"]
        except Damaged:
            return "damaged"

    def size(self, id: str) -> int:
        """Bytes of the files of an artifact, as its manifest tells; 0 where that is damaged."""
        try:
            return sum(f["size"] for f in self.manifest(id)["files"].values())
        except Damaged:
            return 0

    def folder(self, id: str) -> Path:
        return self.root / "objects/sha256" / id[:2] / id

    def manifest(self, id: str) -> dict[str, Any]:
        """Raises Damaged where the manifest is missing or does not hash to the id."""
        return manifest_in(self.folder(id), id)

    def verify(self, id: str) -> None:
        """Every byte against the manifest; raises Damaged. Once per process and artifact."""
        if id in self._verified:
            return
        compare(id, self.manifest(id), self.folder(id))
        self._verified.add(id)

    def complete(self, prefix: str) -> str:
        """The full id of an artifact from its first characters."""
        found = [p.name for p in self.root.glob(f"objects/sha256/*/{prefix}*")] if re.fullmatch("[0-9a-f]{4,64}", prefix) else []
        if len(found) != 1:
            raise BadRecipe(
                f"{prefix!r} names {len(found)} artifacts in {self.root}; give RUN/STAGE, or the first 4 or more characters of an id"
            )
        return found[0]

    # -- adding

    @contextmanager
    def workplace(self, key: str) -> Iterator[Path]:
        """An empty private folder to write an artifact into; gone afterwards unless it was published."""
        self.require_writable()
        folder = self.root / "tmp" / f"{key}.{socket.gethostname()[:64]}.{os.getpid()}.{secrets.token_hex(4)}"
        fsops.make_folder(folder)
        try:
            yield folder
        finally:
            fsops.remove(folder)

    def clear_workplaces(self, key: str) -> None:
        """Deletes what killed runs left of this key. Only whoever holds the lock of the key may call this."""
        for folder in self.root.glob(f"tmp/{key}.*"):
            fsops.remove(folder)

    def publish(self, key: str, image: dict[str, Any], folder: Path, kind: str, facts: dict[str, Any], beside: dict[str, Any]) -> str:
        """Makes a finished folder an artifact and lets the key point to it. Returns its id."""
        for file in folder.iterdir():
            if not FILE_NAME.fullmatch(file.name) or file.is_symlink() or not file.is_file():
                raise BadStore(f"a stage left {file.name!r}: only plain files whose names match {FILE_NAME.pattern} can be published")
        files = {f.name: dict(zip(("size", "sha256"), fsops.sha256(f), strict=True)) for f in sorted(folder.iterdir())}
        manifest = {"schema": SCHEMA, "kind": kind, "facts": facts, "files": files}
        id = digest(manifest)
        fsops.write_new(folder / "MANIFEST.json", canonical(manifest))
        settled(folder)
        with self.shared():
            self._place(id, folder)
            fsops.replace(self.root / "keys" / f"{key}.json", seal(image))
            fsops.replace(self.root / "refs/cache" / f"{key}.json", seal({"key": key, "id": id, "beside": beside}))
        return id

    def adopt(self, id: str, folder: Path) -> None:
        """Makes a folder from elsewhere, verified against this id, an artifact. No key points to it: no stage takes it for its own."""
        settled(folder)
        with self.shared():
            self._place(id, folder)

    def quarantine(self, damage: Damaged) -> Path:
        """Moves a damaged artifact out of the way, so that the stage that made it runs again. Nothing is deleted."""
        self.require_writable()
        place = self.root / "quarantine" / f"{damage.id}.{secrets.token_hex(4)}"
        folder = self.folder(damage.id)
        fsops.make_folder(place.parent)
        try:
            if not folder.is_symlink():
                os.chmod(folder, 0o700)
            fsops.rename_folder(folder, place)
        except FileNotFoundError:  # it is missing, or another run moved it just now
            fsops.make_folder(place)
        fsops.write_new(place.with_suffix(f"{place.suffix}.json"), canonical({"id": damage.id, "what": damage.what}))
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
        return self._record(self.root / "keys" / f"{key}.json")

    def new_run(self, name: str) -> str:
        """Claims the next number of this recipe's runs: `quickstart-3`. One that was swept, of which the holder of its lock stays,
        is not given again: pins and pages go by it."""
        self.require_writable()
        known = [*self.runs(), *(note.stem for note in self.root.glob(f"locks/{name}-*.holder"))]
        number = max((n for _, n in _numbered(known, name)), default=0) + 1
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
        found = [p.name for p in folder.iterdir() if RUN.fullmatch(p.name) and p.is_dir()] if folder.is_dir() else []
        if name is not None:
            return [run for run, _ in sorted(_numbered(found, name), key=lambda pair: pair[1])]
        return sorted(found, key=lambda run: (run.rpartition("-")[0], int(run.rpartition("-")[2])))

    def next_sequence(self) -> int:
        """The place of a new run among all of them; clocks may go backwards, this does not. Two runs begun at once may share it."""
        return 1 + max((self.sequence(run) for run in self.runs()), default=0)

    def sequence(self, run: str) -> int:
        entries = self.journal(run).read()
        return entries[0].get("sequence", 0) if entries else 0

    def journal(self, run: str) -> Journal:
        return Journal(self.root / "refs/runs" / run / "journal.jsonl")

    def note(self, run: str, event: str, **facts: Any) -> None:
        """One line into the journal of a run, also on a full disk: the ballast makes room for it."""
        try:
            self.journal(run).write(event, **facts)
        except OSError as error:
            if error.errno not in room.FULL or not (self.root / "ballast").exists():
                raise
            fsops.remove(self.root / "ballast")
            self.journal(run).write(event, **facts)

    # -- inside

    def _begin(self) -> None:
        """store.json comes last: where it is there, the folders are safe, also those that a killed process made and did not sync."""
        for parent in sorted({self.root.parent, *((self.root / folder).parent for folder in FOLDERS)}):
            fsops.sync_folder(parent)
        fsops.replace(self.root / "store.json", canonical({"schema": SCHEMA, "hash": "sha256"}))

    def _place(self, id: str, folder: Path) -> None:
        target = self.folder(id)
        fsops.make_folder(target.parent)
        fsops.sync_folder(target.parent.parent)  # also where a process made the folder and was killed before it synced
        if target.is_symlink() or target.is_file():
            self.quarantine(Damaged(id, "its folder is something else"))
        if fsops.rename_folder(folder, target):
            os.chmod(target, 0o555)
        else:
            self._keep_the_sound_one(id, folder)
        self._verified.add(id)

    def _keep_the_sound_one(self, id: str, folder: Path) -> None:
        """The same artifact is there already: use it if it is sound, else put this copy in its place."""
        try:
            self._verified.discard(id)
            self.verify(id)
            os.chmod(self.folder(id), 0o555)  # whoever placed it may have been killed before this
        except Damaged as damage:
            self.quarantine(damage)
            self._place(id, folder)

    def _load_ballast(self) -> None:
        file = self.root / "ballast"
        if file.exists() or room.free_bytes(self.root) < 2 * BALLAST:
            return
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(fd, 0, BALLAST)
        finally:
            os.close(fd)

    def _strangers(self) -> list[str]:
        ours = {"ballast", *(folder.partition("/")[0] for folder in FOLDERS)}
        return [p.name for p in self.root.iterdir() if p.name not in ours and "store.json" not in p.name] if self.root.exists() else []

    def check_schema(self) -> None:
        try:
            found = identity(fsops.read(self.root / "store.json"))
        except OSError as error:
            raise room.explained(error, self.root) from None
        if found is None:
            raise BadStore(
                f"{self.root}/store.json is damaged: `python -m pipeline store fsck --repair --store {self.root}` writes it anew"
            )
        if found != SCHEMA:
            raise BadStore(f"{self.root} has store schema {found}, this version reads {SCHEMA}: use a newer version")

    def _ref(self, key: str) -> Any:
        ref = self._record(self.root / "refs/cache" / f"{key}.json")
        return ref if ref and ref["key"] == key else None

    def _record(self, path: Path) -> Any:
        """None where there is none, or none that is whole. A disk that cannot be read is another matter: work would be done again."""
        try:
            return unseal(fsops.read(path))
        except OSError as error:
            if error.errno in room.STORAGE:
                raise
            return None


def settled(folder: Path) -> None:
    """Nobody writes to it any more, and all of it is on the disk."""
    for file in folder.iterdir():
        fsops.sync_file(file)
    fsops.freeze(folder)
    fsops.sync_folder(folder)


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def identity(data: bytes) -> int | None:
    """The schema number that these bytes of a store.json tell; None where they are damaged."""
    found = _parse(data)
    number = found.get("schema") if isinstance(found, dict) else None
    if type(number) is not int:
        return None
    return number if number > SCHEMA or data == canonical({"schema": number, "hash": "sha256"}) else None  # newer ones may hold more


def _numbered(runs: list[str], name: str) -> list[tuple[str, int]]:
    return [(run, int(run[len(name) + 1 :])) for run in runs if re.fullmatch(re.escape(name) + r"-\d+", run)]
