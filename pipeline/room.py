"""Whether a folder is fit to hold a store: enough space, a file system that keeps its word, and nobody else who may write there."""

import errno
import os
import re
from pathlib import Path

from .errors import BadRecipe, BadStore, Refused
from .problems import shortened, visible

RESERVE = 32 << 20  # bytes that stay free beyond what a stage is expected to write
FULL = (errno.ENOSPC, errno.EDQUOT)
# Reasons that lie in the storage or in what the system grants, not in the program.
BROKEN = (errno.EIO, errno.EROFS, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.EBUSY, errno.EINTR, errno.EAGAIN)
STORAGE = (*FULL, *BROKEN, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM)
# Their caches and locks differ from machine to machine, and some acknowledge a sync before the data is safe.
NETWORK = re.compile(r"nfs\d?|cifs|smb\w*|ncpfs|afs|9p|ceph|glusterfs|lustre|gpfs|beegfs\w*|orangefs|ocfs2|gfs2|fuse(\.\w.*)?")


def require_space(root: Path, expected: int = 0) -> None:
    """Before a stage starts: `expected` is what it wrote the last time, in bytes."""
    free, needed = free_bytes(root), int(expected * 1.2) + RESERVE
    if free < needed:
        raise BadStore(f"{root} has {size(free)} free and this stage needs {size(needed)}. {_way_out(root)}")


def free_bytes(path: Path) -> int:
    """Where `path` lies, or will lie."""
    found = _disk(path)
    return found.f_bavail * found.f_frsize


def explained(error: OSError, root: Path) -> BadStore | BadRecipe:
    """What the system refused, in words, with the way out. What lies neither in the disk nor in rights lies in the path somebody gave."""
    where = shortened(visible(str(error.filename or root)))
    why = error.strerror or str(error)
    if error.errno not in STORAGE and error.filename and not Path(str(error.filename)).is_relative_to(root):
        return BadRecipe(f"cannot use {where}: {why}. Correct that path")
    if error.errno in FULL:
        left = "no more files fit" if _no_files_left(root) else f"{size(free_bytes(root))} free"
        return BadStore(f"cannot write {where}: {why} ({left} in {root}). {_way_out(root)}")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return BadStore(f"cannot open {where}: {why}. Raise the limit (ulimit -n), then run the same command again")
    return BadStore(f"cannot use {where}: {why}. Mend the disk, the folder or its permissions, then run the same command again")


def full(path: Path) -> bool:
    """Libraries do not always say why a write failed; with hardly any space left there is no doubt."""
    return free_bytes(path) < 1 << 20 or _no_files_left(path)


def is_read_only(root: Path) -> bool:
    """By its mount or by its mode; the mode counts for root as well, whom the system would let write."""
    return root.exists() and (not os.access(root, os.W_OK) or not root.stat().st_mode & 0o200)


def require_ours(root: Path) -> None:
    """Artifacts hold programs for GPUs and weights: whoever may write into a store runs what they like as us."""
    if not root.exists():
        return
    found, me = root.stat(), os.geteuid()
    if found.st_uid != me and not (found.st_uid == 0 and is_read_only(root)):
        raise Refused(
            f"{root} belongs to user {found.st_uid} and this is user {me}: run as its owner, or choose another folder with --store"
        )
    if found.st_mode & 0o022:
        raise Refused(f"{root} can be written by other users (mode {found.st_mode & 0o777:o}): type  chmod go-w {root}")


def require_local(root: Path, allowed: bool = False) -> None:
    kind = kind_of_filesystem(root)
    if NETWORK.fullmatch(kind) and not allowed:
        raise BadRecipe(
            f"{root} lies on a network file system ({kind}), where locks and syncs promise less: two machines may do the same work twice, "
            "and a power cut may lose what was said to be safe. Choose a local disk with --store, or accept that with --allow-network-fs"
        )


def kind_of_filesystem(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the mount that holds `path` (or will hold it), e.g. ext4; "unknown" where the system does not tell."""
    path, best, kind = path.resolve(), Path(), "unknown"
    try:
        lines = mounts.read_bytes().split(b"\n")
    except OSError:
        return kind
    for line in filter(None, lines):  # only ASCII blanks part its fields: names may hold any other
        before, _, after = line.partition(b" - ")
        place = Path(os.fsdecode(_unescaped(before.split(b" ")[4])))
        if path.is_relative_to(place) and len(place.parts) >= len(best.parts):  # a later mount on the same place hides the earlier
            best, kind = place, after.split(b" ")[0].decode()
    return kind


def size(count: float) -> str:
    """In words: 940 bytes, 3.2 MB, 140 GB."""
    units = ["TB", "GB", "MB", "kB", "bytes"]
    while count >= 1000 and len(units) > 1:
        count, _ = count / 1000, units.pop()
    return f"{count:.0f} {units[-1]}" if units[-1] == "bytes" or count >= 100 else f"{count:.1f} {units[-1]}"


def _disk(path: Path) -> os.statvfs_result:
    return os.statvfs(next(p for p in (path.absolute(), *path.absolute().parents) if os.path.exists(p)))


def _no_files_left(path: Path) -> bool:
    found = _disk(path)
    return found.f_files > 0 and found.f_ffree == 0


def _way_out(root: Path) -> str:
    return (
        f"Free some space (`python -m pipeline store gc --dry-run --store {root}` shows what no run needs), then run the same command again"
    )


def _unescaped(text: bytes) -> bytes:
    """mountinfo writes blanks in names as octal numbers."""
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8) & 255]), text)
