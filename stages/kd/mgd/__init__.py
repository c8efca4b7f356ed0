"""Masked generative distillation: from a part of its pixels the student's features must give back all of the teacher's.

Yang, Li, Shao, Shi, Yuan, Yuan, "Masked Generative Distillation" (ECCV 2022), on c4:

    mgd = 1 / B * sum of (G(m * A(F^s)) - F^t)^2        a sum over channels and pixels, hence the small weight

A: 1x1 to the teacher's width where widths differ; m: per pixel 1 with probability 1 - mask, else 0; G: 3x3, ReLU, 3x3. Matched is the
authors' released code, whose segmentation recipe adds {kind: cwd} on the logits (T = 4, weight 3). G at the width of a ResNet-101 costs
as much as the teacher's own forward: `hidden` makes its middle narrower, which is ours.
"""

from typing import ClassVar, Literal

from pydantic import Field

from stages.kd import Loss


class Mgd(Loss):
    kind: Literal["mgd"]
    version: ClassVar[int] = 2

    weight: float = Field(2e-5, gt=0, description="Factor of the squared error, summed over channels and pixels, mean over images.")
    mask: float = Field(0.75, ge=0, lt=1, description="Share of the pixels that are hidden from the generator.")
    hidden: int | None = Field(None, ge=1, description="Channels between its two convolutions; null takes the teacher's width.")

    def reads(self):
        return {"c4"}

    def build(self, pair):
        from .loss import Masked

        return Masked(self.weight, self.mask, pair.student["c4"], pair.teacher["c4"], self.hidden or pair.teacher["c4"])
