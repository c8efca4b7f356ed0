"""Augmentation-free dense contrastive distillation: generated features close to the teacher's, each group of channels apart from others.

Fan, Li, Li, Yao, "Augmentation-free Dense Contrastive Knowledge Distillation for Efficient Semantic Segmentation" (NeurIPS 2023),
on c4, as far as the authors' released code was described to us:

    afdcd          1 / B * sum of (G - F^t)^2, G generated from the student's masked features as in `mgd`, by four convolutions
    afdcd_contrast the mean over samples i of -log(exp(l_ii) / (exp(l_ii) + sum over j of another group of exp(l_ij))),
                   l_ij = -|G_i - F^t_j|_1 / T

Samples are the 16 positions of a 4x4 patch of the max-pooled maps times 16 groups of channels, so 256 per patch; same group at another
position is neither positive nor negative. Ours ([RECON]): that all four convolutions are 3x3 with ReLU between them; maps too small to
pool by 4 are pooled less, and small maps give smaller patches; groups are as many as divide both 16 and the width. An odd
width makes none, which only a network of transformers can have: it knows its widths once it is built, and so it is told when the
stage starts. The authors' recipe has {kind: pixel, at: logits} beside it.
"""

from typing import ClassVar, Literal

from pydantic import Field

from stages.kd import Loss


class Afdcd(Loss):
    kind: Literal["afdcd"]
    version: ClassVar[int] = 2

    weight: float = Field(2e-6, gt=0, description="Factor of the squared error, summed over channels and pixels, mean over images.")
    contrast_weight: float = Field(0.005, ge=0, description="Factor of the contrast, mean over samples; 0 leaves it out.")
    temperature: float = Field(0.07, gt=0, description="Sharpens the distances (no unit).")
    mask: float = Field(0.75, ge=0, lt=1, description="Share of the pixels that are hidden from the generator.")
    hidden: int | None = Field(
        None, ge=1, description="Channels between the generator's four convolutions; null takes the teacher's width."
    )

    def reads(self):
        return {"c4"}

    def build(self, pair):
        from .loss import DenseContrast

        widths = pair.student["c4"], pair.teacher["c4"], self.hidden or pair.teacher["c4"]
        return DenseContrast(self.weight, self.contrast_weight, self.temperature, self.mask, *widths)
