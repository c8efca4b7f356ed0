"""Trains a model on labels alone: a teacher, the baseline that shows what distilling was worth, or the head a teacher lacks."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from pipeline.artifact import Artifact
from pipeline.problems import listed
from pipeline.stage import Dataset, Job, Later, Made, Stage, Takes
from stages.fit import Fit
from stages.kd import TABLE as KD
from stages.kd import Method
from stages.kd.ce import Ce
from stages.models import TABLE as MODELS
from stages.models import Model
from stages.weights import Weights


class Train(Stage):
    kind: Literal["train"]
    data: Dataset
    model: MODELS.field() = Field(description="The architecture that is trained.")
    task: KD.field(role="task") = Field(Ce(kind="ce"), description="The loss on the labels.")
    fit: Fit = Field(Fit(), description="How it is trained.")
    init: Weights | None = Field(None, description="Pretrained weights to start from; null starts from random ones.")
    frozen: Annotated[str | None, Takes(("Checkpoint",)), Later()] = Field(
        None, description="The stage whose network is taken as it is: only the auxiliary head that it lacks is trained, on its c3."
    )

    makes: ClassVar[str] = "Checkpoint"
    version: ClassVar[int] = 4

    def outside(self) -> dict[str, str]:
        return {"init": self.init.digest()} if self.init else {}

    def environment(self) -> dict[str, str]:
        return self.fit.environment()

    def problems(self, earlier: dict[str, Stage]) -> list[tuple[tuple, str]]:
        return misfits(self, earlier) + unmet(("task",), self.task, self.model) + self._unfrozen(earlier)

    def _unfrozen(self, earlier: dict[str, Stage]) -> list[tuple[tuple, str]]:
        """What keeps `frozen` from being this model without its auxiliary head."""
        theirs = getattr(earlier.get(self.frozen), "model", None)
        if theirs is None:  # nothing is frozen, or the reference itself is wrong, and told elsewhere
            return []
        found = []
        if self.init:
            found.append((("init",), f"{self.frozen} brings all weights but those of the auxiliary head: leave init or frozen out"))
        if "aux" in theirs.taps():
            found.append((("frozen",), f"{self.frozen} has an auxiliary head, which can teach as it is: leave this stage out"))
        elif "aux" not in self.model.taps():
            found.append((("model",), f"frozen trains the auxiliary head alone, and {self.model.kind} as set here has none: set aux: true"))
        elif theirs != self.model.model_copy(update={"aux": False}):
            found.append((("model",), f"this is not the network of {self.frozen} with a head: write its settings here, and aux: true"))
        return found

    def rehearsed(self) -> Self:
        return self.model_copy(update={"fit": self.fit.rehearsed()})

    def run(self, inputs: dict[str, Artifact], job: Job) -> Made:
        return taught(self, inputs, job)


def taught(stage: Stage, inputs: dict[str, Artifact], job: Job) -> Made:
    """Here, or in several processes."""
    if stage.fit.processes > 1:
        from stages.group import together

        return together("stages.teach:teach", (stage, inputs), stage.fit.processes, job)
    from stages.teach import teach

    return teach(stage, inputs, job)


def misfits(stage, earlier: dict[str, Stage], teacher: Model | None = None) -> list[tuple[tuple, str]]:
    """What does not fit between `fit`, the networks and the size of the data, as far as settings tell (a native size is known later)."""
    size = getattr(earlier.get(stage.data), "size", None)
    if stage.fit.crop is None and not isinstance(size, tuple):
        return []
    return [(("fit", *path), text) for path, text in stage.fit.misfits(size, *coarser(stage.model, teacher))]


def coarser(model: type[Model] | Model, teacher: type[Model] | Model | None) -> tuple[int, str]:
    """What height and width of a crop must be multiples of, and whose need that is: both networks see it."""
    if teacher and teacher.multiple > model.multiple:
        return teacher.multiple, "the teacher"
    return model.multiple, "the model"


def class_count(data: Stage | None) -> int | None:
    """How many classes a data stage will have, as far as its settings tell."""
    source = getattr(data, "source", None)
    return source.class_count() if source else None


def unmet(
    where: tuple, method: Method, student: Model, teacher: Model | None = None, text: str | None = None, classes: int | None = None
) -> list[tuple[tuple, str]]:
    """What a method needs and would not find, each with the way out. `teacher` is None where nobody teaches."""
    if method.needs_teacher and teacher is None:
        return [(where, f"{method.kind} learns from a teacher: use it in a stage of kind distill, or write {{kind: ce}} here")]
    nets = {"student": student, "teacher": teacher}
    missing = [need for need in method.needs() if need.tap not in nets[need.net].taps()]
    found = [
        (where, f"{method.kind} needs {tap} of the {net}, and {nets[net].kind} as set here has none: {otherwise}")
        for net, tap, otherwise in missing
    ]
    if method.role == "task" and "aux" in student.taps() and getattr(method, "aux_weight", None) == 0:
        found.append(
            ((*where, "aux_weight"), f"0 leaves the auxiliary head of {student.kind} untrained: write aux: false in the model, or a weight")
        )
    if method.needs_text and text is None:
        way = "add a stage of kind embed above, and write text: and its name in this stage"
        found.append((where, f"{method.kind} needs a vector of language per class: {way}"))
    return found + [((*where, *path), text) for path, text in method.misfits(classes)]


def unread(text: str | None, methods: list[Method]) -> list[tuple[tuple, str]]:
    """Vectors of language that no method asks for."""
    if text is None or any(method.needs_text for method in methods):
        return []
    those = listed([name for name, row in KD.rows().items() if row.needs_text])
    return [(("text",), f"no loss here uses vectors of language (those that do: {those}): add one, or leave text out")]
