"""F2: up to three SIGKILLs at random moments of a toy run, and five in each of eight runs of a real line: the same artifacts.

A kill takes the runner with its process group, or everything at work at once, or only the process of a stage. The real line is
recipes/smoke.yaml; of it the ids of all stages count that are declared reproducible and depend on none that is not.
"""

import functools
import importlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import parts
from common import ROOT, end, nobody_left, survivors, toy, undisturbed

COVERS = ("pipeline", "stages", "kernels")
TOYS, REALS = 640, 8  # about 1,200 kills of the toy line
KILLS = {"toy": 3, "real": 5}
HOURS = 600  # seconds that one real run may take


def cases():
    return [f"toy-{i}" for i in range(TOYS)] + [f"real-{i}" for i in range(REALS)]


def quick():
    return parts.spread([f"toy-{i}" for i in range(TOYS)], 6)


def check(case, place):
    chance = random.Random(f"F2 {case}")
    return (_toy if case.startswith("toy") else _real)(place, chance)


def summary(figures):
    kills = {kind: sum(f["kills"] for f in figures if f["line"] == kind) for kind in KILLS}
    words = f"{kills['toy']:,} kills of the toy line and {kills['real']} of the real line"
    if not all(f["kills"] == KILLS["real"] for f in figures if f["line"] == "real"):
        return False, f"{words}: a real run ended before its last kill"
    toys = sum(f["line"] == "toy" for f in figures)
    return toys < TOYS or kills["toy"] >= 1000, words  # some runs end before they are killed three times


def _toy(place, chance):
    mine, kills = toy(place), 0
    for _ in range(KILLS["toy"]):
        process = mine.start(*mine.run_arguments())
        ended = _killed(process, place, chance.uniform(0, _seconds()), chance.choice(("runner", "all", "stage")))
        said = process.stdout.read()
        end(process)
        nobody_left(place)
        mine.sound(said)
        if ended:
            break
        kills += 1
    assert mine.finish() == undisturbed(), "other artifacts than without the kills"
    return {"line": "toy", "kills": kills}


def _killed(process, place, delay, whom):
    """Kills after so many seconds; True where there was nothing left to kill."""
    try:
        process.wait(timeout=delay)
        return True
    except subprocess.TimeoutExpired:
        pass
    if whom == "stage":  # the runner stays, and must say so and end
        stages = [pid for pid, command in survivors(place) if "pipeline.child" in command]
        for pid in stages:
            _kill(os.kill, pid)
        if stages:
            process.wait(timeout=60)
            return False
    others = [pid for pid, _ in survivors(place)] if whom == "all" else []
    _kill(os.killpg, process.pid)
    for pid in others:
        _kill(os.kill, pid)
    process.wait(timeout=60)
    return False


def _kill(how, pid):
    try:
        how(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@functools.cache
def _seconds():
    """How long an undisturbed run takes here and now: the better of two, the first reads everything from the disk."""
    took = []
    for _ in range(2):
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            began = time.monotonic()
            toy(folder).run()
            took.append(time.monotonic() - began)
    return min(took)


# -- the real line


def _real(place, chance):
    ids, seconds = _real_undisturbed()
    kills = 0
    for _ in range(KILLS["real"]):
        process = _start_real(place)
        kills += not _killed(process, place, chance.uniform(1.0, seconds / KILLS["real"]), chance.choice(("runner", "all")))
        end(process)
        nobody_left(place)
    assert _finished(place) == ids, "other artifacts than without the kills"
    return {"line": "real", "kills": kills}


@functools.cache
def _real_undisturbed():
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        began = time.monotonic()
        return _finished(Path(folder)), time.monotonic() - began


def _start_real(place):
    command = [sys.executable, "-m", "pipeline", "run", str(ROOT / "recipes/smoke.yaml"), "--profile", "none"]
    command += ["--store", str(place / ".stillhouse"), "--out", str(place / "runs")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with open(place / "said", "ab") as said:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said, start_new_session=True)


def _finished(place):
    """{stage: id} of what is reproducible, after the command has run to its end."""
    from pipeline.store import Store

    process = _start_real(place)
    try:
        code = process.wait(timeout=HOURS)
    finally:
        end(process)
    assert code in (0, 3), (place / "said").read_text()[-2000:]  # 3: the gate judged times that are measured anew
    assert not list((place / ".stillhouse/tmp").iterdir()), "something is left in tmp"
    store = Store(place / ".stillhouse")
    entries = store.journal(store.runs("smoke")[-1]).read()
    resolved = entries[0]["resolved"]["stages"]
    found = {e["stage"]: e["id"] for e in entries if e["event"] == "stage" and e["stage"] in _reproducible(resolved)}
    for id in found.values():
        store.verify(id)
    assert set(found) == _reproducible(resolved)
    return found


def _reproducible(resolved):
    """The stages that are declared reproducible and take nothing from one that is not."""
    import stages
    from pipeline.keys import taken

    names = set()
    for name, settings in resolved.items():
        module, _, kind = stages.KINDS[settings["kind"]].partition(":")
        stage = getattr(importlib.import_module(module), kind).model_validate(settings)
        if stage.reproducible and {n for _, sources in taken(stage).values() for n in sources} <= names:
            names.add(name)
    return names
