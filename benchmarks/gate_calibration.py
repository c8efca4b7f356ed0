"""How often the latency gate is wrong on this machine: a model against itself, and against itself with so many percent more work.

    python benchmarks/gate_calibration.py run [--slower 0.05] [--load 1] [--gates 100] [--minutes 60]
    python benchmarks/gate_calibration.py report       the table and the plot of docs/gates.md
    python benchmarks/gate_calibration.py pack         the same rounds as small files for the repository; run and report read them, too

Rounds are the product's own (stages/measure/pairs.py), and are measured until pairs are decided. Each is one line of
benchmarks/gates/<machine>.jsonl with its raw times: the same command goes on where it was stopped, and a report judges them anew.
The work that is added is an idle loop before every run of the candidate. --load starts processes that only compute;
with --load-runs it starts none, for what computes beside it runs already: a training, say.
"""

import argparse
import gzip
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks import gate_plot  # noqa: E402
from pipeline.artifact import Artifact  # noqa: E402
from stages import machine  # noqa: E402
from stages.measure import latency, order, pairs, rounds  # noqa: E402

CHANNELS = {"wall": "image_ms", "CPU": "image_cpu_ms"}
SIZE = (96, 192)  # as recipes/guard.yaml has it: about a millisecond on one thread
TOLERANCE = 0.05
WARMUP_MS = 50
PROTOCOL = {"model": "tiny small, onnxruntime, 1 thread", "size": list(SIZE), "runs": pairs.RUNS, "warmup_ms": WARMUP_MS}
SEEN = ("seconds", "waited", "throttled", "stolen", "running")  # of what was seen of the machine in a round
DOCS = ROOT / "docs/gates.md"
MARKS = "<!-- calibration -->", "<!-- /calibration -->"  # what a report writes stands between them
PART = 2500  # rounds in a packed file
FIRST, STEPS = 5, 20_000  # runs of an image that tell how long it takes, and the idle work it is held against
DRAWS = 400  # gates behind a point of a curve


class Kind(NamedTuple):
    slower: float  # 0.05: the candidate works 5 % longer
    load: int  # processes that compute meanwhile


def main() -> None:
    asked = parser().parse_args()
    if asked.load_runs and not asked.load:
        raise SystemExit("--load-runs: say how many processes compute beside it, with --load N")
    try:
        {"run": run, "report": lambda asked: report(asked.file), "pack": lambda asked: pack(asked.file)}[asked.command](asked)
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on from here") from None


def run(asked: argparse.Namespace) -> None:
    header = {"machine": {**machine.facts(), "onnxruntime": machine.version("onnxruntime", "onnxruntime-gpu")}, "protocol": PROTOCOL}
    kind, ends = Kind(asked.slower, asked.load), time.monotonic() + 60 * asked.minutes
    gates, processes = opened(asked.file, header).get(kind, {}), 0 if asked.load_runs else kind.load
    with tempfile.TemporaryDirectory(prefix="stillhouse-") as work, asked.file.open("a", encoding="utf-8") as kept, load(processes):
        models, images = student(Path(work))
        common = {"images": images, "size": list(SIZE), "warmup_ms": WARMUP_MS, "threads": 1, "slower": kind.slower}
        for number in range(asked.gates):
            gate = gates.get(number, [])
            begun = len(gate)
            while not ended(gate) and time.monotonic() < ends:
                gate.append(short(pairs.one_round(models, common, Path(work), pairs.RUNS, start=started)))
                kept.write(json.dumps(kind._asdict() | {"gate": number} | gate[-1], separators=(",", ":")) + "\n")
                kept.flush()
            if len(gate) > begun:
                print(
                    f"gate {number + 1} of {asked.gates}: {', '.join(f'{c} {v}' for c, v in verdicts(gate).items())}, {len(gate)} rounds",
                    flush=True,
                )


