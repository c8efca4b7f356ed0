"""Holds a parser or a builder to a share of memory and time while it works on a file from elsewhere.

Files are looked at before they are parsed, but a few bytes can still describe something enormous: a constant of a billion elements,
a network of a million layers. Memory is the system's limit on a process's own data (Linux; elsewhere there is none), asked for by
the bytes that are already in use plus an allowance. Time is processor time and only ends Python code: what a runtime does inside one
call of its own is held by the memory alone.
"""

import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import BadData, Stillhouse

SPACE = 640 << 20  # bytes beyond several copies of the file: libraries, buffers, tables
COPIES = 6  # of its content that a builder may hold at once: read, converted, packed for the processor
STACK = 8 << 20  # bytes the system sets aside for a thread; a runtime starts up to two per core
SECONDS = 6.0  # of processor time
RATE = 32 << 20  # bytes of a file that another second is given for: reading, cutting and checking a network takes a quarter of it
REFUSALS = ("bad_alloc", "bad allocation", "can't allocate", "cannot allocate", "failed to allocate", "out of memory")


class _Elapsed(BaseException):
    """No Exception, so that no library takes it for a mistake of its own and goes on."""


@contextmanager
def bounded(what: str, size: int, seconds: float | None = SECONDS) -> Iterator[None]:
    """BadData when the body wants more than fits to a file of `size` bytes; `what` begins the sentence that says so.

    `seconds` None: where honest work may take minutes.
    """
    allowance = SPACE + COPIES * size + 2 * STACK * (os.cpu_count() or 1)
    try:
        with _gradients(), _memory(allowance), _time(seconds):
            yield
    except _Elapsed:
        raise BadData(f"{what} asks for more than {seconds:.0f} s of processor time to be built: is it what it is said to be?") from None
    except Stillhouse:
        raise
    except Exception as error:
        if not wants_memory(error):
            raise
        raise BadData(
            f"{what} asks for more than the {allowance >> 20} MiB of memory that fit to its {size >> 10} KiB: is it what it is said to be?"
        ) from None


def wants_memory(error: Exception) -> bool:
    """Whether a library means that it got no memory. Each has its own words for it."""
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in REFUSALS)


@contextmanager
def _gradients() -> Iterator[None]:
    """What ends the body may strike while torch enters or leaves no_grad, and would leave the whole process without gradients."""
    torch = sys.modules.get("torch")
    enabled = torch is not None and torch.is_grad_enabled()
    try:
        yield
    finally:
        if enabled and not torch.is_grad_enabled():
            torch.set_grad_enabled(True)


@contextmanager
def _memory(allowance: int) -> Iterator[None]:
    if not sys.platform.startswith("linux"):
        yield
        return
    before, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _in_use() + allowance
    if any(bound != resource.RLIM_INFINITY and bound < limit for bound in (before, most)):
        limit = before  # somebody set a narrower one: it stays
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, most))


@contextmanager
def _time(seconds: float | None) -> Iterator[None]:
    if seconds is None or threading.current_thread() is not threading.main_thread():  # only there are signals handled
        yield
        return

    def end(number, frame):
        raise _Elapsed

    handler = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)


def _in_use() -> int:
    """Bytes of private, writable memory, as the limit counts them."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData:"))
    return int(line.split()[1]) << 10
