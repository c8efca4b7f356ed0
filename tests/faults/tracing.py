"""strace around one process of a toy run, so that a fault meets exactly one system call of exactly that process.

strace counts calls per process (`when=3` is the third of its name in each process traced), so every process is traced alone: the
runner by a strace in front of the command, a stage by a wrapper that the runner takes for Python.
"""

import re
import shlex
import sys
import tempfile
from pathlib import Path

from common import nobody_left, toy

STAGES = ("one", "sum", "judge")
CALL = re.compile(r"(\w+)\(")


def recorded():
    """{"runner": lines, "one": lines, ...} of an undisturbed run: each process from its program's first call on."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        place = Path(folder)
        mine = toy(place)
        tracing = {name: ("strace", "-q", "-y", "-s", "200", "-o", place / f"trace-{name}") for name in ("runner", *STAGES)}
        mine.environment["TOY_PYTHON"] = str(wrapper(place, tracing))
        code, said = mine.run(before=tracing["runner"])
        assert code == 0, said
        nobody_left(place)  # the tracers too
        return {name: (place / f"trace-{name}").read_text(errors="replace").splitlines() for name in tracing}


def calls(lines, touched):
    """(call, which of its name, the line, whether it concerns the store) from the moment the store is first touched."""
    counts = {}
    for line in lines:
        if not (found := CALL.match(line)):
            continue
        call = found[1]
        counts[call] = counts.get(call, 0) + 1
        named = "/.stillhouse" in line or "/runs" in line or '"runs' in line
        touched = touched or named
        if touched and not (call == "execve" and counts[call] == 1):  # at its first execve the process is not yet ours
            yield call, counts[call], line, named


def run(mine, process, call, injected, *options):
    """The toy command with a fault in one process; (exit code, what it said, what strace saw of such calls)."""
    trace = mine.place / "trace"
    tracing = ("strace", "-q", "-o", trace, "-e", f"trace={call}", "-e", f"inject={call}:{injected}", *options)
    if process in STAGES:
        mine.environment["TOY_PYTHON"] = str(wrapper(mine.place, {process: tracing}))
        code, said = mine.run()
        del mine.environment["TOY_PYTHON"]
    else:
        code, said = mine.run(before=tracing)
    nobody_left(mine.place)
    return code, said, trace.read_text(errors="replace").splitlines() if trace.exists() else []


def wrapper(place, tracing):
    """A program that puts strace before the stages named, as a tracer that is not their parent."""
    arms = [
        f'*/{name}.json) exec {shlex.join(map(str, (options[0], "-D", *options[1:])))} {shlex.quote(sys.executable)} "$@" ;;'
        for name, options in tracing.items()
        if name != "runner"
    ]
    file = place / "python"
    file.write_text("\n".join(["#!/bin/sh", 'case "$3" in', *arms, "esac", f'exec {shlex.quote(sys.executable)} "$@"', ""]))
    file.chmod(0o755)
    return file
