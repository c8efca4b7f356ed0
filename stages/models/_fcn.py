"""The auxiliary head (FCN) that any network may carry on c3: it helps to train what is below it, and says how sure a teacher is."""

from torch import nn

DROPOUT = 0.1  # of what a last convolution sees in training


def fcn(c_in: int, classes: int) -> nn.Sequential:
    """Named as torchvision names its FCN head."""
    return nn.Sequential(*conv(c_in, c_in // 4, 3), nn.Dropout(DROPOUT), nn.Conv2d(c_in // 4, classes, 1))


def conv(c_in: int, c_out: int, size: int, dilation: int = 1, norm: type[nn.BatchNorm2d] = nn.BatchNorm2d) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, size, 1, size // 2 * dilation, dilation, bias=False), norm(c_out), nn.ReLU())
