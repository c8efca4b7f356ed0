"""F10: training stopped at random steps by SIGKILL, SIGTERM and SIGINT, several times each: it ends in the very same bytes."""

import functools
import json
import random
import signal
import tempfile
from pathlib import Path

from forked import Child, inputs, result, stage

QUICK = 4
COVERS = ("pipeline", "stages", "kernels")
CASES, STEPS = 50, 36
VARIANTS = {
    "plain": ("train", {}),
    "sgd": ("train", {"optimizer": "sgd", "clip": 1.0, "schedule": "cosine"}),
    "ema": ("train", {"ema": 0.9, "validate_every": 12}),
    "accumulate": ("train", {"accumulate": 2, "warmup": 9}),
    "bf16": ("train", {"precision": "bf16", "channels_last": True}),
    "strict": ("train", {"determinism": "strict", "ema": 0.99}),
    "distill": ("distill", {}),
    "distill-ema-sgd": ("distill", {"ema": 0.9, "optimizer": "sgd", "validate_every": 9}),
    "distill-bf16": ("distill", {"precision": "bf16", "accumulate": 2}),
    "workers": ("train", {"workers": 1}),
}
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def cases():
    return [f"{list(VARIANTS)[i % len(VARIANTS)]}-{i}" for i in range(CASES)]


def check(case, place):
    variant = case.rpartition("-")[0]
    whole = undisturbed(variant)
    chance = random.Random(f"F10 {case}")
    stops, done, last, signals = chance.randint(2, 5), False, 0, []
    for _ in range(stops):
        number, at = chance.choice(SIGNALS), chance.randrange(STEPS)
        last, code = attempt(variant, place, last, number, at, chance.uniform(0, 0.03))
        signals.append(signal.Signals(number).name)
        assert code in (0, -signal.SIGKILL, 128 + number), (
            f"exit code {code} after {number} at step {at}: {(place / 'log').read_text()[-800:]}"
        )
        done = code == 0
        if done:
            break
    if not done:
        _, code = attempt(variant, place, last)
        assert code == 0, f"exit code {code}: {(place / 'log').read_text()[-800:]}"
    weights, curves = result(place)
    assert json.loads(curves)["train"] == json.loads(whole[1])["train"], "another loss log than without being stopped"
    assert (weights, curves) == whole, "other bytes than without being stopped"
    steps = [point["step"] for point in json.loads(curves)["train"]]
    assert steps == list(range(1, STEPS + 1)), f"steps of the log: {steps}"
    return {"stops": len(signals)}


def summary(figures):
    return True, f"{sum(f['stops'] for f in figures)} stops"


def attempt(variant, place, reached, number=None, at=None, later=0.0):
    """One process, stopped `later` seconds after it has told of step `at`. Returns how many steps were ever begun, and its exit code."""
    kind, fit = VARIANTS[variant]
    job = stage(kind, steps=STEPS, save_every=0.02, **fit)
    child = Child(lambda lent, steps: _trained(job, kind, lent, steps), place)
    seen = []
    try:
        for line in child.lines:
            seen.append(int(line))
            if number is not None and seen[-1] >= at:
                signal.sigtimedwait([], later)
                child.signal(number)
                number = None
        code = child.wait()
    finally:
        child.end()
    if seen:
        assert seen == list(range(seen[0], seen[0] + len(seen))), f"steps out of order: {seen}"
        assert seen[0] <= reached, f"step {reached} was left out: it went on at step {seen[0]}"
    return max([reached, *(step + 1 for step in seen)]), code


def _trained(job, kind, lent, steps):
    """Tells of every step before it is made."""
    from stages import loop

    original = loop.Loop.learn

    def told(self):
        steps.write(f"{self.done}\n")
        original(self)

    loop.Loop.learn = told
    job.run(inputs(kind), lent)


@functools.cache
def undisturbed(variant):
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        _, code = attempt(variant, Path(folder), 0)
        assert code == 0, (Path(folder) / "log").read_text()[-2000:]
        return result(Path(folder))
