"""From a decoded image in memory to its class map, the conventional way and ours: `python benchmarks/end_to_end.py --threads 2`.

    python benchmarks/end_to_end.py --student RUN/STAGE [--store DIR] --data CAMVID [--classes 19 150 --size 512 512 --json FILE]

Conventional: plain export, onnxruntime in float32, normalising in numpy before it, bilinear enlarging and argmax in torch after it.
Ours: the rewritten export with its tail inside the graph, or cut at the logits with the argmax kernel behind it; f32, bf16, INT8.
The networks: a trained student whose classifier is padded to so many classes by rows that never win, and random weights, the worst case.

Every racer has a process of its own. First each gives class maps of the same pictures: a float32 one that differs from the conventional
path on more than 0.01 % of the pixels ends the command, and no speed is told. Then all take turns in a new order every round. A figure
is the median over rounds of the median of a turn, a gain the median over rounds of the ratio within one round; bounds are order
statistics. mIoU is of the files that are timed, on all pictures of the split, at --size.
"""

import argparse
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import ready
from benchmarks.racers import CONVENTIONAL, OURS, WARM_MS, Child, absent
from benchmarks.ready import Pictures, say, spread
from pipeline import finding
from pipeline.artifact import Artifact
from pipeline.errors import Stillhouse
from pipeline.store import Store
from stages import machine
from stages.measure.miou import counts, miou
from stages.measure.parity import agreement
from stages.models import TABLE as MODELS
from stages.models import row_of

LEAST_AGREEMENT = 0.9999  # share of pixels on which float32 gives the class of the conventional path
LEAST_ALIKE = 0.8  # the same of reduced precision: below it is broken, as signed activations are in OpenVINO (0.49 to 0.68)
WITHIN = 0.3  # mIoU points that reduced precision may lose
ASKED = {19: (2.2, 5.0), 150: (3.5, 7.0)}  # classes: gains asked of float32 and of reduced precision, at 512 x 512 with 2 threads
TIMED = 4  # pictures
BUSY = 0.25  # of a core: load of others beyond which figures are not for the record
QUICK = {"size": [64, 64], "model": "tiny", "rounds": 2, "runs": 1, "warm_ms": 0, "images": 2}


def main(arguments: list[str] | None = None) -> int:
    asked = parser(arguments).parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="stillhouse-") as folder:
        try:
            found = measured(asked, Path(folder))
        except Stillhouse as error:
            print(f"no speed is told: {error}", file=sys.stderr)
            return error.code
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def measured(asked: argparse.Namespace, work: Path) -> dict[str, Any]:
    student = ready.student_of(folder_of(asked)) if asked.student else None
    pictures = ready.pictures_of(asked.data, tuple(asked.size), asked.split, asked.images, student, work)
    missing = {racer.name: why for racer in OURS if (why := absent(racer))}
    racers = [CONVENTIONAL, *(racer for racer in OURS if racer.name not in missing and any(word in racer.name for word in asked.only))]
    found = {"machine": machine.facts(), "versions": versions(), "date": time.strftime("%Y-%m-%d"), "load": [load()]}
    found |= {key: getattr(asked, key) for key in ("threads", "size", "rounds", "runs")}
    found |= {"pictures": pictures.what, "absent": missing, "results": []}
    print("\n".join(heading(found)), flush=True)
    children = []
    try:
        for racer in racers:
            children.append(Child(racer, work))
        for classes in asked.classes:
            for name, row, net, seen in networks(asked, student, classes, pictures):
                found["results"].append(result := {"network": name, "classes": classes, "model": row.model_dump(mode="json")})
                result |= raced(asked, children, row, net, seen, work / name.replace(" ", "_"), classes)
                print("\n".join(table(result)), flush=True)
    finally:
        for child in children:
            child.end()
    found["load"].append(load())
    print("\n".join(doubts(found)))
    return found


def networks(asked: argparse.Namespace, student: Artifact | None, classes: int, pictures: Pictures):
    """(name, row, network, the pictures it is judged on)."""
    if student:
        own = len(student.facts["classes"])
        yield f"student, {own} classes padded to {classes}", row_of(student), ready.padded(student, classes, pictures), pictures
    if not asked.no_random:
        row = row_of(student) if student else MODELS.row(asked.model).model_validate({"kind": asked.model})
        few = pictures._replace(images=pictures.images[spread(len(pictures.images), 2 * TIMED)], labels=None)
        yield f"random weights, {classes} classes", row, ready.random_network(row, classes), few


