"""How long one image takes, measured in a process of its own per model, turn by turn, so that a noisy machine is noisy for all of them.

Two boundaries, both for one image: `image_ms` from the decoded uint8 image in memory to the class map (resizing to the network's size,
batch axis, copies); `engine_ms` the engine alone on an input that lies where it reads it.
A child process is started as `python -m stages.measure.latency SPEC.json`. It opens one model, warms it up, and then times as many
runs as each line on its standard input asks for. Only a pytorch model brings torch into its process.
"""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import errors
from pipeline.artifact import Artifact
from stages import machine
from stages.measure.predict import fitted, open_session

TURN = 10  # timed runs before the next model has its turn
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
) -> dict[str, dict[str, Any]]:
    """Times every model on the same images uint8 (h, w, 3); `between(done, total)` is called after each turn and may raise.
    `remote(model)` gives the Child of an engine that was built on a target, where it is timed.

    The result is keyed by the models' names: image_ms and engine_ms (p50, p90, p99, mean, n), threads, and every sample.
    """
    rounds = math.ceil(runs / TURN)
    for k, image in enumerate(images):
        np.save(work / f"image_{k}.npy", image)
    common = {
        "images": [str(work / f"image_{k}.npy") for k in range(len(images))],
        "size": size,
        "warmup_ms": warmup_ms,
        "threads": threads,
    }
    children = []
    try:
        for model in models:  # one after the other: a model that warms up beside another would not be warm alone
            children.append(remote(model) if "foreign" in model.facts else Child(model, common, work))
        samples = {child.name: {"image_ms": [], "engine_ms": []} for child in children}
        for r in range(rounds):
            turn = min(TURN, runs - r * TURN)
            for k in range(len(children)):
                child = children[(k + r) % len(children)]  # nobody always comes first
                for boundary, values in child.timed(turn).items():
                    samples[child.name][boundary] += values
                between(r * len(children) + k + 1, rounds * len(children))
        return {child.name: summary(samples[child.name], child.ran) for child in children}
    finally:
        for child in children:
            child.end()


def summary(samples: dict[str, list[float]], ran: dict[str, Any]) -> dict[str, Any]:
    found = {boundary: figures(samples[boundary]) for boundary in ("image_ms", "engine_ms")}
    kept = {f"samples_{boundary}": [round(value, 5) for value in samples[boundary]] for boundary in ("image_ms", "engine_ms")}
    return found | {"threads": ran["threads"] or machine.cores()} | kept


def figures(values: list[float]) -> dict[str, float]:
    """Milliseconds; percentiles are interpolated between samples."""
    p50, p90, p99 = (round(float(p), 5) for p in np.percentile(values, (50, 90, 99)))
    return {"p50": p50, "p90": p90, "p99": p99, "mean": round(float(np.mean(values)), 5), "n": len(values)}


class Child:
    """One model in its own process. Started in a session of its own: a Ctrl-C reaches the stage, which then ends the child."""

    def __init__(self, model: Artifact, common: dict[str, Any], work: Path):
        self.name = model.name
        artifact = {"name": model.name, "kind": model.kind, "id": model.id, "folder": str(model.folder), "facts": model.facts}
        spec, self.log = work / f"{model.name}.json", work / f"{model.name}.log"
        spec.write_text(json.dumps({"artifact": artifact, **common}), encoding="utf-8")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stages.measure.latency", str(spec.resolve())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=Path(__file__).resolve().parents[2],
                start_new_session=True,
                text=True,
            )
        try:
            ready = self._answer()
        except BaseException:
            self.end()
            raise
        self.ran, self.modules = ready["ran"], ready["modules"]

    def timed(self, runs: int) -> dict[str, list[float]]:
        try:
            self.process.stdin.write(f"{runs}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer says why
        return self._answer()

    def end(self) -> None:
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            last = self.log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise errors.Stillhouse(f"the process that times {self.name} ended with {self.process.wait()}: {last[0]}")
        answer = json.loads(line)
        if "error" in answer:
            raise errors.BY_NAME[answer["error"]](f"{self.name}: {answer['message']}")
        return answer


def main(spec: dict[str, Any], asked, answer) -> None:
    """The child: `asked` yields lines with a number of runs, `answer` sends one object back."""
    try:
        session = open_session(Artifact(**spec["artifact"] | {"folder": Path(spec["artifact"]["folder"])}), spec["threads"])
    except errors.Stillhouse as error:
        return answer({"error": type(error).__name__, "message": str(error)})
    images, size = [np.load(path) for path in spec["images"]], spec["size"]
    ways = {"image_ms": [lambda image=image: session(fitted(image, size)[None])[0] for image in images]}
    ways["engine_ms"] = [session.bind(np.array(fitted(image, size)[None])) for image in images]
    for calls in ways.values():
        warm(calls, spec["warmup_ms"])
    answer({"ran": session.ran, "modules": [name for name in ("torch", "onnxruntime", "openvino") if name in sys.modules]})
    for line in asked:
        answer(times(ways, int(line)))


def warm(calls: list, least_ms: float) -> None:
    start, done = time.perf_counter(), 0
    while done < (WARM_RUNS if least_ms else 1) or (time.perf_counter() - start) * 1e3 < least_ms:
        calls[done % len(calls)]()
        done += 1


def times(ways: dict[str, list], runs: int) -> dict[str, list[float]]:
    """Milliseconds of each run at each boundary. Boundaries alternate, and so do images: whatever slows the machine slows both."""
    for k in range(REWARM_RUNS):
        for calls in ways.values():
            calls[k % len(calls)]()
    found = {boundary: [] for boundary in ways}
    for k in range(runs):
        for boundary, calls in ways.items():
            call = calls[k % len(calls)]
            start = time.perf_counter()
            call()
            found[boundary].append((time.perf_counter() - start) * 1e3)
    return found


if __name__ == "__main__":
    # Runtimes print what they like; what goes back to the stage has a pipe of its own.
    pipe = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), sys.stdin, lambda what: print(json.dumps(what), file=pipe, flush=True))
