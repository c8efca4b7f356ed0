"""PSPNet's head: the last map beside averages of its regions, in grids of 1, 2, 3 and 6 cells a side.

Each grid becomes a quarter of the map's channels, is enlarged to its size and set beside it; a 3x3 convolution makes one map of all.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.fold import conv_of
from stages.models._dilated import Dilated, PooledNorm, backbone_of
from stages.models._fcn import DROPOUT, conv

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


class FoldedHead(nn.Module):
    """The same head without the enlarged maps: the 3x3 convolution sees them only through their few cells.

    A 3x3 convolution is nine 1x1 convolutions, each moved by one cell or none, with zeros coming in at the border. A 1x1 convolution may
    come before enlarging, so each of the nine is computed on the bins alone; enlarging, moving and the zeros are one small matrix per axis
    (`spread`), since bilinear enlarging is a product of both axes. So the zero padding is exact, too.
    """

    def __init__(self, head: Head):
        super().__init__()
        conv = head.bottleneck[0]  # with a bias: BatchNorm is in it
        part = head.pyramid[0][0].out_channels
        own, *others = conv.weight.split([conv.in_channels - len(BINS) * part] + len(BINS) * [part], 1)
        self.pyramid, self.own = head.pyramid, conv_of(own, conv.bias, own, padding=1)
        self.nine = nn.ModuleList(conv_of(w.permute(0, 2, 3, 1).reshape(-1, part, 1, 1), None, w) for w in others)
        self.last, self.width, self.align_corners = head.last, head.width, head.align_corners

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows, sums = [], []
        for branch, nine, bins in zip(self.pyramid, self.nine, BINS, strict=True):
            cells = nine(branch(averages(x, bins))).unflatten(1, (self.width, 3, 3))  # (B, C, 3, 3, bins, bins): moves, then cells
            cells = cells.transpose(3, 4).flatten(4).flatten(2, 3)  # (B, C, 3 * bins, 3 * bins)
            down, across = (spread(side, bins, self.align_corners, x) for side in x.shape[2:])
            rows.append(down)
            sums.append(cells @ across.T)
        head = F.relu(self.own(x) + torch.cat(rows, 1) @ torch.cat(sums, 2))  # (h, 36) @ (B, C, 36, w)
        return self.last(head), head


def spread(side: int, bins: int, align_corners: bool, like: Tensor) -> Tensor:
    """(side, 3 * bins): the part each bin has in each cell of a side after bilinear enlarging, moved by -1, 0 and 1 cell."""
    dtype = torch.promote_types(like.dtype, torch.float32)  # places in half precision would be off
    cell, bin_ = (torch.arange(n, device=like.device, dtype=dtype) for n in (side, bins))
    at = cell * ((bins - 1) / max(side - 1, 1)) if align_corners else ((cell + 0.5) * (bins / side) - 0.5).clamp(0, bins - 1)
    part = F.pad((1 - (at[:, None] - bin_).abs()).clamp(min=0), (0, 0, 1, 1))  # zeros beyond the border
    return torch.cat([part[move : move + side] for move in range(3)], 1).to(like.dtype)


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
