"""SegFormer in PyTorch. Modules are named as in the published checkpoints; figures are equal to transformers' to rounding.

Shapes: B batch, C channels, H W height and width of a map, N = H*W tokens. A stage works on tokens (B, N, C).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.fold import affine, conv_of
from stages.models import LEVELS, require_multiple
from stages.models._fcn import fcn

WIDTHS = {"b0": (32, 64, 160, 256)} | dict.fromkeys(("b1", "b2", "b3", "b4", "b5"), (64, 128, 320, 512))
DEPTHS = {"b0": (2, 2, 2, 2), "b1": (2, 2, 2, 2), "b2": (3, 4, 6, 3), "b3": (3, 4, 18, 3), "b4": (3, 8, 27, 3), "b5": (3, 6, 40, 3)}
PATCH, STRIDE = (7, 3, 3, 3), (4, 2, 2, 2)
HEADS, REDUCTION, EXPANSION = (1, 2, 5, 8), (8, 4, 2, 1), 4
HEAD_WIDTH = {"b0": 256, "b1": 256} | dict.fromkeys(("b2", "b3", "b4", "b5"), 768)
# LayerNorm keeps PyTorch's eps of 1e-5 everywhere: transformers' config says layer_norm_eps 1e-6, but its code never reads it.


class SegFormerNet(nn.Module):
    def __init__(self, size: str, classes: int, drop_path: float, align_corners: bool, mean: tuple, std: tuple, aux: bool = False):
        super().__init__()
        widths, dim = WIDTHS[size], HEAD_WIDTH[size]
        self.segformer = nn.ModuleDict({"encoder": Encoder(widths, DEPTHS[size], drop_path)})
        self.decode_head = Head(widths, dim, classes, align_corners)
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.align_corners = align_corners
        self.widths = {"logits": classes, "head": dim} | dict(zip(LEVELS, widths, strict=True))
        self.strides = {"logits": 4, "head": 4, "c1": 4, "c2": 8, "c3": 16, "c4": 32}
        if aux:
            self.widths["aux"], self.strides["aux"] = classes, self.strides["c3"]
        self.apply(initialise)
        self.aux_classifier = fcn(widths[2], classes) if aux else None  # last: the rest starts the same with and without it

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        require_multiple(image, 32)
        pyramid = self.segformer["encoder"]((image - self.mean) / self.std)
        logits, head = self.decode_head(pyramid)
        taps = {"logits": logits, "head": head} | dict(zip(LEVELS, pyramid, strict=True))
        if self.aux_classifier is not None and not torch.compiler.is_exporting():
            taps["aux"] = self.aux_classifier(pyramid[2])
        return taps


class Encoder(nn.Module):
    """Mix Transformer: four stages, each halving the resolution (the first one quarters it)."""

    def __init__(self, widths: tuple, depths: tuple, drop_path: float):
        super().__init__()
        rates = (drop_path * i / (sum(depths) - 1) for i in range(sum(depths)))
        self.patch_embeddings = nn.ModuleList(
            PatchEmbed(c_in, c_out, size, stride)
            for c_in, c_out, size, stride in zip((3, *widths[:-1]), widths, PATCH, STRIDE, strict=True)
        )
        self.block = nn.ModuleList(
            nn.ModuleList(Block(dim, heads, reduction, next(rates)) for _ in range(n))
            for dim, n, heads, reduction in zip(widths, depths, HEADS, REDUCTION, strict=True)
        )
        self.layer_norm = nn.ModuleList(nn.LayerNorm(dim) for dim in widths)

    def forward(self, x: Tensor) -> list[Tensor]:
        pyramid = []
        for embed, blocks, norm in zip(self.patch_embeddings, self.block, self.layer_norm, strict=True):
            x, h, w = embed(x)
            for block in blocks:
                x = block(x, h, w)
            x = to_map(norm(x), h, w)
            pyramid.append(x)
        return pyramid


class PatchEmbed(nn.Module):
    def __init__(self, c_in: int, c_out: int, size: int, stride: int):
        super().__init__()
        self.proj = nn.Conv2d(c_in, c_out, size, stride, size // 2)
        self.layer_norm = nn.LayerNorm(c_out)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        x = self.proj(x)
        return self.layer_norm(to_tokens(x)), *x.shape[2:]


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, reduction: int, drop_path: float):
        super().__init__()
        self.layer_norm_1, self.attention = nn.LayerNorm(dim), Attention(dim, heads, reduction)
        self.layer_norm_2, self.mlp = nn.LayerNorm(dim), MixFFN(dim, EXPANSION * dim)
        self.drop_path = drop_path

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        x = x + self.sometimes(self.attention(self.layer_norm_1(x), h, w))
        return x + self.sometimes(self.mlp(self.layer_norm_2(x), h, w))

    def sometimes(self, x: Tensor) -> Tensor:
        """Stochastic depth, per sample."""
        if not self.training or self.drop_path == 0:
            return x
        keep = 1 - self.drop_path
        return x * (x.new_empty(x.shape[0], 1, 1).bernoulli_(keep) / keep)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, reduction: int):
        super().__init__()
        self.self = SelfAttention(dim, heads, reduction)
        self.output = nn.ModuleDict({"dense": nn.Linear(dim, dim)})

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        return self.output["dense"](self.self(x, h, w))


class SelfAttention(nn.Module):
    """Attention whose keys and values come from a map reduced `reduction` times in height and width."""

    def __init__(self, dim: int, heads: int, reduction: int):
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        if reduction > 1:
            self.sr = nn.Conv2d(dim, dim, reduction, reduction)
            self.layer_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        source = self.layer_norm(to_tokens(self.sr(to_map(x, h, w)))) if self.reduction > 1 else x
        q, k, v = (self.split(y) for y in (self.query(x), self.key(source), self.value(source)))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def split(self, x: Tensor) -> Tensor:  # (B, N, C) -> (B, heads, N, C / heads)
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class MixFFN(nn.Module):
    """Two dense layers around a depthwise convolution, which is all this network knows of positions."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.dense1, self.dense2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dwconv = nn.ModuleDict({"dwconv": nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)})

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        x = to_tokens(self.dwconv["dwconv"](to_map(self.dense1(x), h, w)))
        return self.dense2(F.gelu(x))


