"""What deeplabv3 and pspnet share: a backbone at output stride 8, a head on its last map, and an auxiliary head (FCN) on the one before.

The auxiliary head helps to train the backbone, and some methods ask the teacher's how sure it is: it is computed in training and in eval,
and left out of an exported graph.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models import LEVELS, require_multiple
from stages.models._fcn import fcn
from stages.models._mobilenet import MobileNetV2
from stages.models._resnet import ResNet

MULTIPLE = 8  # the coarsest stride


class Dilated(nn.Module):
    """`classifier`: the coarsest map (B, C, h, w) -> logits, and what its last convolution saw."""

    def __init__(self, backbone: nn.Module, classifier: nn.Module, classes: int, aux: bool, align_corners: bool, mean: tuple, std: tuple):
        super().__init__()
        self.backbone, self.classifier = backbone, classifier
        self.aux_classifier = fcn(backbone.widths[2], classes) if aux else None  # last: the rest starts the same with and without it
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.align_corners = align_corners
        self.widths = {"logits": classes, "head": classifier.width} | dict(zip(LEVELS, backbone.widths, strict=True))
        self.strides = {"logits": 8, "head": 8} | dict(zip(LEVELS, backbone.strides, strict=True))
        if aux:
            self.widths["aux"], self.strides["aux"] = classes, self.strides["c3"]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        require_multiple(image, MULTIPLE)
        pyramid = self.backbone((image - self.mean) / self.std)
        logits, head = self.classifier(pyramid[-1])
        taps = {"logits": logits, "head": head} | dict(zip(LEVELS, pyramid, strict=True))
        if self.aux_classifier is not None and not torch.compiler.is_exporting():
            taps["aux"] = self.aux_classifier(pyramid[2])
        return taps


def backbone_of(name: str) -> nn.Module:
    return MobileNetV2() if name == "mobilenet_v2" else ResNet(name)


class PooledNorm(nn.BatchNorm2d):
    """BatchNorm for pooled maps. A single image pooled to one cell has no spread to divide by: there it works as in eval."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x[:, 0].numel() == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)
