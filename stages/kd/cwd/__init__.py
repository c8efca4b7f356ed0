"""Channel-wise distillation: the student looks for each class where the teacher looks for it.

Shu, Liu, Gao, Yan, Shen, "Channel-wise Knowledge Distillation for Dense Prediction" (ICCV 2021), on the logits:
T^2 / (B * C) * sum of KL(softmax over pixels of teacher / T || the same of student / T).
"""

from typing import ClassVar, Literal

from pydantic import Field

from stages.kd import Loss


class Cwd(Loss):
    kind: Literal["cwd"]
    version: ClassVar[int] = 2

    weight: float = Field(3.0, gt=0, description="Factor of the term beside the task loss; 3 is usual for CNNs, 0.3 for SegFormer.")
    temperature: float = Field(4.0, gt=0, description="Softens both maps (no unit); the term is multiplied by its square.")

    def build(self, pair):
        from .loss import ChannelWise

        return ChannelWise(self.weight, self.temperature)
