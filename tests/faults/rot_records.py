"""The records of a store spoilt bit by bit and whole: they read as if they were not there, never as another, and fsck names them."""

import functools
import os
from contextlib import suppress

from rot import bounded, copy, during, each_byte, flip, flipped, image, instead, key, publish, served, template, tree, write

from pipeline.artifact import KINDS
from pipeline.errors import BadStore
from pipeline.fsck import examine
from pipeline.gc import sweep
from pipeline.pins import pinned
from pipeline.store import Store

KIND = "Engine"  # whose records are spoilt
RECORDS = ("ref", "key", "pin", "journal", "store.json")
BATCH = 100  # corruptions in a case
MEND = 25  # one of so many is also put right by the next run or by fsck


def cases():
    names = [f"record/{record}/{n}" for record in RECORDS for n in range(-(-len(record_bits(record)) // BATCH))]
    return names + [f"whole/{record}" for record in WHOLE]


def check(case, place):
    group, what, *n = case.split("/")
    return {"corruptions": bits(place, what, int(n[0])) if group == "record" else WHOLE[what](place)}


def path_of(root, record):
    return {
        "ref": root / "refs/cache" / f"{key(KIND)}.json",
        "key": root / "keys" / f"{key(KIND)}.json",
        "pin": root / "refs/pins/spoils-1.Engine.json",
        "journal": root / "refs/runs/spoils-1/journal.jsonl",
        "store.json": root / "store.json",
    }[record]


@functools.cache
def record_bits(record):
    return each_byte(path_of(template()[0], record).stat().st_size, record)


def bits(place, record, n):
    store, ids = copy(place)
    path, chosen = path_of(store.root, record), record_bits(record)[n * BATCH : (n + 1) * BATCH]
    entries = store.journal("spoils-1").read()
    for i, (at, bit) in enumerate(chosen):
        with during(f"bit {bit} of byte {at} of {path.name}"):
            with flipped(path, at, bit):
                record_seen(store.root, record, entries)
            if i % MEND == 0 and record != "store.json":
                flip(path, at, bit)
                mended(store.root, record, ids[KIND])
                path, entries = path_of(store.root, record), store.journal("spoils-1").read()
                if record in ("journal", "pin"):  # it is shorter now, or gone
                    return i + 1 + bits_anew(place, record, chosen[i + 1 :])
    return len(chosen)


def bits_anew(place, record, chosen):
    store, _ = copy(place / "anew")
    path, entries = path_of(store.root, record), store.journal("spoils-1").read()
    for at, bit in chosen:
        with during(f"bit {bit} of byte {at} of {path.name}"), flipped(path, at, bit):
            record_seen(store.root, record, entries)
    return len(chosen)


def record_seen(root, record, entries):
    """It reads as if it were not there, never as something else; and fsck names it."""
    store = Store(root)
    if record == "ref":
        assert store.find(key(KIND)) is None, "another artifact is served"
    elif record == "key":
        assert store.pre_image(key(KIND)) is None, "another pre-image is read"
    elif record == "pin":
        refused(lambda: pinned(store), "a pin is read that is not the one that was written")
        refused(lambda: sweep(store), "sweeping goes on without knowing what was pinned")
    elif record == "journal":
        read = store.journal("spoils-1").read()
        assert [e for e in entries if e in read] == read and len(read) == len(entries) - 1, "an entry is read that nobody wrote"
    else:
        refused(store.prepare, "taken for a sound store")
        with suppress(BadStore):  # a flipped bit in the number itself looks like another schema, and is refused as such
            assert next(examine(store), None), "not named by fsck"
        return
    where = str(path_of(root, record).relative_to(root))
    told = [finding.where for finding in examine(Store(root))]
    assert where in told, f"not named by fsck, which says {told}"


def refused(do, otherwise):
    try:
        do()
    except BadStore:
        return
    raise AssertionError(otherwise)


def mended(root, record, id):
    """The next run, or fsck, puts it right; the id stays."""
    store = Store(root)
    if record in ("pin", "journal"):
        before = path_of(root, record).read_bytes()
        assert all(finding.repaired for finding in examine(store, repair=True))
        assert before in [p.read_bytes() for p in (root / "quarantine").iterdir() if p.is_file()], "its bytes are not in quarantine"
    else:
        assert publish(store, KIND) == id
    assert served(root, KIND) == id and Store(root).pre_image(key(KIND)) == image(KIND)
    assert not list(examine(Store(root))), "fsck still finds something"


# -- records spoilt as a whole


def spoil_record(place, record, extra=()):
    """Emptied, torn, longer, gone, something else: as single bits, and then repaired."""
    ways = {
        "emptied": lambda p: write(p, b""),
        "torn": lambda p: write(p, p.read_bytes()[: p.stat().st_size // 2]),
        "all zeros": lambda p: write(p, bytes(p.stat().st_size)),
        "longer": lambda p: write(p, p.read_bytes() + b"\n{}"),
        "nested without end": lambda p: write(p, b'{"content":' + b"[" * 200_000),
        "a folder": lambda p: instead(p, os.mkdir),
        **dict(extra),
    }
    for name, do in ways.items():
        store, ids = copy(place / name.replace(" ", "-"))
        with during(f"{record} {name}"), bounded(name, 20):
            do(path_of(store.root, record))
            told = list(examine(Store(store.root)))
            where = str(path_of(store.root, record).relative_to(store.root))
            assert where in [finding.where for finding in told], f"not named by fsck, which says {told}"
            WHOLE_SEEN[record](store)
            assert all(finding.repaired for finding in examine(Store(store.root), repair=True)), "not repaired"
            assert not list(examine(Store(store.root))), "fsck still finds something after its repair"
            assert publish(Store(store.root), KIND) == ids[KIND] and served(store.root, KIND) == ids[KIND]
    return len(ways)


WHOLE_SEEN = {
    "ref": lambda store: none(store.find(key(KIND))),
    "key": lambda store: none(store.pre_image(key(KIND))),
    "pin": lambda store: (refused(lambda: pinned(store), "read"), refused(lambda: sweep(store), "swept")),
    "store.json": lambda store: refused(store.prepare, "taken for a sound store"),
}


def none(value):
    assert value is None, f"read as {value}"


def whole_ref(place):
    """Also a sound ref under the name of another key, as after a mistaken copy."""
    return spoil_record(place, "ref", [("another one's", lambda p: write(p, (p.parent / f"{key('Bundle')}.json").read_bytes()))])


def whole_key(place):
    """A pre-image only explains; one under another's name is left to fsck."""
    count = spoil_record(place, "key")
    store, _ = copy(place / "other")
    write(path_of(store.root, "key"), (store.root / "keys" / f"{key('Bundle')}.json").read_bytes())
    assert [finding.where for finding in examine(store)] == [f"keys/{key(KIND)}.json"]
    return count + 1


def whole_journal(place):
    """Whatever is lost, torn or added is seen, and no entry is read that nobody wrote."""
    ways = {
        "torn": lambda data: data[:-9],
        "zeros at the end": lambda data: data[:-40] + bytes(40),
        "zeros in the middle": lambda data: data[:300] + bytes(64) + data[364:],
        "a lost block": lambda data: data[:200] + data[600:],
        "rubbish added": lambda data: data + b"rubbish",
        "not text": lambda data: data + b"\xff\xfe\n",
    }
    for name, change in ways.items():
        store, _ = copy(place / name.replace(" ", "-"))
        path, before = path_of(store.root, "journal"), store.journal("spoils-1").read()
        write(path, change(path.read_bytes()))
        with during(f"journal {name}"):
            read = store.journal("spoils-1").read()
            assert all(entry in before for entry in read), "an entry is read that nobody wrote"
            assert "refs/runs/spoils-1/journal.jsonl" in [f.where for f in examine(Store(store.root))], "not named by fsck"
    return len(ways)


def sweeping(place):
    """With any one entry of a journal unreadable, sweeping refuses, or takes nothing that the run had."""
    lines = [line for line in path_of(template()[0], "journal").read_bytes().split(b"\n") if line]
    lines = [line for line in lines if b'"starts"' not in line]  # as of a run that kept what an earlier one had made
    for n in range(len(lines) - 1):  # the last may be torn: that happens to a run that is killed
        store, ids = copy(place / str(n))
        for pin in (store.root / "refs/pins").iterdir():
            pin.unlink()
        write(path_of(store.root, "journal"), b"".join(b"\n" + line[: -(i == n) or None] + b"\n" for i, line in enumerate(lines)))
        with during(f"entry {n + 1} of the journal unreadable"):
            with suppress(BadStore):
                sweep(store)
            for kind, id in ids.items():
                assert served(store.root, kind) == id, f"sweeping took {kind}, which the run had"
    return len(lines) - 1


def strangers(place):
    """What lies in the store and is none of its own is left alone and harms nothing."""
    store, ids = copy(place)
    (store.root / "objects/sha256/zz").mkdir()
    (store.root / "objects/sha256/zz" / ("z" * 64)).mkdir()
    (store.root / "refs/cache/notes.txt").write_text("mine")
    (store.root / "refs/cache/README.json").write_text("{}")
    assert {served(store.root, kind) for kind in KINDS} == set(ids.values())
    told = {finding.where for finding in examine(Store(store.root))}
    assert told == {f"artifact {'z' * 12}", "refs/cache/README.json"}, told
    assert tree(store.root / "refs/cache/notes.txt") == ("file", b"mine")
    return 3


WHOLE = {
    "ref": whole_ref,
    "key": whole_key,
    "pin": lambda place: spoil_record(place, "pin"),
    "journal": whole_journal,
    "store.json": lambda place: spoil_record(place, "store.json"),
    "sweeping": sweeping,
    "strangers": strangers,
}
