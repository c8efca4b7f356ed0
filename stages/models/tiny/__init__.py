"""A small residual network in two sizes, so that a teacher and a student train in minutes on two CPU cores."""

from typing import ClassVar, Literal

from pydantic import Field

from stages.models import Model


class Tiny(Model):
    kind: Literal["tiny"]
    size: Literal["small", "large"] = Field("small", description="small: a student of 30 k parameters; large: its teacher of 0.9 M.")
    align_corners: bool = Field(False, description="How maps are enlarged.")

    head_keys: ClassVar[tuple[str, ...]] = ("lateral.", "fuse.", "classifier.", "aux_classifier.")

    def build(self, classes: int):
        from .net import TinyNet

        return TinyNet(self.size, classes, self.align_corners, self.aux)
