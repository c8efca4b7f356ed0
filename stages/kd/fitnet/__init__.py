"""Hints: the student's features before the last classifier, through a linear map of its own, are to be the teacher's.

Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets" (ICLR 2015), as segmentation benchmarks use it
(sourced from the code of CIRKD): beside the task loss all along, not as a stage before it. With features F (B, C, h, w) of both networks
    L = mean over images, teacher's channels and pixels of (W F_student - F_teacher)^2,         W a 1x1 convolution without bias
Where both are equally wide there is no W. A student of another stride is brought to the teacher's grid first (ours, [RECON]).
"""

from typing import ClassVar, Literal

from pydantic import Field

from stages.kd import Loss


class FitNet(Loss):
    """(10, mean over all entries of the teacher's features)."""

    kind: Literal["fitnet"]
    version: ClassVar[int] = 2

    weight: float = Field(10.0, gt=0, description="Factor of the mean squared difference; 1 to 10 is usual.")

    def reads(self):
        return {"head"}

    def build(self, pair):
        from .loss import Hints

        return Hints(self.weight, pair)
