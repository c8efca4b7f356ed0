"""Structured knowledge distillation: two pixels are to be as alike to the student as they are to the teacher.

Liu, Chen, Liu, Qin, Luo, Wang, "Structured Knowledge Distillation for Semantic Segmentation" (CVPR 2019, TPAMI 2020), its pair-wise part
in the form of CIRKD's code: features before the last classifier, max-pooled 2x2 to n nodes, f = pooled / |pooled| over channels,
    L = 1 / (B n^2) * sum over images and pairs of nodes i, j of (f_i . f_j of the student - f_i . f_j of the teacher)^2
For the pixel-wise part put {kind: pixel} beside it. The adversarial ("holistic") part, which needs a discriminator and an optimizer of
its own, is not here.

The n x n likenesses never exist: with F (C, n) of an image, |Fs'Fs - Ft'Ft|^2 = |Fs Fs'|^2 + |Ft Ft'|^2 - 2 |Fs Ft'|^2 exactly, of C x C.
Ours ([RECON]): an odd last row or column is a node of its own; a node without any activity has no direction, and gets no gradient; a
student of another stride is brought to the teacher's grid before pooling.
"""

from typing import ClassVar, Literal

from pydantic import Field

from stages.kd import Loss


class Skd(Loss):
    """(10, mean over images and pairs of nodes)."""

    kind: Literal["skd"]
    version: ClassVar[int] = 1

    weight: float = Field(10.0, gt=0, description="Factor of the mean squared difference of the cosines of pairs.")

    def reads(self):
        return {"head"}

    def build(self, pair):
        from .loss import PairWise

        return PairWise(self.weight)
