"""F8: many publishers, runs and sweeps at once on a store, some killed: nothing in use is lost, each stage is made once, no lock stays."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import tempfile
import time
from random import Random

from common import Toy, end, nobody_left
from crowd import Crowd

from pipeline import locks
from pipeline.fsck import examine
from pipeline.store import Store

STORMS, RUSHES, KILLS, SWEPT, SPOILT, BUSY = 60, 30, 20, 8, 8, 2
MANY, SOME = 8, 4  # commands at once
PATIENCE = 180  # seconds for a crowd of commands on a busy machine
RECIPE = """
name: toy
stages:
  one: {kind: number, value: 1}
  two: {kind: number, value: 2}
  sum: {kind: sum, of: [one, two]}
  far: {kind: count, of: one, steps: 5}
  judge: {kind: judge, of: sum, at_most: 10}
"""
LONG = RECIPE.replace("steps: 5", "steps: 3000")


def cases():
    counts = {"storm": STORMS, "rush": RUSHES, "kills": KILLS, "swept": SWEPT, "spoilt": SPOILT, "no-wait": BUSY}
    return [f"{kind}-{n}" for kind, count in counts.items() for n in range(count)]


def quick():
    """Storms are cheap; a crowd of commands takes seconds."""
    return [f"storm-{n}" for n in range(1, STORMS, 8)] + ["rush-1", "no-wait-0"]


def check(case, place):
    kind, _, n = case.rpartition("-")
    try:
        return CHECKS[kind](place, Random(case), int(n))
    finally:
        nobody_left(place)


def summary(figures):
    published, killed, swept = (sum(f.get(name, 0) for f in figures) for name in ("publishers", "killed", "swept"))
    return True, f"{published:,} publishers beside a sweeping loop, {killed:,} processes killed, {swept:,} artifacts nobody needed swept"


# -- publishers that drive the store directly


def storm(place, chance, n):
    """8 at a time, of equal and of different content, beside a process that sweeps and sweeps."""
    crowd = Crowd(place, chance, keep=(None, 1)[n % 2])
    return crowd.publish(publishers=24, at_once=MANY, killed=0.4)


# -- command lines on one recipe


def rush(place, chance, n):
    """Without kills: every stage is made once, whoever makes it, and all say the same."""
    toy = Toy(place, RECIPE)
    ends = finished([started(toy, n) for n in range(MANY)])
    assert [code for code, _ in ends] == [0] * MANY, said_by(ends)
    made = [e["stage"] for e in entries(toy) if e["event"] == "stage" and e["state"] == "made"]
    assert sorted(made) == sorted(expected()), f"made: {sorted(made)}"
    assert told(toy) == {name: {id} for name, id in expected().items()}, "the runs tell of different artifacts"
    sound(toy)


def kills(place, chance, n):
    """Some are killed at any moment, with all they started; the others end well, and the same command finishes what is left."""
    toy, doomed = Toy(place, RECIPE), chance.sample(range(SOME), chance.randrange(1, SOME))
    commands = [started(toy, n) for n in range(SOME)]
    began = time.monotonic()
    for when, who in sorted((chance.uniform(0.2, 2.5), who) for who in doomed):
        time.sleep(max(0.0, began + when - time.monotonic()))
        hit(commands[who][0], chance)
    ends = finished(commands)
    survivors = [ends[who] for who in range(SOME) if who not in doomed]
    assert all(code == 0 for code, _ in survivors), said_by(survivors)
    assert toy.finish() == expected()
    assert all(len(ids) == 1 for ids in told(toy).values()), "the runs tell of different artifacts"
    sound(toy)
    return {"killed": len(doomed)}


def hit(process, chance):
    """The runner alone, whose stage then dies with it, or the whole group."""
    with contextlib.suppress(ProcessLookupError):  # done before
        (os.kill if chance.random() < 0.5 else os.killpg)(process.pid, signal.SIGKILL)


def swept(place, chance, n):
    """Beside a process that sweeps all but the newest run: whoever is at work loses nothing."""
    toy = Toy(place, RECIPE)
    toy.finish()
    crowd = Crowd(place, chance, keep=1, store=toy.store)
    with crowd.sweeping():
        ends = finished([started(toy, k, "--set", f"stages.two.value={k % 2 + 5}") for k in range(SOME)])
    assert [code for code, _ in ends] == [0] * SOME, said_by(ends)
    assert toy.finish() == expected()
    sound(toy)
    return {"swept": crowd.swept}


def spoilt(place, chance, n):
    """All find the same damage at once and need what is damaged: one makes it anew, nobody fails."""
    toy = Toy(place, RECIPE)
    ids = toy.finish()
    for name in chance.sample(("one", "two"), chance.randrange(1, 3)):
        folder = toy.store / "objects/sha256" / ids[name][:2] / ids[name]
        file = folder / "number.txt"
        os.chmod(folder, 0o755)
        os.chmod(file, 0o644)
        file.write_bytes(b"7")
    ends = finished([started(toy, k, "--set", "stages.sum.times=2.0") for k in range(SOME)])
    assert [code for code, _ in ends] == [0] * SOME, said_by(ends)
    assert toy.finish() == ids
    sound(toy)


def no_wait(place, chance, n):
    """The second gives up at once where it would have to wait, and names the first."""
    toy = Toy(place, LONG)
    first = toy.start(*toy.run_arguments())
    try:
        holder = awaited(lambda: next(iter(noted(toy, first.pid)), None), "the first run to count")
        code, said = toy.run("--no-wait")
        assert code == 8, f"ended with {code}: {said}"
        assert "Traceback" not in said and "far: toy-1" in said and f"process {first.pid}" in said, said
        assert first.poll() is None and noted(toy, first.pid) == [holder], "the first was disturbed"
        first.send_signal(signal.SIGTERM)
        first.wait(timeout=PATIENCE)
    finally:
        end(first)
    assert first.returncode == 143, f"the first ended with {first.returncode}"
    code, said = toy.run("--no-wait", "--set", "stages.far.steps=3")
    assert code == 0, f"nobody is at work any more, and it ended with {code}: {said}"


CHECKS = {"storm": storm, "rush": rush, "kills": kills, "swept": swept, "spoilt": spoilt, "no-wait": no_wait}


# -- helpers


def started(toy, n, *more):
    """(process, file with what it says): a pipe that nobody reads would stop it."""
    file = toy.place / f"said-{n}.txt"
    with open(file, "wb") as said:
        return toy.start(*toy.run_arguments(), "--out", f"runs-{n}", *more, stdout=said, stderr=said, text=False), file


def finished(commands):
    """[(exit code, what it said)]; one that hangs is a failure."""
    limit = time.monotonic() + PATIENCE
    try:
        for process, file in commands:
            try:
                process.wait(timeout=max(0.1, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"hangs: {file.read_text()[-400:]}") from None
    finally:
        for process, _ in commands:
            end(process)
    said = [file.read_text(errors="replace") for _, file in commands]
    assert not any("Traceback" in words for words in said), next(words[-1500:] for words in said if "Traceback" in words)
    return [(process.returncode, words) for (process, _), words in zip(commands, said, strict=True)]


def said_by(ends):
    return "; ".join(f"{code}: {said[-400:]}" for code, said in ends if code)


@functools.cache
def expected():
    """The ids of an undisturbed run, made where nothing else is."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        toy = Toy(folder, RECIPE)
        ids = toy.finish()
        for path in toy.store.glob("objects/sha256/*/*"):
            path.chmod(0o700)
        return ids


