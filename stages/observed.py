"""Where a network rounds when it runs in INT8, and over which ranges: found by watching it work on a few images."""

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

SMALLEST = 1e-10  # of steps: below it v / s leaves float32
PARTS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # of the range that was seen: the candidates
SAMPLED = 1 << 15  # about so many values of a tensor judge them
RELUS = {"relu": F.relu, "relu_": F.relu, "relu6": F.relu6, "hardtanh": F.relu6}  # by the names of functions; hardtanh is in nn.ReLU6
LAYERS = ("conv2d", "linear")

Note = Callable[[tuple[str, str], Tensor], None]  # told of ((layer, "input" or "output"), the tensor)


class Codes(NamedTuple):
    """The whole numbers a value is rounded to."""

    low: int
    high: int
    symmetric: bool  # zero point 0


def calibrated(
    net: nn.Module,
    inputs: dict[str, nn.Module],
    outputs: dict[str, tuple[nn.Module, Callable | None]],
    images: list[Tensor],
    codes: Codes,
) -> dict[tuple[str, str], tuple[float, int]]:
    """(step, zero point) of what each layer takes and gives: the candidate with the least squared error over all images."""
    ends: dict[tuple[str, str], tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    errors = defaultdict(lambda: torch.zeros(len(PARTS), dtype=torch.float64))

    def reach(key: tuple[str, str], x: Tensor) -> None:
        ends[key] = min(ends[key][0], float(x.min())), max(ends[key][1], float(x.max()))

    def judge(key: tuple[str, str], x: Tensor) -> None:
        some = x.flatten()[:: max(1, x.numel() // SAMPLED)]
        for k, part in enumerate(PARTS):
            step, zero = spread(*ends[key], codes, part)
            back = ((some / step).round() + zero).clamp(codes.low, codes.high).sub(zero) * step
            errors[key][k] += (back - some).double().square().sum()

    for note in (reach, judge):
        watch(net, inputs, outputs, images, note)
    return {key: spread(*ends[key], codes, PARTS[int(errors[key].argmin())]) for key in ends}


def spread(low: float, high: float, codes: Codes, part: float = 1.0) -> tuple[float, int]:
    """Step and zero point that lay the codes over this part of a range, which holds 0."""
    low, high = part * low, part * high
    if codes.symmetric:
        return max(high / codes.high, low / codes.low, SMALLEST), 0
    step = max((high - low) / (codes.high - codes.low), SMALLEST)
    return step, min(max(round(codes.low - low / step), codes.low), codes.high)


def flow(net: nn.Module, layers: dict[str, nn.Module], image: Tensor) -> tuple[list[list[str]], dict[str, Callable | None]]:
    """Which layers take the same tensor (it is rounded once for all of them), and whose output nobody else rounds.

    The second: name -> the ReLU that alone follows, or None. A last layer, whose output leaves the network, is not among them.
    """
    taken: dict[int, list[str]] = {}  # by id of the tensor
    made: dict[str, Tensor] = {}
    seen: set[str] = set()

    def note(key: tuple[str, str], x: Tensor) -> None:
        name, side = key
        if side == "output":
            made[name] = x
        elif name not in seen:  # a layer that works twice rounds both times the same
            seen.add(name)
            taken.setdefault(id(x), []).append(name)

    with Uses() as uses:
        watch(net, layers, {name: (layer, None) for name, layer in layers.items()}, [image], note)
    followers = {name: {use for use, _ in uses.of(x)} for name, x in made.items()}
    open_ended = {name for name, x in made.items() if followers[name] and not uses.rounded(x)}
    relu = {name: RELUS.get(*names) if len(names := followers[name]) == 1 else None for name in open_ended}
    return list(taken.values()), relu


class Uses(TorchFunctionMode):
    """Notes which functions take a tensor, and what they make of it."""

    def __init__(self):
        super().__init__()
        self.found: dict[int, list[tuple[str, Tensor]]] = defaultdict(list)
        self.kept: list[Tensor] = []  # so that no other tensor takes the id of one of them

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given, made = ([x for x in tree_leaves(value) if isinstance(x, Tensor)] for value in ((args, kwargs), out))
        for x in given if made else []:  # asking for a shape is no use
            self.found[id(x)] += [(getattr(func, "__name__", ""), one) for one in made]
        self.kept += given + made
        return out

    def of(self, x: Tensor) -> list[tuple[str, Tensor]]:
        return self.found.get(id(x), [])

    def rounded(self, x: Tensor) -> bool:
        """Whether it goes into layers only, directly or through a ReLU."""
        return bool(self.of(x)) and all(use in LAYERS or (use in RELUS and self.rounded(made)) for use, made in self.of(x))


def watch(
    net: nn.Module,
    inputs: dict[str, nn.Module],
    outputs: dict[str, tuple[nn.Module, Callable | None]],
    images: list[Tensor],
    note: Note,
) -> None:
    """Tells `note` what layers take, and what they give after the ReLU named with them, for every image."""

    def entering(name: str):
        return lambda _, args: note((name, "input"), args[0])

    def leaving(name: str, relu: Callable | None):
        return lambda _, args, out: note((name, "output"), relu(out) if relu else out)

    handles = [layer.register_forward_pre_hook(entering(name)) for name, layer in inputs.items()]
    handles += [layer.register_forward_hook(leaving(name, relu)) for name, (layer, relu) in outputs.items()]
    try:
        with torch.no_grad():
            for image in images:
                net(image)
    finally:
        for handle in handles:
            handle.remove()
