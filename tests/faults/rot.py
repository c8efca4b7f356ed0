"""A small store with one artifact of every kind, and the ways in which a disk, a copy or a hand can spoil what is in it."""

import atexit
import contextlib
import functools
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path
from random import Random

from pipeline.artifact import KINDS
from pipeline.fsck import examine
from pipeline.keys import digest
from pipeline.manifest import Damaged
from pipeline.pins import pin
from pipeline.store import Store

BIG = {
    "Dataset": "pixels.bin",
    "Checkpoint": "model.safetensors",
    "TextMatrix": "text.safetensors",
    "OnnxModel": "model.onnx",
    "Engine": "engine.plan",
    "Measurement": "samples.bin",
    "Verdict": "evidence.bin",
    "Bundle": "bundle.zip",
}
FACTS = {"classes": ["road", "sky"], "limit": 1e300, "passed": True, "note": None}  # a flipped bit makes 1e300 infinite


def files(kind):
    """What a stage could leave: one large file, one of some hundred bytes, JSON, an empty one, one of a single byte."""
    chance = Random(f"files of {kind}")
    facts = {"kind": kind, "numbers": [chance.random() for _ in range(30)]}
    return {
        BIG[kind]: chance.randbytes(65_536 - chance.randrange(64)),
        "part.bin": chance.randbytes(700),
        "facts.json": json.dumps(facts).encode(),
        "empty.log": b"",
        "flag": b"\x01",
    }


def image(kind):
    return {"schema": 1, "stage": kind.lower(), "config": {"seed": 1}}


def key(kind):
    return digest(image(kind))


def publish(store, kind):
    with store.workplace(key(kind)) as folder:
        for name, data in files(kind).items():
            (folder / name).write_bytes(data)
        return store.publish(key(kind), image(kind), folder, kind, {"of": kind, **FACTS}, {"at": "noon", "host": "here"})


@functools.cache
def template():
    """(folder of a store with every artifact, a run that made them and a pin; {kind: id}). Made once per process, copied by each case."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    store = Store(folder / "store").prepare()
    run, ids = store.new_run("spoils"), {}
    store.note(run, "begin", sequence=1, recipe="spoils")
    for kind in KINDS:
        store.note(run, "starts", stage=kind, key=key(kind))
        ids[kind] = publish(store, kind)
        store.note(run, "stage", stage=kind, state="made", key=key(kind), id=ids[kind], seconds=0.1)
    store.note(run, "end", code=0, error=None)
    pin(store, f"{run}/Engine")
    pin(store, run)
    assert not list(examine(Store(store.root)))
    return store.root, ids


def copy(place, kinds=KINDS):
    """A store of one's own, with these artifacts only: the fewer, the faster it is examined."""
    root, ids = template()
    unwanted = {root / "ballast"}
    if kinds != KINDS:
        gone = [kind for kind in KINDS if kind not in kinds]
        unwanted |= {root / "objects/sha256" / ids[kind][:2] for kind in gone if not any(ids[kind][:2] == ids[k][:2] for k in kinds)}
        unwanted |= {root / folder / f"{key(kind)}.json" for kind in gone for folder in ("keys", "refs/cache")}
        unwanted |= set((root / "refs/pins").iterdir())
    shutil.copytree(root, place / "store", ignore=lambda folder, names: [n for n in names if Path(folder, n) in unwanted])
    return Store(place / "store"), {kind: ids[kind] for kind in kinds}


# -- what is promised of a spoilt artifact


def served(root, kind):
    """The id that a fresh process would hand to a stage, every byte verified; None where it refuses."""
    store = Store(root)
    found = store.find(key(kind), "stage")
    if found is None:
        return None
    try:
        store.verify(found.id)
    except Damaged:
        return None
    return found.id


def seen(root, kind, id):
    """Never served, and named by fsck."""
    assert served(root, kind) is None, "was served"
    told = [finding.where for finding in examine(Store(root))]
    assert f"artifact {id[:12]}" in told or f"refs/cache/{key(kind)}.json" in told, f"not named by fsck, which says {told}"


def healed(root, kind, id, way):
    """Put aside with every byte it has, made again with the same id, and clean. `way`: who finds it."""
    store, before = Store(root), tree(Store(root).folder(id))
    if way == "runner":
        try:
            store.verify(id)
            raise AssertionError("was verified")
        except Damaged as damage:
            store.quarantine(damage)
    elif way == "fsck":
        assert all(finding.repaired for finding in examine(Store(root), repair=True))
    assert publish(store, kind) == id, "made again with another id"
    aside = [tree(p) for p in (root / "quarantine").glob(f"{id}.*") if not p.name.endswith(".json")]
    assert before in aside or (before is None and (way == "publisher" or {} in aside)), "its bytes are not in quarantine"
    assert served(root, kind) == id, "made again and still not served"
    left = [f for f in examine(Store(root)) if f.where.startswith("artifact")]
    assert not left, f"fsck still says {left}"


def tree(path):
    """Everything under a path, links not followed: {name: (what it is, bytes)}; None where there is nothing."""
    if not os.path.lexists(path):
        return None
    if path.is_symlink() or not path.is_dir():
        return _leaf(path)
    return {p.relative_to(path).as_posix(): _leaf(p) for p in sorted(path.rglob("*"))}


def _leaf(path):
    if path.is_symlink():
        return "link", os.readlink(path)
    if path.is_dir():
        return "folder", b""
    return ("file", path.read_bytes()) if path.is_file() else ("special", b"")


# -- single bits, undone


@contextlib.contextmanager
def flipped(file, at, bit):
    """One bit of the file is the other way round, for as long as the block lasts."""
    mode = file.stat().st_mode & 0o777
    os.chmod(file, 0o600)
    fd = os.open(file, os.O_RDWR)
    try:
        old = os.pread(fd, 1, at)
        os.pwrite(fd, bytes([old[0] ^ 1 << bit]), at)
        os.chmod(file, mode)
        yield
    finally:
        os.pwrite(fd, old, at)
        os.close(fd)
        if file.exists():
            os.chmod(file, mode)


def flip(file, at, bit):
    """For good."""
    mode = file.stat().st_mode & 0o777
    os.chmod(file, 0o600)
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << bit
    file.write_bytes(bytes(data))
    os.chmod(file, mode)


def each_byte(size, seed):
    """One bit of every byte: [(byte, bit)]."""
    chance = Random(seed)
    return [(at, chance.randrange(8)) for at in range(size)]


# -- damage done to files and folders


def write(file, data):
    mode = file.stat().st_mode & 0o777
    os.chmod(file, 0o600)
    file.write_bytes(data)
    os.chmod(file, mode)


def swap(one, two):
    aside = one.with_name("swapping")
    one.rename(aside)
    two.rename(one)
    aside.rename(two)


def instead(file, make):
    """Something else under the same name."""
    file.unlink()
    make(file)


# -- telling which damage it was


@contextlib.contextmanager
def bounded(what, seconds):
    def over(number, frame):
        raise AssertionError(f"{what}: still at it after {seconds} s")

    before, left = signal.signal(signal.SIGALRM, over), signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(left)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def during(what):
    """Says what was spoilt when a promise breaks."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from None
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