def entries(toy):
    store = Store(toy.store)
    return [entry for run in store.runs() for entry in store.journal(run).read()]


def told(toy):
    """{stage: the ids that any run gave it}."""
    found = {}
    for entry in entries(toy):
        if entry["event"] == "stage" and entry["id"]:
            found.setdefault(entry["stage"], set()).add(entry["id"])
    return found


def sound(toy):
    """No damage but lines that a kill tore; nobody holds a lock."""
    left = [f for f in examine(Store(toy.store)) if not f.where.endswith("journal.jsonl")]
    assert not left, f"fsck says {left}"
    held = [p.name for p in (toy.store / "locks").glob("*.lock") if not locks.is_free(p)]
    assert not held, f"still locked: {held}"


def noted(toy, pid):
    """Which locks of keys a process says it holds, once its journal tells that it counts."""
    counting = {e["key"] for e in entries(toy) if e["event"] == "starts" and e["stage"] == "far"} if toy.store.exists() else set()
    found = []
    for key in counting:
        try:
            note = json.loads((toy.store / "locks" / f"{key}.holder").read_text())
        except (OSError, ValueError):
            continue
        found += [key] if note["pid"] == pid else []
    return found


def awaited(ask, what, within=60.0):
    limit = time.monotonic() + within
    while time.monotonic() < limit:
        if answer := ask():
            return answer
        time.sleep(0.05)
    raise AssertionError(f"waited {within:.0f} s for {what}")
