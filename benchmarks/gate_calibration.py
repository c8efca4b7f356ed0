"""How often the latency gate is wrong on this machine: a model against itself, and against itself with a busy-wait of so many percent.

    python benchmarks/gate_calibration.py run [--slower 0.05 --clock wall] [--gates 100] [--load 1] [--minutes 60]
    python benchmarks/gate_calibration.py report

Rounds of two fresh processes, runs in turns in random order, measured until there is a verdict. Each round is one line of
benchmarks/gates/<machine>.jsonl with all its samples: the same command goes on where it was stopped, and a report judges them anew.
Wall and CPU time are judged apart, and a wait belongs to one of them: where others compute (--load starts so many processes), a run
waits for its turn most of the time, and 5 % more work is far less than 5 % more wall time.
"""

import argparse
import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from pipeline.artifact import Artifact  # noqa: E402
from stages import machine  # noqa: E402
from stages.measure import latency, order, rounds  # noqa: E402
from stages.measure.predict import fitted, open_session  # noqa: E402

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SIDES = ("baseline", "candidate")
SIZE = (128, 256)  # of the student's images: a few ms on one thread
TOLERANCE = 0.05
PAIRS = 30  # timed runs of either side in a round
PROTOCOL = {"model": "tiny small, onnxruntime, 1 thread", "size": list(SIZE), "pairs": PAIRS, "warmup_ms": 200, "tolerance": TOLERANCE}


def main() -> None:
    asked = parser().parse_args()
    try:
        run(asked) if asked.command == "run" else report(asked.file)
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on from here") from None


def run(asked: argparse.Namespace) -> None:
    header = {"machine": {**machine.facts(), "onnxruntime": machine.version("onnxruntime", "onnxruntime-gpu")}, "protocol": PROTOCOL}
    gates = by_gate(opened(asked.file, header))
    ends = time.monotonic() + 60 * asked.minutes
    with tempfile.TemporaryDirectory(prefix="stillhouse-") as work, asked.file.open("a", encoding="utf-8") as kept, load(asked.load):
        model, images = student(Path(work))
        for number in range(asked.gates):
            kind = {"slower": asked.slower, "clock": asked.clock if asked.slower else None, "load": asked.load, "gate": number}
            gate = gates.get(tuple(kind.values()), [])
            begun = len(gate)
            while (not gate or undecided(gate)) and time.monotonic() < ends:
                found = kind | one_round(model, images, Path(work), asked.slower, asked.clock)
                kept.write(json.dumps(found, separators=(",", ":")) + "\n")
                kept.flush()
                gate.append(found)
            if len(gate) > begun:
                said = "; ".join(f"{channel} {verdict(gate, channel).text}" for channel in channels(gate))
                print(f"gate {number + 1} of {asked.gates}: {said}", flush=True)


def opened(file: Path, header: dict) -> list[dict]:
    """The rounds in a file, which is begun if it is not there; what was torn from its end by a kill is cut off."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(header, separators=(",", ":")) + "\n", encoding="utf-8")
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole, encoding="utf-8")
    found, *kept = [json.loads(line) for line in whole.splitlines()] or [None]
    if found != header:
        raise SystemExit(f"{file} holds gates of another machine, runtime or protocol: name another file with --file")
    return kept


def by_gate(kept: list[dict]) -> dict[tuple[float, str | None, int, int], list[dict]]:
    """(slower, clock of the wait, load, number) -> the rounds of that gate, in order."""
    gates = {}
    for one in kept:
        gates.setdefault((one["slower"], one["clock"], one["load"], one["gate"]), []).append(one)
    return gates


def undecided(gate: list[dict]) -> bool:
    return any(verdict(gate, channel).verdict == "go on" for channel in channels(gate))


def channels(gate: list[dict]) -> list[str]:
    """What a gate has a verdict of: without a wait both, else the clock by which was waited."""
    return [gate[0]["clock"]] if gate[0]["clock"] else list(CLOCKS)


def student(work: Path) -> tuple[Artifact, list[np.ndarray]]:
    """An untrained network, exported: how long it takes does not depend on what it has learnt."""
    from stages.samples import open_samples
    from tests.stages import small_line

    data = small_line.data(work, SIZE)
    samples = open_samples(data, "val")
    return small_line.exported(work, data, small_line.checkpoint(work, data)), [samples.source(i) for i in range(len(samples))]


def one_round(model: Artifact, images: list[np.ndarray], work: Path, slower: float, clock: str) -> dict:
    """{"order": "0110..." (1: the candidate goes first), "pressure", "wall": {side: ms}, "cpu": {side: ms}}"""
    sides = []
    try:
        for name, share in zip(SIDES, (0.0, slower), strict=True):
            sides.append(Side(model, name, images, work, share, clock))
        for side in sides:
            side.ready()
        for side in sides:  # one after the other: what warms up beside another is not warm alone
            side.timed(0)
        swapped = [random.random() < 0.5 for _ in range(PAIRS)]
        samples = {channel: {name: [] for name in SIDES} for channel in CLOCKS}
        for swap in swapped:
            for side in sides[::-1] if swap else sides:
                for channel, value in side.timed(1).items():
                    samples[channel][side.name].append(value)
        return {"order": "".join(str(int(swap)) for swap in swapped), "pressure": pressure(), **samples}
    finally:
        for side in sides:
            side.end()


class Side(latency.Child):
    """A process of this file in place of latency's: it also reads CPU time, and can wait. 0 asks it to warm up, 1 for a timed run."""

    def __init__(self, model: Artifact, name: str, images: list[np.ndarray], work: Path, slower: float, clock: str):
        self.name, self.log = name, work / f"{name}.log"
        for k, image in enumerate(images):
            np.save(work / f"image_{k}.npy", image)
        artifact = {"name": name, "kind": model.kind, "id": model.id, "folder": str(model.folder), "facts": model.facts}
        spec = {"artifact": artifact, "images": [str(work / f"image_{k}.npy") for k in range(len(images))]}
        spec |= {"slower": slower, "clock": clock}
        (work / f"{name}.json").write_text(json.dumps(spec), encoding="utf-8")
        with self.log.open("wb") as log:
            command = [sys.executable, str(Path(__file__).resolve()), "side", str(work / f"{name}.json")]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True, text=True
            )

    def ready(self) -> None:
        self._answer()


