"""How long one image takes, measured in a process of its own per model, turn by turn, so that a noisy machine is noisy for all of them.

Two boundaries, both for one image: `image_ms` from the decoded uint8 image in memory to the class map (resizing to the network's size,
batch axis, copies); `engine_ms` the engine alone on an input that lies where it reads it. Beside each the processor time of the whole
process, all threads together (`image_cpu_ms`, `engine_cpu_ms`): it hardly changes when others keep the machine busy, and does not see
waiting, nor what a GPU does.
A child process is started as `python -m stages.measure.latency SPEC.json`. It opens one model, and then times as many runs as each line
on its standard input asks for; 0 is asked first, and warms up. Only a pytorch model brings torch into its process.
"""

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import errors
from pipeline.artifact import Artifact
from stages import machine
from stages.measure.order import figures
from stages.measure.predict import fitted, open_session
from stages.measure.process import Process
from stages.measure.quiet import Watch

ROUNDS = 10  # in each of them every model has one turn, in an order drawn anew
SEED = 0  # of that order
BOUNDARIES = ("image_ms", "engine_ms")
CPUS = ("cpu", "CPU", "CPUExecutionProvider")  # what runtimes call the processor
WARM_RUNS = 10  # before the first turn, and for at least warmup_ms
REWARM_RUNS = 2  # before each turn: the others have used the caches meanwhile


def measure(
    models: list[Artifact],
    images: list[np.ndarray],
    size: tuple[int, int] | None,
    work: Path,
    *,
    runs: int,
    warmup_ms: int,
    threads: int | None,
    between: Any = lambda done, total: None,
    remote: Any = None,
    watch: Watch | None = None,
) -> dict[str, dict[str, Any]]:
    """Times every model on the same images uint8 (h, w, 3); `between(done, total)` is called after each turn and may raise.
    `remote(model)` gives the Child of an engine that was built on a target, where it is timed.

    The result is keyed by the models' names: for each boundary and its processor time the figures (stages/measure/order.py) and every
    sample, threads, and what ran. `watch` looks at the machine meanwhile.
    """
    for k, image in enumerate(images):
        np.save(work / f"image_{k}.npy", image)
    common = {
        "images": [str(work / f"image_{k}.npy") for k in range(len(images))],
        "size": size,
        "warmup_ms": warmup_ms,
        "threads": threads,
    }
    watch, children = watch or Watch(), []
    try:
        for model in models:  # one after the other: a model that warms up beside another would not be warm alone
            children.append(remote(model) if "foreign" in model.facts else Child(model, common, work))
            children[-1].opened()
            children[-1].warm()
        samples = {child.name: {key: [] for one in BOUNDARIES for key in (one, of_cpu(one))} for child in children}
        turns = in_turns(len(children), runs)
        watch.begin()
        for done, (k, many) in enumerate(turns, 1):
            for key, values in children[k].timed(many).items():
                samples[children[k].name][key] += values
            watch.turn(children[k].name, on_gpu(children[k].ran) and "foreign" not in models[k].facts)
            between(done, len(turns))
        return {child.name: summary(samples[child.name], child.ran) for child in children}
    finally:
        for child in children:
            child.end()


def in_turns(models: int, runs: int) -> list[tuple[int, int]]:
    """(which model, how many runs), one turn after the other: random within each round, so that whatever comes and goes hits all alike."""
    draw, rounds = random.Random(SEED), min(ROUNDS, runs)
    turns = []
    for r in range(rounds):
        order = list(range(models))
        draw.shuffle(order)
        turns += [(k, runs * (r + 1) // rounds - runs * r // rounds) for k in order]
    return turns


def of_cpu(boundary: str) -> str:
    """image_ms -> image_cpu_ms"""
    return boundary.replace("_ms", "_cpu_ms")


def summary(samples: dict[str, list[float]], ran: dict[str, Any]) -> dict[str, Any]:
    found = {key: figures(values) for key, values in samples.items()}
    kept = {f"samples_{key}": [round(value, 5) for value in values] for key, values in samples.items()}
    return found | {"threads": ran["threads"] or machine.cores(), "on_gpu": on_gpu(ran)} | kept


def on_gpu(ran: dict[str, Any]) -> bool:
    return ran["provider"] not in CPUS


class Child(Process):
    """One model in its own process."""

    program = ("-m", "stages.measure.latency")

    def __init__(self, model: Artifact, common: dict[str, Any], work: Path):
        spec = work / f"{model.name}.json"
        artifact = {"name": model.name, "kind": model.kind, "id": model.id, "folder": str(model.folder), "facts": model.facts}
        spec.write_text(json.dumps({"artifact": artifact, **common}), encoding="utf-8")
        super().__init__(model.name, [*self.program, str(spec.resolve())], work / f"{model.name}.log")

    def opened(self) -> None:
        """Waits until its model is open. Several may be opening at a time; who warms up should be alone."""
        answer = self.answer()
        self.ran, self.modules = answer["ran"], answer["modules"]

    def warm(self) -> None:
        self.timed(0)

    def timed(self, runs: int) -> dict[str, list[float]]:
        return self.ask(str(runs))


def main(spec: dict[str, Any], asked, answer, changed: Any = lambda call: call) -> None:
    """The child: `asked` yields lines with a number of runs, `answer` sends one object back. `changed` may wrap what is timed."""
    try:
        session = open_session(Artifact(**spec["artifact"] | {"folder": Path(spec["artifact"]["folder"])}), spec["threads"])
    except errors.Stillhouse as error:
        return answer({"error": type(error).__name__, "message": str(error)})
    images, size = [np.load(path) for path in spec["images"]], spec["size"]
    calls = {"image_ms": [lambda image=image: session(fitted(image, size)[None])[0] for image in images]}
    calls["engine_ms"] = [session.bind(np.array(fitted(image, size)[None])) for image in images]
    ways = {boundary: [changed(call) for call in each] for boundary, each in calls.items()}
    answer({"ran": session.ran, "modules": [name for name in ("torch", "onnxruntime", "openvino") if name in sys.modules]})
    done = 0
    for runs in map(int, asked):
        if not runs:
            for each in ways.values():
                warm(each, spec["warmup_ms"])
        answer(times(ways, runs, done) if runs else {})
        done += runs


def warm(calls: list, least_ms: float) -> None:
    start, done = time.perf_counter(), 0
    while done < (WARM_RUNS if least_ms else 1) or (time.perf_counter() - start) * 1e3 < least_ms:
        calls[done % len(calls)]()
        done += 1


def times(ways: dict[str, list], runs: int, done: int = 0) -> dict[str, list[float]]:
    """Milliseconds of each run at each boundary, and of processor time, after `done` runs. Boundaries and images alternate: what slows one
    slows both."""
    for k in range(done, done + REWARM_RUNS):
        for calls in ways.values():
            calls[k % len(calls)]()
    found = {key: [] for boundary in ways for key in (boundary, of_cpu(boundary))}
    for k in range(done, done + runs):
        for boundary, calls in ways.items():
            call = calls[k % len(calls)]
            cpu, start = time.process_time(), time.perf_counter()
            call()
            took, used = time.perf_counter() - start, time.process_time() - cpu
            found[boundary].append(took * 1e3)
            found[of_cpu(boundary)].append(used * 1e3)
    return found


def own_pipe() -> Any:
    """Sends objects to the stage on what was standard output, which from now on is standard error: runtimes print what they like."""
    pipe = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return lambda what: print(json.dumps(what), file=pipe, flush=True)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), sys.stdin, own_pipe())