def raced(asked, children: list[Child], row, net, pictures: Pictures, work: Path, classes: int) -> dict[str, Any]:
    racers = [child.racer for child in children]
    say(f"{work.name}: exporting and quantising")
    files = ready.files(row, net, tuple(asked.size), racers, pictures.calibration, work)
    np.save(work / "timed.npy", pictures.images[spread(len(pictures.images), TIMED)])
    np.save(work / "judged.npy", pictures.images)
    mean, std = (getattr(net, name).flatten().tolist() for name in ("mean", "std"))
    common = {"align_corners": net.align_corners, "mean": mean, "std": std, "threads": asked.threads}
    found, plain = {}, None
    for child in children:
        say(f"{work.name}: class maps of {child.racer.name}")
        spec = {"racer": list(child.racer), **files[child.racer.name], **common}
        child.order(open=spec, images=str(work / "timed.npy"), warm_ms=asked.warm_ms)
        maps = child.maps(work / "judged.npy")
        plain = maps if plain is None else plain  # the conventional path comes first
        found[child.racer.name] = judged(maps, plain, pictures.labels, classes) | {"exact": child.racer.exact}
    require_same(found)
    say(f"{work.name}: taking turns")
    sound = [child for child in children if found[child.racer.name]["agreement"] >= LEAST_ALIKE]
    for name, figures in timed(sound, asked.rounds, asked.runs).items():
        found[name] |= figures
    return {"border": borders(plain), "racers": found}


def judged(maps: np.ndarray, plain: np.ndarray, labels: np.ndarray | None, classes: int) -> dict[str, Any]:
    """Share of pixels like the conventional path's, and mIoU where there are labels."""
    found = {"agreement": float(np.mean([agreement(one, other) for one, other in zip(maps, plain, strict=True)]))}
    if labels is not None:
        found["miou"] = miou(sum(counts(guess, label, classes) for guess, label in zip(maps, labels, strict=True)))[0]
        found["miou_conventional"] = miou(sum(counts(guess, label, classes) for guess, label in zip(plain, labels, strict=True)))[0]
    return found


def require_same(found: dict[str, dict]) -> None:
    wrong = [f"{name} on {v['agreement']:.4%}" for name, v in found.items() if v["exact"] and v["agreement"] < LEAST_AGREEMENT]
    if wrong:
        raise Stillhouse(f"float32 must give the conventional path's class on {LEAST_AGREEMENT:.2%} of pixels: {'; '.join(wrong)}")


def timed(children: list[Child], rounds: int, runs: int) -> dict[str, dict[str, Any]]:
    """Milliseconds of each turn's runs, and what follows from them. The first child is the conventional path."""
    found = {child.racer.name: {"ms": [], "cpu_ms": []} for child in children}
    order = random.Random(0)
    for _ in range(rounds):
        for child in order.sample(children, len(children)):
            for clock, value in child.order(runs=runs).items():
                found[child.racer.name][clock].append(value)
    turn = {name: [statistics.median(each) for each in v["ms"]] for name, v in found.items()}
    for name, v in found.items():
        v["median_ms"], v["mean_cpu_ms"] = bounded(turn[name]), statistics.mean(v["cpu_ms"])
        v["gain"] = bounded([a / b for a, b in zip(turn[CONVENTIONAL.name], turn[name], strict=True)])
    return found


def bounded(values: list[float]) -> tuple[float, float, float]:
    """Median, and the two order statistics between which the true one lies with at least 95 % (or all there is, below 6 values)."""
    ordered, (k, _) = sorted(values), rank(len(values))
    return statistics.median(ordered), ordered[k - 1], ordered[-k]


def rank(n: int) -> tuple[int, float]:
    """The largest k for which the k-th of n values and the k-th from the end hold the median with 95 %, and with how much they do."""
    beyond, k = 0.5**n, 1  # probability that fewer than k values lie below the median
    while (more := beyond + math.comb(n, k) * 0.5**n) <= 0.025:
        beyond, k = more, k + 1
    return k, 1 - 2 * beyond


def borders(maps: np.ndarray) -> float:
    """Share of pixels whose right or lower neighbour is of another class: what the argmax kernel works on."""
    other = np.zeros(maps.shape, bool)
    other[:, :, :-1] |= maps[:, :, :-1] != maps[:, :, 1:]
    other[:, :-1] |= maps[:, :-1] != maps[:, 1:]
    return float(other.mean())


def heading(found: dict[str, Any]) -> list[str]:
    where, (height, width), rounds = found["machine"], found["size"], found["rounds"]
    k, sure = rank(rounds)
    return [
        f"{where['cpu']} ({' '.join(where['instructions'])}), {found['threads']} threads of {where['cores']} cores, {where['platform']}",
        f"{', '.join(found['versions'])}, Python {where['python']}, {found['date']}, load {found['load'][0]:.1f}",
        f"uint8 1 x {height} x {width} x 3 in memory -> uint8 {height} x {width} class map; float32 but where said; {found['pictures']}",
        f"{rounds} rounds of {found['runs']} runs, ms; [values {k} and {rounds + 1 - k} in order: they hold the median with {sure:.1%}]",
        *(f"left out: {name}: {why}" for name, why in found["absent"].items()),
    ]


