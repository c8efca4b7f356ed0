"""CamVid with 11 classes: a list of stems per split, images and masks beside it, and its own table of classes."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from stages.sources import Source
from stages.sources._layout import Layout

TABLE_FILE = "classes.json"


class Camvid(Source):
    kind: Literal["camvid"] = "camvid"
    version: ClassVar[int] = 2
    root: str = Field(description="The folder with train.txt, val.txt, test.txt, classes.json and a folder per split.")
    tune_split: str | None = Field(
        None,
        min_length=1,
        description="A drive of the train split, such as 0006R0, that becomes val: for tuning; the written val and test then stay away.",
    )

    def layout(self) -> Layout:
        splits = ("train",) if self.tune_split else ("train", "val", "test")
        images, labels = "{split}/images/{stem}.jpg", "{split}/labels/{stem}.png"
        return Layout(self.root, images, labels, splits, "{split}.txt", (TABLE_FILE,), self.tune_split)

    def outside(self) -> dict[str, str]:
        return self.layout().outside()

    def write(self, out: Path, size: tuple[int, int] | None, limit: int | None, job: Any) -> tuple[dict, dict]:
        from stages.sources._index import write_index

        layout = self.layout()
        facts, beside = write_index(layout, read_table(layout.home()), out, size, limit, job)
        return {"source": "camvid", **facts}, beside


def read_table(home: Path):
    """The class table in CamVid's own form: classes with id, name and colour, and one ignore_index."""
    from pipeline.errors import BadData
    from stages.sources._classes import class_table, read_table_file
    from stages.sources._files import clipped
    from stages.sources._problems import printable

    content, path = read_table_file(home, TABLE_FILE), printable(str(home / TABLE_FILE))
    try:
        rows = sorted(content["classes"], key=lambda row: row["id"])
        names, colours, ids = ([row[key] for row in rows] for key in ("name", "colour", "id"))
        ignore = content["ignore_index"]
        fits = all(isinstance(n, str) for n in names) and all(isinstance(i, int) for i in [*ids, ignore])
        fits = fits and all(len(c) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in c) for c in colours)
    except (KeyError, TypeError) as error:
        raise BadData(
            f"{path}: {clipped(str(error))} is missing or of another type: it needs classes with id, name, colour, and ignore_index"
        ) from None
    if not fits:
        raise BadData(f"{path}: ids and ignore_index are whole numbers, names are text, colours are three numbers 0 to 255")
    return class_table(names, colours, [[i] for i in ids], [ignore], source=path)
