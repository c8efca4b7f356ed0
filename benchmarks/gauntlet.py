"""The gauntlet: every distillation method beside no distillation, on the same seeds, with honest intervals.

    python -m pipeline sweep recipes/sweeps/gauntlet_camvid.yaml --set stages.data.source.root=DIR
    python benchmarks/gauntlet.py add runs/gauntlet_camvid/results.json --name tiny-cpu     # keeps what is new in benchmarks/gauntlet/
    python benchmarks/gauntlet.py report                                                    # writes docs/gauntlet.md and its plot

`add` takes figures out of the store's artifacts: mIoU of the whole split and of each drive in it, from the stored counts per image.
Results accumulate: over seeds, runs and machines; a run is told by its artifacts, and adding it again changes nothing. A method is
compared with `none` of the same seed, machine and schedule; the interval is Student's t over the seeds' differences.
"""

import argparse
import datetime
import json
import math
import statistics
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.artifact import Artifact  # noqa: E402
from pipeline.store import Store  # noqa: E402
from stages.measure.miou import miou  # noqa: E402

KEPT = ROOT / "benchmarks" / "gauntlet"
BASELINE = "none"
# Two-sided 95 % points of Student's t by degrees of freedom.
T95 = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("add", help="keep the results of a sweep")
    adding.add_argument("results", type=Path)
    adding.add_argument("--name", required=True, help="of the schedule and machine; the file's name")
    adding.add_argument("--store", type=Path, default=Path(".stillhouse"))
    commands.add_parser("report", help="write docs/gauntlet.md")
    asked = parser.parse_args()
    if asked.command == "add":
        add(asked.results, asked.name, Store(asked.store))
    else:
        report()


