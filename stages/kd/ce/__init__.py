"""The usual task loss: cross-entropy at label resolution."""

from typing import ClassVar, Literal

from pydantic import Field

from stages.kd import Task


class Ce(Task):
    kind: Literal["ce"]
    version: ClassVar[int] = 3
    needs_teacher: ClassVar[bool] = False

    aux_weight: float = Field(0.4, ge=0, description="Weight of the same loss on the student's auxiliary head, where it has one.")

    def build(self, pair):
        from .loss import CrossEntropy

        return CrossEntropy(self.aux_weight if "aux" in pair.student else 0.0)
