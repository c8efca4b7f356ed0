"""F6: the disk is full: exit 5 with the path and what is free, nothing half made, and with more space the same command finishes.

The disk is a tmpfs of 64 KiB to 20 MiB, or one with few inodes, under a toy run of about 7 MiB. Most cases lower what the store keeps in
reserve to nothing, so that the writing itself hits the wall; the cases called reserve-* leave it as it is.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from common import Toy, undisturbed

QUICK = 4
NEEDS = ("mount", "umount")
COVERS = ("pipeline",)
RECIPE = """
name: toy
stages:
  one: {kind: number, value: 1, size: 1048576}
  two: {kind: number, value: 2, size: 1048576}
  three: {kind: number, value: 3, size: 3145728}
  sum: {kind: sum, of: [one, two, three]}
  judge: {kind: judge, of: sum, at_most: 10}
"""
SIZES = sorted({*(64 << i for i in range(9)), *range(512, 8192, 224), 10 << 10, 13 << 10, 20 << 10})  # KiB
INODES = (*range(2, 30, 3), *range(30, 150, 6))
RESERVES = (64, 1024, 4096, 20480)  # KiB of disk in the cases that keep the reserve


def cases():
    return [f"size-{k}" for k in SIZES] + [f"inodes-{n}" for n in INODES] + [f"reserve-{k}" for k in RESERVES]


def lacks():
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        try:
            with _disk(Path(folder) / "disk", "size=64k"):
                return []
        except AssertionError as error:
            return [f"mounting a tmpfs is refused ({error})"]


def check(case, place):
    what, _, amount = case.partition("-")
    mine = Toy(place, RECIPE)
    disk = place / "disk"
    with _disk(disk, f"size=64m,nr_inodes={amount}" if what == "inodes" else f"size={amount}k"):
        mine.store = disk / ".stillhouse"
        if what != "reserve":
            mine.environment["TOY_RESERVE"] = "0"
        code, said = _run(mine, disk)
        assert code in (0, 5), f"exit {code}: {said[-800:]}"
        assert "Traceback" not in said, said
        if code:
            assert str(disk) in said and (" free" in said or "no more files fit" in said), (
                f"no word of the disk or of what is free: {said[-800:]}"
            )
        mine.sound(said)
        subprocess.run(["mount", "-o", "remount,size=96m,nr_inodes=0", str(disk)], check=True, timeout=60)
        again, more = _run(mine, disk)
        assert again == 0, f"with enough space exit {again}: {more[-800:]}"
        assert mine.ids() == undisturbed(RECIPE), "other artifacts than with enough space"
        assert not list((mine.store / "tmp").iterdir()), "something is left in tmp"
    return {"code": code}


def summary(figures):
    full = sum(f["code"] == 5 for f in figures)
    return full > 0, f"{full} disks were too small, {len(figures) - full} just large enough"


def _run(mine, disk):
    return mine.run("--store", mine.store, "--out", disk / "runs")


@contextlib.contextmanager
def _disk(folder, options):
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=700,{options}", "tmpfs", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr.strip()
    try:
        yield
    finally:
        for child in folder.iterdir():
            for inner, _, _ in os.walk(child):
                os.chmod(inner, 0o700)
            shutil.rmtree(child, ignore_errors=True)
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=60)
