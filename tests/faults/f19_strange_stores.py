"""F19: stores read-only, foreign, open to others, on a network, newer or none: used without a trace, or refused with the way out."""

import contextlib
import functools
import os
import shutil
import subprocess
from pathlib import Path

import strange_mounts
from common import PATIENCE, Toy
from strange import LATER, copied, ended, finished, refused, untouched
from strange_mounts import ROOTS

from pipeline import room
from pipeline.errors import BadRecipe, BadStore, Refused
from pipeline.keys import canonical
from pipeline.store import Store

NEEDS = ("mount", "umount", "setpriv")
FOREIGN, NOBODY = 12345, 65534  # user ids
MAY = {"mount": (21,), "foreign": (0, 2, 7)}  # capabilities (see capabilities(7)) without which a group of cases cannot be set up
QUICK = ("open/770", "network/nfs4", "local/ext4", "other/something else", "other/a link to nowhere", "foreign/another user's, not to root")


def cases():
    """What this process may not set up is left out, and `summary` says so."""
    names = [f"{group}/{case}" for group, table in (("mount", MOUNT), ("foreign", FOREIGNERS)) if may(group) for case in table]
    names += [f"mode/{case}" for case in MODE] + [f"open/{mode:o}" for mode in (0o777, 0o770, 0o775, 0o757, 0o720, 0o702, 0o1777, 0o2775)]
    return names + [f"other/{case}" for case in OTHER] + strange_mounts.cases()


def quick():
    """What starts no process, and one or the other that does."""
    fast = [case for case in cases() if case.startswith("mountinfo/")]
    return [*fast, "mode/a hit and a miss", "other/below the command line", *(case for case in QUICK if case in cases())]


def check(case, place):
    group, _, what = case.partition("/")
    if group == "open":
        open_to_others(place, int(what, 8))
    elif group in TABLES:
        TABLES[group][what](place)
    else:
        strange_mounts.check(group, what, place)


def summary(figures):
    missing = [group for group in MAY if not may(group)]
    return True, f"left out for want of privileges: {', '.join(missing)}" if missing else ""


@functools.cache
def may(group):
    """Mounting, and making and being other users, are privileges; not even root has them in every container."""
    status = Path("/proc/self/status").read_text() if Path("/proc/self/status").exists() else ""
    held = int(next((line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), "0"), 16)
    return all(held >> number & 1 for number in MAY[group])


# -- read-only stores


def used_read_only(toy):
    """A hit is served and verified, a finished recipe is kept, what is missing is refused; and nothing is written."""
    recipe = ("run", toy.recipe, "--profile", "none")
    with untouched(toy.store):
        said = ended(toy, 0, *recipe, words=("kept",))
        assert " made " not in said
        assert toy.ids() == finished()[1]
        ended(toy, 5, *recipe, "--set", LATER, words=("read-only", "--store"))
        ended(toy, 0, "plan", toy.recipe, "--profile", "none", words=("kept",))
        ended(toy, 0, "why", "sum", toy.recipe, "--profile", "none", words=("is kept",))
        ended(toy, 0, "ls", words=("toy-1",))
        ended(toy, 0, "show", "toy-1/sum", words=("Checkpoint",))
        ended(toy, 0, "report", "toy-1")
        ended(toy, 0, "store", "fsck", words=("good",))
        ended(toy, 0, "store", "size")
        for command in (("gc",), ("gc", "--keep", "1"), ("pin", "toy-1"), ("fsck", "--repair")):
            ended(toy, 5, "store", *command, words=("read-only",))


def damaged_read_only(toy, close):
    """Nothing unverified is served, and since it cannot be made anew, that is the end."""
    id = finished()[1]["one"]
    folder = toy.store / "objects/sha256" / id[:2] / id
    os.chmod(folder, 0o755)
    os.chmod(folder / "number.txt", 0o644)
    (folder / "number.txt").write_text("7")
    with close(toy.store), untouched(toy.store):
        ended(toy, 5, *toy.run_arguments(), words=("read-only", id[:12]))
        ended(toy, 5, "store", "fsck", words=(id[:12],))


def hit_and_miss(place):
    """The same below the command line."""
    toy = copied(place)
    with closed(toy.store), untouched(toy.store):
        store = Store(toy.store).prepare()
        assert store.read_only and toy.ids() == finished()[1]
        for write in (
            lambda: store.workplace("0" * 64).__enter__(),
            lambda: store.new_run("toy"),
            store.require_writable,
        ):
            refused(BadStore, write, "read-only")


@contextlib.contextmanager
def closed(root, mode=0o555):
    root.chmod(mode)
    try:
        yield
    finally:
        root.chmod(0o700)


