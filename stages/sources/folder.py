"""Pictures and masks in folders of one's own: two patterns and a class table, and the files stay where they are."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from stages.sources import Source
from stages.sources._layout import Layout, check_pattern

Pattern = Annotated[str, AfterValidator(check_pattern)]
Split = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")]


class Folder(Source):
    kind: Literal["folder"] = "folder"
    version: ClassVar[int] = 2
    root: str = Field(description="The folder that holds everything else; patterns and lists are relative to it.")
    images: Pattern = Field("{split}/images/{stem}.jpg", description="Where images lie: {split} and {stem} are filled in, * is anything.")
    labels: Pattern = Field("{split}/labels/{stem}.png", description="Where the mask of an image lies, with the same {stem}.")
    classes: str = Field(
        "classes.yaml", description="Class table, .json or .yaml, relative to the root: names, colours, ids or colours of masks."
    )
    splits: tuple[Split, ...] = Field(
        ("train", "val"), strict=False, min_length=1, description="Names of the splits, filled in for {split}."
    )
    lists: str | None = Field(
        None, description="Text file per split with one stem per line, such as {split}.txt; none: every file that matches."
    )

    @model_validator(mode="after")
    def splits_differ(self) -> Self:
        if self.images == self.labels:
            raise ValueError("images and labels are the same pattern: a picture would be its own mask")
        if len(set(self.splits)) != len(self.splits):
            raise ValueError("splits: a name stands there twice")
        if "{split}" not in (self.lists or self.images) and len(self.splits) > 1:
            raise ValueError("every split would hold the same files: put {split} into images, or give lists with {split}")
        return self

    def layout(self) -> Layout:
        return Layout(self.root, self.images, self.labels, self.splits, self.lists, (self.classes,))

    def outside(self) -> dict[str, str]:
        return self.layout().outside()

    def write(self, out: Path, size: tuple[int, int] | None, limit: int | None, job: Any) -> tuple[dict, dict]:
        from stages.sources._classes import read_class_table
        from stages.sources._index import write_index

        layout = self.layout()
        table = read_class_table(layout.home(), self.classes)
        facts, beside = write_index(layout, table, out, size, limit, job)
        return {"source": "folder", **facts}, beside
