"""Channel-wise distillation: the student looks for each class, or each feature, where the teacher looks for it.

Shu, Liu, Gao, Yan, Shen, "Channel-wise Knowledge Distillation for Dense Prediction" (ICCV 2021), for maps of C channels:
T^2 / (B * C) * sum of KL(softmax over pixels of teacher / T || the same of student / T).
`at: logits` takes the class maps. `at: head` takes the features before the last classifier, in the teacher's width: where the student's
is another, a 1x1 convolution without bias that is trained along (as in the code of CIRKD; the authors' has BatchNorm and ReLU after it).
"""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from stages.kd import Loss

USUAL = {"logits": 3.0, "head": 50.0}  # weights in the code of CIRKD


class Cwd(Loss):
    """(3 at the logits or 50 at the head, sum over pixels, mean over images and channels)."""

    kind: Literal["cwd"]
    version: ClassVar[int] = 4

    weight: float = Field(
        USUAL["logits"],
        gt=0,
        description="Factor of the term. Where it is not said: 3 at the logits, 50 at the head; a tenth of that is usual for SegFormer.",
    )
    temperature: float = Field(4.0, gt=0, description="Softens both maps (no unit); the term is multiplied by its square.")
    at: Literal["logits", "head"] = Field("logits", description="Compare the class maps, or the features before the last classifier.")

    @model_validator(mode="before")
    @classmethod
    def usual_weight(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("at", "logits") not in tuple(USUAL):
            return given  # pydantic will say what is wrong
        return {"weight": USUAL[given.get("at", "logits")]} | given

    def reads(self):
        return {self.at} - {"logits"}

    def build(self, pair):
        from .loss import ChannelWise

        return ChannelWise(self.weight, self.temperature, self.at, pair)
