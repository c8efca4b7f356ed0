"""ResNet-18, 50 and 101 (He et al. 2016) with output stride 8, for models that pool context on a dilated backbone.

Modules are named as torchvision names them, so its published weights fit. The stride sits on the 3x3 convolution of a bottleneck.
Stages 3 and 4 keep the resolution of stage 2 and dilate instead (Yu, Koltun 2016; Chen et al. 2017): the convolution that lost its
stride still has the dilation of the stage before, those after it twice as much. So a cell sees exactly what it sees in the strided
network, only more cells are computed, and weights trained with strides keep their meaning.
"""

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS, STRIDES = (64, 128, 256, 512), (1, 2, 1, 1)  # per stage; stage 1 begins at stride 4
BEFORE, DILATION = (1, 1, 1, 2), (1, 1, 2, 4)  # of the first 3x3 convolution of a stage, and of those after it


class ResNet(nn.Module):
    strides = (4, 8, 8, 8)

    def __init__(self, size: str):
        super().__init__()
        block, depths = SIZES[size]
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.widths = tuple(width * block.expansion for width in WIDTHS)
        plan = zip((64, *self.widths), WIDTHS, depths, STRIDES, BEFORE, DILATION, strict=False)
        for i, (c_in, width, depth, stride, before, dilation) in enumerate(plan, 1):
            first = block(c_in, width, stride, before, dilation)
            rest = (block(width * block.expansion, width, 1, dilation, dilation) for _ in range(depth - 1))
            setattr(self, f"layer{i}", nn.Sequential(first, *rest))
        self.apply(initialise)

    def forward(self, x: Tensor) -> list[Tensor]:
        x, pyramid = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1), []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            pyramid.append(x)
        return pyramid


class Basic(nn.Module):
    """Two 3x3 convolutions. `before`: dilation of the first one."""

    expansion = 1

    def __init__(self, c_in: int, width: int, stride: int, before: int, dilation: int):
        super().__init__()
        self.conv1, self.bn1 = conv3(c_in, width, stride, before), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3(width, width, 1, dilation), nn.BatchNorm2d(width)
        self.downsample = shortcut(c_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1 to fewer channels, one 3x3, 1x1 to more. `before`: dilation of the 3x3; the block holds no other, so `dilation` is not used."""

    expansion = 4

    def __init__(self, c_in: int, width: int, stride: int, before: int, dilation: int):
        super().__init__()
        c_out = width * self.expansion
        self.conv1, self.bn1 = nn.Conv2d(c_in, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3(width, width, stride, before), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, c_out, 1, bias=False), nn.BatchNorm2d(c_out)
        self.downsample = shortcut(c_in, c_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


SIZES = {"resnet18": (Basic, (2, 2, 2, 2)), "resnet50": (Bottleneck, (3, 4, 6, 3)), "resnet101": (Bottleneck, (3, 4, 23, 3))}


def conv3(c_in: int, c_out: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride, dilation, dilation, bias=False)


def shortcut(c_in: int, c_out: int, stride: int) -> nn.Module:
    if stride == 1 and c_in == c_out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))


def initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
