"""What the store costs: verification against bare sha256, planning 200 stages, sweeping 10,000 artifacts, and all it adds to a run.

python benchmarks/store_cost.py [STORE]      STORE: of a finished run, whose artifacts are published again (default .stillhouse)
"""

import hashlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests/pipeline")]

import toy_stages  # noqa: E402

from pipeline import plan, recipe  # noqa: E402
from pipeline.gc import sweep  # noqa: E402
from pipeline.keys import digest  # noqa: E402
from pipeline.store import Store  # noqa: E402

ROUNDS = 7


def main() -> None:
    finished = Store(Path(sys.argv[1] if len(sys.argv) > 1 else ".stillhouse"))
    with tempfile.TemporaryDirectory(prefix="stillhouse-") as folder:
        try:
            verification(Path(folder) / "verified")
            planning(Path(folder) / "planned")
            sweeping(Path(folder) / "swept")
            adding(finished, Path(folder) / "added")
        finally:
            for path in Path(folder).rglob("*"):  # read-only folders of the stores
                if path.is_dir():
                    path.chmod(0o700)


def verification(root: Path) -> None:
    store = Store(root).prepare()
    with store.workplace("v" * 64) as work:
        (work / "weights.bin").write_bytes(os.urandom(1 << 20) * 256)
        id = store.publish("v" * 64, {}, work, "Checkpoint", {}, {})
    file = store.folder(id) / "weights.bin"
    bare, ours = [], []
    for _ in range(ROUNDS):
        bare.append(seconds(lambda: hashlib.file_digest(file.open("rb"), "sha256")))
        ours.append(seconds(lambda: Store(root).verify(id)))
    speed = file.stat().st_size / 1e6
    print(f"verification: {speed / median(ours):.0f} MB/s, bare sha256 {speed / median(bare):.0f} MB/s: {median(bare) / median(ours):.0%}")


def planning(root: Path) -> None:
    stages = ["  s0: {kind: number, value: 1}", *(f"  s{n}: {{kind: sum, of: [s{n - 1}, s{max(0, n - 2)}]}}" for n in range(1, 200))]
    file = root.with_suffix(".yaml")
    file.write_text("name: long\nstages:\n" + "\n".join(stages) + "\n")
    read = recipe.read(file, toy_stages.KINDS)
    store = Store(root).prepare()
    for step in (step for _ in range(200) for step in plan.make(read.stages, store) if step.key and not step.artifact):
        with store.workplace(step.key) as work:
            (work / "number.txt").write_text(step.name)
            store.publish(step.key, step.image, work, step.stage.makes, {"name": step.name}, {})
    took = [seconds(lambda: plan.make(recipe.read(file, toy_stages.KINDS).stages, Store(root))) for _ in range(ROUNDS)]
    kept = sum(step.artifact is not None for step in plan.make(read.stages, store))
    print(f"plan over 200 stages, {kept} kept: {median(took):.3f} s (reading the recipe included)")


def sweeping(root: Path) -> None:
    """Half of 10,000 artifacts are needed by a run; made without syncing, for only the sweep is timed."""
    store = Store(root).prepare()
    run = store.new_run("toy")
    lines = []
    os_fsync, os.fsync = os.fsync, lambda fd: None
    try:
        for n in range(10_000):
            key = digest(n)
            with store.workplace(key) as work:
                (work / "number.txt").write_text(str(n))
                id = store.publish(key, {"n": n}, work, "Dataset", {}, {})
            if n % 2:
                store.note(run, "stage", stage=f"s{n}", state="made", key=key, id=id, seconds=0.0)
                lines.append(id)
    finally:
        os.fsync = os_fsync
    took = seconds(lambda: lines.append(sweep(store)))
    print(f"gc over 10,000 artifacts, {len(lines[-1].objects)} of them freed: {took:.2f} s")


def adding(finished: Store, root: Path) -> None:
    """Publishing, verifying and noting everything that a finished run made, on this disk, with every sync."""
    store = Store(root)
    total = seconds(store.prepare)
    objects = sorted(finished.root.glob("objects/sha256/*/*"))
    run = store.new_run("again")
    for source in objects:
        manifest, key = finished.manifest(source.name), digest(source.name)
        with store.workplace(key) as work:
            for name in manifest["files"]:
                shutil.copyfile(source / name, work / name)
            total += seconds(lambda: store.note(run, "starts", stage="s", key=key))  # noqa: B023 (called at once)
            total += seconds(lambda: store.publish(key, {"k": key}, work, manifest["kind"], manifest["facts"], {}))  # noqa: B023
            total += seconds(lambda: store.note(run, "stage", stage="s", state="made", key=key, id=source.name, seconds=0.0))  # noqa: B023
        total += seconds(lambda: Store(root).verify(source.name))  # noqa: B023
    size = sum(finished.size(source.name) for source in objects) / 1e6
    print(f"the store adds {total:.2f} s to a run of {len(objects)} artifacts, {size:.0f} MB ({finished.root.name})")


def seconds(what) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
