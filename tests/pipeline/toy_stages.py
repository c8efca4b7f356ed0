"""A torch-free table of stages for tests of the runner: a number, a sum, a counter that can be stopped, a verdict."""

import os
import resource
import time
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.errors import BadData, Stopped
from pipeline.stage import Aside, Made, Stage, Takes

KINDS = {"number": "toy_stages:Number", "sum": "toy_stages:Sum", "count": "toy_stages:Count", "judge": "toy_stages:Judge"}


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


class Judge(Stage):
    kind: Literal["judge"]
    makes: ClassVar[str] = "Verdict"
    of: Annotated[str, Takes(("Checkpoint",))]
    at_most: float | None = Field(100.0, description="The limit; none: undecided.")

    def run(self, inputs, job):
        return Made({"passed": None if self.at_most is None else inputs["of"].facts["value"] <= self.at_most})