@contextlib.contextmanager
def mounted_read_only(root):
    """The store on a file system of its own that takes no writing."""
    aside = root.rename(root.with_name("aside"))
    root.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs", root], check=True, timeout=PATIENCE)
    try:
        shutil.copytree(aside, root, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", root], check=True, timeout=PATIENCE)
        yield
    finally:
        subprocess.run(["umount", "-l", root], check=True, timeout=PATIENCE)


def closed_and_used(place):
    toy = copied(place)
    with closed(toy.store):
        used_read_only(toy)


def mounted_and_used(place):
    toy = copied(place)
    with mounted_read_only(toy.store):
        used_read_only(toy)


def run_again_when_open(place):
    """A store that was closed for a while is as before."""
    toy = copied(place)
    with closed(toy.store):
        ended(toy, 5, *toy.run_arguments(), "--set", LATER, words=("read-only",))
    ended(toy, 0, *toy.run_arguments(), "--set", LATER, words=("made",))


def empty_and_closed(place):
    toy = Toy(place)
    toy.store.mkdir(mode=0o500)
    with untouched(toy.store):
        ended(toy, 5, *toy.run_arguments(), words=(str(toy.store),))


MODE = {
    "a hit and a miss": hit_and_miss,
    "the command line": closed_and_used,
    "damage": lambda place: damaged_read_only(copied(place), closed),
    "open again": run_again_when_open,
    "an empty folder": empty_and_closed,
}
MOUNT = {
    "the command line": mounted_and_used,
    "damage": lambda place: damaged_read_only(copied(place), mounted_read_only),
}


# -- whose it is, and who may write


def foreign(place):
    toy = copied(place)
    os.chown(toy.store, FOREIGN, -1)
    with untouched(toy.store):
        words = (f"belongs to user {FOREIGN}", "user 0", "--store")
        ended(toy, 7, *toy.run_arguments(), words=words)
        for command in (("gc",), ("fsck",), ("fsck", "--repair"), ("pin", "toy-1")):
            ended(toy, 7, "store", *command, words=words[:2])


def somebody_elses(place):
    """Neither one's own nor root's, to a user who is not root either."""
    toy = copied(place)
    for path in (toy.store, *toy.store.rglob("*")):
        os.chown(path, FOREIGN, -1)
    with untouched(toy.store):
        said = as_nobody(place, toy, 7, *toy.run_arguments())
    assert f"belongs to user {FOREIGN}" in said and f"user {NOBODY}" in said, said


def roots_and_private(place):
    """Whoever may read root's store, but not write to it, uses it like a read-only one."""
    toy = copied(place)
    with untouched(toy.store):
        assert "kept" in as_nobody(place, toy, 0, *toy.run_arguments())
        assert "read-only" in as_nobody(place, toy, 5, *toy.run_arguments(), "--set", LATER)


def roots_and_read_only(place):
    """A store that root has put there for all to use: everybody may, nobody adds to it."""
    toy = copied(place)
    for path in (toy.store, *toy.store.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    with untouched(toy.store):
        said = as_nobody(place, toy, 0, *toy.run_arguments())
        assert "kept" in said, said
        said = as_nobody(place, toy, 5, *toy.run_arguments(), "--set", LATER)
        assert "read-only" in said, said


def given_away(place):
    """A store of one's own under another user id than root's works like any other."""
    toy = copied(place)
    for path in (toy.store, *toy.store.rglob("*")):
        os.chown(path, NOBODY, -1)
    said = as_nobody(place, toy, 0, *toy.run_arguments(), "--set", LATER)
    assert "made" in said, said


def as_nobody(place, toy, expected, *arguments):
    """By another user, who may read whatever this one may (the interpreter may lie in a private folder) but write only what is his."""
    place.chmod(0o755)
    if place.parent.name.startswith("faults-"):  # the driver's own folder for such places
        place.parent.chmod(0o755)
    (place / "runs").mkdir(exist_ok=True)
    (place / "runs").chmod(0o777)
    who = (
        f"--reuid={NOBODY}",
        f"--regid={NOBODY}",
        "--clear-groups",
        "--inh-caps=-all,+dac_read_search",
        "--ambient-caps=+dac_read_search",
    )
    code, said = toy.call(*arguments, before=("setpriv", *who))
    assert code == expected and "Traceback" not in said, f"ended with {code}: {said[-800:]}"
    return said


FOREIGNERS = {
    "another user's": foreign,
    "another user's, not to root": somebody_elses,
    "root's, private": roots_and_private,
    "root's, read-only": roots_and_read_only,
    "one's own, not root's": given_away,
}


def open_to_others(place, mode):
    toy = copied(place)
    toy.store.chmod(mode)
    command = f"chmod go-w {toy.store}"
    with untouched(toy.store):
        ended(toy, 7, *toy.run_arguments(), words=(command, f"mode {mode & 0o777:o}"))
        ended(toy, 7, "store", "gc", words=(command,))
        ended(toy, 7, "store", "fsck", "--repair", words=(command,))
    subprocess.run(command.split(), check=True, timeout=PATIENCE)
    ended(toy, 0, *toy.run_arguments(), words=("kept",))


# -- other stores, and what is none


def newer(place):
    toy = copied(place)
    (toy.store / "store.json").write_bytes(canonical({"schema": 2, "hash": "sha256"}))
    with untouched(toy.store):
        for command in (toy.run_arguments(), ("store", "gc"), ("store", "fsck"), ("store", "fsck", "--repair"), ("store", "pin", "toy-1")):
            ended(toy, 5, *command, words=("schema 2", "reads 1", "newer version"))


def something_else(place):
    toy = Toy(place)
    toy.store.mkdir(mode=0o700)
    (toy.store / "thesis.txt").write_text("mine")
    with untouched(toy.store):
        ended(toy, 5, *toy.run_arguments(), words=("thesis.txt", "not a store", "--store"))
        for command in (("gc",), ("fsck", "--repair"), ("pin",), ("size",)):
            ended(toy, 2, "store", *command, words=("no store at",))


def something_alike(place):
    """Also where folders are called like those of a store."""
    toy = Toy(place)
    for name in ("objects", "tmp", "state", "mine"):
        (toy.store / name).mkdir(parents=True, mode=0o700)
    (toy.store / "mine/thesis.txt").write_text("mine")
    with untouched(toy.store):
        ended(toy, 5, *toy.run_arguments(), words=("mine", "not a store"))


def a_file(place):
    toy = Toy(place)
    toy.store.write_text("a file")
    with untouched(toy.store):
        ended(toy, 5, *toy.run_arguments(), words=(str(toy.store),))


def linked(place):
    """A path through a symbolic link is the same store."""
    toy = copied(place)
    toy.store.rename(place / "elsewhere")
    toy.store.symlink_to("elsewhere")
    ended(toy, 0, *toy.run_arguments(), words=("kept",))
    ended(toy, 0, *toy.run_arguments(), "--set", LATER, words=("made",))
    assert toy.ids() == finished()[1] and toy.store.is_symlink()
    ended(toy, 0, "store", "fsck", words=("good",))
    ended(toy, 0, "store", "gc")
    assert toy.ids() == finished()[1]


def linked_to_nowhere(place):
    toy = Toy(place)
    toy.store.symlink_to("nowhere")
    ended(toy, 5, *toy.run_arguments(), words=(str(toy.store),))


def linked_and_open(place):
    """What counts is the folder, not the link."""
    toy = copied(place)
    toy.store.rename(place / "elsewhere")
    toy.store.symlink_to("elsewhere")
    (place / "elsewhere").chmod(0o777)
    ended(toy, 7, *toy.run_arguments(), words=("chmod go-w",))


def linked_to_a_network(place):
    toy = copied(place)
    mounts = place / "mountinfo"
    mounts.write_text(f"{ROOTS}30 21 0:40 / {place}/far rw - nfs4 source rw\n")
    toy.store.rename(place / "far")
    toy.store.symlink_to("far")
    assert room.kind_of_filesystem(toy.store, mounts) == "nfs4"
    assert room.kind_of_filesystem(place / "near/..//far/./not-yet", mounts) == "nfs4"


def private(place):
    """A new store is nobody else's to read or write, whatever the umask."""
    toy = Toy(place)
    code, said = toy.call(*toy.run_arguments(), before=("sh", "-c", 'umask 000; exec "$@"', "sh"))
    assert code == 0, said
    assert toy.store.stat().st_mode & 0o777 == 0o700
    open_ = [p for p in toy.store.rglob("*") if p.is_dir() and p.stat().st_mode & 0o022]
    open_ += [p for p in toy.store.glob("objects/sha256/*/*/*") if p.stat().st_mode & 0o222]
    assert not open_, f"can be written by others: {[p.relative_to(place).as_posix() for p in open_]}"


def one_rule_for_all(place):
    """The same below the command line: each refusal is an error of its own."""
    toy = copied(place)
    toy.store.chmod(0o777)
    refused(Refused, Store(toy.store).prepare, "chmod go-w")
    toy.store.chmod(0o700)
    before = room.kind_of_filesystem
    room.kind_of_filesystem = lambda path: "nfs4"
    try:
        refused(BadRecipe, Store(toy.store).prepare, "nfs4")
        Store(toy.store, network=True).prepare()
    finally:
        room.kind_of_filesystem = before


OTHER = {
    "a newer schema": newer,
    "something else": something_else,
    "something alike": something_alike,
    "a file": a_file,
    "through a link": linked,
    "a link to nowhere": linked_to_nowhere,
    "a link to an open folder": linked_and_open,
    "a link to a network": linked_to_a_network,
    "nobody else's": private,
    "below the command line": one_rule_for_all,
}
TABLES = {"mount": MOUNT, "foreign": FOREIGNERS, "mode": MODE, "other": OTHER}
