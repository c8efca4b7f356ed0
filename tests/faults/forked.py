"""Real train and distill stages on drawn scenes, each in a process forked from one that has loaded torch already: cheap to kill."""

import atexit
import contextlib
import functools
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from common import ROOT  # noqa: F401 (puts the project on the path)

PATIENCE = 90  # seconds until a process counts as hanging, on a busy machine


class Job:
    """What the child of the runner lends to a stage. Signals set a flag; the first word of a step goes to whoever reads `steps`."""

    rehearsing = False

    def __init__(self, place):
        self.out, self.state, self.number = place / "out", place / "state", 0
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)

    def say(self, text):
        print(text, flush=True)

    def progress(self, done, total, **figures):
        pass

    def stop_asked(self):
        return self.number

    def on_signal(self, number, frame):
        self.number = number


class Child:
    """`work(job)` in a process of its own, with a session of its own; what it does is read through a pipe."""

    def __init__(self, work, place):
        load_torch()
        read, write = os.pipe()
        self.pid, self.code, self.lines = os.fork(), None, os.fdopen(read)
        if self.pid == 0:
            os.close(read)
            os._exit(_in_child(work, place, write))
        os.close(write)

    def signal(self, number):
        if self.code is None:
            os.kill(self.pid, number)

    def wait(self, within=PATIENCE):
        """The exit code, negative for a signal; a process that hangs is killed with its whole session, and that is a failure."""
        ends = time.monotonic() + within
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > ends:
                self.end()
                raise AssertionError(f"still running after {within} s")
            else:
                time.sleep(0.005)
        return self.code

    def end(self):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)  # it had not yet made its session
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.lines.close()


def _in_child(work, place, write):
    from pipeline.errors import Stillhouse

    os.setsid()
    with open(place / "log", "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    job = Job(place)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, job.on_signal)
    steps = os.fdopen(write, "w", buffering=1)
    try:
        work(job, steps)
        return 0
    except Stillhouse as error:
        (place / "error").write_text(f"{type(error).__name__}: {error}")
        return error.code
    except OSError as error:
        (place / "error").write_text(f"OSError: {error}")
        return 5
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()


@functools.cache
def load_torch():
    import accelerate  # noqa: F401
    import torch
    import torch._dynamo  # the optimisers load it: two seconds in every child

    import stages.teach  # noqa: F401

    torch.set_num_threads(1)


@functools.cache
def workshop():
    """A folder for what all cases of this process share."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    owner = os.getpid()
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(folder, ignore_errors=True))
    return folder


@functools.cache
def data():
    from stages.data import Data

    place = workshop() / "data"
    stage = Data.model_validate({"kind": "data", "source": {"kind": "streets", "train": 5, "val": 2, "test": 0}, "size": [32, 64]})
    job = Job(place)
    with open(os.devnull, "w") as nobody, contextlib.redirect_stdout(nobody):
        return _artifact("data", "Dataset", job, stage.run({}, job))


@functools.cache
def teacher():
    """An untrained one teaches as well for this purpose."""
    import torch

    from stages.models import TABLE
    from stages.weights import save_checkpoint

    load_torch()
    job, row = Job(workshop() / "teacher"), TABLE.row("tiny").model_validate({"kind": "tiny", "size": "small"})
    torch.manual_seed(5)
    classes = data().facts["classes"]
    save_checkpoint(job.out, row.build(len(classes)).state_dict())
    from pipeline.stage import Made

    facts = {"model": row.model_dump(mode="json"), "classes": classes, "colours": data().facts["colours"], "size": [32, 64]}
    return _artifact("teacher", "Checkpoint", job, Made(facts))


def stage(kind, **fit):
    from stages.distill import Distill
    from stages.train import Train

    settings = {"data": "data", "model": {"kind": "tiny", "size": "small"}, "fit": {"batch": 2, "crop": [32, 64], "lr": 0.001, **fit}}
    if kind == "train":
        return Train.model_validate({"kind": "train", **settings})
    losses = [{"kind": "pixel", "weight": 1.0}, {"kind": "cwd", "weight": 0.5}]
    return Distill.model_validate({"kind": "distill", "teacher": "teacher", "losses": losses, **settings})


def inputs(kind):
    return {"data": data()} | ({"teacher": teacher()} if kind == "distill" else {})


def result(place):
    """What a training left: the digest of its weights, and its curves byte for byte."""
    assert sorted(p.name for p in (place / "out").iterdir()) == ["curves.json", "weights.safetensors"]
    weights = hashlib.sha256((place / "out" / "weights.safetensors").read_bytes()).hexdigest()
    return weights, (place / "out" / "curves.json").read_text()


def _artifact(name, kind, job, made):
    from pipeline.artifact import Artifact

    return Artifact(name, kind, hashlib.sha256(name.encode()).hexdigest(), job.out, *json.loads(json.dumps([made.facts, made.beside])))
