"""PSPNet's head: the last map beside averages of its regions, in grids of 1, 2, 3 and 6 cells a side.

Each grid becomes a quarter of the map's channels, is enlarged to its size and set beside it; a 3x3 convolution makes one map of all.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models._dilated import DROPOUT, Dilated, PooledNorm, backbone_of, conv

BINS = (1, 2, 3, 6)


def built(backbone: str, width: int, classes: int, aux: bool, align_corners: bool, mean: tuple, std: tuple) -> Dilated:
    body = backbone_of(backbone)
    return Dilated(body, Head(body.widths[-1], width, classes, align_corners), classes, aux, align_corners, mean, std)


class Head(nn.Module):
    def __init__(self, c_in: int, width: int, classes: int, align_corners: bool):
        super().__init__()
        part = c_in // len(BINS)
        self.pyramid = nn.ModuleList(conv(c_in, part, 1, norm=PooledNorm) for _ in BINS)
        self.bottleneck = conv(c_in + len(BINS) * part, width, 3)
        self.last = nn.Conv2d(width, classes, 1)
        self.width, self.align_corners = width, align_corners

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled = [branch(averages(x, bins)) for branch, bins in zip(self.pyramid, BINS, strict=True)]
        maps = [F.interpolate(p, x.shape[2:], mode="bilinear", align_corners=self.align_corners) for p in pooled]
        head = F.dropout(self.bottleneck(torch.cat([x, *maps], 1)), DROPOUT, self.training)
        return self.last(head), head


def averages(x: Tensor, bins: int) -> Tensor:
    """(B, C, h, w) -> (B, C, bins, bins): what adaptive average pooling gives, as two matrix products.

    ONNX has no adaptive pooling, and where `bins` does not divide the size no other pooling equals it; on a GPU its gradient differs from
    run to run.
    """
    rows, columns = (shares(side, bins, x) for side in x.shape[2:])
    return ((x @ columns).transpose(2, 3) @ rows).transpose(2, 3)


def shares(side: int, bins: int, like: Tensor) -> Tensor:
    """(side, bins): the part each cell of a side has in each average. Neighbouring averages share a cell where `bins` does not divide."""
    cell, part = (torch.arange(n, device=like.device) for n in (side, bins))
    begin, end = part * side // bins, ((part + 1) * side + bins - 1) // bins
    inside = ((cell[:, None] >= begin) & (cell[:, None] < end)).to(like.dtype)
    return inside / inside.sum(0)
