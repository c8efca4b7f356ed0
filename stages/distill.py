"""Trains a student on labels and on what a teacher makes of the same crops."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from pipeline.artifact import Artifact
from pipeline.stage import Dataset, Job, Made, Stage, Takes
from stages.fit import Fit
from stages.kd import TABLE as KD
from stages.kd.ce import Ce
from stages.models import TABLE as MODELS
from stages.train import class_count, misfits, taught, unmet, unread
from stages.weights import Weights


class Distill(Stage):
    kind: Literal["distill"]
    data: Dataset
    teacher: Annotated[str, Takes(("Checkpoint",)), Field(description="The stage whose checkpoint teaches.")]
    model: MODELS.field() = Field(description="The architecture of the student.")
    task: KD.field(role="task") = Field(Ce(kind="ce"), description="The loss on the labels: it has exactly one owner.")
    losses: list[KD.field(role="loss")] = Field([], description="The distillation methods, beside the task loss.")
    text: Annotated[str | None, Takes(("TextMatrix",))] = Field(
        None, description="The stage whose text vectors of the classes are used, by the methods that need them."
    )
    fit: Fit = Field(Fit(), description="How the student is trained.")
    init: Weights | None = Field(None, description="Pretrained weights to start from; null starts from random ones.")

    makes: ClassVar[str] = "Checkpoint"
    version: ClassVar[int] = 5

    def outside(self) -> dict[str, str]:
        return {"init": self.init.digest()} if self.init else {}

    def environment(self) -> dict[str, str]:
        return self.fit.environment()

    def problems(self, earlier: dict[str, Stage]) -> list[tuple[tuple, str]]:
        teacher = getattr(earlier.get(self.teacher), "model", None)
        if teacher is None:  # the reference itself is wrong, and told elsewhere
            return misfits(self, earlier)
        places = [(("task",), self.task), *((("losses", i), loss) for i, loss in enumerate(self.losses))]
        classes = class_count(earlier.get(self.data))
        found = [p for where, method in places for p in unmet(where, method, self.model, teacher, self.text, classes)]
        return misfits(self, earlier, teacher) + found + unread(self.text, [method for _, method in places])

    def rehearsed(self) -> Self:
        return self.model_copy(update={"fit": self.fit.rehearsed()})

    def run(self, inputs: dict[str, Artifact], job: Job) -> Made:
        return taught(self, inputs, job)
