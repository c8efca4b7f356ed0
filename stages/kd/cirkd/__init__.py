"""Cross-image relational distillation: how alike pixels are, within a batch and to a memory of earlier ones.

Yang, Zhou, An, Jiang, Xu, Zhang, "Cross-Image Relational Knowledge Distillation for Semantic Segmentation" (CVPR 2022), first
version. With unit features f of the last classifier's input, T = 0.1:

    cirkd         1 / (B^2 M) sum over ordered pairs of images and pixels m of KL(softmax(S^t_ij[m] / T) || softmax(S^s_ij[m] / T)),
                  S_ij = f_i f_j^T between all pixels of two images
    cirkd_pixel   the mean over labelled pixels of KL(softmax(f^t Q^T / T) || softmax(P(f^s) Q^T / T)), Q remembered pixels of the
                  teacher, as many of each class; P a train-only projector (1x1, BatchNorm, ReLU, 1x1)
    cirkd_region  the same with Q remembered class means of single images

Sourced from the authors' code, but for these: pixels are remembered under their own class (both public copies fill every class with
the first pixels of the image); slots not yet filled take no part (there they hold noise for about the first thousand steps). Ours
([RECON]), for we know the code by description only: what a step remembers takes part in that step, Q is drawn with replacement, f^t is
made a unit vector before class means are taken, and a student of another stride is brought to the teacher's grid. The pixel KL of the
authors' recipe is {kind: pixel, at: logits} beside this.
"""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.kd import Loss


class Cirkd(Loss):
    kind: Literal["cirkd"]
    version: ClassVar[int] = 2

    weight: float = Field(1.0, ge=0, description="Factor of the term between the images of a batch; 0 leaves it out.")
    pixel_weight: float = Field(0.1, ge=0, description="Factor of the term against remembered pixels; 0 leaves it out.")
    region_weight: float = Field(0.1, ge=0, description="Factor of the term against remembered class means; 0 leaves it out.")
    temperature: float = Field(0.1, ge=0.025, description="Sharpens the cosines (no unit).")
    pool: int = Field(
        1, ge=1, description="Side in cells over which features are averaged before the term between images, whose cost falls with pool^4."
    )
    queue: int = Field(2000, ge=16, description="Pixels, and class means, remembered per class; the authors' CNN recipe has 20000 pixels.")

    @model_validator(mode="after")
    def something(self) -> Self:
        if not (self.weight or self.pixel_weight or self.region_weight):
            raise ValueError("weight, pixel_weight and region_weight are all 0, so that nothing is left of cirkd: raise one or remove it")
        return self

    def reads(self):
        return {"head"}

    def build(self, pair):
        from .loss import CrossImage

        weights = {"cirkd": self.weight, "cirkd_pixel": self.pixel_weight, "cirkd_region": self.region_weight}
        return CrossImage(weights, self.temperature, self.pool, self.queue, pair.student["head"], pair.teacher["head"], pair.classes)
