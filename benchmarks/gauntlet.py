"""The gauntlet: every distillation method beside no distillation, on the same seeds, with honest intervals.

    python -m pipeline sweep recipes/sweeps/gauntlet_camvid.yaml FILES
    python benchmarks/gauntlet.py add runs/gauntlet_camvid/results.json --name tiny-cpu     # keeps what is new in benchmarks/gauntlet/
    python benchmarks/gauntlet.py report                                                    # writes docs/gauntlet.md and its plots

Tuned, beside the defaults: the set is called after theirs, with -tuned behind it, and holds the trials as well as what won.

    python -m pipeline sweep recipes/sweeps/tune_camvid.yaml FILES
    python benchmarks/gauntlet.py add runs/tune_camvid/results.json --name tiny-cpu-tuned    # the trials, on a drive held out
    python benchmarks/gauntlet.py winners --name tiny-cpu-tuned > recipes/sweeps/tuned_camvid.yaml
    python -m pipeline sweep recipes/sweeps/tuned_camvid.yaml FILES
    python benchmarks/gauntlet.py add runs/tuned_camvid/results.json --name tiny-cpu-tuned   # the winners, on test

FILES is `--profile cpu --set stages.data.source.root=DIR --set stages.words.file=FILE`: the folder of CamVid, and a .npy of a vector of
language per class, rows as recipes/gauntlet_camvid.yaml lists them. Steps and learning rates in these sweeps are for the profile `cpu`.

`add` takes figures out of the store's artifacts: mIoU of the whole split and of each drive in it, from the stored counts per image.
Results accumulate over seeds and runs; a run is told by its student, and adding it again changes nothing. Another machine or schedule
is another set. A method is compared with `none` of the same seed; the interval is Student's t over the seeds' differences.
"""

import argparse
import datetime
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.gauntlet_page import BASELINE, best, drawn, grouped, ranked, section  # noqa: E402
from pipeline.artifact import Artifact  # noqa: E402
from pipeline.finding import begin  # noqa: E402
from pipeline.store import Store  # noqa: E402
from stages.measure.miou import miou  # noqa: E402

KEPT = ROOT / "benchmarks" / "gauntlet"
TUNED = "-tuned"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("add", help="keep the results of a sweep")
    adding.add_argument("results", type=Path)
    adding.add_argument("--name", required=True, help="of the schedule and machine; the file's name")
    adding.add_argument("--store", type=Path, default=Path(".stillhouse"))
    winning = commands.add_parser("winners", help="print a sweep of each method's best trial")
    winning.add_argument("--name", required=True)
    commands.add_parser("report", help="write docs/gauntlet.md")
    asked = parser.parse_args()
    if asked.command == "add":
        add(asked.results, asked.name, Store(asked.store))
    elif asked.command == "winners":
        print(winners(read(asked.name)["trials"]))
    else:
        report()


