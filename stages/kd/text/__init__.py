"""Text-assisted distillation (TCD and TRD): language is the space in which teacher and student are compared, beside any other loss.

After "text-channel" and "text-region distillation" (Pattern Recognition 2025). Only its abstract was at hand: a CLIP text encoder
supplies priors, two plug-in modules for channels and for regions act as a bridge from teacher to student. EVERY EQUATION, WEIGHT AND
SCHEDULE BELOW IS OUR RECONSTRUCTION; none was compared with the paper or with code.

Row T_k is the text vector of class k, of length 1 (a stage of kind embed), E = the rows of T minus their mean, again of length 1
(`center`). Each network's `head` F is brought to T's width by a 1x1 convolution g of its own, both trained, never exported. At pixel p
    u_p = g(F)_p / |g(F)_p|    zeros where g(F)_p is no longer than 1e-6        M_k(p) = 1/0.07 <u_p, E_k>    "text maps", (B, K, h, w)
with labels y read in the middle of each cell of a network's own grid:
    text_align   = CE(M^s, y) + CE(M^t, y)                        each a mean over the cells with a label
    text_channel = T^2 / (B K) * sum over images i and classes k of w_ik KL(softmax over pixels of M^t_ik / T || the same of M^s_ik / T)
    text_region  = Tr^2 * mean over the regions (i, k) of KL(q^t_ik || q^s_ik)
                   q_ik = softmax over classes of 1/0.07 E rho_ik / Tr,   rho_ik = mean of u over the cells with label k, of length 1
text_channel meets on the teacher's grid, over the pixels with a label; w_ik is 1, or `absent` where image i shows no pixel of class k. A
region is there when it has `least` cells on both grids. `prior` a replaces q^t_ik by (1 - a) q^t_ik + a softmax of <T_k, T> / 0.05.
The teacher's side is constant in both, so that its convolution learns from its own CE alone: were it to learn from them as well, both
networks could agree on maps that say nothing. They count once `warmup` has passed since when.start, and grow to full over `ramp`.
"""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.kd import Loss


class Text(Loss):
    """Reductions: text_align per labelled cell, text_channel per image and class, text_region per region of the batch."""

    kind: Literal["text"]
    version: ClassVar[int] = 3
    needs_text: ClassVar[bool] = True

    align_weight: float = Field(0.4, gt=0, description="Factor of text_align; without it neither projection would learn to read.")
    channel_weight: float = Field(1.0, ge=0, description="Factor of text_channel, where each class is looked for; 0 leaves it out.")
    region_weight: float = Field(1.0, ge=0, description="Factor of text_region, what each labelled region is called; 0 leaves it out.")
    temperature: float = Field(4.0, gt=0, description="Softens the maps of text_channel (no unit); the term is multiplied by its square.")
    region_temperature: float = Field(2.0, gt=0, description="The same for the names of text_region.")
    absent: float = Field(
        1.0, ge=0, le=1, description="Factor in text_channel of classes that an image does not show (try 0.2); 1: as others."
    )
    least: int = Field(
        16, ge=1, description="Cells of the head's grid that a region needs, on either network's grid; not scaled by stride."
    )
    prior: float = Field(
        0.0, ge=0, lt=1, description="Share of the likeness of the names themselves in the target of text_region (try 0.1)."
    )
    center: bool = Field(True, description="Take away the mean of the text vectors first: as they come they are alike (cosines near 0.8).")
    warmup: float = Field(0.025, ge=0, le=1, description="Fraction of the steps, from when.start on, with text_align alone.")
    ramp: float = Field(0.025, ge=0, le=1, description="Fraction of the steps after that over which the other terms grow to full.")

    @model_validator(mode="after")
    def something(self) -> Self:
        if not (self.channel_weight or self.region_weight):
            raise ValueError(
                "channel_weight and region_weight are both 0, so that nothing is learnt from the teacher: raise one or remove it"
            )
        return self

    @model_validator(mode="after")
    def in_time(self) -> Self:
        begins = self.when.start + self.warmup
        if begins >= self.when.end or begins + self.ramp > self.when.end:
            raise ValueError(
                f"when.start {self.when.start} + warmup {self.warmup} + ramp {self.ramp} must end by when.end {self.when.end}, "
                "and warmup before it: lower warmup or ramp"
            )
        return self

    def reads(self):
        return {"head"}

    def build(self, pair):
        from .loss import TextDistillation

        return TextDistillation(self, pair)
