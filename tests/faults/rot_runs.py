"""Damage under a finished run, met by the real command line: put aside, made again with the same id, and the run goes on."""

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path
from random import Random

from common import Toy
from rot import flip, instead, swap, tree, write

RECIPE = """
name: toy
stages:
  one: {kind: number, value: 1}
  two: {kind: number, value: 2}
  sum: {kind: sum, of: [one, two]}
  twice: {kind: sum, of: [sum], times: 2.0}
"""
LATER = {"one": ("of: [one, two]", "of: [one, two], times: 3.0"), "sum": ("times: 2.0", "times: 4.0")}  # a change that needs the stage
WAYS = ("bit", "truncated", "longer", "emptied", "deleted", "added", "link", "swapped", "manifest", "folder")


def cases():
    """In the last ones nothing has changed, so that no stage opens what is damaged; the page does."""
    return [f"run/{stage}/{way}/{n}" for way in WAYS for stage in LATER for n in range(2)] + [
        f"run/{stage}/{way}/page" for way in WAYS for stage in LATER
    ]


@functools.cache
def finished():
    """(a store with one finished run, its ids, {stage: the ids after the later change, nothing damaged})."""
    place = Path(tempfile.mkdtemp(prefix="faults-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    toy = Toy(place, RECIPE)
    ids, later = toy.finish(), {}
    for stage, (old, new) in LATER.items():
        (place / stage).mkdir()
        other = Toy(place / stage, RECIPE.replace(old, new))
        shutil.copytree(toy.store, other.store)
        later[stage] = other.finish()
    return toy.store, ids, later


def check(case, place):
    _, stage, way, n = case.split("/")
    store, ids, later = finished()
    if n == "page":
        return shown(place, stage, way, Random(case))
    old, new = LATER[stage]
    toy = Toy(place, RECIPE.replace(old, new))
    shutil.copytree(store, toy.store)
    folder = toy.store / "objects/sha256" / ids[stage][:2] / ids[stage]
    os.chmod(folder, 0o755)
    spoil(folder, way, Random(case), toy.store / "objects/sha256" / ids["two"][:2] / ids["two"])
    spoilt = tree(folder)
    code, said = toy.call("plan", toy.recipe, "--profile", "none") if n == "1" else (0, "")  # a plan before it changes nothing
    assert code == 0, said
    code, said = toy.run()
    assert code == 0, f"ended with {code}: {said[-800:]}"
    assert toy.ids() == later[stage], "other artifacts than without the damage"
    aside = [tree(p) for p in (toy.store / "quarantine").glob(f"{ids[stage]}.*") if p.is_dir()]
    assert spoilt in aside or spoilt is None, f"what was damaged is not in quarantine: {said[-800:]}"
    if way not in ("manifest", "folder"):  # with those the stage simply runs: the plan sees that it is not there
        assert "making it anew" in said and "quarantine" in said, f"was not told: {said[-800:]}"
    code, said = toy.call("store", "fsck")
    # Swapping spoilt a second artifact as well, perhaps one that nothing needed to open.
    assert code == 0 or way == "swapped", f"fsck afterwards: {said[-800:]}"
    return {"corruptions": 1}


def shown(place, stage, way, chance):
    """The same command again, whose page is gone: it shows no number of a damaged artifact, and it is true that the next run is good."""
    store, ids, _ = finished()
    toy = Toy(place, RECIPE)
    shutil.copytree(store, toy.store)
    folder = toy.store / "objects/sha256" / ids[stage][:2] / ids[stage]
    os.chmod(folder, 0o755)
    spoil(folder, way, chance, toy.store / "objects/sha256" / ids["two"][:2] / ids["two"])
    for _ in range(3):  # with "swapped" two are damaged
        code, said = toy.run()
        if code == 0:
            break
        assert code == 5 and "run the recipe again" in said, f"ended with {code}: {said[-800:]}"
    assert code == 0, f"is told to run the recipe again, again and again: {said[-800:]}"
    assert toy.ids() == ids
    return {"corruptions": 1}


def spoil(folder, way, chance, other):
    file = folder / "number.txt"
    if way == "bit":
        flip(file, chance.randrange(file.stat().st_size), chance.randrange(8))
    elif way == "truncated":
        write(file, file.read_bytes()[:-1])
    elif way == "longer":
        write(file, file.read_bytes() + chance.randbytes(chance.randrange(1, 4096)))
    elif way == "emptied":
        write(file, b"")
    elif way == "deleted":
        file.unlink()
    elif way == "added":
        (folder / "more.txt").write_bytes(chance.randbytes(9))
    elif way == "link":
        instead(file, lambda p: p.symlink_to(other / "number.txt"))
    elif way == "swapped":
        os.chmod(other, 0o755)
        swap(file, other / "number.txt")
    elif way == "manifest":
        manifest = folder / "MANIFEST.json"
        flip(manifest, chance.randrange(manifest.stat().st_size), chance.randrange(8))
    else:
        shutil.rmtree(folder)
