"""Cityscapes as it is unpacked: leftImg8bit and gtFine side by side, label ids mapped to the 19 classes that are evaluated."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from stages.sources import Source
from stages.sources._layout import Layout

CLASSES = {  # name -> (label id in *_labelIds.png, colour), in the order of train ids
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
IGNORED = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30, 255)  # 255: licence plates (-1) as 8 bits


class Cityscapes(Source):
    kind: Literal["cityscapes"] = "cityscapes"
    version: ClassVar[int] = 2
    root: str = Field(description="The folder with leftImg8bit and gtFine; splits train and val are used, test has no public labels.")

    def layout(self) -> Layout:
        images = "leftImg8bit/{split}/{stem}_leftImg8bit.png"
        return Layout(self.root, images, "gtFine/{split}/{stem}_gtFine_labelIds.png", ("train", "val"))

    def outside(self) -> dict[str, str]:
        return self.layout().outside()

    def class_count(self) -> int:
        return len(CLASSES)

    def write(self, out: Path, size: tuple[int, int] | None, limit: int | None, job: Any) -> tuple[dict, dict]:
        from stages.sources._classes import class_table
        from stages.sources._index import write_index

        ids, colours = zip(*CLASSES.values(), strict=True)
        source = "a class table of your own (source kind: folder)"
        table = class_table(list(CLASSES), colours, [[i] for i in ids], IGNORED, source=source)
        facts, beside = write_index(self.layout(), table, out, size, limit, job)
        return {"source": "cityscapes", **facts}, beside