def side(spec: dict, asked, answer) -> None:
    """The process of one side of one round."""
    session = open_session(Artifact(**spec["artifact"] | {"folder": Path(spec["artifact"]["folder"])}), threads=1)
    images, number, wait = [np.load(path) for path in spec["images"]], 0, (spec["slower"], CLOCKS[spec["clock"]])
    answer({})
    for line in asked:
        image, number = images[number % len(images)], number + 1
        if int(line):
            timed(session, image)  # the other side has used the caches meanwhile
            answer(timed(session, image, *wait))
        else:
            latency.warm([lambda image=image: timed(session, image) for image in images], PROTOCOL["warmup_ms"])
            answer({})


def timed(session, image: np.ndarray, slower: float = 0.0, clock=time.perf_counter) -> dict[str, float]:
    """Milliseconds of one image from memory to its class map and of a busy-wait for that share of it, by the clock given."""
    began = {name: read() for name, read in CLOCKS.items()}
    start = clock()
    session(fitted(image, SIZE)[None])
    ends = start + (1 + slower) * (clock() - start)
    while clock() < ends:
        pass
    return {name: round(1e3 * (read() - began[name]), 4) for name, read in CLOCKS.items()}


@contextmanager
def load(processes: int):
    work = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(100_000))"  # ends with us however we end
    others = [subprocess.Popen([sys.executable, "-c", work], start_new_session=True) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def pressure() -> float | None:
    """Share of the last ten seconds, in %, in which somebody waited for a processor."""
    try:
        return float(re.search(r"some avg10=([\d.]+)", Path("/proc/pressure/cpu").read_text()).group(1))
    except OSError:
        return None


def verdict(gate: list[dict], channel: str) -> rounds.Decision:
    return rounds.decide(ratios(gate, channel), TOLERANCE)


def ratios(gate: list[dict], channel: str) -> list[float]:
    return [rounds.log_ratio(*(one[channel][name] for name in SIDES)) for one in gate]


def report(file: Path) -> None:
    if not file.exists():
        raise SystemExit(f"{file} does not exist: measure with `python benchmarks/gate_calibration.py run` first")
    header, *kept = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    facts = header["machine"]
    protocol = ", ".join(f"{name} {value}" for name, value in header["protocol"].items())
    print(f"{facts['cpu']}, {facts['cores']} cores, {facts['onnxruntime']}; {protocol}\n")
    print("| slower | load | clock | gates | pass | fail | inconclusive | wrong of the conclusive (95 %) | rounds | sd of a round | ms |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    rows = {}
    for (slower, _, busy, _), gate in by_gate(kept).items():
        for channel in channels(gate) if not undecided(gate) else ():
            rows.setdefault((slower, busy, channel), []).append(gate)
    for key in sorted(rows):
        print(line(rows[key], *key))


def line(gates: list[list[dict]], slower: float, busy: int, channel: str) -> str:
    found = [verdict(gate, channel) for gate in gates]
    counted = {word: sum(one.verdict == word for one in found) for word in ("pass", "fail", "inconclusive")}
    conclusive = counted["pass"] + counted["fail"]
    share = "-"  # between nothing and the tolerance neither verdict is wrong
    if slower in (0.0, TOLERANCE) or slower > TOLERANCE:
        wrong = counted["pass" if slower else "fail"]
        share = f"{wrong} of {conclusive} (below {most_likely(conclusive, wrong):.2%})"
    spread = median(float(np.std(ratios(gate, channel), ddof=1)) for gate in gates)
    milliseconds = median(value for gate in gates for one in gate for value in one[channel]["baseline"])
    words = [f"{slower:.0%}", busy, channel, len(gates), *counted.values(), share]
    return "| " + " | ".join(map(str, [*words, f"{np.mean([o.rounds for o in found]):.1f}", f"{spread:.2%}", f"{milliseconds:.2f}"])) + " |"


def most_likely(trials: int, seen: int, level: float = 0.05) -> float:
    """The upper 95 % bound of a rate (Clopper & Pearson): the largest under which so few are not too unlikely."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        few = math.fsum(order.binomial(trials, k, middle) for k in range(seen + 1))
        low, high = (middle, high) if few > level else (low, middle)
    return high


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("command", choices=("run", "report"))
    here = re.sub(r"[^a-z0-9]+", "-", f"{machine.cpu_name()} {machine.cores()} cores".lower()).strip("-")
    made.add_argument("--file", type=Path, default=ROOT / "benchmarks/gates" / f"{here}.jsonl")
    made.add_argument("--slower", type=float, default=0.0, help="0.05: the candidate waits after each run for 5 %% of it")
    made.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="by which it waits, and is judged")
    made.add_argument("--gates", type=int, default=200, help="of this kind in the file, those of earlier runs included")
    made.add_argument("--load", type=int, default=0, help="processes that compute beside it")
    made.add_argument("--minutes", type=float, default=math.inf, help="no round is begun after that")
    return made


if __name__ == "__main__":
    if sys.argv[1:2] == ["side"]:
        # Runtimes print what they like; what goes back has a pipe of its own.
        pipe = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        spec = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
        side(spec, sys.stdin, lambda what: print(json.dumps(what), file=pipe, flush=True))
    else:
        main()
