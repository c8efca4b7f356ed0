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

from . import fsops, limits, locks, room, secrets
from .errors import BY_NAME, JUDGED, BadStore, GateFailed, Missing, Stillhouse, Stopped, Undecided
from .manifest import Damaged
from .origin import origin
from .plan import Step, last_keys, make
from .recipe import Recipe
from .show import Show
from .stage import Stage
from .store import Store

GRACE = 20.0  # seconds a stage has to save its state after the first signal
# OpenMP threads that wait spin for about 50 us, then sleep. By default they spin for milliseconds: on a machine with other work to do
# a training step of 25 ms then takes up to 10 s (measured on 2 cores); with this it takes 25 ms when quiet and 66 ms beside two busy loops.
# onnxruntime since 1.29 tells its makers of every model it opens, unless it is told not to before anything imports it.
ENVIRONMENT = {"GOMP_SPINCOUNT": "10000", "ORT_DISABLE_TELEMETRY": "1"}
STOPPED = "stopped; the same command goes on from here"
PROJECT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Outcome:
    """What came of a run: how each stage ended, and the artifacts there are."""

    run: str | None  # None: everything is there, and the store is read-only, so that no run could be noted
    steps: list[Step]
    ended: dict[str, dict[str, Any]]  # stage -> {"state": made | kept | failed | stopped, "seconds": ...}
    error: Stillhouse | None
    changed: bool  # False: everything was kept, and the last run of this recipe says all there is to say


