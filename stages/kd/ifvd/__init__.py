"""Intra-class feature variation: a pixel is to be as typical of its class to the student as it is to the teacher.

Wang, Zhou, Jiang, Bai, Xu, "Intra-class Feature Variation Distillation for Semantic Segmentation" (ECCV 2020), its distillation term in
the form of CIRKD's code, on the features F before the last classifier. For every image the centre of class k is
    m_k = mean of F_p over the pixels with label k,        c_p = cos(F_p, m of p's label),        1 where the label is ignored
    L = mean over images and all their pixels, ignored ones too, of (c_student - c_teacher)^2
The gradient flows through the centres as well. Nothing is projected: cosines are numbers. For the pixel-wise part of the paper put
{kind: pixel} beside it; its adversarial part is not here.

Ours ([RECON]): the label of a cell is the one in its middle (the code takes the top left one); a pixel without any activity has cosine 0
and gets no gradient; a student of another stride is brought to the teacher's grid first. The code adds 1e-6 to the size of a class, which
no cosine sees.
"""

from typing import ClassVar, Literal

from pydantic import Field

from stages.kd import Loss


class Ifvd(Loss):
    """(20, mean over all pixels, also the ignored)."""

    kind: Literal["ifvd"]
    version: ClassVar[int] = 1

    weight: float = Field(20.0, gt=0, description="Factor of the mean squared difference of cosines to the class centres.")

    def reads(self):
        return {"head"}

    def build(self, pair):
        from .loss import Variation

        return Variation(self.weight, pair.classes)