def opened(file: Path, header: dict[str, Any]) -> dict[Kind, dict[int, list[dict]]]:
    """The gates in a file, which is begun if it is not there; what was torn from its end by a kill is cut off."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(unpacked(file) or json.dumps(header, separators=(",", ":")).encode() + b"\n")
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole, encoding="utf-8")
    found, gates = read(whole)
    if found != header:
        raise SystemExit(f"{file} holds gates of another machine, runtime or protocol: name another file with --file")
    return gates


def read(text: str) -> tuple[dict[str, Any], dict[Kind, dict[int, list[dict]]]]:
    """The header, and the rounds of every gate in order."""
    header, *lines = [json.loads(line) for line in text.splitlines()]
    gates: dict[Kind, dict[int, list[dict]]] = {}
    for one in lines:
        gates.setdefault(Kind(one["slower"], one["load"]), {}).setdefault(one["gate"], []).append(one)
    return header, gates


def pack(file: Path) -> None:
    """Writes what a repository keeps of it: parts that stay well below a megabyte."""
    lines = file.read_bytes().splitlines(keepends=True)
    for k in range(0, len(lines), PART):
        file.with_name(f"{file.name}.{k // PART}.gz").write_bytes(gzip.compress(b"".join(lines[k : k + PART]), mtime=0))


def unpacked(file: Path) -> bytes:
    """Of all its parts; b"" where there are none."""
    parts = sorted(file.parent.glob(f"{file.name}.*.gz"), key=lambda part: int(part.suffixes[-2][1:]))
    return b"".join(gzip.decompress(part.read_bytes()) for part in parts)


def short(found: dict[str, Any]) -> dict[str, Any]:
    """Of a round what the figures of a whole image need."""
    kept = {key: found[key] for key in ("order", "on_gpu", "reasons")} | {"seen": {key: found["seen"][key] for key in SEEN}}
    return kept | {key: {side: [round(t, 4) for t in found[key][side]] for side in pairs.SIDES} for key in CHANNELS.values()}


def ended(gate: list[dict]) -> bool:
    return bool(gate) and (pairs.decided(gate, TOLERANCE, len(pairs.CHANNELS), CHANNELS.values()) or len(gate) >= rounds.LOOKS[-1])


def verdicts(gate: list[dict]) -> dict[str, str]:
    """Of a gate with a rule on either clock, as stages/timed.py has it: where the machine was not quiet, nothing is told by the clock."""
    told = [channel for channel in CHANNELS if channel != "wall" or pairs.conditions(gate)["valid"]]
    found = rounds.decide_together([(pairs.ratios(gate, CHANNELS[channel]), TOLERANCE) for channel in told])
    return dict.fromkeys(CHANNELS, "inconclusive") | {channel: one.verdict for channel, one in zip(told, found, strict=True)}


# -- the two models


def student(work: Path) -> tuple[tuple[Artifact, Artifact], list[str]]:
    """An untrained network, exported, as candidate and as baseline: how long it takes does not depend on what it has learnt."""
    from stages.samples import open_samples
    from tests.stages import small_line

    data = small_line.data(work, SIZE)
    samples = open_samples(data, "val")
    images = [str(work / f"image_{k}.npy") for k in range(len(samples))]
    for k, image in enumerate(images):
        np.save(image, samples.source(k))
    model = small_line.exported(work, data, small_line.checkpoint(work, data))
    return tuple(Artifact(name, model.kind, model.id, model.folder, model.facts) for name in pairs.SIDES), images


class Slowed(latency.Child):
    """The candidate's process: this file's in place of latency's."""

    program = (str(Path(__file__).resolve()), "slowed")


def started(model: Artifact, common: dict[str, Any], work: Path) -> latency.Child:
    slowed = common["slower"] and model.name == "candidate"
    return (Slowed if slowed else latency.Child)(model, common, work)


def working_on(call: Any, share: float) -> Any:
    """The same after as much idle work as takes that share of its processor time, told by its first runs, which only warm up.

    Work, and not a look at the clock until the time is over: reading that clock costs microseconds less where it was just read, and
    what times a run reads it, too.
    """
    seen: list[float] = []
    steps = 0

    def slowed() -> None:
        nonlocal steps
        if len(seen) < FIRST:
            seen.append(used(call) / used(lambda: idle(STEPS)))
            steps = round(share * median(seen) * STEPS)
            return
        idle(steps)
        call()

    return slowed


def used(call: Any) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def idle(steps: int) -> None:
    for _ in range(steps):
        pass


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


# -- what came of it


def report(file: Path) -> None:
    text = file.read_text(encoding="utf-8") if file.exists() else unpacked(file).decode()
    if not text:
        raise SystemExit(f"{file} does not exist: measure with `python benchmarks/gate_calibration.py run` first")
    header, gates = read(text)
    done = {kind: whole for kind in sorted(gates) if (whole := [gate for gate in gates[kind].values() if ended(gate)])}
    picture = DOCS.with_name(f"gates-{file.stem}.svg")
    picture.write_text(gate_plot.svg(curves(done), points(done)), encoding="utf-8")
    text = "\n".join([*table(header, done), "", f"![how likely each verdict is]({picture.name})"])
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    DOCS.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}", encoding="utf-8")
    print(text)


def table(header: dict[str, Any], done: dict[Kind, list[list[dict]]]) -> list[str]:
    facts = header["machine"]
    protocol = ", ".join(f"{name} {value}" for name, value in header["protocol"].items())
    head = (
        "more work",
        "load",
        "clock",
        "slower",
        "gates",
        "pass",
        "fail",
        "inconclusive",
        "wrong of the conclusive (95 %)",
        "rounds",
        "sd",
        "ms",
        "s",
    )
    lines = [f"{facts['cpu']}, {facts['cores']} cores, {facts['onnxruntime']}; {protocol}; tolerance {TOLERANCE:.0%}.", ""]
    lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return lines + [row(kind, channel, done[kind]) for kind in done for channel in CHANNELS]


