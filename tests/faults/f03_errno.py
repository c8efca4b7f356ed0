"""F3: a system call on the store is refused or does less than asked: exit 5 or success, nothing half made, and then the same artifacts.

In the runner and in the process of each stage every call that writes, syncs, opens, makes, renames, removes or changes the mode of
something in the store or the folder of pages fails once: each of those that change anything with two of the seven errors, each
opening of what is there with one, in turn. Short writes (cases short-*) are made in this process, under the store itself.
"""

import functools
import os
import random

import tracing
from common import toy, undisturbed

QUICK = 6
NEEDS = ("strace",)
COVERS = ("pipeline",)
ERRORS = ("ENOSPC", "EIO", "EACCES", "EROFS", "EMFILE", "EDQUOT", "EINTR")
CALLS = {"write", "fsync", "openat", "mkdir", "rename", "renameat2", "unlink", "rmdir", "ftruncate", "fallocate", "chmod", "fchmod"}
SHORT = 24


@functools.cache
def cases():
    found, turn = [], 0
    for process, lines in tracing.recorded().items():
        for call, count, line, named in tracing.calls(lines, touched=process != "runner"):
            if not named or call not in CALLS:
                continue
            times = 1 if call == "openat" and "O_CREAT" not in line else 2
            found += [f"{process}-{call}-{count}-{ERRORS[(turn + i) % len(ERRORS)]}" for i in range(times)]
            turn += times
    return found + [f"short-{i}" for i in range(SHORT)]


def check(case, place):
    if case.startswith("short"):
        return _short(place, random.Random(f"F3 {case}"))
    process, call, count, error = case.split("-")
    mine = toy(place)
    code, said, seen = tracing.run(mine, process, call, f"error={error}:when={count}")
    assert code in (0, 5), f"exit {code}: {said[-600:]}"
    assert "Traceback" not in said, said
    mine.sound(said)
    assert mine.finish() == undisturbed(), "other artifacts than without the error"
    return {"hit": any("(INJECTED)" in line for line in seen), "code": code}


def summary(figures):
    met = [f for f in figures if "hit" in f]
    hits, ended = sum(f["hit"] for f in met), sum(f["code"] == 5 for f in met)
    return hits >= 0.99 * len(met), f"{hits:,} calls refused: {ended:,} runs ended with exit 5, {len(met) - ended:,} went on"


def _short(place, chance):
    """The store's own writing, while every write of the system takes only a part of what it is given."""
    from pipeline.keys import digest
    from pipeline.store import Store

    image = {"stage": "toy", "config": {"text": "x" * chance.randrange(1, 20000)}}
    whole, most = os.write, chance.choice((1, 7, 512, 4096))
    os.write = lambda fd, data: whole(fd, bytes(data[: chance.randint(1, most)]))
    try:
        store = Store(place / "store").prepare()
        run = store.new_run("toy")
        store.note(run, "begin", sequence=1, text=image["config"]["text"])
        with store.workplace(digest(image)) as folder:
            (folder / "number.txt").write_text("1")
            id = store.publish(digest(image), image, folder, "Dataset", {"long": "y" * 5000}, {"run": run})
    finally:
        os.write = whole
    fresh = Store(place / "store").prepare()
    fresh.verify(id)
    assert fresh.find(digest(image)).facts == {"long": "y" * 5000}
    assert fresh.pre_image(digest(image)) == image
    assert [e["text"] for e in fresh.journal(run).read()] == [image["config"]["text"]]
    return {}
