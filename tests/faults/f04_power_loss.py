"""F4: the power fails at any moment, and un-synced bytes and names are lost, torn or zeroed; what was acknowledged is there."""

import itertools
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))
import disk

from pipeline import fsck, gc, pins
from pipeline import store as store_module
from pipeline.keys import digest
from pipeline.manifest import Damaged
from pipeline.store import Store

COVERS = ("pipeline", "stages")
MIXES = 32
KILL_MODES = ("none", "names", "zeros", "mix0", "mix1", "mix2")
SMALL_BALLAST = 64  # bytes; how large it is does not matter here, how long it takes to copy does

# What the recorded story publishes: key -> files, facts. "c" is equal to "a", "f" to "b": two keys, one artifact.
CONTENTS: dict[str, tuple[dict[str, bytes], dict[str, Any]]] = {
    "a": ({"one.bin": b"one" * 20, "two.txt": b"2", "three.bin": bytes(range(256)) * 3}, {"n": 1}),
    "b": ({"only.bin": b"\n".join(b"%d" % i for i in range(300))}, {"n": 2, "x": 0.1}),
    "c": ({"one.bin": b"one" * 20, "two.txt": b"2", "three.bin": bytes(range(256)) * 3}, {"n": 1}),
    "d": ({"empty": b"", "full": b"x" * 90}, {"passed": True}),
    "e": ({"late.json": b'{"e": 1}'}, {}),
    "f": ({"only.bin": b"\n".join(b"%d" % i for i in range(300))}, {"n": 2, "x": 0.1}),
}
IMAGES = {digest({"of": letter}): {"of": letter} for letter in CONTENTS}
A, B, C, D, E, F = IMAGES
ARTIFACTS = dict(zip(IMAGES, CONTENTS.values(), strict=True))


def cases() -> list[str]:
    """s...: the story of a store; r...: of its repair; t...: of training state; d...: a run killed after so many entries of the log,
    another run to its end, and then the cut."""
    stories = [f"{letter}{k}-{mode}" for letter in "srt" for k, mode in _states(letter)]
    killed = [f"d{k}-{mode}" for k in disk.crash_points(_recorded("d").log) for mode in KILL_MODES]
    return stories + killed


