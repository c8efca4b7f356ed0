"""How much arithmetic a network takes for one image, counted without computing anything."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def flops(module: nn.Module, size: tuple[int, int], left_out: tuple[str, ...] = ()) -> int:
    """For one image of `size`: two for each multiplication and addition in convolutions, linear layers, attention and matrix products.

    The rest (enlarging, norms, activations) is not counted. `left_out`: prefixes of the weights of parts that do not count.
    """
    double = copy.deepcopy(module).to("meta").eval()  # shapes alone
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        double(torch.empty(1, 3, *size, device="meta"))
    parts = (f"{type(double).__name__}.{key.rstrip('.')}" for key in left_out)
    return counter.get_total_flops() - sum(sum(counter.get_flop_counts().get(part, {}).values()) for part in parts)
