"""MobileNetV2 (Sandler et al. 2018) with output stride 8, for models that pool context on a dilated backbone.

Modules are named as torchvision names them (`features.0` .. `features.17`), so its published weights fit; `features.18`, the 1x1
convolution to 1280 channels before its image classifier, is left out. Dilation is as in _resnet: the depthwise convolution that lost its
stride has the dilation of the stage before. c1 .. c4 are features 3, 6, 13 and 17: linear, so they hold negative values too.
"""

from torch import Tensor, nn

from stages.models._resnet import initialise

# expansion, channels, blocks, stride, dilation of the first depthwise convolution, dilation of the others
PLAN = (
    (1, 16, 1, 1, 1, 1),
    (6, 24, 2, 2, 1, 1),
    (6, 32, 3, 2, 1, 1),
    (6, 64, 4, 1, 1, 2),  # stride 2 in the original
    (6, 96, 3, 1, 2, 2),
    (6, 160, 3, 1, 2, 4),  # stride 2 in the original
    (6, 320, 1, 1, 4, 4),
)
LEVELS_AT = (3, 6, 13, 17)


class MobileNetV2(nn.Module):
    widths, strides = (24, 32, 96, 320), (4, 8, 8, 8)

    def __init__(self):
        super().__init__()
        blocks, c_in = [conv(3, 32, 3, stride=2)], 32
        for expansion, width, depth, stride, before, dilation in PLAN:
            for i in range(depth):
                blocks.append(Inverted(c_in, width, expansion, *((1, dilation) if i else (stride, before))))
                c_in = width
        self.features = nn.Sequential(*blocks)
        self.apply(initialise)

    def forward(self, x: Tensor) -> list[Tensor]:
        pyramid = []
        for i, block in enumerate(self.features):
            x = block(x)
            if i in LEVELS_AT:
                pyramid.append(x)
        return pyramid


class Inverted(nn.Module):
    """Wide inside, narrow outside: 1x1 to more channels, a depthwise 3x3, 1x1 to few without activation."""

    def __init__(self, c_in: int, c_out: int, expansion: int, stride: int, dilation: int):
        super().__init__()
        wide = c_in * expansion
        widen = [] if expansion == 1 else [conv(c_in, wide, 1)]
        depthwise = conv(wide, wide, 3, stride, dilation, groups=wide)
        self.conv = nn.Sequential(*widen, depthwise, nn.Conv2d(wide, c_out, 1, bias=False), nn.BatchNorm2d(c_out))
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


def conv(c_in: int, c_out: int, size: int, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Sequential:
    inner = nn.Conv2d(c_in, c_out, size, stride, size // 2 * dilation, dilation, groups, bias=False)
    return nn.Sequential(inner, nn.BatchNorm2d(c_out), nn.ReLU6())
