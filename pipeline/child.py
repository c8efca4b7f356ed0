"""One stage in a process of its own: `python -m pipeline.child SPEC EVENTS PARENT`, started by the runner only.

SPEC is a JSON file that says what to run; PARENT is the runner's process, without which the child does not go on; EVENTS is a file
descriptor to which the child writes one JSON object per line:
{"say": text}, {"progress": [done, total, figures]}, and at the end {"made": {facts, beside}} or {"error": {kind, code, text}}.
What the stage prints goes to the log of the run.
"""

import contextlib
import errno
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from . import limits, room
from .artifact import Artifact
from .errors import Stillhouse, Stopped
from .released import Released
from .targets import Asked

PROGRESS_EVERY = 0.1  # seconds between two progress events


class Events:
    def __init__(self, fd: int):
        self._file = os.fdopen(fd, "w", encoding="utf-8")
        self._lock = threading.Lock()

    def write(self, **event: Any) -> None:
        with self._lock:
            self._file.write(json.dumps(event) + "\n")
            self._file.flush()


class ChildJob:
    """The Job that a stage sees (pipeline/stage.py says what each member means)."""

    def __init__(self, spec: dict[str, Any], events: Events, target: Asked | None = None):
        self.out, self.state, self.lineage = Path(spec["out"]), Path(spec["state"]), spec["lineage"]
        self.rehearsing, self.target, self.released = spec["rehearsing"], target, Released.of(spec["released"])
        self._events, self._signal, self._asks, self._shown = events, 0, False, 0.0

    def say(self, text: str) -> None:
        print(text, flush=True)
        self._events.write(say=text)

    def progress(self, done: int, total: int, **figures: float) -> None:
        now = time.monotonic()
        if done >= total or now - self._shown >= PROGRESS_EVERY:
            self._shown = now
            self._events.write(progress=[done, total, figures])

    def stop_asked(self) -> int:
        self._asks = True
        return self._signal

    def on_signal(self, number: int, frame: Any) -> None:
        """A stage that asks is told at its next step; one that never asks has nothing to save and ends here."""
        self._signal = number
        if not self._asks:
            raise Stopped("stopped", number)


def main(spec_file: str, events_fd: str, parent: str) -> int:
    limits.confine(int(parent))
    events = Events(int(events_fd))
    try:
        made = _run(json.load(sys.stdin), events)
        events.write(made={"facts": made.facts, "beside": made.beside})
    except Exception as error:
        error = _told(error, Path(spec_file).parent)
        events.write(error={"kind": type(error).__name__, "code": error.code, "text": str(error)})
        return error.code
    return 0


def _run(spec: dict[str, Any], events: Events) -> Any:
    target = Asked.model_validate(spec["place"]) if spec["place"] else None
    job = ChildJob(spec, events, target)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, job.on_signal)
    module, _, name = spec["target"].partition(":")
    stage = getattr(importlib.import_module(module), name).model_validate(spec["config"])
    return stage.run(_inputs(spec["inputs"]), job)


def _told(error: Exception, store: Path) -> Stillhouse:
    """What the runner hears of it. A full or failing disk is no bug of the stage; libraries do not always say that it was the disk."""
    if isinstance(error, Stillhouse):
        return error
    with contextlib.suppress(OSError):  # the log may lie on the disk that is full
        traceback.print_exc()
    if isinstance(error, OSError) and error.errno in room.STORAGE:
        return room.explained(error, store)
    if room.full(store) or "No space left on device" in str(error):
        return room.explained(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(store)), store)
    return Stillhouse(f"{type(error).__name__}: {error}")


def _inputs(described: dict[str, Any]) -> dict[str, Any]:
    def artifact(a: dict[str, Any]) -> Artifact:
        return Artifact(a["name"], a["kind"], a["id"], Path(a["folder"]), a["facts"], a["beside"])

    return {f: [artifact(a) for a in v] if isinstance(v, list) else artifact(v) for f, v in described.items()}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
