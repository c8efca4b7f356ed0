"""F12: two processes train together, and one is killed, stalls or cannot save: the same bytes or a clean failure, no hang, no orphan.

Killed or stalled once, the group is started again from the last state by itself. Where it ends with an error instead (killed every
time, a disk that is full, a signal, its supervisor killed), the same command afterwards must end in the undisturbed bytes.
"""

import contextlib
import functools
import os
import random
import signal
import tempfile
import time
from pathlib import Path

from forked import Child, inputs, result, stage

QUICK = 5
COVERS = ("pipeline", "stages", "kernels")
STEPS, MILESTONE = 14, 5
TIMEOUT = 3.0  # seconds the processes wait for each other here; five minutes in real life
SLACK = 10.0  # seconds beside it until everything must be over, and a minute for a machine with other work
KINDS = {"killed": 16, "killed-always": 6, "cannot-save": 8, "stalled": 8, "stopped": 6, "supervisor-killed": 6}
WORK = "f12_processes:one_of_two"


def cases():
    counts = {kind: iter(range(count)) for kind, count in KINDS.items()}
    rounds = [kind for i in range(max(KINDS.values())) for kind, count in KINDS.items() if i < count]
    return [f"{kind}-{next(counts[kind])}" for kind in rounds]


def check(case, place):
    kind, chance = case.rpartition("-")[0], random.Random(f"F12 {case}")
    plan = {"kind": kind, "rank": chance.randrange(2), "step": chance.randrange(STEPS), "save": chance.randrange(3)}
    code, took, waited = attempt(place, plan)
    orphans(place)
    error = (place / "error").read_text() if (place / "error").exists() else ""
    told = f"{plan}: exit code {code}, {error}: {(place / 'log').read_text()[-1500:]}"
    assert waited <= TIMEOUT + SLACK, f"it hung for {waited:.1f} s after the harm; {told}"
    if kind in ("killed", "stalled"):
        assert code == 0, f"it was not started again; {told}"
        assert "are started again from the last saved state" in (place / "log").read_text(), told
    elif kind == "killed-always":
        assert code == 2 and "was ended by signal 9" in error and "Run again to go on" in error, told
    elif kind == "cannot-save":
        assert code == 5 and "No space left on device" in error, told
    elif kind == "stopped":
        assert code in (0, 128 + signal.SIGTERM), told
    else:
        assert code == -signal.SIGKILL, told
    if code:
        assert code < 0 or not list((place / "out").iterdir()), f"something was left to be published; {told}"
        code, _, _ = attempt(place, None)
        assert code == 0, f"the same command again ended with {code}: {(place / 'log').read_text()[-1500:]}"
    assert result(place) == undisturbed(), f"other bytes than undisturbed; {told}"
    orphans(place)
    return {"kind": kind, "took": took, "waited": waited}


def summary(figures):
    return True, f"slowest end after the harm {max(f['waited'] for f in figures):.1f} s, with a timeout of {TIMEOUT:.0f} s"


def attempt(place, plan):
    """Exit code, seconds in all, and seconds since something was last done: a step, or the harm itself."""
    child, began = Child(lambda job, steps: _supervise(place, plan, job), place), time.monotonic()
    try:
        if plan and plan["kind"] in ("stopped", "supervisor-killed"):
            _await(place / f"step-{plan['step']}", child)
            child.signal(signal.SIGTERM if plan["kind"] == "stopped" else signal.SIGKILL)
        code = child.wait()
    finally:
        if plan is None or plan["kind"] != "supervisor-killed":
            child.end()
        else:
            child.lines.close()  # nobody kills the session here: the others must end by themselves
    now = time.monotonic()
    marks = [float(file.read_text() or 0) for file in place.glob("mark-*")]  # empty: its process was killed while writing it
    return code, now - began, now - max([began, *marks])


def _supervise(place, plan, job):
    from stages import group, setbacks

    group.START, group.TIMEOUT, setbacks.MILESTONE_STEPS = "fork", TIMEOUT, MILESTONE
    mine = stage("train", steps=STEPS, processes=2, ema=0.9, validate_every=7, save_every=0.05)
    group.together(WORK, (mine, inputs("train"), str(place), plan), 2, job)


def one_of_two(mine, given, place, plan, job):
    """What each process does: training, with the harm planned for it."""
    from stages import loop, savings, teach

    place, rank = Path(place), int(os.environ["RANK"])
    (place / f"pid-{os.getpid()}").touch()
    learn, save = loop.Loop.learn, savings.states.save

    def learning(self):
        (place / f"step-{self.done}").touch()
        if plan and plan["rank"] == rank and plan["step"] == self.done:
            if plan["kind"] == "killed-always" or (plan["kind"] == "killed" and _first(place / "harmed")):
                os.kill(os.getpid(), signal.SIGKILL)
            if plan["kind"] == "stalled" and _first(place / "harmed"):
                os.kill(os.getpid(), signal.SIGSTOP)
        learn(self)
        (place / f"mark-{rank}").write_text(str(time.monotonic()))

    def saving(folder, state):
        if plan and plan["kind"] == "cannot-save" and state.step // MILESTONE == plan["save"]:
            raise OSError(28, "No space left on device", str(folder))
        save(folder, state)

    loop.Loop.learn, savings.states.save = learning, saving
    return teach.teach(mine, given, job)


def _first(marker):
    """True once, whichever process asks."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _await(file, child):
    ends = time.monotonic() + 60
    while not file.exists() and time.monotonic() < ends and _alive(child.pid):
        time.sleep(0.005)


def orphans(place):
    """Processes of the group must be gone within a few seconds of their supervisor."""
    ends, left = time.monotonic() + SLACK, [0]
    while left and time.monotonic() < ends:
        left = [int(file.name[4:]) for file in place.glob("pid-*") if _alive(int(file.name[4:]))]
        time.sleep(0.02 if left else 0)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left, f"left behind: {left}"


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@functools.cache
def undisturbed():
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        code, _, _ = attempt(Path(folder), None)
        assert code == 0, (Path(folder) / "log").read_text()[-2000:]
        return result(Path(folder))
