"""A plain residual pyramid: 3x3 convolutions with BatchNorm and ReLU, levels at strides 4 to 32 summed from coarse to fine.

Dense 3x3 convolutions on purpose: on CPU they cost less time than depthwise ones of the same quality.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models import LEVELS, MEAN, STD, require_multiple
from stages.models._fcn import fcn

STEM = {"small": 8, "large": 24}  # channels at stride 2
WIDTHS = {"small": (12, 16, 24, 32), "large": (32, 48, 80, 128)}  # at strides 4, 8, 16, 32
DEPTHS = {"small": (0, 1, 1, 0), "large": (3, 3, 2, 1)}  # residual blocks after the strided convolution
HEAD_WIDTH = {"small": 16, "large": 64}


class TinyNet(nn.Module):
    def __init__(self, size: str, classes: int, align_corners: bool, aux: bool = False):
        super().__init__()
        widths, dim = WIDTHS[size], HEAD_WIDTH[size]
        self.stem = conv(3, STEM[size], stride=2)
        self.stages = nn.ModuleList(
            nn.Sequential(conv(a, b, stride=2), *(Residual(b) for _ in range(n)))
            for a, b, n in zip((STEM[size], *widths[:-1]), widths, DEPTHS[size], strict=True)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(width, dim, 1) for width in widths)
        self.fuse = conv(dim, dim)
        self.classifier = nn.Conv2d(dim, classes, 1)
        self.register_buffer("mean", 255 * torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.align_corners = align_corners
        self.widths = {"logits": classes, "head": dim} | dict(zip(LEVELS, widths, strict=True))
        self.strides = {"logits": 4, "head": 4, "c1": 4, "c2": 8, "c3": 16, "c4": 32}
        if aux:
            self.widths["aux"], self.strides["aux"] = classes, self.strides["c3"]
        self.apply(initialise)
        self.aux_classifier = fcn(widths[2], classes) if aux else None  # last: the rest starts the same with and without it

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        require_multiple(image, 32)
        x, pyramid = self.stem((image - self.mean) / self.std), []
        for stage in self.stages:
            x = stage(x)
            pyramid.append(x)
        head = self.fuse(self.merged(pyramid))
        taps = {"logits": self.classifier(head), "head": head} | dict(zip(LEVELS, pyramid, strict=True))
        if self.aux_classifier is not None and not torch.compiler.is_exporting():
            taps["aux"] = self.aux_classifier(pyramid[2])
        return taps

    def merged(self, pyramid: list[Tensor]) -> Tensor:
        """All levels in one map at stride 4: each is enlarged and added to the next finer one."""
        *finer, x = [lateral(level) for lateral, level in zip(self.lateral, pyramid, strict=True)]
        for level in reversed(finer):
            x = level + F.interpolate(x, level.shape[2:], mode="bilinear", align_corners=self.align_corners)
        return x


class Residual(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.first = conv(dim, dim)
        self.second = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.second(self.first(x))))


def conv(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


def initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
