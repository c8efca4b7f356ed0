"""A disk that forgets: records what a program does to a folder, and rebuilds every state a power cut may leave behind.

The rules are stricter than those of any real file system. The bytes of a file are safe once that file was synced, a name
(made, moved or removed) once the folder that holds it was synced. What is not safe may have happened or not, each thing by
itself and in any order: bytes may be missing, cut off or zero. A move is seen whole or not at all, as journaling file
systems promise. Permissions are not part of the picture: no promise rests on them.
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = 0  # the node of the recorded folder itself


@dataclass(frozen=True)
class Op:
    """One thing that happened. Files and folders are nodes: numbers that stay when a name changes."""

    kind: str  # make | move | drop (a name) | write | cut (bytes) | harm (all bytes) | sync | mark
    node: int = ROOT  # what was named, written or synced
    folder: int = ROOT  # the folder in which the name is
    name: str = ""
    before: tuple[int, str] = (ROOT, "")  # move: the folder and name it had
    is_folder: bool = False
    at: int = 0  # write: offset in bytes; cut: the new size in bytes
    data: bytes = b""
    mark: tuple[str, Any] = ("", None)  # what the program may rely on from here


class Killed(BaseException):
    """The recorded program ends here, as by SIGKILL: whatever it still tries on its way out does not reach the disk."""


class Recorder:
    """Listens to the functions of `os` that change a folder. Files written by other ways (open(), libraries) are compared
    with what is known whenever they are synced, moved or a mark is set, so their bytes appear as never synced before that."""

    def __init__(self, root: Path):
        self.root, self.log = os.path.realpath(root), []
        self._nodes = {self.root: ROOT}  # path -> node
        self._bytes: dict[int, bytes] = {}  # node of a file -> what is known of its content
        self._open: dict[int, str] = {}  # file descriptor -> path
        self._real = {name: getattr(os, name) for name in _HEARD}
        self._next = ROOT + 1
        self.dies_after: int | None = None  # a kill after so many entries of the log; None: never

    @contextmanager
    def listening(self) -> Iterator["Recorder"]:
        for name, heard in _HEARD.items():
            setattr(os, name, self._while_alive(heard) if name != "close" else heard.__get__(self))
        try:
            yield self
        finally:
            for name, function in self._real.items():
                setattr(os, name, function)

    def revive(self) -> None:
        """Another process goes on where a killed one stopped."""
        self.dies_after = None

    def mark(self, what: str, about: Any) -> None:
        self._compare(self.root)
        self.log.append(Op("mark", mark=(what, about)))

    def harm(self, path: Path, data: bytes) -> None:
        """Other bytes in a file, safely on the platter: damage that is not of the power cut's making."""
        self._compare(os.path.realpath(path))
        path.write_bytes(data)
        node = self._nodes[os.path.realpath(path)]
        self._bytes[node] = data
        self.log.append(Op("harm", node, data=data))

    def _while_alive(self, heard: Callable) -> Callable:
        def called(*arguments: Any, **more: Any) -> Any:
            self._die_if_due()
            result = heard(self, *arguments, **more)
            self._die_if_due()
            return result

        return called

    def _die_if_due(self) -> None:
        if self.dies_after is not None and len(self.log) >= self.dies_after:
            raise Killed

    # -- what the program called

    def _os_open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        fd = self._real["open"](path, flags, mode, dir_fd=dir_fd)
        if dir_fd is None and (inside := self._inside(path)):
            self._compare(inside, deep=False)
            self._open[fd] = inside
        return fd

    def _os_close(self, fd: int) -> None:
        self._open.pop(fd, None)
        self._real["close"](fd)

    def _os_write(self, fd: int, data: Any) -> int:
        written = self._real["write"](fd, data)
        if path := self._open.get(fd):
            self._compare(path)
        return written

    def _os_fsync(self, fd: int) -> None:
        if path := self._open.get(fd):
            self._compare(path, deep=False)
        self._real["fsync"](fd)
        if path:
            self.log.append(Op("sync", self._nodes[path]))

    def _os_mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        self._real["mkdir"](path, mode, dir_fd=dir_fd)
        if dir_fd is None and (inside := self._inside(path)):
            self._compare(inside, deep=False)

    def _os_rename(self, source: Any, target: Any, **folders: int | None) -> None:
        a, b = self._inside(source), self._inside(target)
        if a:
            self._compare(a)
        self._real["rename"](source, target, **folders)
        if not (a and b):
            return self._compare(self.root)
        moved = {p: n for p, n in self._nodes.items() if p == a or p.startswith(a + os.sep)}
        self.log.append(Op("move", moved[a], *self._place(b), before=self._place(a)))
        for path in [p for p in self._nodes if p == b or p.startswith(b + os.sep)] + list(moved):
            del self._nodes[path]
        self._nodes |= {b + path[len(a) :]: node for path, node in moved.items()}
        self._open = {fd: b + p[len(a) :] if p in moved else p for fd, p in self._open.items()}

    def _os_link(self, source: Any, target: Any, **options: Any) -> None:
        self._real["link"](source, target, **options)
        node = self._nodes[self._inside(source)]
        self._nodes[self._inside(target)] = node
        self.log.append(Op("make", node, *self._place(self._inside(target))))

    def _os_unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._real["unlink"](path, dir_fd=dir_fd)
        if dir_fd is None and (inside := self._inside(path)):
            self._gone(inside)

    def _os_rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._real["rmdir"](path, dir_fd=dir_fd)
        if dir_fd is None and (inside := self._inside(path)):
            self._gone(inside)

    # -- what is there, compared with what is known

    def _compare(self, path: str, deep: bool = True) -> None:
        """Notes what differs at this path (and below, when deep) as things that happened just now."""
        if not os.path.lexists(path):
            return self._gone(path)
        if os.path.dirname(path) not in self._nodes and path != self.root:
            self._compare(os.path.dirname(path), deep=False)
        folder = os.path.isdir(path)
        if path not in self._nodes:
            self._nodes[path], self._next = self._next, self._next + 1
            self.log.append(Op("make", self._nodes[path], *self._place(path), is_folder=folder))
        if not folder:
            return self._compare_bytes(path)
        names = sorted(os.listdir(path))
        for known in [p for p in self._nodes if os.path.dirname(p) == path and os.path.basename(p) not in names]:
            self._gone(known)
        for name in names:
            child = os.path.join(path, name)
            if deep or child not in self._nodes:
                self._compare(child)

    def _compare_bytes(self, path: str) -> None:
        fd = self._real["open"](path, os.O_RDONLY)
        data = os.read(fd, 1 << 24)
        self._real["close"](fd)
        node = self._nodes[path]
        known = self._bytes.get(node, b"")
        if data[: len(known)] != known:  # written anew: from its first byte
            self.log.append(Op("cut", node, at=0))
            known = b""
        if data != known:
            self.log.append(Op("write", node, at=len(known), data=data[len(known) :]))
        self._bytes[node] = data

    def _gone(self, path: str) -> None:
        for known in sorted((p for p in self._nodes if p == path or p.startswith(path + os.sep)), reverse=True):
            self.log.append(Op("drop", self._nodes.pop(known), *self._place(known)))

    def _inside(self, path: Any) -> str:
        """The path without links in its folder, if it lies in the recorded folder; else nothing."""
        if not isinstance(path, str | os.PathLike):
            return ""
        folder, name = os.path.split(os.path.abspath(path))
        real = os.path.join(os.path.realpath(folder), name)
        return real if real.startswith(self.root + os.sep) or real == self.root else ""

    def _place(self, path: str) -> tuple[int, str]:
        folder, name = os.path.split(path)
        return self._nodes[folder], name


