"""F11: SIGINT and SIGTERM at random moments of a run: it ends in time with 130 or 143, and counting goes on from where it was saved.

In the cases called twice-* the stage does not listen, and a second signal must end the run within a second. No process stays behind.
The moments lie between the first line of the program (before, Python itself answers) and the end of an undisturbed run. A signal
before the runner listens ends the command the way the system does it; shells show the same codes for that.
"""

import functools
import random
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from common import end, nobody_left, toy, undisturbed

QUICK = 6
COVERS = ("pipeline",)
ONCE, TWICE = 100, 100
STEPS = 30  # of 20 ms
RECIPE = """
name: toy
stages:
  one: {{kind: number, value: 1}}
  far: {{kind: count, of: one, steps: {steps}, deaf: {deaf}}}
"""
LISTENING = RECIPE.format(steps=STEPS, deaf="false")
DEAF = RECIPE.format(steps=STEPS, deaf="true")
SECOND = 1.0  # seconds within which a second signal ends the run; judged over all cases, for a busy machine may be slow once
PATIENCE = 20.0  # seconds after which it counts as not heeded


def cases():
    return [f"{how}-{i}" for i in range(ONCE) for how in ("once", "twice")]


def check(case, place):
    chance = random.Random(f"F11 {case}")
    mine = toy(place, DEAF if case.startswith("twice") else LISTENING)
    process = mine.start(*mine.run_arguments())
    _await_program(process)
    try:
        numbers, took = _once(process, chance) if case.startswith("once") else _twice(process, chance)
        out, err = process.communicate(timeout=60)
    finally:
        end(process)
    nobody_left(place)
    codes = {0, *(128 + n for n in numbers), *(-n for n in numbers)}
    assert process.returncode in codes, f"exit {process.returncode} after signals {numbers}: {out + err}"
    assert "Traceback" not in out + err, out + err
    mine.sound(out)
    saved = [int(file.read_text()) for file in mine.store.glob("state/*/at")]
    mine.recipe.write_text(LISTENING, encoding="utf-8")
    code, said = mine.run()
    assert code == 0, said
    counted = [int(n) for n in re.findall(r"counting from (\d+)", said)]
    assert not saved or counted == saved, f"saved at {saved}, went on from {counted}"
    assert mine.finish() == undisturbed(LISTENING), "other artifacts than without the signal"
    return {"took": took, "twice": case.startswith("twice"), "stopped": process.returncode != 0, "saved": bool(saved)}


def summary(figures):
    stopped = [f for f in figures if f["stopped"]]
    slowest = {twice: max((f["took"] for f in stopped if f["twice"] == twice), default=0.0) for twice in (False, True)}
    saved = sum(f["saved"] for f in figures)
    words = f"{len(stopped)} stopped, {saved} of them while counting; slowest {slowest[False]:.2f} s, second signal {slowest[True]:.2f} s"
    return len(figures) < 100 or (saved >= 0.1 * len(figures) and slowest[True] < SECOND), words


def _once(process, chance):
    from pipeline.runner import GRACE

    number = chance.choice((signal.SIGINT, signal.SIGTERM))
    _sleep(process, chance.uniform(0, _seconds()))
    began = time.monotonic()
    process.send_signal(number)
    return (number,), _ended(process, began, GRACE)


def _twice(process, chance):
    """The second comes while the first still waits for the stage."""
    numbers = [chance.choice((signal.SIGINT, signal.SIGTERM)) for _ in range(2)]
    _sleep(process, chance.uniform(0, _seconds()))
    process.send_signal(numbers[0])
    _sleep(process, chance.uniform(0, 0.1))
    began = time.monotonic()
    process.send_signal(numbers[1])
    took = _ended(process, began, PATIENCE)
    return numbers, took


def _await_program(process):
    """Python ignores SIGPIPE and catches SIGINT from its start on; the program's first line gives SIGINT back to the system."""
    ends = time.monotonic() + 30
    while time.monotonic() < ends and process.poll() is None:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        ignored, caught = int(status["SigIgn"], 16), int(status["SigCgt"], 16)
        if ignored >> (signal.SIGPIPE - 1) & 1 and not caught >> (signal.SIGINT - 1) & 1:
            return
        time.sleep(0.001)


def _ended(process, began, within):
    try:
        process.wait(timeout=within)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"still running {within} s after the signal") from None
    return time.monotonic() - began


def _sleep(process, seconds):
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return


@functools.cache
def _seconds():
    """From the first line of the program to its end, undisturbed; the better of two, the first reads everything from the disk."""
    took = []
    for _ in range(2):
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            mine = toy(folder, LISTENING)
            process = mine.start(*mine.run_arguments())
            _await_program(process)
            began = time.monotonic()
            process.communicate(timeout=60)
            took.append(time.monotonic() - began)
    return min(took)