def add(file: Path, name: str, store: Store) -> None:
    found = json.loads(file.read_text())
    path = KEPT / f"{name}.json"
    kept = read(name) if path.exists() else {"machine": found["machine"], "schedule": None, "runs": [], "trials": []}
    new = 0
    for result in found["results"]:
        ids = result["artifacts"]
        if not ids.get("measured") or not result["run"]:
            continue
        within = kept["trials" if "trial" in result["values"] else "runs"]
        if any(run["student"] == ids["student"][:12] for run in within):
            continue
        one, plan = taken(result, found["machine"], store), schedule(ids, store)
        require_same(kept, within, one, found["machine"], plan, name)
        within.append(one)
        kept["schedule"] = plan
        new += 1
    kept["runs"].sort(key=lambda run: (run["method"], run["seed"]))
    kept["trials"].sort(key=lambda run: (run["method"], run["trial"]))
    KEPT.mkdir(exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n")
    print(f"{path}: {new} new, {len(kept['runs'])} runs and {len(kept['trials'])} trials in all")


def require_same(kept: dict, within: list[dict], one: dict, machine: dict, plan: dict, name: str) -> None:
    """What is compared in one table is of one machine and one schedule, and each method there once for a seed."""
    for what, here, there in [("machine", machine, kept["machine"]), ("schedule", plan, kept["schedule"])]:
        if there and here != there:
            differing = ", ".join(f"{key} {here.get(key)}, not {there.get(key)}" for key in here if here.get(key) != there.get(key))
            raise SystemExit(f"{name} has another {what} ({differing}): add these under another --name")
    which = [run for run in within if all(run.get(key) == one.get(key) for key in ("method", "trial", "seed"))]
    if which:
        raise SystemExit(f"{name} has another {one.get('trial', one['method'])} of seed {one['seed']}: add these under another --name")


def taken(result: dict, machine: dict, store: Store) -> dict:
    """What is kept of one run. The method of a trial is its name up to the first _."""
    ids, values, begun = result["artifacts"], result["values"], begin(store, result["run"])
    data, measured, student = (opened(store, ids[name]) for name in ("data", "measured", "student"))
    measurement = measured.json("measurement.json")
    counts = np.load(measured.file(f"counts_{measurement['reference']}.npy"))  # (N, C, 3)
    names = [Path(entry["image"]).name for entry in data.json("index.json")[measurement["split"]]]
    drives = {}
    for drive in sorted({name.partition("_")[0] for name in names}):
        drives[drive] = round(miou(counts[[n.startswith(drive) for n in names]].sum(0))[0], 3)
    whole, classes = miou(counts.sum(0))
    return {
        "method": values["method"] if "method" in values else values["trial"].partition("_")[0],
        **({"trial": values["trial"]} if "trial" in values else {}),
        "settings": settings(begun["sets"]),
        "seed": begun["resolved"]["stages"]["student"]["fit"]["seed"],
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


def settings(sets: list[str]) -> dict[str, str]:
    """{path: JSON} of what was set for the student, but its seed: paths of files and of the machine are no part of it."""
    pairs = (text.partition("=")[::2] for text in sets)
    return {path: value for path, value in pairs if path.startswith("stages.student.") and path != "stages.student.fit.seed"}


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


def winners(trials: list[dict]) -> str:
    """A sweep file: the best trial of each method on the seeds of the results, and plain training for longer, as there."""
    won = best(trials)
    settings = {method: won[method]["settings"] for method in sorted(won, key=lambda m: (m != BASELINE, m))}
    if plain := won.get(BASELINE):
        settings |= {f"{BASELINE}_{n}x": plain["settings"] | {"stages.student.fit.steps": str(n * plain["steps"])} for n in (2, 5)}
    methods = {method: "{" + ", ".join(f"{k}: {v}" for k, v in each.items()) + "}" for method, each in settings.items()}
    lines = [
        "# What won in tune_camvid.yaml, for each method and for none alike, on the seeds that are reported and on test. Written by",
        "#   python benchmarks/gauntlet.py winners",
        "recipe: ../gauntlet_camvid.yaml",
        "axes:",
        "  seed:",
        *(f"    {seed}: {{stages.student.fit.seed: {seed}}}" for seed in (1, 2, 3)),
        "  method:",
        *(f"    {method}: {text}" for method, text in methods.items()),
        "figures: [measured.miou.student, measured.miou.teacher, student.step_ms, student.cpu_ms]",
    ]
    return "\n".join(lines)


def read(name: str) -> dict:
    path = KEPT / f"{name}.json"
    if not path.exists():
        raise SystemExit(f"{path} does not exist; there are {', '.join(sorted(p.stem for p in KEPT.glob('*.json')))}")
    return {"trials": []} | json.loads(path.read_text())


def report() -> None:
    kept = {path.stem: read(path.stem) for path in sorted(KEPT.glob("*.json"), key=lambda path: path.stem)}
    sections = []
    for name, each in kept.items():
        sections.append(section(name, each, kept.get(name.removesuffix(TUNED)) if name.endswith(TUNED) else None))
        by = grouped(each["runs"])
        if by:
            (ROOT / "docs" / f"gauntlet-{name}.svg").write_text(drawn(ranked(by), by.get(BASELINE, {})))
    page = ROOT / "docs" / "gauntlet.md"
    words, mark, _ = page.read_text().partition("<!-- figures -->\n")  # above the mark a person writes, below it this does
    page.write_text(words + mark + "\n" + "\n\n".join(sections) + "\n")
    print(f"{page}: {len(sections)} schedules")


if __name__ == "__main__":
    main()