_HEARD: dict[str, Callable] = {
    "open": Recorder._os_open,
    "close": Recorder._os_close,
    "write": Recorder._os_write,
    "fsync": Recorder._os_fsync,
    "fdatasync": Recorder._os_fsync,
    "mkdir": Recorder._os_mkdir,
    "rename": Recorder._os_rename,
    "replace": Recorder._os_rename,
    "link": Recorder._os_link,
    "unlink": Recorder._os_unlink,
    "remove": Recorder._os_unlink,
    "rmdir": Recorder._os_rmdir,
}

# States after a power cut

NAMES, BYTES = ("make", "move", "drop"), ("write", "cut")


def crash_points(log: list[Op]) -> list[int]:
    """After how many entries of the log the power may fail. Not before a mark: after it the disk is the same and more is promised."""
    return [k for k in range(1, len(log) + 1) if k == len(log) or log[k].kind != "mark"]


def safe_from(log: list[Op]) -> list[int]:
    """For each entry of the log, the number of entries after which it can no longer be lost."""
    safe, waiting = [len(log) + 1] * len(log), {}
    for i, op in enumerate(log):
        if op.kind in NAMES:
            waiting.setdefault(("names", op.folder), []).append(i)
        elif op.kind in BYTES:
            waiting.setdefault(("bytes", op.node), []).append(i)
        elif op.kind == "sync":
            for what in ("names", "bytes"):
                for j in waiting.pop((what, op.node), []):
                    safe[j] = i + 1
    return safe