def add(file: Path, name: str, store: Store) -> None:
    found = json.loads(file.read_text())
    path = KEPT / f"{name}.json"
    kept = json.loads(path.read_text()) if path.exists() else {"machine": found["machine"], "schedule": None, "runs": []}
    known = {run["measured"] for run in kept["runs"]}
    new = 0
    for result in found["results"]:
        ids = result["artifacts"]
        if not ids.get("measured") or ids["measured"][:12] in known:
            continue
        kept["runs"].append(taken(result, found["machine"], store))
        kept["schedule"] = schedule(ids, store)
        new += 1
    kept["runs"].sort(key=lambda run: (run["method"], run["seed"]))
    KEPT.mkdir(exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n")
    print(f"{path}: {new} new, {len(kept['runs'])} in all")


def taken(result: dict, machine: dict, store: Store) -> dict:
    """What is kept of one run."""
    ids, values = result["artifacts"], result["values"]
    data, measured, student = (opened(store, ids[name]) for name in ("data", "measured", "student"))
    measurement = measured.json("measurement.json")
    counts = np.load(measured.file(f"counts_{measurement['reference']}.npy"))  # (N, C, 3)
    names = [Path(entry["image"]).name for entry in data.json("index.json")[measurement["split"]]]
    drives = {}
    for drive in sorted({name.partition("_")[0] for name in names}):
        drives[drive] = round(miou(counts[[n.startswith(drive) for n in names]].sum(0))[0], 3)
    whole, classes = miou(counts.sum(0))
    return {
        "method": values["method"],
        "seed": int(values["seed"]),
        "split": measurement["split"],
        "miou": round(whole, 3),
        "drives": drives,
        "iou": {c: None if v is None else round(v, 2) for c, v in zip(measurement["classes"], classes, strict=True)},
        "teacher_miou": round(measurement["models"]["teacher"]["miou"], 3),
        "steps": student.facts["steps"],
        "ms": result["figures"].get("student.step_ms" if machine["gpus"] else "student.cpu_ms"),
        "student": ids["student"][:12],
        "measured": ids["measured"][:12],
        "added": datetime.date.today().isoformat(),
    }


def schedule(ids: dict, store: Store) -> dict:
    teacher, student = (opened(store, ids[name]) for name in ("teacher", "student"))
    return {
        "teacher": teacher.facts["model"],
        "teacher_steps": teacher.facts["steps"],
        "student": student.facts["model"],
        "size": student.facts["size"],
    }


def opened(store: Store, id: str) -> Artifact:
    manifest = store.manifest(id)
    return Artifact(manifest["kind"], manifest["kind"], id, store.folder(id), manifest["facts"])


def report() -> None:
    sections = [section(path) for path in sorted(KEPT.glob("*.json"))]
    page = ROOT / "docs" / "gauntlet.md"
    words, mark, _ = page.read_text().partition("<!-- figures -->\n")  # above the mark a person writes, below it this does
    page.write_text(words + mark + "\n" + "\n\n".join(sections) + "\n")
    print(f"{page}: {len(sections)} schedules")


def section(path: Path) -> str:
    kept = json.loads(path.read_text())
    by = {}
    for run in kept["runs"]:
        by.setdefault(run["method"], {})[run["seed"]] = run
    base = by.get(BASELINE, {})
    budgets = {m: r for m, r in by.items() if m == BASELINE or m.startswith(f"{BASELINE}_")}  # plain training, longer and longer
    rows = sorted(((m, r) for m, r in by.items() if m not in budgets), key=lambda item: -mean(item[1]))
    plan, machine = kept["schedule"], kept["machine"]
    teacher = next(iter(kept["runs"]))["teacher_miou"]
    lines = [
        f"## {path.stem}",
        "",
        f"Teacher {words(plan['teacher'])}, {plan['teacher_steps']} steps, {teacher:.2f} mIoU; student {words(plan['student'])} at "
        f"{plan['size'][0]}x{plan['size'][1]}. {machine.get('cpu', '')}{', ' + machine['gpus'][0]['name'] if machine.get('gpus') else ''}.",
        "",
        "| method | seeds | mIoU | over none, equal steps | 95 % | per drive, over none | ms per step | over none, equal time |",
        "|---|---|---|---|---|---|---|---|",
        f"| {BASELINE} | {len(base)} | {mean(base):.2f} {spread(base)} | | | | {ms(base)} | |",
    ]
    for method, runs in rows:
        pairs = [run["miou"] - base[seed]["miou"] for seed, run in runs.items() if seed in base]
        centre, half = interval(pairs)
        drives = {d: statistics.mean(r["drives"][d] - base[s]["drives"][d] for s, r in runs.items() if s in base) for d in drives_of(runs)}
        at_time = equal_time(runs, budgets)
        lines.append(
            f"| {method} | {len(pairs)} | {mean(runs):.2f} {spread(runs)} | {centre:+.2f} | {bounds(centre, half)} | "
            + ", ".join(f"{d} {v:+.2f}" for d, v in drives.items())
            + f" | {ms(runs)} | {'-' if at_time is None else f'{at_time:+.2f}'} |"
        )
    for method, runs in sorted(budgets.items()):
        if method != BASELINE:
            steps = next(iter(runs.values()))["steps"]
            lines.append(f"| {method}: {steps} steps | {len(runs)} | {mean(runs):.2f} {spread(runs)} | | | | {ms(runs)} | |")
    plot = ROOT / "docs" / f"gauntlet-{path.stem}.svg"
    plot.write_text(drawn(rows, base))
    return "\n".join([*lines, "", f"![Differences to training without a teacher, one dot per seed]({plot.name})"])


def mean(runs: dict) -> float:
    return statistics.mean(run["miou"] for run in runs.values()) if runs else math.nan


def spread(runs: dict) -> str:
    return f"± {statistics.stdev(run['miou'] for run in runs.values()):.2f}" if len(runs) > 1 else ""


def time_of(runs: dict) -> float:
    """Milliseconds of a step: of the processor where one is all there is, for the clock sees what else runs there."""
    times = [run["ms"] for run in runs.values() if run["ms"]]
    return statistics.median(times) if times else math.nan


def ms(runs: dict) -> str:
    return "-" if math.isnan(time_of(runs)) else f"{time_of(runs):.0f}"


def drives_of(runs: dict) -> list[str]:
    return list(next(iter(runs.values()))["drives"])


def interval(differences: list[float]) -> tuple[float, float]:
    """The mean difference, and half the width of its 95 % interval."""
    n = len(differences)
    if n < 2:
        return (differences[0] if n else math.nan), math.nan
    return statistics.mean(differences), T95[min(n - 1, len(T95) - 1)] * statistics.stdev(differences) / math.sqrt(n)


def bounds(centre: float, half: float) -> str:
    return "one seed" if math.isnan(half) else f"{centre - half:+.2f} .. {centre + half:+.2f}"


def equal_time(runs: dict, budgets: dict) -> float | None:
    """mIoU over plain training that had as much time, between the budgets that were run; None beyond them."""
    plain = budgets[BASELINE]
    common = set(runs).intersection(*(set(b) for b in budgets.values()))
    if not common:
        return None
    points = sorted((next(iter(b.values()))["steps"], statistics.mean(b[s]["miou"] for s in common)) for b in budgets.values())
    steps = next(iter(runs.values()))["steps"] * time_of(runs) / time_of(plain)
    if math.isnan(steps):
        return None
    if not points[0][0] <= steps <= points[-1][0]:
        return None
    there = float(np.interp(steps, [p[0] for p in points], [p[1] for p in points]))
    return statistics.mean(runs[s]["miou"] for s in common) - there


def words(model: dict) -> str:
    return " ".join(str(v) for k, v in model.items() if k in ("kind", "size", "backbone"))


def drawn(rows: list, base: dict) -> str:
    """One line per method: a dot per seed, and the interval of the mean."""
    found = [(method, [r["miou"] - base[s]["miou"] for s, r in runs.items() if s in base]) for method, runs in rows]
    reach = max([0.5, *(abs(d) for _, ds in found for d in ds), *(abs(c) + h for _, ds in found for c, h in [interval(ds)] if h == h)])
    left, width, line = 130, 560, 26
    height = 40 + line * len(found)

    def x(value: float) -> float:
        return left + width / 2 * (1 + value / (1.05 * reach))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 20} {height}" font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="8" y2="{height - 26}" stroke="#888"/>',
    ]
    for tick in {-1, 0, 1}:
        value = tick * math.floor(reach * 10) / 10
        parts.append(f'<text x="{x(value):.1f}" y="{height - 8}" text-anchor="middle" fill="#444">{value:+.1f}</text>')
    for i, (method, differences) in enumerate(found):
        y, (centre, half) = 22 + line * i, interval(differences)
        parts.append(f'<text x="{left - 12}" y="{y + 4}" text-anchor="end" fill="#222">{method}</text>')
        if half == half:
            parts.append(
                f'<line x1="{x(centre - half):.1f}" x2="{x(centre + half):.1f}" y1="{y}" y2="{y}" stroke="#2b6cb0" stroke-width="3"/>'
            )
        parts += [f'<circle cx="{x(d):.1f}" cy="{y}" r="4" fill="#c05621" fill-opacity="0.7"/>' for d in differences]
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
