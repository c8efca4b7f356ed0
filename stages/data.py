"""Brings a data set in and looks at every file of it, so that what is wrong is named before training begins."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from pipeline.errors import BadData
from pipeline.stage import Made, Stage
from stages.sources import TABLE as SOURCES

Side = Annotated[int, Field(ge=16, le=8192)]
Size = Annotated[tuple[Side, Side], Field(strict=False)]


class Data(Stage):
    kind: Literal["data"] = "data"
    makes: ClassVar[str] = "Dataset"
    version: ClassVar[int] = 1

    source: SOURCES.field() = Field(description="Where pictures and labels come from.")
    size: Size | Literal["native"] = Field(
        (256, 512), description="[height, width] in pixels that everything is brought to once, or native."
    )
    limit: int | None = Field(None, ge=1, description="At most this many images per split, drawn in a fixed order; none: all.")

    def outside(self) -> dict[str, str]:
        return self.source.outside()

    def rehearsed(self) -> Self:
        return self.model_copy(update={"limit": min(4, self.limit or 4)})

    def run(self, inputs: dict, job: Any) -> Made:
        size = None if self.size == "native" else self.size
        facts, beside = self.source.write(job.out, size, self.limit, job)
        report_empty(facts, self.limit is not None or job.rehearsing, job)
        said = ", ".join(f"{n} {split}" for split, n in facts["splits"].items())
        job.say(f"{facts['source']}: {said}, {len(facts['classes'])} classes")
        return Made(facts=facts, beside=beside)


def report_empty(facts: dict, partial: bool, job: Any) -> None:
    """A class that training never sees is an error, unless only a part of the data was asked for; elsewhere it is said."""
    for split, counts in facts["label_pixels"].items():
        empty = [name for name, n in zip(facts["classes"], counts, strict=True) if not n]
        if empty and split == "train" and not partial:
            raise BadData(
                f"{facts['source']}: no pixel of split train ({facts['splits'][split]} images) is {', '.join(empty)}: "
                "add images that show it, or take it out of the class table"
            )
        if empty:
            job.say(f"{facts['source']}: split {split} has no pixel of {', '.join(empty)}")
