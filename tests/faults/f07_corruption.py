"""F7: every kind of artifact and every record, spoilt bit by bit and whole: seen, never served, made again with the same id."""

import functools
import os
from random import Random

import rot_records
import rot_runs
from parts import spread
from rot import BIG, bounded, copy, during, each_byte, files, flip, flipped, healed, instead, seen, served, swap, template, write

from pipeline.artifact import KINDS
from pipeline.store import Store

QUICK = 50  # besides two through the command line
BITS = 400  # of each payload file
BATCH = 100  # corruptions in a case
HEAL = 25  # one of so many single bits is also put aside and made anew


@functools.cache
def cases():
    names = [f"{kind}/{file}/{n}" for kind in KINDS for file in files(kind) for n in range(-(-len(bits(kind, file)) // BATCH))]
    names += [f"{kind}/MANIFEST.json/{n}" for kind in KINDS for n in range(-(-len(bits(kind, "MANIFEST.json")) // BATCH))]
    names += [f"{kind}/{group}" for kind in KINDS for group in ("files", "set", "manifest", "folder")]
    return names + rot_records.cases() + rot_runs.cases()


def quick():
    """Evenly over all, but few of those that start processes."""
    fast = [case for case in cases() if not case.startswith("run/")]
    return spread(fast, QUICK) + spread(rot_runs.cases(), 2)


def check(case, place):
    group, what, *more = case.split("/")
    with bounded(case, 120):
        if group == "run":
            return rot_runs.check(case, place)
        if group in ("record", "whole"):
            return rot_records.check(case, place)
        if more:
            return {"corruptions": single_bits(place, group, what, int(more[0]))}
        return {"corruptions": DAMAGES[what](place, group)}


def summary(figures):
    total = sum(f["corruptions"] for f in figures)
    return True, f"{total:,} corruptions, all of them seen"


# -- single bits of artifacts


@functools.cache
def bits(kind, file):
    """(byte, bit) pairs: every byte of a manifest, so many bits of a payload file, or all it has."""
    if file == "MANIFEST.json":
        root, ids = template()
        size = (Store(root).folder(ids[kind]) / file).stat().st_size
        return each_byte(size, f"{kind} {file}")
    size = len(files(kind)[file])
    found = Random(f"bits of {kind} {file}").sample(range(8 * size), min(BITS, 8 * size))
    return [divmod(n, 8) for n in found]


def single_bits(place, kind, file, n):
    store, ids = copy(place, (kind,))
    chosen, id = bits(kind, file)[n * BATCH : (n + 1) * BATCH], ids[kind]
    path = store.folder(id) / file
    for i, (at, bit) in enumerate(chosen):
        with during(f"bit {bit} of byte {at} of {file}"):
            with flipped(path, at, bit):
                seen(store.root, kind, id)
            if i % HEAL == 0:
                flip(path, at, bit)
                healed(store.root, kind, id, ("runner", "fsck", "publisher")[i // HEAL % 3])
    assert served(store.root, kind) == id, "sound again and not served"
    return len(chosen)


# -- artifacts spoilt as a whole


def damaged(place, kind, damages):
    """Each damage in turn, seen, then put aside and made anew in one of three ways."""
    store, ids = copy(place, (kind, KINDS[KINDS.index(kind) - 1]))
    id, other = ids[kind], store.folder(ids[KINDS[KINDS.index(kind) - 1]])
    for i, (name, do) in enumerate(damages.items()):
        folder = store.folder(id)
        with during(name), bounded(name, 20):
            os.chmod(folder, 0o755)
            os.chmod(other, 0o755)
            do(folder, place, other)
            seen(store.root, kind, id)
            healed(store.root, kind, id, ("runner", "fsck", "publisher")[i % 3])
    return len(damages)


def one_file(place, kind):
    return damaged(place, kind, {f"{file} {name}": do for file in files(kind) for name, do in of_file(file, files(kind)[file])})


def of_file(name, data):
    """Whatever can happen to one file of an artifact."""
    if data:
        yield "without its last byte", lambda folder, place, other: write(folder / name, data[:-1])
        yield "emptied", lambda folder, place, other: write(folder / name, b"")
        yield "all zeros", lambda folder, place, other: write(folder / name, bytes(len(data)))
    if len(data) > 4096:
        yield "a lost block", lambda folder, place, other: write(folder / name, data[:4096] + bytes(4096) + data[8192:])
        yield "torn", lambda folder, place, other: write(folder / name, data[: len(data) // 4096 * 4096 // 2])
    yield "one byte longer", lambda folder, place, other: write(folder / name, data + b"\0")
    yield "deleted", lambda folder, place, other: (folder / name).unlink()
    yield "renamed", lambda folder, place, other: (folder / name).rename(folder / f"{name}.old")
    yield "a link to its own copy", lambda folder, place, other: instead(folder / name, lambda p: p.symlink_to(moved(place, data)))
    yield "a link to nowhere", lambda folder, place, other: instead(folder / name, lambda p: p.symlink_to("nowhere"))
    yield "a link to itself", lambda folder, place, other: instead(folder / name, lambda p: p.symlink_to(name))
    yield (
        "a hard link to something else",
        lambda folder, place, other: instead(folder / name, lambda p: p.hardlink_to(other / "MANIFEST.json")),
    )
    yield "a folder", lambda folder, place, other: instead(folder / name, os.mkdir)
    yield "a pipe", lambda folder, place, other: instead(folder / name, os.mkfifo)


def moved(place, data):
    copy = place / "copy"
    copy.write_bytes(data)
    return copy


def the_set(place, kind):
    big = BIG[kind]
    damages = {
        "a file added": lambda folder, place, other: (folder / "extra.bin").write_bytes(b"extra"),
        "an empty file added": lambda folder, place, other: (folder / "extra").touch(),
        "a hidden file added": lambda folder, place, other: (folder / ".extra").touch(),
        "a folder added": lambda folder, place, other: (folder / "extra").mkdir(),
        "a link added": lambda folder, place, other: (folder / "extra").symlink_to(big),
        "two files swapped": lambda folder, place, other: swap(folder / big, folder / "part.bin"),
        "an empty and a full file swapped": lambda folder, place, other: swap(folder / "flag", folder / "empty.log"),
        "swapped with another artifact": lambda folder, place, other: write(folder / "part.bin", (other / "part.bin").read_bytes()),
        "all files gone": lambda folder, place, other: [(folder / name).unlink() for name in files(kind)],
    }
    return damaged(place, kind, damages)


def the_manifest(place, kind):
    def manifest(change):
        return lambda folder, place, other: write(folder / "MANIFEST.json", change((folder / "MANIFEST.json").read_bytes()))

    damages = {
        "its last byte lost": manifest(lambda data: data[:-1]),
        "a newline added": manifest(lambda data: data + b"\n"),
        "spelt otherwise": manifest(lambda data: data.replace(b'":', b'": ')),
        "emptied": manifest(lambda data: b""),
        "all zeros": manifest(lambda data: bytes(len(data))),
        "a list": manifest(lambda data: b"[]"),
        "a number that is none": manifest(lambda data: data.replace(b"1e+300", b"NaN")),
        "nested without end": manifest(lambda data: b"[" * 200_000),
        "a file's digest replaced": manifest(lambda data: data.replace(b'"size":700', b'"size":701')),
        "another one's": lambda folder, place, other: write(folder / "MANIFEST.json", (other / "MANIFEST.json").read_bytes()),
        "deleted": lambda folder, place, other: (folder / "MANIFEST.json").unlink(),
        "a folder": lambda folder, place, other: instead(folder / "MANIFEST.json", os.mkdir),
        "a link to its own copy": lambda folder, place, other: instead(
            folder / "MANIFEST.json", lambda p, data=(folder / "MANIFEST.json").read_bytes(): p.symlink_to(moved(place, data))
        ),
        "a pipe": lambda folder, place, other: instead(folder / "MANIFEST.json", os.mkfifo),
    }
    return damaged(place, kind, damages)


def the_folder(place, kind):
    def gone(folder):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()

    damages = {
        "deleted": lambda folder, place, other: gone(folder),
        "emptied": lambda folder, place, other: [file.unlink() for file in folder.iterdir()],
        "a file": lambda folder, place, other: (gone(folder), folder.write_bytes(b"")),
        "a link to its own copy": lambda folder, place, other: folder.symlink_to(folder.rename(place / "aside")),
        "a link to nowhere": lambda folder, place, other: (gone(folder), folder.symlink_to("nowhere")),
        "another one's": lambda folder, place, other: (gone(folder), other.rename(folder)),
    }
    return damaged(place, kind, damages)


DAMAGES = {"files": one_file, "set": the_set, "manifest": the_manifest, "folder": the_folder}
