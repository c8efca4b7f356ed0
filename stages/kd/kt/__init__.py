"""Knowledge Tailoring: what the teacher knows is cut to what the student can wear, in its logits by the labels, in its features by how
alike channels of the two networks are.

Cheung, Woo, Kim, Hwang, "Knowledge tailoring: Bridging the teacher-student gap in semantic segmentation" (Pattern Recognition 172,
2026). The equations are those of the released code; the paper's were not to be had.

With CKL(t, s) = T^2 / (B C) * sum over images and channels of KL(softmax over pixels of t / T || the same of s / T):
    kt_channel    CKL(teacher's logits, student's) + 0.4 * CKL of the auxiliary logits, where both networks have them
    kt_logit      the student follows logits that are raised inside the labels of a class and capped outside: kernels/logit_tailoring
    kt_feature, kt_contrast    on the inputs of the last classifiers, student F (c_s, P) and teacher D (c_t, P) per image, P pixels:
        M = cosines of the channels of F and D over the pixels, (c_s, c_t)
                        before `switch`: F in the teacher's width           from `switch` on: D in the student's width
        high, low       M^T F, (1 - M^T) F           (c_t, P)               M D, (1 - M) D           (c_s, P)
        kt_feature      CKL(D, G(high))                                     CKL(G'(high), F), G'(high) a constant
        kt_contrast     triplet(R F, G(high), G(low))                       triplet(F, G'(high), G'(low)), with gradient through M
    G, G': three 1x1 convolutions with ReLU between them, half as wide inside; R: a 1x1 convolution without bias to the teacher's width
    triplet(a, p, n) = mean of max(0, d(a, p) - d(a, n) + 1), d the Euclidean distance of two rows of a map
The code's loss counts all four alike and, as here, leaves G, G' and R as they were drawn; whether the paper trains them is unknown.
"""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.kd import Loss

TERMS = ("channel", "logit", "feature", "contrast")


class Kt(Loss):
    """`weight`s are factors of terms that are summed over pixels and averaged over images and channels, times T^2; that of `contrast`
    is the factor of a mean over rows. The code's are 1 throughout."""

    kind: Literal["kt"]
    version: ClassVar[int] = 2

    channel: float = Field(1.0, ge=0, description="Weight of kt_channel, the KL over the pixels of each class; 0 leaves it out.")
    logit: float = Field(1.0, ge=0, description="Weight of kt_logit, the same against logits tailored by the labels; 0 leaves it out.")
    feature: float = Field(1.0, ge=0, description="Weight of kt_feature, the KL over the pixels of tailored features; 0 leaves it out.")
    contrast: float = Field(1.0, ge=0, description="Weight of kt_contrast, alike channels nearer than unlike ones; 0 leaves it out.")
    temperature: float = Field(4.0, gt=0, description="Softens all maps over pixels (no unit); those terms are multiplied by its square.")
    switch: float = Field(
        0.25, ge=0, le=1, description="From this fraction of the steps on the teacher is cut to the student's width, no longer the reverse."
    )
    trainable: bool = Field(False, description="Train the tailoring networks too; false keeps them as random projections, as released.")

    @model_validator(mode="after")
    def something(self) -> Self:
        if not any(getattr(self, name) for name in TERMS):
            raise ValueError(f"the weights {', '.join(TERMS)} are all 0, so that nothing is left of kt: give one a weight or remove it")
        return self

    def reads(self):
        return {"head"} if self.feature or self.contrast else set()

    def build(self, pair):
        from .loss import KnowledgeTailoring

        return KnowledgeTailoring(self, pair)