def table(result: dict[str, Any]) -> list[str]:
    lines = ["", f"{result['network']}; {result['border']:.1%} of pixels lie at a border between classes"]
    lines.append(f"  {'':36}{'ms':>28}{'times faster':>24}{'cpu ms':>9}{'same class':>12}{'mIoU':>8}{'change':>8}")
    for name, v in result["racers"].items():
        scores = f"{v['miou']:8.2f}{v['miou'] - v['miou_conventional']:+8.2f}" if "miou" in v else ""
        figures = f"{'broken: no speed is told':>61}"
        if "gain" in v:
            ms, gain = ("{:.2f} [{:.2f}, {:.2f}]".format(*v[key]) for key in ("median_ms", "gain"))
            figures = f"{ms:>28}{gain:>24}{v['mean_cpu_ms']:9.1f}"
        lines.append(f"  {name:36}{figures}{v['agreement']:12.4%}{scores}")
    return lines + verdicts(result)


def verdicts(result: dict[str, Any]) -> list[str]:
    """The best of float32, and the best of reduced precision that loses little."""
    ours = {name: v for name, v in result["racers"].items() if name != CONVENTIONAL.name and "gain" in v}
    exact = {name: v for name, v in ours.items() if v["exact"]}
    lines, asked = [], ASKED.get(result["classes"], (None, None))
    near = {n: v for n, v in ours.items() if not v["exact"] and v.get("miou", -1.0) - v.get("miou_conventional", 0.0) >= -WITHIN}
    for what, group, least in (("float32", exact, asked[0]), (f"reduced precision within {WITHIN} mIoU", near, asked[1])):
        if not group:
            judged = any("miou" in v for v in ours.values())
            lines.append(f"  best of {what}: {'none' if judged else 'not judged without labels'}")
            continue
        name, v = max(group.items(), key=lambda item: item[1]["gain"][0])
        lines.append(f"  best of {what}: {name}, {v['gain'][0]:.2f} times" + (f" ({least} asked at 512 x 512)" if least else ""))
    return lines


def folder_of(asked: argparse.Namespace) -> Path:
    """A folder is taken as it is, anything else is RUN/STAGE or the start of an id in the store."""
    if Path(asked.student).is_dir():
        return Path(asked.student)
    store = Store(asked.store)
    id = finding.artifact(store, asked.student)
    store.verify(id)
    return store.folder(id)


def versions() -> list[str]:
    return [machine.version(name) for name in ("torch", "numpy", "onnx", "onnxruntime", "openvino", "nncf")]


def load() -> float:
    """Processes that want a core, in the mean of the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan


def doubts(found: dict[str, Any]) -> list[str]:
    """What stands against the figures: others were at work. This command alone adds up to `threads` to the load it ends with."""
    before, after, cores = *found["load"], found["machine"]["cores"]
    if before <= BUSY * cores and after <= found["threads"] + BUSY * cores:
        return []
    return ["", f"NOT FOR THE RECORD: load {before:.1f} before and {after:.1f} after on {cores} cores: others were at work"]


def parser(arguments: list[str] | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--student", metavar="FOLDER|RUN/STAGE", help="a trained Checkpoint; without it only random weights are raced")
    made.add_argument("--store", type=Path, default=Path(".stillhouse"), help="where RUN/STAGE lies")
    made.add_argument("--data", type=Path, metavar="CAMVID", help="pictures and labels in CamVid's form; without it pictures are drawn")
    made.add_argument("--split", default="test", help="whose pictures are judged; calibration is always from train")
    made.add_argument("--images", type=int, default=0, help="at most so many of that split, evenly spread; 0: all")
    made.add_argument("--no-random", action="store_true", help="race the student only")
    made.add_argument("--model", default="segformer", help="the random network where there is no student")
    made.add_argument("--classes", type=int, nargs="+", default=[19, 150])
    made.add_argument("--size", type=int, nargs=2, default=[512, 512], metavar=("HEIGHT", "WIDTH"))
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--rounds", type=int, default=15)
    made.add_argument("--runs", type=int, default=5, help="runs of one turn")
    made.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="only those of ours whose name holds one of these")
    made.add_argument("--json", type=Path, metavar="FILE", help="also every sample")
    made.add_argument("--quick", action="store_true", help="a small size that proves the command and tells nothing about speed")
    made.set_defaults(warm_ms=WARM_MS)
    if "--quick" in (sys.argv if arguments is None else arguments):
        made.set_defaults(**QUICK)
    return made


if __name__ == "__main__":
    sys.exit(main())
