"""Rewrites that leave a network's maps as they are and its work less: for exported graphs and for teachers, never for what still learns.

Here is the one that fits every network: in eval mode BatchNorm is a factor and a summand per channel, which the convolution (or linear
layer) before it takes into its weights. Weights are multiplied in float64 and rounded once. What more a model can give, its row does.
"""

from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

TAKES = (nn.Conv1d, nn.Conv2d, nn.Linear)  # exactly these: what is derived from them may treat its weights otherwise


@torch.no_grad()
def fold_norms(module: nn.Module, forward: Callable[[], object]) -> None:
    """Puts every BatchNorm of `module` into the layer before it, in place. `forward` runs it once, in eval mode, on some image."""
    for layer, norm in pairs(module, forward):
        scale, shift = affine(norm)
        bias = shift if layer.bias is None else layer.bias * scale + shift
        dtype = layer.weight.dtype
        layer.weight = nn.Parameter((layer.weight * scale.view(-1, *[1] * (layer.weight.ndim - 1))).to(dtype), requires_grad=False)
        layer.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
        for parent in module.modules():
            for name, child in parent._modules.items():
                if child is norm:
                    parent._modules[name] = nn.Identity()


def affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """What BatchNorm does in eval mode: x * scale + shift, each (C,), float64."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    return scale.detach(), (shift if norm.bias is None else shift + norm.bias.double()).detach()


def conv_of(weight: Tensor, bias: Tensor | None, like: Tensor, **settings) -> nn.Conv2d:
    """A convolution with these weights (C_out, C_in, k, k), which do not learn; `like` tells type and device."""
    c_out, c_in, *size = weight.shape
    conv = nn.Conv2d(c_in, c_out, tuple(size), bias=bias is not None, device="meta", **settings)  # fresh weights would draw random numbers
    conv.weight = nn.Parameter(weight.detach().to(like), requires_grad=False)
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().to(like), requires_grad=False)
    return conv


def probe(module: nn.Module, side: int) -> Tensor:
    """An image (1, 3, side, side) to watch a network with: noise, the same every time, of the type and on the device of its weights."""
    return 255 * torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(next(module.parameters()))


def pairs(module: nn.Module, forward: Callable[[], object]) -> list[tuple[nn.Module, nn.Module]]:
    """(layer, norm) wherever the norm alone sees what the layer makes, told by watching one forward."""
    watch, handles = Watch(), []
    for part in module.modules():
        if type(part) in TAKES and not part._forward_pre_hooks and not part._forward_hooks:
            handles.append(part.register_forward_hook(watch.made_by))
        elif isinstance(part, _BatchNorm) and part.running_mean is not None:
            handles += [part.register_forward_pre_hook(watch.enters), part.register_forward_hook(watch.leaves)]
    try:
        with torch.random.fork_rng(devices=[]), watch:
            taps = forward()
    finally:
        for handle in handles:
            handle.remove()
    watch.use(tree_leaves(taps))
    return [(layer, norm) for key, layer, norm in watch.met if key not in watch.used and watch.calls[layer] == watch.calls[norm] == 1]


class Watch(TorchFunctionMode):
    """Notes which layer's output went into which BatchNorm, and which outputs went anywhere else."""

    def __init__(self):
        super().__init__()
        self.made: dict[int, tuple[nn.Module, Tensor]] = {}  # by id of the output, which is kept so that no other takes its id
        self.met: list[tuple[int, nn.Module, nn.Module]] = []
        self.used: set[int] = set()
        self.calls: Counter[nn.Module] = Counter()
        self.inside = False  # a BatchNorm

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not self.inside and any(isinstance(x, Tensor) for x in tree_leaves(out)):  # asking for a shape is no use
            self.use(tree_leaves((args, kwargs)))
        return out

    def use(self, values: list) -> None:
        self.used |= {id(x) for x in values} & self.made.keys()

    def made_by(self, layer: nn.Module, args: tuple, out: Tensor) -> None:
        self.calls[layer] += 1
        self.made[id(out)] = layer, out

    def enters(self, norm: nn.Module, args: tuple) -> None:
        self.inside = True

    def leaves(self, norm: nn.Module, args: tuple, out: Tensor) -> None:
        x, key = args[0], id(args[0])
        self.calls[norm] += 1
        if key in self.made:
            layer = self.made[key][0]
            channels_match = not isinstance(layer, nn.Linear) or x.ndim == 2  # else the channels of the norm are another dimension
            plain = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
            if channels_match and torch.equal(plain, out):  # a class derived from BatchNorm may do more
                self.met.append((key, layer, norm))
        self.inside = False
