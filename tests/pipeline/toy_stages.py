"""A torch-free table of stages for tests of the runner: a number, a sum, a counter that can be stopped, a verdict."""

import json
import os
import resource
import time
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.errors import BadData, Stopped
from pipeline.stage import Aside, Later, Made, Stage, Takes

KINDS = {name: f"toy_stages:{name.capitalize()}" for name in ("number", "sum", "count", "pack", "gauge", "judge")}


class Number(Stage):
    kind: Literal["number"]
    makes: ClassVar[str] = "Dataset"
    value: int = Field(0, description="The number.")
    size: int = Field(0, description="Bytes of ballast to write beside it.")
    fail: Literal["no", "data", "bug", "crash", "nest", "deaf", "tell"] = Field("no", description="How to go wrong.")

    def run(self, inputs, job):
        if self.fail == "data":
            raise BadData("picture.png is missing: put it back")
        if self.fail == "bug":
            raise ZeroDivisionError("a defect")
        if self.fail == "crash":
            os.kill(os.getpid(), 9)
        if self.fail == "deaf":
            job.stop_asked()
            job.say("deaf")
            time.sleep(1)
        if self.fail == "tell":
            mask = os.umask(0)
            job.say(f"umask {mask:o}, core {resource.getrlimit(resource.RLIMIT_CORE)[0]}")
        if self.fail == "nest":
            (job.out / "folder").mkdir()
        (job.out / "number.txt").write_text(str(self.value))
        if self.size:
            (job.out / "ballast.bin").write_bytes(bytes(self.size))
        return Made({"value": self.value}, {"pid": os.getpid()})


class Sum(Stage):
    kind: Literal["sum"]
    makes: ClassVar[str] = "Checkpoint"
    of: Annotated[list[str], Takes(("Dataset", "Checkpoint"), named=True)]
    times: float = Field(1.0, description="Factor.")
    patience: Annotated[int, Aside()] = Field(1, description="Changes nothing.")

    def run(self, inputs, job):
        total = self.times * sum(float(a.file("number.txt").read_text()) for a in inputs["of"])
        job.say(f"the sum is {total}")
        (job.out / "number.txt").write_text(str(total))
        return Made({"value": total})


class Count(Stage):
    kind: Literal["count"]
    makes: ClassVar[str] = "Checkpoint"
    of: Annotated[str, Takes(("Dataset",))]
    steps: int = Field(3, description="How far to count.")
    deaf: Annotated[bool, Aside()] = Field(False, description="Goes on counting when it is asked to stop.")

    def run(self, inputs, job):
        state = job.state / "at"
        at = int(state.read_text() or 0) if state.exists() else 0  # empty: killed while it was written
        job.say(f"counting from {at}")
        while at < self.steps:
            at += 1
            time.sleep(0.02)
            job.progress(at, self.steps, value=at)
            if (signal := job.stop_asked()) and not self.deaf:
                state.write_text(str(at))
                raise Stopped("state saved", signal)
        (job.out / "number.txt").write_text(str(at))
        return Made({"value": at})


class Gauge(Stage):
    """Shows what it was not told: whatever the file holds when it runs."""

    kind: Literal["gauge"]
    makes: ClassVar[str] = "Checkpoint"
    reproducible: ClassVar[bool] = False
    file: str

    def run(self, inputs, job):
        value = float(Path(self.file).read_text())
        (job.out / "number.txt").write_text(str(value))
        return Made({"value": value})


class Pack(Stage):
    kind: Literal["pack"]
    makes: ClassVar[str] = "Engine"
    of: Annotated[str, Takes(("Dataset",))]

    def run(self, inputs, job):
        (job.out / "engine.bin").write_bytes(b"code")
        return Made()


class Judge(Stage):
    kind: Literal["judge"]
    makes: ClassVar[str] = "Verdict"
    of: Annotated[str, Takes(("Checkpoint",))]
    at_most: float | None = Field(100.0, description="The limit; none: undecided.")
    against: Annotated[Literal["released"] | None, Later()] = Field(None, description="The committed baseline, which it may not exceed.")

    def names_released(self):
        return self.against is not None

    def unsettled(self, facts):
        return ("of",) if facts.get("busy") else ()

    def run(self, inputs, job):
        verdict = judged(self.model_dump(), inputs, job.released)
        (job.out / "verdict.json").write_text(json.dumps(verdict))
        return Made({"passed": verdict["passed"]} | ({"busy": True} if "noise" in verdict["rules"][0]["text"] else {}))


def judged(settings, inputs, released):
    """As stages/gate.py does for figures that mean something."""
    value, limit = float(inputs["of"].file("number.txt").read_text()), settings["at_most"]
    rules = [{"passed": None if limit is None else value <= limit, "text": f"{value} of at most {limit}"}]
    rules = [{"passed": None, "text": f"{value} is noise"}] if value < 0 else rules
    if settings["against"]:
        rules.append(against(value, released))
    outcomes = [rule["passed"] for rule in rules]
    verdict = {"passed": False if False in outcomes else None if None in outcomes else True, "rules": rules}
    return verdict | ({"released": released.told()} if settings["against"] else {})


def against(value, released):
    if released.content is None:
        return {"passed": None, "text": released.problem}
    [id] = released.content["artifacts"]
    if id not in released.artifacts:
        return {"passed": None, "text": released.missing(id, "its number")}
    before = float(released.artifacts[id].file("number.txt").read_text())
    return {"passed": value <= before, "text": f"{value}, released is {before}"}


def baseline(settings, inputs, artifacts, lineage):
    return {"value": inputs["of"].facts["value"], "artifacts": {inputs["of"].id: inputs["of"].kind}}