def row(kind: Kind, channel: str, gates: list[list[dict]]) -> str:
    counted = Counter(verdicts(gate)[channel] for gate in gates)
    conclusive, wrong = counted["pass"] + counted["fail"], counted["pass" if kind.slower else "fail"]
    share = "-"  # between nothing and the tolerance neither verdict is wrong
    if conclusive and (kind.slower == 0 or kind.slower >= TOLERANCE):
        share = f"{wrong} of {conclusive} (below {most_likely(conclusive, wrong):.2%})"
    slower = math.expm1(float(np.mean([ratio for gate in gates for ratio in pairs.ratios(gate, CHANNELS[channel])])))
    spread = median(float(np.std(pairs.ratios(gate, CHANNELS[channel]), ddof=1)) for gate in gates)
    milliseconds = median(t for gate in gates for one in gate for t in one[CHANNELS[channel]]["baseline"])
    seconds = median(sum(one["seen"]["seconds"] for one in gate) for gate in gates)
    words = [
        f"{kind.slower:.0%}",
        kind.load,
        channel,
        f"{slower:+.1%}",
        len(gates),
        *(counted[word] for word in ("pass", "fail", "inconclusive")),
        share,
    ]
    words += [f"{np.mean([len(gate) for gate in gates]):.1f}", f"{spread:.2%}", f"{milliseconds:.2f}", f"{seconds:.0f}"]
    return f"| {' | '.join(map(str, words))} |"


def points(done: dict[Kind, list[list[dict]]]) -> list[gate_plot.Point]:
    """The gates that were measured: shares of pass and fail with their 95 % bounds."""
    found = []
    for kind, gates in done.items():
        for channel in CHANNELS:
            counted = Counter(verdicts(gate)[channel] for gate in gates)
            for word in ("pass", "fail"):
                low, high = bounds(len(gates), counted[word])
                found.append(gate_plot.Point(channel, kind.load, word, kind.slower, counted[word] / len(gates), low, high))
    return found


def curves(done: dict[Kind, list[list[dict]]]) -> list[gate_plot.Curve]:
    """What the measured rounds of a model against itself say of other losses: gates of one clock drawn from them anew, each round slower
    by so much, judged as one of two. Of every gate the first ten rounds: a noisy one has more, and shall not weigh more."""
    random, found, slower = np.random.Generator(np.random.PCG64(0)), [], np.linspace(0.0, 0.1, 21)
    for kind, whole in done.items():
        for channel in CHANNELS if kind.slower == 0 else ():
            valid = [gate for gate in whole if channel != "wall" or pairs.conditions(gate)["valid"]]
            pool = np.array([ratio for gate in valid for ratio in pairs.ratios(gate[: rounds.LOOKS[0]], CHANNELS[channel])])
            if not len(pool):
                continue
            drawn = random.choice(pool, (DRAWS, rounds.LOOKS[-1]))
            slowed = [[list(one + math.log1p(more)) for one in drawn] for more in slower]
            told = [Counter(rounds.decide(one, TOLERANCE, cells=len(CHANNELS)).verdict for one in gates) for gates in slowed]
            shares = {word: [counted[word] / DRAWS for counted in told] for word in ("pass", "fail")}
            found += [gate_plot.Curve(channel, kind.load, word, slower.tolist(), share) for word, share in shares.items()]
    return found


def bounds(trials: int, seen: int) -> tuple[float, float]:
    """The two-sided 95 % interval of a rate (Clopper & Pearson)."""
    return 1 - most_likely(trials, trials - seen, 0.025), most_likely(trials, seen, 0.025)


def most_likely(trials: int, seen: int, level: float = 0.05) -> float:
    """The upper bound of a rate: the largest under which so few are not too unlikely."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        few = math.fsum(order.binomial(trials, k, middle) for k in range(seen + 1))
        low, high = (middle, high) if few > level else (low, middle)
    return high


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("command", choices=("run", "report", "pack"))
    here = re.sub(r"[^a-z0-9]+", "-", f"{machine.cpu_name()} {machine.cores()} cores".lower()).strip("-")
    made.add_argument("--file", type=Path, default=ROOT / "benchmarks/gates" / f"{here}.jsonl")
    made.add_argument("--slower", type=float, default=0.0, help="0.05: the candidate works 5 %% longer")
    made.add_argument("--gates", type=int, default=200, help="of this kind in the file, those of earlier runs included")
    made.add_argument("--load", type=int, default=0, help="processes that compute beside it")
    made.add_argument("--load-runs", action="store_true", help="they run already: none is started")
    made.add_argument("--minutes", type=float, default=math.inf, help="no round is begun after that")
    return made


if __name__ == "__main__":
    if sys.argv[1:2] == ["slowed"]:
        spec = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
        latency.main(spec, sys.stdin, latency.own_pipe(), changed=lambda call: working_on(call, spec["slower"]))
    else:
        main()
