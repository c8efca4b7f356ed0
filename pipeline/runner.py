"""Runs what a plan says must run: one child process per stage, its artifact published, its story in the journal."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from . import fsops
from .errors import BY_NAME, BadStore, GateFailed, Stillhouse, Stopped
from .plan import Step, last_keys, make
from .recipe import Recipe
from .show import Show
from .stage import Stage
from .store import Damaged, Store

GRACE = 20.0  # seconds a stage has to save its state after the first signal
# OpenMP threads that wait spin for about 50 us, then sleep. By default they spin for milliseconds: on a machine with other work to do
# a training step of 25 ms then takes up to 10 s (measured on 2 cores); with this it takes 25 ms when quiet and 66 ms beside two busy loops.
PATIENCE = {"GOMP_SPINCOUNT": "10000"}
STOPPED = "stopped; the same command goes on from here"
PROJECT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Outcome:
    """What came of a run: how each stage ended, and the artifacts there are."""

    run: str
    steps: list[Step]
    ended: dict[str, dict[str, Any]]  # stage -> {"state": made | kept | failed | stopped, "seconds": ...}
    error: Stillhouse | None
    changed: bool  # False: everything was kept, and the last run of this recipe says all there is to say


class Runner:
    def __init__(self, store: Store, kinds: Mapping[str, str], show: Show, rehearsing: bool = False):
        self.store, self.kinds, self.show, self.rehearsing = store, kinds, show, rehearsing
        self._child: subprocess.Popen | None = None
        self._signals: list[int] = []

    def run(self, recipe: Recipe) -> Outcome:
        stages = {n: s.rehearsed() for n, s in recipe.stages.items()} if self.rehearsing else recipe.stages
        steps = make(stages, self.store, last_keys(self.store, recipe.name))
        if unchanged := self._unchanged(recipe, steps):
            return Outcome(unchanged, steps, {s.name: {"state": "kept", "seconds": 0.0} for s in steps}, None, changed=False)
        run = self.store.new_run(recipe.name)
        journal = self.store.journal(run)
        begin = {"recipe": recipe.name, "file": str(recipe.path), "profile": recipe.profile, "sets": list(recipe.sets)}
        journal.write("begin", **begin, resolved=recipe.resolved)
        ended: dict[str, dict[str, Any]] = {}
        error = None
        try:
            with self._listening():
                self._walk(stages, steps, run, ended)
        except Stillhouse as problem:
            error = problem
        steps = make(stages, self.store)
        journal.write("end", code=error.code if error else verdict(steps), error=str(error) if error else None)
        return Outcome(run, steps, ended, error, changed=True)

    def _walk(self, stages: Mapping[str, Stage], steps: list[Step], run: str, ended: dict[str, dict[str, Any]]) -> None:
        """Runs the first stage that must run, plans anew with its artifact, and so on until every stage is kept."""
        while True:
            if self._signals:  # the stage at work then was done before it saw the signal
                raise Stopped(STOPPED, self._signals[0])
            for step in steps:
                if step.artifact and step.name not in ended:
                    self._end(run, ended, step, "kept", step.artifact.id, 0.0)
                elif step.artifact is None:
                    self._one(step, steps, run, ended)
                    break
            else:
                return
            steps = make(stages, self.store)

    def _one(self, step: Step, steps: list[Step], run: str, ended: dict[str, dict[str, Any]]) -> None:
        made = {s.name: s.artifact for s in steps}
        try:
            for name in (n for names in step.inputs.values() for n in names):
                self.store.verify(made[name].id)
        except Damaged as damage:
            place = self.store.quarantine(damage)
            ended.pop(name, None)
            self.show.say(f"{name}: {damage}; moved to {place}, making it anew")
            return
        began = time.monotonic()
        self.show.begin(step.name, step.stage.kind)
        try:
            with self._alone(step.key):
                artifact = self.store.find(step.key)  # somebody else may have made it while this run waited
                id = artifact.id if artifact else self._make(step, made, run)
        except Stillhouse as problem:
            state = "stopped" if isinstance(problem, Stopped) else "failed"
            self._end(run, ended, step, state, None, time.monotonic() - began, error=str(problem))
            problem.args = (f"{step.name}: {problem}",)
            raise
        self._end(run, ended, step, "made", id, time.monotonic() - began)

    def _make(self, step: Step, made: dict[str, Any], run: str) -> str:
        state = self.store.state(step.key)
        began = time.monotonic()
        with self.store.workplace(step.key) as folder:
            result = self._spawn(step, made, folder, state, self.store.root / "refs/runs" / run / f"{step.name}.log")
            beside = {**result["beside"], "seconds": round(time.monotonic() - began, 3), "run": run}
            try:
                id = self.store.publish(step.key, step.image, folder, step.stage.makes, result["facts"], beside)
            except OSError as error:
                raise BadStore(
                    f"cannot publish into {self.store.root}: {error.strerror}. Free space or fix the folder, then run again"
                ) from None
        self.store.forget_state(step.key)
        return id

    def _spawn(self, step: Step, made: dict[str, Any], out: Path, state: Path, log: Path) -> dict[str, Any]:
        """One child process for one stage; returns what it made or raises what it raised."""
        inputs = {
            f: made[names[0]] if isinstance(getattr(step.stage, f), str) else [made[n] for n in names] for f, names in step.inputs.items()
        }
        spec = {
            "target": self.kinds[step.stage.kind],
            "config": step.stage.model_dump(mode="json"),
            "inputs": {f: [_described(a) for a in v] if isinstance(v, list) else _described(v) for f, v in inputs.items()},
            "out": str(out),
            "state": str(state),
            "rehearsing": self.rehearsing,
        }
        spec_file = log.with_suffix(".json")
        fsops.replace(spec_file, json.dumps(spec).encode())
        read, write = os.pipe()
        with open(log, "ab") as output, os.fdopen(read, encoding="utf-8") as events:
            command = [sys.executable, "-m", "pipeline.child", str(spec_file), str(write)]
            path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
            environment = {**PATIENCE, **os.environ, "PYTHONPATH": path}
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=[write], start_new_session=True, env=environment
            )
            os.close(write)
            try:
                result = self._follow(step.name, events)
                code = self._child.wait()
            finally:
                self._kill()
                self._child = None
        return self._result(result, code, log)

    def _follow(self, name: str, events: Iterator[str]) -> dict[str, Any]:
        last: dict[str, Any] = {}
        for line in events:
            event = json.loads(line)
            if "say" in event:
                self.show.say(event["say"], stage=name)
            elif "progress" in event:
                done, total, figures = event["progress"]
                self.show.progress(name, done, total, figures)
            else:
                last = event
        return last

    def _result(self, event: dict[str, Any], code: int, log: Path) -> dict[str, Any]:
        if "made" in event:
            return event["made"]
        if self._signals:
            raise Stopped(STOPPED, self._signals[0])
        if "error" in event:
            error = event["error"]
            kind = BY_NAME.get(error["kind"], Stillhouse)
            raise kind(error["text"] if error["code"] != 1 else f"{error['text']}\n  the whole story: {log}")
        how = f"was killed by {signal.Signals(-code).name} (out of memory?)" if code < 0 else f"ended with code {code} and no word"
        raise Stillhouse(f"its process {how}; log: {log}")

    # -- signals: the first asks the stage to save and stop, the second ends it at once

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        self._signals.append(number)
        if self._child is None:
            raise Stopped(STOPPED, number)
        if len(self._signals) > 1:
            self._kill()
            return
        self.show.say("stopping: the stage saves its state (once more to stop at once)")
        self._child.send_signal(number)
        timer = threading.Timer(GRACE, self._kill)
        timer.daemon = True
        timer.start()

    def _kill(self) -> None:
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)

    # -- small things

    @contextlib.contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """Two runs never make the same artifact at the same time: the second waits and then finds it made."""
        lock = FileLock(self.store.root / "locks" / f"{key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self.show.say("another run is making the same artifact: waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _end(self, run: str, ended: dict[str, dict[str, Any]], step: Step, state: str, id: str | None, seconds: float, **more: Any) -> None:
        ended[step.name] = {"state": state, "seconds": round(seconds, 3)}
        self.store.journal(run).write("stage", stage=step.name, state=state, key=step.key, id=id, seconds=round(seconds, 3), **more)
        self.show.end(step.name, step.stage.kind, state, seconds, id)

    def _unchanged(self, recipe: Recipe, steps: list[Step]) -> str | None:
        """The last run of this recipe, if it ended well and every stage is what it was then."""
        runs = self.store.runs(recipe.name)
        if not runs or any(s.artifact is None for s in steps):
            return None
        entries = self.store.journal(runs[-1]).read()
        keys = {e["stage"]: e["key"] for e in entries if e["event"] == "stage"}
        begin, end = entries[0], entries[-1]
        same = keys == {s.name: s.key for s in steps} and begin.get("profile") == recipe.profile
        return runs[-1] if same and end["event"] == "end" and end["code"] in (0, GateFailed.code) else None


def verdict(steps: list[Step]) -> int:
    """The exit code of a run in which every stage ended: 0, or GateFailed's when an artifact says that it did not pass."""
    passed = [s.artifact.facts["passed"] for s in steps if s.artifact and s.artifact.kind == "Verdict"]
    return 0 if all(passed) else GateFailed.code


def _described(artifact: Any) -> dict[str, Any]:
    return {**dataclasses.asdict(artifact), "folder": str(artifact.folder)}
