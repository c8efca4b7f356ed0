"""Street scenes drawn by this program, so that every recipe runs anywhere without a download."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from stages.sources import Source

NATIVE = (256, 512)  # (height, width) when a recipe asks for native: the scenes have no size of their own

CLASSES = {  # name -> colour in pictures of labels
    "road": (112, 80, 140),
    "marking": (240, 240, 255),
    "pavement": (235, 90, 200),
    "building": (120, 60, 40),
    "fence": (200, 150, 110),
    "pole": (255, 215, 0),
    "sign": (255, 110, 0),
    "vegetation": (60, 150, 60),
    "sky": (90, 170, 230),
    "person": (230, 20, 50),
    "bicycle": (0, 230, 200),
    "car": (20, 30, 200),
}


class Streets(Source):
    """Perspective, occlusion, day and dusk, shadows, haze, and colours that mislead: scene i of a split depends on nothing else."""

    kind: Literal["streets"] = "streets"
    seed: int = Field(0, ge=0, lt=2**32, description="Which world is drawn: another seed gives other scenes of the same kind.")
    train: int = Field(1000, ge=1, le=100_000, description="Number of training scenes.")
    val: int = Field(200, ge=1, le=100_000, description="Number of validation scenes.")
    test: int = Field(200, ge=0, le=100_000, description="Number of test scenes; 0 leaves the split out.")

    def class_count(self) -> int:
        return len(CLASSES)

    def write(self, out: Path, size: tuple[int, int] | None, limit: int | None, job: Any) -> tuple[dict, dict]:
        from stages.sources._pixels import write_pixels
        from stages.sources.streets.draw import draw

        size = size or NATIVE
        counts = {"train": self.train, "val": self.val, "test": self.test}
        counts = {split: min(n, limit or n) for split, n in counts.items() if n}

        def scenes(split: str):
            for i in range(counts[split]):
                yield f"{split}_{i:05d}", *draw(self.seed, split, i, size)

        facts = write_pixels(out, counts, scenes, len(CLASSES), job)
        return {"source": "streets", "classes": list(CLASSES), "colours": [list(c) for c in CLASSES.values()], **facts}, {}
