"""HeteroAKD: teacher and student of different kinds (a transformer, a CNN) meet where their features have been made into logits.

"Distilling Knowledge from Heterogeneous Architectures for Semantic Segmentation" (AAAI 2025, arXiv 2504.07691). Matched are the last
backbone features c4 of both networks, projected to C classes. P = 1x1 convolution without bias, then BatchNorm. Everything lies
on the student's grid (h, w), to which Z_t is brought bilinearly; Y are the labels there, and the means go over cells with a label:
    Z_s = P_s(c4 of the student), Z_t = P_t(c4 of the teacher)            (B, C, h, w)
    H(Z) = softplus(Z) - Z Y;   S = H(Z_s) / (H(Z_s) + H(Z_t));   Z_h = S Z_t + (1 - S) Z_s             entry by entry
    Omega = softmax_c(H(Z_s) + relu(H(Z_s) - H(Z_h)));   q, p = softmax_c(Z_h / T), softmax_c(Z_s / T)
    heteroakd        T^2 mean of -sum_c Omega q log p                     "wce"
                     T^2 mean of sum_c Omega KL(sigmoid(Z_h / T) || sigmoid(Z_s / T))      "bernoulli"
    heteroakd_proj   mean CE(Z_s, Y) + mean CE(Z_t, Y)
    heteroakd_pixel  mean over all pixels of the teacher's logit grid of KL(softmax(teacher's logits) || softmax(student's))
S, Z_h and Omega are constants for the gradient: P_t learns by heteroakd_proj alone, and that, without mixture, for a while first.

There is no released code. The paper's abstract says what is mixed and evaluated; projectors, H, S, Z_h and the argument of Omega's
softmax are those in which two independent implementations agree. Where these differ, "wce" with Omega over classes is one's reading of
the paper, "bernoulli" the other's replacement. The weight of heteroakd_pixel is the paper's by one of them. heteroakd_proj (both have
it, the paper does not), the warm-up and `label_down: area` are our reconstruction. Not offered: Omega over pixels instead of classes,
and the weighted KL in place of the cross-entropy, which is no divergence (at T = 4 it is negative at most pixels).
"""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.kd import Loss, When


class Heteroakd(Loss):
    """Weights are for means over cells (heteroakd, with its T^2, and heteroakd_proj) and over pixels (heteroakd_pixel)."""

    kind: Literal["heteroakd"]
    version: ClassVar[int] = 2

    weight: float = Field(1.0, gt=0, description="Factor of the mixture's term; with wce its gradient falls as 1 / classes.")
    proj_weight: float = Field(
        1.0, gt=0, description="Factor of the projectors' cross-entropy with the labels, without which P_t never learns."
    )
    pixel_weight: float = Field(0.1, ge=0, description="Factor of the plain KL between both networks' logits; 0 leaves it out.")
    temperature: float = Field(4.0, gt=0, description="Softens mixture and student (no unit); the term is multiplied by its square.")
    form: Literal["wce", "bernoulli"] = Field(
        "wce",
        description="wce: a weighted cross-entropy, as the paper; bernoulli: a divergence, least where the student says the mixture.",
    )
    label_down: Literal["area", "nearest"] = Field(
        "area", description="Labels of a cell of c4's grid: the shares of all its labelled pixels, or the one in its middle."
    )
    projector_relu: bool = Field(False, description="End projectors in a ReLU, as the paper: no map can then say that a class is absent.")
    warm_up: float = Field(0.05, ge=0, lt=1, description="Fraction of the steps, from when.start on, in which only the projectors learn.")
    ramp: float = Field(
        0.025, ge=0, lt=1, description="Fraction of the steps after the warm-up in which the mixture's weight grows to full."
    )

    @model_validator(mode="after")
    def in_time(self) -> Self:
        if self.when.start + self.warm_up + self.ramp >= self.when.end:
            raise ValueError(
                f"when.start {self.when.start} + warm_up {self.warm_up} + ramp {self.ramp} must lie before when.end {self.when.end}: "
                "lower warm_up or ramp"
            )
        return self

    def reads(self):
        return {"c4"}

    def build(self, pair):
        from .loss import HeteroAKD

        return HeteroAKD(
            (pair.student["c4"], pair.teacher["c4"]),
            pair.classes,
            weights=(self.weight, self.proj_weight, self.pixel_weight),
            temperature=self.temperature,
            form=self.form,
            area=self.label_down == "area",
            relu=self.projector_relu,
            mixes=When(start=self.when.start + self.warm_up, rise=self.ramp),
        )
