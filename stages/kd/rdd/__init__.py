"""Relative Difficulty Distillation: the teacher chooses which pixels the labels teach, easy ones first, then those that only one of the
two networks finds hard. No new objective: it owns the task loss.

Liang, Sun, Du, Chen, Huang, "Relative Difficulty Distillation for Semantic Segmentation" (SCIS 2024, arXiv 2407.03719). With CE_p the
student's cross-entropy at label pixel p, 0 where ignored, of B images of H x W:
    first stage     R = exp(-D), D = KL(softmax of the teacher's auxiliary logits || softmax of its logits) on their grid, or the reverse
                    loss = 1 / (B H W) * sum_p R_p CE_p, R enlarged bilinearly
    second stage    a network finds p hard where its confidence is at most max(threshold, K-th smallest confidence of the batch)
                    M = hard for one network only (xor); loss = sum over M of w_p CE_p / sum over M of w_p, w the weight of p's class
Both once more for the student's auxiliary head: the first stage with the same R, the second with the auxiliary heads' confidences.
Preset `code` is the released code; `paper` is what the paper says, which differs in the direction of D, in taking the confidence of
the most likely class where the code takes the label's, in K = 0 and in dividing by B H W. The code also weighs Cityscapes' 19 classes
in the second stage, by numbers we do not have: `class_weights` is off unless given. Both stand beside plain pixel distillation: add
{kind: pixel, at: logits, temperature: 1} to the losses. Onto a teacher without an auxiliary head one can be trained: a stage of kind
`train` with `frozen`.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from stages.kd import Need, Task, filled

PRESETS = {
    "code": {},
    "paper": {"direction": "main_to_aux", "confidence": "max_prob", "min_kept_frac": 0.0, "norm": "all_pixels"},
}


class Rdd(Task):
    """Without a factor, as the cross-entropy it stands for. Its scale: `norm: selected` is a mean over the selected pixels, and several
    times that of `all_pixels`."""

    kind: Literal["rdd"]
    version: ClassVar[int] = 1

    preset: Literal["code", "paper"] = Field("code", description="Whose settings to take: the released code's, or those the paper states.")
    tfe: float = Field(0.1, ge=0, le=1, description="Fraction of the steps that the first stage lasts; 0 is the second stage alone.")
    switch: Literal["hard", "linear"] = Field(
        "hard", description="From the first stage to the second at once, or evenly over all steps that remain."
    )
    difficulty: Literal["aux", "entropy"] = Field(
        "aux", description="D of the first stage: what the teacher's heads disagree, or its entropy as a fraction of the greatest."
    )
    direction: Literal["aux_to_main", "main_to_aux"] = Field(
        "aux_to_main", description="D is the KL of the auxiliary head's classes to the main one's, or the reverse."
    )
    threshold: float = Field(0.7, ge=0, le=1, description="A pixel is hard up to this confidence (a probability).")
    confidence: Literal["gt_prob", "max_prob"] = Field(
        "gt_prob", description="A network's confidence: the probability of the label, or of the most likely class."
    )
    min_kept_frac: float = Field(
        100_000 / (4 * 512 * 1024),
        ge=0,
        le=1,
        description="K, as a fraction of a batch's pixels: each network finds so many hard at least. The code: 100,000 of 4 x 512 x 1024.",
    )
    mode: Literal["xor", "or", "and", "ohem"] = Field(
        "xor", description="Selects what one network alone finds hard, any, both, or the student whatever the teacher finds."
    )
    norm: Literal["selected", "all_pixels"] = Field(
        "selected", description="What the second stage's sum is divided by: the selected pixels, or all of the batch."
    )
    class_weights: list[Annotated[float, Field(gt=0)]] | None = Field(
        None, description="Weight of each class's pixels in the second stage, one number per class; null counts all alike."
    )
    aux_weight: float = Field(0.4, ge=0, description="Weight of the same loss on the student's auxiliary head, where it has one.")

    @model_validator(mode="before")
    @classmethod
    def named(cls, given):
        return filled(given, PRESETS, "code")

    def needs(self):
        if self.difficulty == "entropy" or (self.tfe == 0 and self.switch == "hard"):
            return []
        otherwise = "train one onto it (a stage of kind train with frozen:), or set difficulty: entropy, or tfe: 0 with switch: hard"
        return [Need("teacher", "aux", otherwise)]

    def misfits(self, classes):
        given = self.class_weights
        if classes is None or given is None or len(given) == classes:
            return []
        return [(("class_weights",), f"holds {len(given)} numbers and the data {classes} classes: give one for each")]

    def build(self, pair):
        from .loss import RelativeDifficulty

        return RelativeDifficulty(self, pair)
