"""What the process of a stage may do, and why one was killed: small promises that only the system can keep."""

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1


def confine(parent: int) -> None:
    """For the process of a stage: private files, no core dumps (they hold secrets and fill disks), and never without its runner."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    die_with(parent)


def die_with(parent: int) -> None:
    """If the process `parent` dies, so does this one: nobody would publish its result (Linux; elsewhere it ends by itself)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def memory_kills() -> int:
    """How many processes the system has killed for want of memory so far, on this machine or in this container."""
    return sum(_count(path) for path in (Path("/proc/vmstat"), *_cgroups()))


def _cgroups() -> list[Path]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    return [Path("/sys/fs/cgroup" + line.partition("::")[2]) / "memory.events" for line in lines if line.startswith("0::")]


def _count(path: Path) -> int:
    try:
        fields = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return 0
    return sum(int(value) for name, value in (f for f in fields if len(f) == 2) if name == "oom_kill")
