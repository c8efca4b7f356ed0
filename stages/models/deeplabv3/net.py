"""DeepLabV3's head: the last map seen through convolutions of several dilations and as a whole. Named as torchvision names it.

Two differences from torchvision, neither of which its weights know of: what the last convolution sees is dropped with probability 0.1 in
training, as in the code of CIRKD and its successors, and nothing after the projection (there 0.5); the map of the whole image is repeated
over the grid, not enlarged, which is the same.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.fold import conv_of
from stages.models._dilated import Dilated, PooledNorm, backbone_of
from stages.models._fcn import DROPOUT, conv

RATES = (12, 24, 36)  # dilations, for output stride 8


def built(backbone: str, width: int, classes: int, aux: bool, align_corners: bool, mean: tuple, std: tuple) -> Dilated:
    body = backbone_of(backbone)
    return Dilated(body, Head(body.widths[-1], width, classes), classes, aux, align_corners, mean, std)


class Head(nn.Sequential):
    """Modules 0 ASPP, 1 to 3 a 3x3 convolution, 4 the last one."""

    def __init__(self, c_in: int, width: int, classes: int):
        super().__init__(Aspp(c_in, width), *conv(width, width, 3), nn.Conv2d(width, classes, 1))
        self.width = width

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        *before, last = self
        for module in before:
            x = module(x)
        x = F.dropout(x, DROPOUT, self.training)
        return last(x), x


class Aspp(nn.Module):
    """Atrous spatial pyramid pooling."""

    def __init__(self, c_in: int, width: int):
        super().__init__()
        whole = nn.Sequential(Mean(), *conv(c_in, width, 1, norm=PooledNorm))
        self.convs = nn.ModuleList([conv(c_in, width, 1), *(conv(c_in, width, 3, rate) for rate in RATES), whole])
        self.project = conv(len(self.convs) * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        *local, whole = (branch(x) for branch in self.convs)
        return self.project(torch.cat([*local, whole.expand(-1, -1, *x.shape[2:])], 1))


class FoldedAspp(nn.Module):
    """The same with what `project` makes of the whole image computed once per image, not once per cell: there it is a bias."""

    def __init__(self, aspp: Aspp):
        super().__init__()
        *local, whole = aspp.convs
        conv = aspp.project[0]  # with a bias: BatchNorm is in it
        cells, image = conv.weight.split([conv.in_channels - whole[1].out_channels, whole[1].out_channels], 1)
        self.convs, self.whole = nn.ModuleList(local), nn.Sequential(*whole, conv_of(image, conv.bias, conv.weight))
        self.project = conv_of(cells, None, conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.project(torch.cat([branch(x) for branch in self.convs], 1)) + self.whole(x))


class Mean(nn.Module):
    """(B, C, h, w) -> (B, C, 1, 1). What torch has for it leaves a Gather over its memory layout in an exported graph."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)
