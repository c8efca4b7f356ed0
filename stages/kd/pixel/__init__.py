"""Pixel-wise distillation: every pixel is a classification, taught by the teacher's softened class probabilities.

Hinton, Vinyals, Dean (2015), for each pixel: T^2 * mean KL(softmax(teacher / T) || softmax(student / T)) over classes.
`at: logits` is the form of segmentation benchmarks: on the logits' own grid, over all pixels. `at: labels` compares where the
task loss looks: upsampled, over the pixels with a label.
"""

from typing import ClassVar, Literal

from pydantic import Field

from stages.kd import Loss


class Pixel(Loss):
    kind: Literal["pixel"]
    version: ClassVar[int] = 3

    weight: float = Field(1.0, gt=0, description="Factor of the term beside the task loss.")
    temperature: float = Field(
        1.0,
        gt=0,
        description="Softens both distributions (no unit); the term is multiplied by its square, so high values drown the labels.",
    )
    at: Literal["labels", "logits"] = Field(
        "labels", description="Compare at label resolution over labelled pixels, or on the teacher's logit grid over all pixels."
    )

    def maps(self):
        return {("kl", self.temperature)} if self.at == "labels" else set()

    def build(self, pair):
        from .loss import AtLabels, AtLogits

        return (AtLabels if self.at == "labels" else AtLogits)(self.weight, self.temperature)
