"""F14: faults of data sets (40 kinds, 25 seeds each): every one is found, and the message names the file and says what to do.

A data set of five pictures passes the data stage, is spoiled, and must be refused: by the data stage, or, where the fault
came after indexing, by the first stage that reads the file. What the fault is, the seed decides: which file, which byte, which
variant. Each look runs in a process of its own that may take 5 s of processor time and 2 GiB more memory than it has.

A bit that flips inside the scan of a JPEG before anybody has looked cannot be seen: the decoder shows other pixels, and nothing
in the file says which ones were meant. The promise about bits is for PNG at any time, and for JPEG from the data stage on.
No faults, and accepted: grayscale images (three equal channels), interlaced PNG, PNG and JPEG under each other's ending,
bytes after the end of a picture, links that stay below the root, palettes of label ids, images of several native sizes.
"""

import contextlib
import ctypes
import json
import os
import re
import resource
import select
import signal
import time
import traceback

import spoiled
import spoiled_sets
from small_data import STEMS, DataSet

from pipeline.artifact import Artifact
from pipeline.errors import BadData, Refused
from stages.samples import open_samples

KINDS = spoiled.KINDS | spoiled_sets.KINDS
QUICK = 120
COVERS = ("pipeline", "stages")
SEEDS = 25
SECONDS = 5  # of processor time
PATIENCE = 120  # seconds that a look may take on a busy machine before it counts as hanging
MEMORY = 2 << 30  # bytes, more than there are
ADVICE = r"(?i)\b(add|check|copy|correct|give|keep|leave|make|put|rename|replace|run|save|set|turn|use|wait|write|is this the right)\b"
OVERRIDE = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


def cases():
    return [f"{kind}, {seed}" for kind in KINDS for seed in range(SEEDS)]


def check(case, place):
    name, _, seed = case.rpartition(", ")
    kind = KINDS[name]
    data = DataSet(place, int(seed), **(kind.needs or {}))
    try:
        answer = apart(lambda: spoil_and_look(kind, data))
    finally:
        restore(place)
    if "broke" in answer:
        raise AssertionError(f"not refused but broken: {answer['broke']}")
    assert answer["said"] is not None, f"accepted without a word: {answer['named']}"
    said = answer["said"]
    for word in answer["named"]:
        assert word in said, f"{word!r} is not named: {said}"
    assert re.search(kind.said, said), f"something else was found than {kind.said!r}: {said}"
    assert re.search(ADVICE, said), f"nothing says what to do: {said}"
    assert all(line.isprintable() for line in said.split("\n")), f"not fit for a terminal: {said!r}"
    assert len(said) < 5000, f"{len(said)} characters are no message"
    assert answer["seconds"] < SECONDS, f"{answer['seconds']:.1f} s of processor time"
    return {"seconds": answer["seconds"]}


def summary(figures):
    longest = max((f["seconds"] for f in figures), default=0.0)
    return longest < SECONDS, f"at most {longest:.2f} s of processor time each"


def spoil_and_look(kind, data):
    """{"named": what must be named, "said": the refusal or None, "seconds": processor time of the look}"""
    job = Job(data.root.parent / "clean")
    made = data.stage().run({}, job)
    if kind.when == "meanwhile":
        named = [None]
        look = run(data, lambda: named.append(kind.spoil(data)))
    elif kind.when == "after":
        named = [kind.spoil(data)]
        look = read(data, Artifact("data", "Dataset", "0" * 64, job.out, made.facts, made.beside))
    else:
        named = [kind.spoil(data)]
        look = run(data, lambda: None)
    with powerless() if kind.powerless else contextlib.nullcontext():
        began, said = time.process_time(), None
        try:
            look()
        except (BadData, Refused) as refusal:
            said = str(refusal)
    last = named[-1]
    return {"named": [last] if isinstance(last, str) else last, "said": said, "seconds": time.process_time() - began}


def run(data, meanwhile):
    def look():
        stage = data.stage()
        stage.outside()  # as a plan does before
        stage.run({}, Job(data.root.parent / "spoiled", meanwhile))

    return look


def read(data, artifact):
    def look():
        samples = open_samples(artifact, data.split)
        samples[STEMS[data.split].index(data.stem)]

    return look


class Job:
    """What the runner lends to a stage. When the stage asks for the first time whether to stop, `meanwhile` happens."""

    rehearsing = False

    def __init__(self, folder, meanwhile=lambda: None):
        self.out, self.state, self.meanwhile = folder / "out", folder / "state", meanwhile
        self.out.mkdir(parents=True)
        self.state.mkdir()

    def say(self, text):
        assert text.isprintable(), f"not fit for a terminal: {text!r}"

    def progress(self, done, total, **figures):
        pass

    def stop_asked(self):
        if self.meanwhile:
            happen, self.meanwhile = self.meanwhile, None
            happen()
        return 0


def apart(look):
    """The answer of `look`, called in a process of its own, so that a file that is waited for forever ends only that process."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(here)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            limit_memory()
            try:
                answer = look()
            except BaseException:
                answer = {"broke": traceback.format_exc()[-1500:]}
            with open(there, "w") as out:
                json.dump(answer, out)
            code = 0
        finally:
            os._exit(code)
    os.close(there)
    try:
        with open(here) as answers:
            if not select.select([answers], [], [], PATIENCE)[0]:
                return {"broke": f"it hangs: no answer after {PATIENCE} s"}
            text = answers.read()
            return json.loads(text) if text else {"broke": "its process died"}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def limit_memory():
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))


@contextlib.contextmanager
def powerless():
    """Root without the right to read what its mode forbids; threads that are started meanwhile lack it too."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3; this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 bits
    assert libc.capget(header, sets) == 0, os.strerror(ctypes.get_errno())
    effective = sets[0]
    sets[0] &= ~OVERRIDE
    assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        sets[0] = effective
        libc.capset(header, sets)


def restore(place):
    """Folders may be entered again, so that the driver can remove them."""
    for folder in place.rglob("*"):
        if folder.is_dir() and not folder.is_symlink():
            folder.chmod(0o700)
