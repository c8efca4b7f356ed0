"""PSPNet (Zhao et al. 2017) on dilated backbones, whose published torchvision weights it takes as they are (in safetensors)."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from stages.models import MEAN, STD, Model, Triple
from stages.models._torchvision import ours


class PSPNet(Model):
    kind: Literal["pspnet"]
    backbone: Literal["resnet18", "resnet50", "resnet101", "mobilenet_v2"] = Field("resnet18", description="The network under the head.")
    width: int = Field(512, ge=1, le=4096, description="Channels that the last convolution sees; 512 in the paper, small students 128.")
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
        theirs = tuple(f"classifier.{i}." for i in range(10))  # torchvision's heads number their modules, ours names them
        return ours(state, theirs if self.aux else theirs + self.aux_keys)

    def folded(self, module):
        from .net import FoldedHead

        double = super().folded(module)
        double.classifier = FoldedHead(double.classifier)
        return double
