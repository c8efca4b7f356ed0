"""F1: SIGKILL before a system call of a run of three stages: nothing announced is lost or damaged, the same command finishes it.

Taken are, from the moment the run first touches its store: in the runner and in the process of each stage every call that names the
store or the folder of pages or acts on a descriptor of them, and every call that makes, ends, locks, signals or connects processes;
an even sample of all others (imports, memory, Python setting up 64 signals in each process) up to 1,200 in all; and what a stage's
process does between its birth and its program. A case is named after the process, the call and which of that process's calls of this
name it is; the last call that was traced must be that one, unfinished.
"""

import contextlib
import functools
import io

import toy_stages
import tracing
from common import toy, undisturbed

QUICK = 6
NEEDS = ("strace",)
COVERS = ("pipeline",)
ALL, OTHERS = 1200, 60  # cases in all; at least so many of the sampled kind
PROCESS = {
    *("clone", "clone3", "fork", "vfork", "execve", "wait4", "waitid", "exit_group", "kill", "tgkill", "tkill", "rt_sigprocmask", "flock"),
    *("fcntl", "pipe", "pipe2", "prctl", "setsid", "prlimit64", "umask", "poll", "epoll_wait", "dup2", "close_range", "getppid"),
}
UNBORN = ("setsid", "close_range", "dup2")  # calls that only the new process makes before it becomes the stage's program


@functools.cache
def cases():
    points = [point for process, lines in tracing.recorded().items() for point in _points(process, lines)]
    others = [case for case, must in points if not must]
    room = min(len(others), max(OTHERS, ALL - len(UNBORN) - sum(must for _, must in points)))
    sampled = {others[i * len(others) // room] for i in range(room)}
    return [f"unborn-{call}-1" for call in UNBORN] + [case for case, must in points if must or case in sampled]


def check(case, place):
    process, call, count = case.split("-")
    mine = toy(place)
    follow = ("-f",) if process == "unborn" else ()
    _, said, seen = tracing.run(mine, process, call, f"signal=SIGKILL:when={count}", *follow)
    assert "Traceback" not in said, said
    mine.sound(said)
    assert mine.finish() == undisturbed(), "other artifacts than without the kill"
    assert set(_plan(mine)) == {"kept"}
    reached = process == "unborn" or sum(bool(tracing.CALL.match(line)) for line in seen) == int(count)
    return {"hit": reached and any("killed by SIGKILL" in line for line in seen[-1:] + seen * bool(follow))}


def summary(figures):
    hits = sum(f["hit"] for f in figures)
    return hits >= 0.99 * len(figures), f"{hits:,} of {len(figures):,} processes died at exactly the intended call"


def _points(process, lines):
    """[(case, whether it must be taken)] in the order of time."""
    for call, count, _, named in tracing.calls(lines, touched=process != "runner"):
        yield f"{process}-{call}-{count}", named or call in PROCESS or (call == "rt_sigaction" and process == "runner")


def _plan(mine):
    from pipeline import cli

    parts, out = cli.Parts(toy_stages.KINDS, lambda: True, dict, None), io.StringIO()
    with contextlib.redirect_stdout(out):
        code = cli.main(["plan", str(mine.recipe), "--profile", "none", "--store", str(mine.store)], parts)
    assert code == 0, out.getvalue()
    return [line.split()[2] for line in out.getvalue().splitlines()]