class Runner:
    """`wait`: whether to wait for another run that makes the same artifact, or to give up. `machine()`: facts of it, for the journal."""

    def __init__(
        self, store: Store, kinds: Mapping[str, str], show: Show, rehearsing: bool = False, wait: bool = True, machine: Any = dict
    ):
        self.store, self.kinds, self.show, self.rehearsing, self.wait, self.machine = store, kinds, show, rehearsing, wait, machine
        self.held = contextlib.ExitStack()  # the lock of the run: whoever runs it closes this when the page is written
        self._child: subprocess.Popen | None = None
        self._signals: list[int] = []
        self._walking = False
        self._last: dict[str, str] = {}
        self._secrets: dict[str, str] = {}  # name -> value; in nothing that is written

    def run(self, recipe: Recipe) -> Outcome:
        stages = {n: s.rehearsed() if self.rehearsing else s for n, s in recipe.stages.items()}
        self._secrets = secrets.known(recipe.resolved, recipe.sets)
        self._last = last_keys(self.store, recipe.name)
        steps = make(stages, self.store, self._last)
        unchanged = self._unchanged(recipe, steps)
        if unchanged or self.store.read_only:
            return self._kept(unchanged, steps)
        ended: dict[str, dict[str, Any]] = {}
        with self._listening():
            with self.store.shared():  # sweeping sees no run that is not locked yet
                run = self.store.new_run(recipe.name)
                self.held.enter_context(locks.alone(self.store.alone(run), run, None))
            begin = {"recipe": recipe.name, "file": str(recipe.path), "profile": recipe.profile, "sets": list(recipe.sets)}
            begin |= {"origin": origin(self.machine())}
            self._note(run, "begin", sequence=self.store.next_sequence(), **begin, resolved=recipe.resolved)
            error = self._tried(stages, run, ended)
            steps = make(stages, self.store, done=_done(ended))
            self._note(run, "end", code=error.code if error else verdict(steps), error=str(error) if error else None)
        return Outcome(run, steps, ended, error, changed=True)

    def _kept(self, run: str | None, steps: list[Step]) -> Outcome:
        if missing := [s.name for s in steps if s.artifact is None]:
            raise BadStore(f"{self.store.root} is read-only and lacks {', '.join(missing)}: run with another --store")
        for step in steps if self.store.read_only else ():
            self._verified(step)
        return Outcome(run, steps, {s.name: {"state": "kept", "seconds": 0.0} for s in steps}, None, changed=False)

    def _verified(self, step: Step) -> None:
        try:
            self.store.verify(step.artifact.id)
        except Damaged as damage:
            raise BadStore(f"{step.name}: {damage}, and the store is read-only, so that it cannot be made anew") from None

    def _tried(self, stages: dict[str, Stage], run: str, ended: dict[str, dict[str, Any]]) -> Stillhouse | None:
        """The error in which it ended, if it did."""
        try:
            self._walking = True
            self._walk(stages, run, ended)
        except Stillhouse as problem:
            return problem
        except OSError as problem:
            return room.explained(problem, self.store.root)
        finally:
            self._walking = False
        return None

    def _walk(self, stages: dict[str, Stage], run: str, ended: dict[str, dict[str, Any]]) -> None:
        """Runs the first stage that must run, plans anew with its artifact, and so on until every stage is kept."""
        while True:
            with self.store.shared():  # what is kept is noted before sweeping could take it for unneeded
                steps = make(stages, self.store, done=_done(ended))
                due = next((step for step in steps if step.artifact is None), None)
                for step in steps[: steps.index(due)] if due else steps:
                    if step.name not in ended:
                        self._end(run, ended, step, "kept", step.artifact.id, 0.0)
            if due is None:
                return
            if self._signals:  # the stage at work then was done before it saw the signal
                raise Stopped(STOPPED, self._signals[0])
            if not self._lost_of_released(due.stage, stages):
                self._one(due, steps, run, ended)

    def _lost_of_released(self, due: Stage, stages: dict[str, Stage]) -> bool:
        """Whether artifacts of the baseline were found damaged: what is made without them gets a key that says so, and is made anew once
        they were pulled again."""
        if due.released is None:
            return False
        sound = due.released.verified(self.store)
        stages |= {name: stage.knowing(sound) for name, stage in stages.items() if stage.names_released()}
        return sound.artifacts.keys() != due.released.artifacts.keys()

    def _one(self, step: Step, steps: list[Step], run: str, ended: dict[str, dict[str, Any]]) -> None:
        made, lineage = {s.name: s.artifact for s in steps}, {s.name: s.inputs for s in steps}
        try:
            for name in (n for names in step.inputs.values() for n in names):
                self.store.verify(made[name].id)
        except Damaged as damage:
            place = self.store.quarantine(damage)
            ended.pop(name, None)
            self.show.say(f"{name}: {damage}; moved to {place}, making it anew")
            return
        began = time.monotonic()
        with self.store.shared():
            self._note(run, "starts", stage=step.name, key=step.key)
        self.show.begin(step.name, step.stage.kind)
        try:
            with locks.alone(self.store.alone(step.key), run, self._waiting if self.wait else None):
                artifact = self.store.find(step.key)  # somebody else may have made it while this run waited
                artifact = None if artifact and artifact.id == step.stale else artifact
                id = artifact.id if artifact else self._make(step, made, lineage, run)
        except (Stillhouse, OSError) as problem:
            problem = room.explained(problem, self.store.root) if isinstance(problem, OSError) else problem
            state = "stopped" if isinstance(problem, Stopped) else "failed"
            self._end(run, ended, step, state, None, time.monotonic() - began, error=str(problem))
            problem.args = (f"{step.name}: {problem}",)
            raise problem from None
        self._end(run, ended, step, "kept" if artifact else "made", id, time.monotonic() - began)

    def _make(self, step: Step, made: dict[str, Any], lineage: dict[str, Any], run: str) -> str:
        """Only with the lock of its key: what a killed run left in its place can go."""
        self.store.clear_workplaces(step.key)
        room.require_space(self.store.root, self._size_last_time(step.name))
        began = time.monotonic()
        with self.store.workplace(step.key) as folder:
            log = self.store.root / "refs/runs" / run / f"{step.name}.log"
            result = self._spawn(step, made, lineage, folder, self.store.state(step.key), log)
            beside = {**result["beside"], "seconds": round(time.monotonic() - began, 3), "run": run}
            secrets.require_none(folder, self._secrets, facts=result["facts"], beside=beside)
            image = secrets.redacted(step.image, self._secrets)
            id = self.store.publish(step.key, image, folder, step.stage.makes, result["facts"], beside)
        self.store.forget_state(step.key)
        return id

    def _spawn(self, step: Step, made: dict[str, Any], lineage: dict[str, Any], out: Path, state: Path, log: Path) -> dict[str, Any]:
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
            "lineage": lineage,
            "released": step.stage.released.described() if step.stage.released else None,
            "rehearsing": self.rehearsing,
        }
        spec_file = log.with_suffix(".json")
        fsops.replace(spec_file, json.dumps(secrets.redacted(spec, self._secrets)).encode())  # for people; the child is told in full
        spec["place"] = step.stage.there.model_dump(mode="json") if step.stage.there else None  # hosts are nothing to keep
        read, write = os.pipe()
        with open(log, "ab") as output, os.fdopen(read, encoding="utf-8") as events:
            command = [sys.executable, "-m", "pipeline.child", str(spec_file), str(write), str(os.getpid())]
            path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
            environment = {**ENVIRONMENT, **os.environ, "PYTHONPATH": path}
            kills = limits.memory_kills()
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=output, pass_fds=[write], start_new_session=True, env=environment
            )
            os.close(write)
            try:
                with contextlib.suppress(BrokenPipeError), self._child.stdin as given:  # a child that is dead already says why below
                    given.write(json.dumps(spec).encode())
                result = self._follow(step.name, events)
                code = self._child.wait()
            finally:
                self._kill()
                self._child = None
                secrets.scrub(log, self._secrets)
        return self._result(result, code, log, limits.memory_kills() > kills)

    def _follow(self, name: str, events: Iterator[str]) -> dict[str, Any]:
        last: dict[str, Any] = {}
        for line in events:
            if not line.endswith("\n"):  # it was killed while it wrote this
                break
            event = json.loads(line)
            if "say" in event:
                self.show.say(secrets.redact(event["say"], self._secrets), stage=name)
            elif "progress" in event:
                done, total, figures = event["progress"]
                self.show.progress(name, done, total, figures)
            else:
                last = event
        return last

    def _result(self, event: dict[str, Any], code: int, log: Path, short_of_memory: bool) -> dict[str, Any]:
        if "made" in event:
            return event["made"]
        if self._signals:
            raise Stopped(STOPPED, self._signals[0])
        if "error" in event:
            error = secrets.redacted(event["error"], self._secrets)
            if error["code"] > 128:  # somebody signalled the stage itself
                raise Stopped(STOPPED, error["code"] - 128)
            kind = BY_NAME.get(error["kind"], Stillhouse)
            raise kind(error["text"] if error["code"] != 1 else f"{error['text']}\n  the whole story: {log}")
        if code == -signal.SIGKILL and short_of_memory:
            raise Missing(
                "the system ended it for want of memory. Lower fit.batch or fit.crop, raise fit.accumulate, give it fewer fit.workers, "
                f"or close other programs; then run the same command again. Log: {log}"
            )
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code} and no word"
        raise Stillhouse(f"its process {how}; run the same command again. Log: {log}")

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
            if self._walking and len(self._signals) == 1:
                raise Stopped(STOPPED, number)
            return  # it is stopping already, or all is done and how it ended is just being noted
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

    def _waiting(self, holder: str) -> None:
        self.show.say(f"{holder} is making the same artifact: waiting for it")

    def _size_last_time(self, name: str) -> int:
        """Bytes of the artifact that this stage made last; 0 if it never did."""
        id = self.store.id_of(self._last[name]) if name in self._last else None
        return self.store.size(id) if id else 0

    def _end(self, run: str, ended: dict[str, dict[str, Any]], step: Step, state: str, id: str | None, seconds: float, **more: Any) -> None:
        ended[step.name] = {"state": state, "seconds": round(seconds, 3), "key": step.key, "id": id}
        self._note(run, "stage", stage=step.name, state=state, key=step.key, id=id, seconds=round(seconds, 3), **more)
        self.show.end(step.name, step.stage.kind, state, seconds, id)

    def _note(self, run: str, event: str, **facts: Any) -> None:
        self.store.note(run, event, **secrets.redacted(facts, self._secrets))

    def _unchanged(self, recipe: Recipe, steps: list[Step]) -> str | None:
        """The last run of this recipe, if it ended well and every stage is what it was then."""
        runs = self.store.runs(recipe.name)
        if not runs or any(s.artifact is None for s in steps):
            return None
        entries = self.store.journal(runs[-1]).read()
        if not entries or entries[0]["event"] != "begin":  # ended before it began
            return None
        keys = {e["stage"]: e["key"] for e in entries if e["event"] == "stage"}
        begin, end = entries[0], entries[-1]
        same = keys == {s.name: s.key for s in steps} and begin.get("profile") == recipe.profile
        return runs[-1] if same and end["event"] == "end" and end["code"] in JUDGED else None


def verdict(steps: list[Step]) -> int:
    """The exit code of a run in which every stage ended: 0, GateFailed's when a verdict is against it, Undecided's when one is open."""
    passed = [s.artifact.facts["passed"] for s in steps if s.artifact and s.artifact.kind == "Verdict"]
    passed += [None for s in steps if s.artifact is None]  # another process took it away: nothing can be told
    return GateFailed.code if False in passed else Undecided.code if None in passed else 0


def _done(ended: dict[str, dict[str, Any]]) -> dict[str, tuple[str, str]]:
    return {name: (how["key"], how["id"]) for name, how in ended.items() if how["state"] in ("made", "kept")}


def _described(artifact: Any) -> dict[str, Any]:
    return {**dataclasses.asdict(artifact), "folder": str(artifact.folder)}
