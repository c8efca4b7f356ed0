"""DIST: the student's probabilities are to rise and fall with the teacher's, not to equal them.

Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher" (NeurIPS 2022). With P = softmax over classes of logits / T,
as rows r (all pixels of all images, R of them) and columns k (classes), and Pearson's correlation rho,
    inter = 1 - mean over rows r of rho(P_student[r, :], P_teacher[r, :])           between the classes of a pixel
    intra = 1 - mean over classes k of rho(P_student[:, k], P_teacher[:, k])        between the pixels of a class, over the whole batch
and the same, 0.4 times, on the auxiliary logits where both networks have them (sourced: code of DIST). No pixel is left out for its label.

rho = <x - mean x, y - mean y> / (|x - mean x| |y - mean y| + 1e-8). What varies by less than a millionth of its mean is only rounding:
there rho is 0 without a gradient (ours, [RECON]; divided by 1e-8, noise would weigh a million). Means are subtracted before anything is squared: the probabilities of a rare class vary by 1e-4, whose squares a difference
of raw moments loses in float32. No factor T^2: a correlation does not shrink with the logits, so its gradient does not either.
On the teacher's logit grid (ours, [RECON], where strides differ); "intra" is over the images of one process, as in the code.
"""

from typing import ClassVar, Literal

from pydantic import Field

from stages.kd import Loss


class Dist(Loss):
    """(1, mean over pixels) for inter and (1, mean over classes) for intra; each lies in 0 .. 2."""

    kind: Literal["dist"]
    version: ClassVar[int] = 1

    weight: float = Field(1.0, gt=0, description="Factor of both terms, inter and intra.")
    temperature: float = Field(1.0, gt=0, description="Softens both distributions (no unit).")
    aux_weight: float = Field(0.4, ge=0, description="Times `weight`: the factor on the auxiliary logits, where both networks have them.")

    def build(self, pair):
        from .loss import Correlation

        both = "aux" in pair.student and "aux" in pair.teacher
        return Correlation(self.weight, self.temperature, self.aux_weight if both else 0.0)