def fates(log: list[Op], safe: list[int], k: int, mode: str) -> dict[int, Any]:
    """What became of each entry before k that was not safe: "kept", "lost", "zeros", or the number of bytes that arrived.

    Modes: none (all lost), all (all kept), names (no bytes), zeros (bytes have arrived as zeros), bytes (no names), mix<n> (seeded).
    """
    unsafe = [i for i in range(k) if log[i].kind in NAMES + BYTES and safe[i] > k]
    if mode.startswith("mix"):
        chance = random.Random(f"{k} {mode}")
        likely = chance.choice((0.1, 0.5, 0.9))
        return {i: "kept" if chance.random() < likely else _loss(log[i], chance) for i in unsafe}
    of_names = "kept" if mode in ("all", "names", "zeros") else "lost"
    of_bytes = {"all": "kept", "bytes": "kept", "zeros": "zeros"}.get(mode, "lost")
    return {i: of_names if log[i].kind in NAMES else of_bytes for i in unsafe}


def _loss(op: Op, chance: random.Random) -> Any:
    return chance.choice(("lost", "zeros", chance.randrange(len(op.data)))) if op.kind == "write" else "lost"


def rebuild(log: list[Op], k: int, fate: dict[int, Any], place: Path) -> None:
    """Writes into the empty folder `place` what the disk holds when the first k entries happened, each with its fate."""
    folders: dict[int, dict[str, int]] = {ROOT: {}}
    files: dict[int, bytearray] = {}
    for i, op in enumerate(log[:k]):
        if op.kind == "make" and op.node not in files and op.node not in folders:
            (folders if op.is_folder else files)[op.node] = {} if op.is_folder else bytearray()
        how = fate.get(i, "kept")
        if how == "lost":
            continue
        if op.kind in ("move", "drop"):
            folder, name = op.before if op.kind == "move" else (op.folder, op.name)
            if folders[folder].get(name) == op.node:
                del folders[folder][name]
        if op.kind in ("make", "move"):
            folders[op.folder][op.name] = op.node
        elif op.kind == "cut":
            del files[op.node][op.at :]
        elif op.kind == "harm":
            files[op.node][:] = op.data
        elif op.kind == "write":
            data = op.data if how == "kept" else bytes(len(op.data)) if how == "zeros" else op.data[:how]
            file = files[op.node]
            file.extend(bytes(max(0, op.at + len(data) - len(file))))  # a hole before it, where earlier bytes were lost
            file[op.at : op.at + len(data)] = data
    _lay_out(folders, files, ROOT, place)


def _lay_out(folders: dict[int, dict[str, int]], files: dict[int, bytearray], node: int, place: Path) -> None:
    for name, child in folders[node].items():
        if child in folders:
            (place / name).mkdir(mode=0o700)
            _lay_out(folders, files, child, place / name)
        else:
            (place / name).write_bytes(files[child])