def quick() -> list[str]:
    """The sharpest first: everything un-synced is lost right after a promise, or after a kill that followed the making of a folder."""
    known = cases()
    everything = set(known)
    last = [(n, f"{letter}{k}-") for letter in "srt" for n, k in enumerate(reversed(_after_marks(_recorded(letter).log)))]
    sharp = [moment + mode for _, moment in sorted(last) for mode in ("none", "names", "zeros", "mix0")]
    killed = [f"d{k}-none" for k, op in enumerate(_recorded("d").log, 1) if op.kind == "make" and op.is_folder]
    swept = [f"s{k}-mix{i}" for k in _while_sweeping(_recorded("s").log) for i in range(6)]
    return list(dict.fromkeys(c for c in (*sharp, *killed, *swept, *known[:: len(known) // 100]) if c in everything))


def check(case: str, place: Path) -> dict:
    point, mode = case[1:].split("-")
    k = int(point)
    if case[0] == "d":
        tape = _killed(k)
        k = len(tape.log)
    else:
        tape = _recorded(case[0])
    disk.rebuild(tape.log, k, disk.fates(tape.log, tape.safe, k, mode), place)
    with (
        mock.patch.object(os, "fsync", _nothing),
        mock.patch.object(store_module, "BALLAST", SMALL_BALLAST),
    ):  # from here on the power stays
        (_check_training if case[0] == "t" else _check_store)(Promised.after(tape.log[:k]), place)
    return {"states": 1}


def _nothing(fd: int) -> None:
    """What fsync does when no power will fail."""


def summary(figures: list[dict]) -> tuple[bool, str]:
    return True, f"{len(figures)} states of the disk, all different for the same moment"


# What may be relied on


@dataclass
class Promised:
    """What the marks set so far say is safe."""

    ids: dict[str, str] = field(default_factory=dict)  # key -> id, published
    entries: dict[str, list[str]] = field(default_factory=dict)  # run -> events written
    pins: dict[str, Any] = field(default_factory=dict)
    harmed: set[str] = field(default_factory=set)  # ids damaged on purpose and not yet made anew
    aside: set[str] = field(default_factory=set)  # ids in quarantine
    broken: bool = False  # records are damaged on purpose and not yet repaired
    step: int = 0  # of the training state

    @classmethod
    def after(cls, log: list[disk.Op]) -> "Promised":
        promised = cls()
        for what, about in (op.mark for op in log if op.kind == "mark"):
            getattr(promised, f"_{what}")(about)
        return promised

    def _published(self, about: tuple[str, str]) -> None:
        self.ids[about[0]] = about[1]
        self.harmed.discard(about[1])

    def _pinned(self, about: tuple[str, list[str]]) -> None:
        self.pins[about[0]] = about[1]

    def _swept(self, about: tuple[str, str]) -> None:
        """From here on a sweep takes this key and this run."""
        self.ids.pop(about[0])
        self.entries.pop(about[1])

    def _harmed(self, id: str) -> None:
        self.ids = {key: known for key, known in self.ids.items() if known != id}
        self.harmed.add(id)

    def _journal(self, about: tuple[str, str]) -> None:
        self.entries.setdefault(about[0], []).append(about[1])

    def _journal_harmed(self, about: tuple[str, str]) -> None:
        self.entries[about[0]].remove(about[1])

    def _broken(self, broken: bool) -> None:
        self.broken = broken

    def _aside(self, id: str) -> None:
        self.aside.add(id)

    def _saved(self, step: int) -> None:
        self.step = step


def _check_store(promised: Promised, place: Path) -> None:
    if promised.broken:  # an interrupted repair is finished by the next one
        list(fsck.examine(Store(place / "store"), repair=True))
    store = Store(place / "store").prepare()
    for key, id in promised.ids.items():
        assert store.find(key), f"key {IMAGES[key]} was published and is gone"
        assert store.find(key).id == id, f"key {IMAGES[key]} gives another artifact"
        assert store.pre_image(key) == IMAGES[key], f"the pre-image of key {IMAGES[key]} is {store.pre_image(key)}"
    for key in ARTIFACTS:
        _absent_or_complete(store, key, promised)
    for folder in store.root.glob("objects/sha256/*/*"):
        if folder.name not in promised.harmed:
            Store(store.root).verify(folder.name)
    for run, events in promised.entries.items():
        found = [entry["event"] for entry in store.journal(run).read()]
        rest = iter(found)
        assert all(event in rest for event in events), f"journal of {run}: {events} was written, {found} is read"
    for id in promised.aside:
        assert list(store.root.glob(f"quarantine/{id}.*/MANIFEST.json")), f"the damaged {id[:12]} is not in quarantine"
    found = pins.pinned(store)
    assert {what: found.get(what) for what in promised.pins} == promised.pins, f"pinned was {promised.pins}, found is {found}"
    ids = {key: _publish(store, key) for key in ARTIFACTS}
    assert all(ids[key] == id for key, id in promised.ids.items()), "published once more, a key gives another id"
    for key, id in ids.items():
        assert Store(store.root).find(key).id == id
        Store(store.root).verify(id)


def _absent_or_complete(store: Store, key: str, promised: Promised) -> None:
    found = store.find(key)
    if found is None or found.id in promised.harmed:
        return
    try:
        Store(store.root).verify(found.id)
    except Damaged as damage:
        raise AssertionError(f"key {IMAGES[key]} leads to a broken artifact: {damage}") from None
    files, facts = ARTIFACTS[key]
    assert found.facts == facts and {f.name: f.read_bytes() for f in found.folder.iterdir() if f.name != "MANIFEST.json"} == files


def _check_training(promised: Promised, place: Path) -> None:
    from stages import state

    said: list[str] = []
    found = state.newest(place / "state", said.append)
    assert not said, f"a state that was never damaged is called so: {said}"
    assert (found.step if found else 0) >= promised.step, f"step {promised.step} was saved, {found and found.step} is found"
    if found:
        assert found.facts == {"at": found.step} and found.tensors["w"].tolist() == [found.step] * 50
    state.save(place / "state", _training_state(99))
    assert state.newest(place / "state", said.append).step == 99


# The stories that are recorded


@dataclass(frozen=True)
class Tape:
    log: list[disk.Op]
    safe: list[int]


@cache
def _recorded(letter: str) -> Tape:
    tell = {"s": _store_story, "t": _training_story, "r": _repair_story, "d": _short_story}[letter]
    return _record(lambda recorder: tell(recorder))


@lru_cache(maxsize=1)
def _killed(after: int) -> Tape:
    def tell(recorder: disk.Recorder) -> None:
        recorder.dies_after = after
        with suppress(disk.Killed):
            _short_story(recorder)
        recorder.revive()
        _short_story(recorder)

    return _record(tell)


def _record(tell: Callable[[disk.Recorder], None]) -> Tape:
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        recorder = disk.Recorder(folder)
        with _same_each_time(), recorder.listening():
            tell(recorder)
    finally:
        shutil.rmtree(folder)
    return Tape(recorder.log, disk.safe_from(recorder.log))


@contextmanager
def _same_each_time() -> Iterator[None]:
    """Random names are counted instead, and folders listed in order, so that a case has the same meaning in every process."""
    count, listdir = itertools.count(1), os.listdir
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(secrets, "token_hex", lambda n=4: f"{next(count):0{2 * n}x}"))
        stack.enter_context(mock.patch.object(os, "listdir", lambda path=".": sorted(listdir(path))))
        stack.enter_context(mock.patch.object(store_module, "BALLAST", SMALL_BALLAST))
        yield


def _store_story(recorder: disk.Recorder) -> None:
    """Equal content under two keys, a pin, damage found by a run, damage found while publishing, a sweep, and what it took made anew."""
    store = Store(Path(recorder.root) / "store").prepare()
    first = _begin(recorder, store)
    for key in (A, B, C):
        _stage(recorder, store, first, key)
    _note(recorder, store, first, "end")
    recorder.mark("pinned", (first, pins.pin(store, first)))
    second = _begin(recorder, store)
    _stage(recorder, store, second, D)
    _stage(recorder, store, second, E)
    _harm(recorder, store, D, "full")

    store = Store(store.root).prepare()
    third = _begin(recorder, store)
    try:
        store.verify(store.find(D).id)
    except Damaged as damage:
        store.quarantine(damage)
        recorder.mark("aside", damage.id)
    _stage(recorder, store, third, D)
    _harm(recorder, store, B, "only.bin")
    store = Store(store.root).prepare()
    recorder.mark("aside", _stage(recorder, store, third, F))

    recorder.mark("swept", (E, second))
    swept = gc.sweep(store, keep=1)
    assert swept.runs == [second] and store.find(E) is None, f"the sweep took {swept}"
    _stage(recorder, store, third, E)
    store.state(B)
    _note(recorder, store, third, "end")


def _repair_story(recorder: disk.Recorder) -> None:
    """The store's own record, a ref and a line of a journal are damaged, found and repaired."""
    store = Store(Path(recorder.root) / "store").prepare()
    run = _begin(recorder, store)
    for key in (A, B):
        _stage(recorder, store, run, key)
    recorder.mark("broken", True)
    recorder.mark("journal_harmed", (run, "begin"))
    recorder.mark("harmed", store.find(B).id)
    recorder.harm(store.root / "store.json", b"{")
    recorder.harm(store.root / f"refs/cache/{B}.json", b"{}")
    recorder.harm(store.journal(run).path, store.journal(run).path.read_bytes().replace(b'"begin"', b'"begun"'))
    found = list(fsck.examine(Store(store.root), repair=True))
    assert len(found) == 3 and all(finding.repaired for finding in found), found
    recorder.mark("broken", False)


def _short_story(recorder: disk.Recorder) -> None:
    store = Store(Path(recorder.root) / "store").prepare()
    run = _begin(recorder, store)
    _stage(recorder, store, run, A)
    _note(recorder, store, run, "end")


def _harm(recorder: disk.Recorder, store: Store, key: str, name: str) -> None:
    found = store.find(key)
    recorder.mark("harmed", found.id)
    recorder.harm(found.file(name), b"not what was published")


def _begin(recorder: disk.Recorder, store: Store) -> str:
    run = store.new_run("toy")
    _note(recorder, store, run, "begin")
    return run


def _stage(recorder: disk.Recorder, store: Store, run: str, key: str) -> str:
    """What the runner does for one stage."""
    (store.state(key) / "at").write_text("1")
    _note(recorder, store, run, "starts", stage=key[:4], key=key)
    id = _publish(store, key)
    recorder.mark("published", (key, id))
    store.forget_state(key)
    _note(recorder, store, run, "stage", stage=key[0], state="made", key=key, id=id)
    return id


def _note(recorder: disk.Recorder, store: Store, run: str, event: str, **facts: Any) -> None:
    store.note(run, event, **facts)
    recorder.mark("journal", (run, event))


def _publish(store: Store, key: str) -> str:
    files, facts = ARTIFACTS[key]
    with store.workplace(key) as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        return store.publish(key, IMAGES[key], folder, "Dataset", facts, {"seconds": 1.5})


def _training_story(recorder: disk.Recorder) -> None:
    from stages import state

    folder = Path(recorder.root) / "state"
    for step in (1, 2, 3, 3, 4):
        state.save(folder, _training_state(step))
        recorder.mark("saved", step)


def _training_state(step: int):
    import torch

    from stages.state import State

    return State(step, {"w": torch.full((50,), float(step))}, {"at": step})


def _after_marks(log: list[disk.Op]) -> list[int]:
    return [k for k in disk.crash_points(log) if log[k - 1].kind == "mark"]


def _while_sweeping(log: list[disk.Op]) -> list[int]:
    marks = [k for k, op in enumerate(log, 1) if op.kind == "mark"]
    begin = next(k for k in marks if log[k - 1].mark[0] == "swept")
    return [k for k in range(begin + 1, marks[marks.index(begin) + 1]) if log[k - 1].kind == "drop"]


def _states(letter: str) -> Iterator[tuple[int, str]]:
    """Moments and modes; a mode that would rebuild what another one has rebuilt for the same moment is left out."""
    tape = _recorded(letter)
    for k in disk.crash_points(tape.log):
        seen = set()
        for mode in ("none", "all", "names", "zeros", "bytes", *(f"mix{i}" for i in range(MIXES))):
            fate = tuple(disk.fates(tape.log, tape.safe, k, mode).items())
            if fate not in seen:
                seen.add(fate)
                yield k, mode
