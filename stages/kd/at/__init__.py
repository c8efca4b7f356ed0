"""Attention transfer: the student is to be active at the pixels where the teacher is, whatever the channels say.

Zagoruyko, Komodakis, "Paying More Attention to Attention" (ICLR 2017), on the features before the last classifier (sourced from the
code of CIRKD). With features F (B, C, h, w), N = h * w pixels and, for every image, the map of N numbers
    a_p = sum over channels of F_cp^2 / C,        unit(a) = a / |a|  (L2 over the N pixels)
    L = mean over images and pixels of (unit(a_student) - unit(a_teacher))^2
The widths need not agree. A student of another stride is brought to the teacher's grid first (ours, [RECON]).
"""

from typing import ClassVar, Literal

from pydantic import Field

from stages.kd import Loss


class AttentionTransfer(Loss):
    """(10000, mean over images and pixels): entries of unit vectors over N pixels, so that the mean itself is of the order of 1 / N."""

    kind: Literal["at"]
    version: ClassVar[int] = 1

    weight: float = Field(10000.0, gt=0, description="Factor of the mean squared difference, which is below 2 / pixels.")

    def reads(self):
        return {"head"}

    def build(self, pair):
        from .loss import Attention

        return Attention(self.weight)
