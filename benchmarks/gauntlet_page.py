"""What docs/gauntlet.md says of each set of results: its tables, its plot and the intervals in them (benchmarks/gauntlet.py keeps them)."""

import json
import math
import statistics

import numpy as np

BASELINE = "none"
# Two-sided 95 % points of Student's t by degrees of freedom.
T95 = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def section(name: str, kept: dict, defaults: dict | None = None) -> str:
    """One set of results; `defaults` is the set it was tuned from."""
    parts, trials = [f"## {name}", head(kept)], kept.get("trials", [])
    if trials:
        parts.append(trial_table(trials))
    if kept["runs"]:
        by = grouped(kept["runs"])
        parts.append(run_table(by, grouped(defaults["runs"]) if defaults else {}, best(trials)))
        parts += filter(None, [beside(by)])
        parts.append(f"![Differences to training without a teacher, one dot per seed](gauntlet-{name}.svg)")
    return "\n\n".join(parts)


def head(kept: dict) -> str:
    """Who taught whom, on what, for how long, and how often anything was tried."""
    plan, machine, runs, trials = kept["schedule"], kept["machine"], kept["runs"], kept.get("trials", [])
    gpus = "".join(f", {gpu['name']}" for gpu in machine.get("gpus", [])[:1])
    either = runs or trials
    steps = " or ".join(map(str, sorted({run["steps"] for run in either if not run["method"].startswith(f"{BASELINE}_")})))
    days = sorted({run["added"] for run in either})
    told = [
        f"Teacher {words(plan['teacher'])}, {plan['teacher_steps']} steps, {either[0]['teacher_miou']:.2f} mIoU on {either[0]['split']}; "
        f"student {words(plan['student'])} at {plan['size'][0]}x{plan['size'][1]}, {steps} steps.",
        f"{machine.get('cpu', '')}, {machine.get('cores', '?')} cores{gpus}; {' to '.join(dict.fromkeys((days[0], days[-1])))}.",
    ]
    if runs:
        seeds = ", ".join(map(str, sorted({run["seed"] for run in runs})))
        chosen = "each method with the best of its trials, here below" if trials else "no setting was tuned"
        told.append(f"Seeds {seeds}, {len(runs)} runs; {chosen}.")
    return " ".join(told)


def trial_table(trials: list[dict]) -> str:
    """Every trial of every method, also those that lost."""
    by, won = grouped(trials, "trial"), best(trials)
    drives = ", ".join(sorted({drive for run in trials for drive in run["drives"]}))
    seeds = ", ".join(sorted({str(run["seed"]) for run in trials}))
    lines = [
        f"Trials on drive {drives}, which neither teacher nor students were trained on (the teacher has {trials[0]['teacher_miou']:.2f} "
        f"mIoU there), with seed {seeds}, which no result uses: {max(map(len, by.values()))} for each method at most. Each is one "
        "training: what lies nearer together than two seeds do was chosen by chance.",
        "",
        "| method | trial | settings | mIoU | |",
        "|---|---|---|---|---|",
    ]
    for method in sorted(by, key=lambda m: (m != BASELINE, m)):
        for name, run in by[method].items():
            given = ", ".join(f"{path.removeprefix('stages.student.')}: {value}" for path, value in run["settings"].items())
            last = f"won, of {len(by[method])}" if won[method] is run else ""
            lines.append(f"| {method} | {name} | {f'`{given}`' if given else 'as in the recipe'} | {run['miou']:.2f} | {last} |")
    return "\n".join(lines)


def run_table(by: dict, before: dict, won: dict) -> str:
    """`before`: the same methods before they were tuned; `won`: the trial whose settings each should have."""
    base, budgets = by.get(BASELINE, {}), budgets_of(by)
    columns = ["method", "seeds", "mIoU", "over none, equal steps", "95 %", "per drive, over none", "ms per step", "over none, equal time"]
    columns += ["settings", "over none, untuned"] if won else []
    lines = [
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
        f"| {BASELINE} | {len(base)} | {mean(base):.2f} {spread(base)} | | | | {ms(base)} | |" + tuned(BASELINE, base, before, won),
    ]
    for method, runs in ranked(by):
        pairs = differences(runs, base)
        centre, half = interval(pairs)
        common = [(run, base[seed]) for seed, run in runs.items() if seed in base]
        drives = {d: statistics.mean(r["drives"][d] - plain["drives"][d] for r, plain in common) for d in drives_of(runs) if common}
        at_time = equal_time(runs, budgets)
        lines.append(
            f"| {method} | {len(pairs)} | {mean(runs):.2f} {spread(runs)} | "
            + (f"{centre:+.2f} | {bounds(centre, half)} | " if pairs else "- | - | ")
            + ", ".join(f"{d} {v:+.2f}" for d, v in drives.items())
            + f" | {ms(runs)} | {'-' if at_time is None else f'{at_time:+.2f}'} |"
            + tuned(method, runs, before, won)
        )
    for method, runs in sorted(budgets.items()):
        if method != BASELINE:
            steps = next(iter(runs.values()))["steps"]
            row = f"| {method}: {steps} steps | {len(runs)} | {mean(runs):.2f} {spread(runs)} | | | | {ms(runs)} | |"
            lines.append(row + (" | |" if won else ""))
    return "\n".join(lines)


