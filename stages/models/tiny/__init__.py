"""A small residual network in two sizes, so that a teacher and a student train in minutes on two CPU cores."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.stage import Later
from stages.models import Model


class Tiny(Model):
    kind: Literal["tiny"]
    size: Literal["small", "large"] = Field("small", description="small: a student of 30 k parameters; large: its teacher of 0.9 M.")
    align_corners: bool = Field(False, description="How maps are enlarged.")
    aux: Annotated[bool, Later()] = Field(False, description="Whether there is an auxiliary head on c3; an exported graph lacks it.")

    head_keys: ClassVar[tuple[str, ...]] = ("lateral.", "fuse.", "classifier.", "aux_classifier.")
    aux_keys: ClassVar[tuple[str, ...]] = ("aux_classifier.",)

    def taps(self) -> set[str]:
        return super().taps() | ({"aux"} if self.aux else set())

    def build(self, classes: int):
        from .net import TinyNet

        return TinyNet(self.size, classes, self.align_corners, self.aux)
