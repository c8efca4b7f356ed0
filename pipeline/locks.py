"""Who is at work: locks keep two runs from doing the same work twice. What is right in the store never depends on them.

The kernel frees a lock when its holder dies, however it dies, so that no lock is ever left behind; the files stay.
"""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import Busy

MOMENT = 1.0  # seconds; looking whether a lock is free takes it for an instant


@contextlib.contextmanager
def alone(path: Path, who: str, waiting: Callable[[str], None] | None) -> Iterator[None]:
    """One holder at a time. `who` is what the others are told; `waiting` is called once with the holder, or without it: Busy."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0 if waiting else MOMENT)
    except Timeout:
        if waiting is None:
            raise Busy(f"{holder(path)} is at work on it; without --no-wait this run would wait for it") from None
        waiting(holder(path))
        lock.acquire()
    try:
        _note(path).write_text(json.dumps({"who": who, "pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8")
        yield
    finally:
        lock.release()


def is_free(path: Path) -> bool:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    lock.release()
    return True


def holder(path: Path) -> str:
    """Only for messages: the note may be old, torn or missing."""
    try:
        note = json.loads(_note(path).read_text(encoding="utf-8"))
        return f"{note['who']} (process {note['pid']} on {note['host']})"
    except (OSError, ValueError, TypeError, KeyError):
        return "another run"


@contextlib.contextmanager
def held(path: Path, exclusive: bool) -> Iterator[None]:
    """Many may hold it shared, or one alone; the lock of publishing (shared) against sweeping (alone)."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield
    finally:
        os.close(fd)


def _note(path: Path) -> Path:
    return path.with_suffix(".holder")
