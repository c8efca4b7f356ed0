"""The only place where the store touches the disk: every write is complete and on the platter before its name appears."""

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 20  # bytes


def write_new(path: Path, data: bytes) -> None:
    """A new file with these bytes, synced. Never overwrites, never follows a link."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        _write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def replace(path: Path, data: bytes) -> None:
    """The file at `path` holds either its old bytes or these, at every instant."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write_new(fresh, data)
        os.rename(fresh, path)
    except BaseException:  # also when a signal ends the run here
        fresh.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def append(path: Path, data: bytes) -> None:
    """Adds to a file, all or nothing where the disk is full; a new one is synced into its folder too. One process at a time."""
    new = not path.exists()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    try:
        before = os.fstat(fd).st_size
        try:
            _write_all(fd, data)
        except OSError:
            os.ftruncate(fd, before)
            raise
        os.fsync(fd)
    finally:
        os.close(fd)
    if new:
        sync_folder(path.parent)


def sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(path: Path) -> None:
    """The folder and its parents, each entry synced into its parent."""
    if path.is_dir():
        return
    make_folder(path.parent)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    sync_folder(path.parent)


def rename_folder(source: Path, target: Path) -> bool:
    """Moves a finished folder to its final name; False if one was there first (then the source stays). That name is safe either way."""
    try:
        os.rename(source, target)
        moved = True
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        moved = False
    sync_folder(target.parent)
    return moved


def freeze(folder: Path) -> None:
    """Read-only files. The folder itself is closed after it has moved: a folder without write permission cannot be renamed."""
    for file in folder.iterdir():
        os.chmod(file, 0o444)


def remove(path: Path) -> None:
    """Deletes a file or folder of this store, read-only ones included; what is gone already, or goes meanwhile, is fine."""
    with contextlib.suppress(FileNotFoundError):
        if not path.is_dir() or path.is_symlink():
            os.unlink(path)
            return
        os.chmod(path, 0o700)
        for child in path.iterdir():
            remove(child)
        os.rmdir(path)


def read(path: Path) -> bytes:
    """All of a regular file."""
    with open_plain(path) as file:
        return file.read()


def open_plain(path: Path) -> BinaryIO:
    """A regular file, for reading; no link is followed, and a pipe under its name makes nobody wait."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(fd, "rb")


def sha256(path: Path) -> tuple[int, str]:
    """Size in bytes and digest of a regular file; a link is not followed."""
    with open_plain(path) as file:
        size, hasher = 0, hashlib.sha256()
        while chunk := file.read(CHUNK):
            size += len(chunk)
            hasher.update(chunk)
    return size, hasher.hexdigest()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
