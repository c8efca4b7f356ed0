"""A finished toy store to be used in strange circumstances, and the proof that nothing in it was touched."""

import atexit
import contextlib
import functools
import shutil
import tempfile
from pathlib import Path

from common import Toy

LATER = "stages.sum.times=2.0"  # a change that a finished store does not hold


@functools.cache
def finished():
    place = Path(tempfile.mkdtemp(prefix="faults-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    toy = Toy(place)
    return toy.store, toy.finish()


def copied(place):
    toy = Toy(place)
    shutil.copytree(finished()[0], toy.store)
    return toy


def listing(root):
    """Everything about every entry that writing would change."""
    found = {}
    for path in (root, *sorted(root.rglob("*"))):
        is_ = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[path.relative_to(root).as_posix()] = (oct(is_.st_mode), is_.st_uid, is_.st_size, is_.st_mtime_ns, is_.st_ctime_ns, content)
    return found


@contextlib.contextmanager
def untouched(root):
    before = listing(root)
    yield
    after = listing(root)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert not changed, f"changed in the store: {sorted(changed)}"


def ended(toy, expected, *arguments, words=(), runner=None):
    code, said = (runner or toy.call)(*arguments)
    assert code == expected, f"{arguments[0]} ended with {code}: {said[-800:]}"
    missing = [word for word in words if word not in said]
    assert not missing and "Traceback" not in said, f"does not say {missing}: {said[-800:]}"
    return said


def refused(kind, do, word):
    try:
        do()
    except kind as error:
        assert word in str(error), str(error)
        return
    raise AssertionError(f"was not refused with {word!r}")
