"""Opening files that nobody vouches for: only regular files, only below the folder that was named, and never a wait for one.

Light: `check` and `plan` import it. What the check of a name saw is what is opened: every step of the way is taken from
the folder before it, without following links, so that nobody can swap a part of the path in between.
"""

import os
import stat
from pathlib import Path
from unicodedata import category

from stages.sources._problems import Fault, printable

UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # kinds of letters that no name needs: controls, halves of letters, ends of lines
HEAVIEST = 1 << 30  # bytes of one file
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
STEP = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)  # O_PATH: entering needs no right to list
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # without O_NONBLOCK, opening a FIFO waits for a writer


def check_relative(path: str) -> str:
    """Paths inside lists, patterns and indexes are relative and stay below their root; ValueError otherwise."""
    parts = path.split("/")
    if not path or path.startswith("/") or "\\" in path or ".." in parts or len(path.encode("utf-8", "surrogateescape")) > 1024:
        raise ValueError(f"{clipped(path)!r} must be a path relative to the root, with / and without ..")
    if any(category(letter) in UNSEEN for letter in path) or any(len(part.encode("utf-8", "surrogateescape")) > 255 for part in parts):
        raise ValueError(f"{clipped(path)!r} holds control characters or a name of more than 255 bytes")
    return path


def read_file(root: Path, path: str, most: int = HEAVIEST) -> bytes:
    """The bytes of a regular file below `root` (itself free of links); Fault for anything else.

    Links are followed as long as they stay below the root.
    """
    try:
        check_relative(path)
    except ValueError as error:
        raise Fault(str(error), "correct the list or the index") from None
    real = os.path.realpath(root / path)
    if not inside(root, real):
        raise Fault("a symbolic link leads out of the root", "put the file itself there, or make its folder the root")
    return guarded(lambda: walk(root, os.path.relpath(real, root).split(os.sep)), most)


def read_named(root: Path, path: str, most: int) -> bytes:
    """A file that the recipe names itself: below `root` like read_file(), or, where the recipe leads out of it, anywhere."""
    if not os.path.isabs(path) and ".." not in path.split("/"):
        return read_file(root, path, most)
    return guarded(lambda: walk(Path("/"), os.path.realpath(root / path).split(os.sep)[1:]), most)


def inside(root: Path, real: str) -> bool:
    return real.startswith(os.path.join(root, ""))


def state(root: Path, path: str) -> tuple[int, ...] | None:
    """What differs once a file was replaced or written to; None if there is none."""
    try:
        return same(os.stat(root / path))
    except (OSError, ValueError):
        return None


def same(info: os.stat_result) -> tuple[int, ...]:
    return info.st_ino, info.st_size, info.st_mtime_ns


def guarded(opened, most: int) -> bytes:
    try:
        with os.fdopen(opened(), "rb") as file:
            before = os.fstat(file.fileno())
            check_regular(before)
            if before.st_size > most:
                raise Fault(f"larger than {most >> 10:,} KiB", "is this the right file?")
            data = file.read(before.st_size + 1)
            if len(data) != before.st_size or same(os.fstat(file.fileno())) != same(before):
                raise Fault("changed while it was read", "wait until nothing writes to it, then run again")
            return data
    except (FileNotFoundError, NotADirectoryError):
        raise Fault("there is no such file", "put it back, or leave it out") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Fault(f"cannot be read ({reason})", "check permissions, links and the disk") from None


def walk(root: Path, parts: list[str]) -> int:
    """A handle on a regular file, to be closed by the caller."""
    here = os.open(root, STEP)
    try:
        for part in parts[:-1]:
            there = os.open(part, STEP, dir_fd=here)
            os.close(here)
            here = there
        check_regular(os.stat(parts[-1], dir_fd=here, follow_symlinks=False))  # before opening: to open a device may already act on it
        return os.open(parts[-1], READ, dir_fd=here)
    finally:
        os.close(here)


def check_regular(info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise Fault(f"{KINDS.get(stat.S_IFMT(info.st_mode), 'something')}, not a regular file", "put the file itself there")


def clipped(text: str, length: int = 80) -> str:
    """As much of a text as a message bears, without characters that act on a terminal."""
    return printable(text if len(text) <= length else f"{text[:length]}...")