def tuned(method: str, runs: dict, before: dict, won: dict) -> str:
    """Two more cells: whether the runs have the settings that won, and what the method brought before."""
    if not won:
        return ""
    trial = won.get(method)
    same = trial and all(run.get("settings") == trial["settings"] for run in runs.values())
    pairs = differences(before.get(method, {}), before.get(BASELINE, {})) if method != BASELINE else []
    untuned = f"{statistics.mean(pairs):+.2f}" if pairs else f"{mean(before[method]):.2f} mIoU" if method == BASELINE in before else "-"
    return f" {trial['trial'] if same else 'NOT those that won' if trial else 'no trial'} | {untuned} |"


def beside(by: dict) -> str:
    """What methods bring over the one that stands beside them with the same settings, and is part of what they bring."""
    told = []
    for host, plain in by.items():
        for method, runs in by.items():
            pairs = differences({s: run for s, run in runs.items() if s in plain and stands_beside(plain[s], run)}, plain)
            if pairs:
                told.append(f"{method} {interval(pairs)[0]:+.2f} ({bounds(*interval(pairs))}) over `{host}`")
    return f"Over the method that stands beside them: {', '.join(told)}." if told else ""


def stands_beside(host: dict, run: dict) -> bool:
    """Whether all a host does is one of the losses of a run, and everything else is set alike, or belongs to what is added."""
    alone, all_of = (json.loads(each["settings"].get("stages.student.losses", "[]")) for each in (host, run))
    own = ("stages.student.losses", "stages.student.text")
    others, others_of_host = ({path: value for path, value in each["settings"].items() if path not in own} for each in (run, host))
    return len(alone) == 1 < len(all_of) and alone[0] in all_of and others == others_of_host


def best(trials: list[dict]) -> dict[str, dict]:
    """Method -> its trial with the highest mIoU."""
    return {method: max(runs.values(), key=lambda run: run["miou"]) for method, runs in grouped(trials, "trial").items()}


def grouped(runs: list[dict], key: str = "seed") -> dict[str, dict]:
    """Method -> seed (or trial) -> run."""
    by: dict[str, dict] = {}
    for run in runs:
        by.setdefault(run["method"], {})[run[key]] = run
    return by


def budgets_of(by: dict) -> dict:
    """Plain training, longer and longer."""
    return {m: r for m, r in by.items() if m == BASELINE or m.startswith(f"{BASELINE}_")}


def ranked(by: dict) -> list:
    return sorted(((m, r) for m, r in by.items() if m not in budgets_of(by)), key=lambda item: -mean(item[1]))


def differences(runs: dict, base: dict) -> list[float]:
    """Of mIoU, seed by seed."""
    return [run["miou"] - base[seed]["miou"] for seed, run in runs.items() if seed in base]


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


def interval(pairs: list[float]) -> tuple[float, float]:
    """The mean of paired differences, and half the width of its 95 % interval."""
    n = len(pairs)
    if n < 2:
        return (pairs[0] if n else math.nan), math.nan
    return statistics.mean(pairs), T95[min(n - 1, len(T95) - 1)] * statistics.stdev(pairs) / math.sqrt(n)


def bounds(centre: float, half: float) -> str:
    return "one seed" if math.isnan(half) else f"{centre - half:+.2f} .. {centre + half:+.2f}"


def equal_time(runs: dict, budgets: dict) -> float | None:
    """mIoU over plain training that had as much time, between the budgets that were run; None beyond them."""
    if BASELINE not in budgets:
        return None
    common = set(runs).intersection(*(set(b) for b in budgets.values()))
    if not common:
        return None
    points = sorted((next(iter(b.values()))["steps"], statistics.mean(b[s]["miou"] for s in common)) for b in budgets.values())
    plain = time_of(dict(enumerate(run for budget in budgets.values() for run in budget.values())))  # its step takes the same in all
    steps = next(iter(runs.values()))["steps"] * time_of(runs) / plain
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
    found = [(method, differences(runs, base)) for method, runs in rows]
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
    for i, (method, pairs) in enumerate(found):
        y, (centre, half) = 22 + line * i, interval(pairs)
        parts.append(f'<text x="{left - 12}" y="{y + 4}" text-anchor="end" fill="#222">{method}</text>')
        if half == half:
            parts.append(
                f'<line x1="{x(centre - half):.1f}" x2="{x(centre + half):.1f}" y1="{y}" y2="{y}" stroke="#2b6cb0" stroke-width="3"/>'
            )
        parts += [f'<circle cx="{x(d):.1f}" cy="{y}" r="4" fill="#c05621" fill-opacity="0.7"/>' for d in pairs]
    return "\n".join([*parts, "</svg>"]) + "\n"
