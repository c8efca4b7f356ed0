"""The usual task loss: cross-entropy at label resolution."""

from typing import ClassVar, Literal

from pydantic import Field

from stages.kd import Method


class Ce(Method):
    kind: Literal["ce"]
    version: ClassVar[int] = 2
    role: ClassVar[str] = "task"

    aux_weight: float = Field(0.4, ge=0, description="Weight of the same loss on the student's auxiliary head, where it has one.")

    def build(self, student, teacher, classes):
        from .loss import CrossEntropy

        return CrossEntropy(self.aux_weight if "aux" in student else 0.0)
