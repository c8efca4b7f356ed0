"""Names classes with argmax.c, which it makes into a library with this machine's C compiler.

The library is kept in the user's own cache folder and not beside the bundle, where anybody could have put one. Where that folder is
of no use it is made anew at each start, in a temporary one.
"""

import ctypes
import hashlib
import itertools
import os
import platform
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
from pathlib import Path

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-shared", "-fPIC")
LIMIT_S = 60  # longest run of the compiler; a second is usual
LARGEST = 64_000_000  # pixels of a class map


class Unfit(Exception):
    """This machine cannot make the library, or not load it."""


def load(source: bytes, tail: dict, threads: int | None):
    """(a function from float32 logits (1, C, h, w) to uint8 (1, H, W), what it was made with); Unfit says why there is none."""
    (height, width), align_corners, classes = tail["size"], tail["align_corners"], tail["classes"]
    if any(type(n) is not int or n < 1 for n in (height, width, classes)) or height * width > LARGEST or classes > 256:
        raise ValueError(f"class maps of {str(tail['size'])[:80]} with {str(classes)[:80]} classes")
    if type(align_corners) is not bool:
        raise ValueError(f"align_corners: {str(align_corners)[:80]}")
    compiler = found()
    function = library(source, compiler).upsample_argmax
    threads = threads or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    return (lambda logits: named(function, logits, classes, (height, width), align_corners, threads)), compiler


def named(function, logits, classes: int, size: tuple, align_corners: bool, threads: int):
    import numpy as np

    if logits.ndim != 4 or logits.shape[:2] != (1, classes):
        raise ValueError(f"the engine gives {str(logits.shape)[:80]}, not logits of one image and {classes} classes")
    logits, classmap = np.ascontiguousarray(logits, np.float32), np.empty((1, *size), np.uint8)
    parts = 1 if threads == 1 else 4 * threads  # borders between classes lie anywhere: who is done early takes another part
    waiting, failed = itertools.count(), []
    where = ctypes.c_void_p(logits.ctypes.data), ctypes.c_void_p(classmap.ctypes.data)

    def some():
        while (part := next(waiting)) < parts:  # ctypes lets other threads run meanwhile
            if function(where[0], *logits.shape, *size, int(align_corners), part, parts, where[1]):
                failed.append(part)

    others = [threading.Thread(target=some) for _ in range(threads - 1)]
    for thread in others:
        thread.start()
    some()
    for thread in others:
        thread.join()
    if failed:
        raise MemoryError("argmax.c has no memory for two rows of logits")
    return classmap


def found() -> str:
    """The path of a compiler. A relative one would be taken from whatever folder this was started in."""
    if os.name != "posix":
        raise Unfit("argmax.c is compiled only where there is cc, gcc or clang")
    for name in COMPILERS:
        path = shutil.which(name)
        if path and os.path.isabs(path):
            return path
    raise Unfit(f"there is no C compiler here ({', '.join(COMPILERS)})")


def library(source: bytes, compiler: str) -> ctypes.CDLL:
    key = hashlib.sha256(b"\0".join([source, *(part.encode() for part in (compiler, *FLAGS, platform.machine(), *platform.libc_ver()))]))
    cache = cache_folder()
    if cache is None:
        with tempfile.TemporaryDirectory() as folder:
            return opened(compiled(source, compiler, Path(folder) / "argmax.so"))
    kept = cache / f"argmax-{key.hexdigest()}.so"
    if not ours(kept):
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            os.replace(compiled(source, compiler, Path(folder) / "argmax.so"), kept)
    return opened(kept)


def cache_folder() -> Path | None:
    """A folder that nobody but this user writes to, or None."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "stillhouse"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder if ours(folder) and os.access(folder, os.W_OK | os.X_OK) else None
    except (OSError, RuntimeError):
        return None


def ours(path: Path) -> bool:
    """Whether it is there, no link, this user's own, and for nobody else to write."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return not stat.S_ISLNK(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def compiled(source: bytes, compiler: str, file: Path) -> Path:
    """The library `file`, from these bytes: they come through a pipe, so that no file can take their place."""
    command = [compiler, *FLAGS, "-x", "c", "-", "-o", str(file)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    try:
        process = subprocess.Popen(command, cwd=file.parent, start_new_session=True, **pipes)
    except OSError as error:
        raise Unfit(f"{compiler} cannot be started: {error}") from None
    try:
        said = process.communicate(source, timeout=LIMIT_S)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # and what it started
        process.communicate()
        raise Unfit(f"{compiler} did not end within {LIMIT_S} s") from None
    if process.returncode or not file.is_file():
        lines = said.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
        raise Unfit(f"{compiler} ended with {process.returncode}: {lines[-1][:200]}")
    file.chmod(0o700)
    return file


def opened(file: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(file))
    except OSError as error:
        raise Unfit(f"the compiled library cannot be loaded: {str(error)[:200]}") from None