class Head(nn.Module):
    """Each level to one width, all enlarged to the finest, fused, classified."""

    def __init__(self, widths: tuple, dim: int, classes: int, align_corners: bool):
        super().__init__()
        self.linear_c = nn.ModuleList(nn.ModuleDict({"proj": nn.Linear(width, dim)}) for width in widths)
        self.linear_fuse = nn.Conv2d(dim * len(widths), dim, 1, bias=False)
        self.batch_norm = nn.BatchNorm2d(dim)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Conv2d(dim, classes, 1)
        self.align_corners = align_corners

    def forward(self, pyramid: list[Tensor]) -> tuple[Tensor, Tensor]:
        size = pyramid[0].shape[2:]
        levels = [to_map(linear["proj"](to_tokens(x)), *x.shape[2:]) for linear, x in zip(self.linear_c, pyramid, strict=True)]
        levels = [F.interpolate(x, size, mode="bilinear", align_corners=self.align_corners) for x in levels]
        head = F.relu(self.batch_norm(self.linear_fuse(torch.cat(levels[::-1], 1))))  # coarsest first, as published
        return self.classifier(self.dropout(head)), head


class FoldedHead(nn.Module):
    """The same head with projection, fusion and BatchNorm in one 1x1 convolution per level, computed before enlarging and added after it.

    Exact: enlarging mixes positions and a 1x1 convolution mixes channels, so either may come first; and the biases pass enlarging as they
    are, for the weights of an interpolation sum to 1.
    """

    def __init__(self, head: Head):
        super().__init__()
        scale, bias = affine(head.batch_norm)
        fuse = head.linear_fuse.weight
        parts = (fuse.flatten(1).double() * scale[:, None]).chunk(len(head.linear_c), 1)
        linears = [linear["proj"] for linear in head.linear_c]
        weights = [part @ linear.weight.double() for part, linear in zip(parts[::-1], linears, strict=True)]  # parts: coarsest first
        for part, linear in zip(parts[::-1], linears, strict=True):
            bias = bias + part @ linear.bias.double()
        self.fused = nn.ModuleList(conv_of(w[:, :, None, None], bias if i == 0 else None, fuse) for i, w in enumerate(weights))
        self.classifier, self.align_corners = head.classifier, head.align_corners

    def forward(self, pyramid: list[Tensor]) -> tuple[Tensor, Tensor]:
        x, *coarser = (conv(level) for conv, level in zip(self.fused, pyramid, strict=True))
        for level in coarser:
            x = x + F.interpolate(level, x.shape[2:], mode="bilinear", align_corners=self.align_corners)
        head = F.relu(x)
        return self.classifier(head), head


def to_map(x: Tensor, h: int, w: int) -> Tensor:  # (B, N, C) -> (B, C, H, W)
    return x.transpose(1, 2).unflatten(2, (h, w))


def to_tokens(x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, N, C)
    return x.flatten(2).transpose(1, 2)


def initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
