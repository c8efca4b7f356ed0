"""DeepLabV3 (Chen et al. 2017) on dilated backbones, taking torchvision's published weights as they are (in safetensors)."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from stages.models import MEAN, STD, Model, Triple
from stages.models._torchvision import ours


class DeepLabV3(Model):
    kind: Literal["deeplabv3"]
    backbone: Literal["resnet18", "resnet50", "resnet101", "mobilenet_v2"] = Field("resnet18", description="The network under the head.")
    width: int = Field(256, ge=1, le=4096, description="Channels of the head; published networks have 256, small students 128.")
    aux: bool = Field(
        True, description="Whether there is an auxiliary head on c3, as in the published networks; an exported graph lacks it."
    )
    align_corners: bool = Field(False, description="How maps are enlarged.")
    mean: Triple = Field(MEAN, description="Mean of R, G, B, for values in 0..1.")
    std: Triple = Field(STD, description="Standard deviation of R, G, B, for values in 0..1.")

    multiple: ClassVar[int] = 8
    head_keys: ClassVar[tuple[str, ...]] = ("classifier.", "aux_classifier.")

    def build(self, classes: int):
        from .net import built

        return built(self.backbone, self.width, classes, self.aux, self.align_corners, self.mean, self.std)

    def convert(self, state: dict[str, Any]) -> dict[str, Any]:
        return ours(state, () if self.aux else self.aux_keys)

    def folded(self, module):
        from .net import FoldedAspp

        double = super().folded(module)
        double.classifier[0] = FoldedAspp(double.classifier[0])
        return double
