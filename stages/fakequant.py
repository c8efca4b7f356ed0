"""What eight bits will do to a network, felt while it learns: weights and inputs of its layers pass through the rounding of INT8 engines.

Learned step size (Esser et al. 2020). A value v with step s and zero point z becomes the code q and comes back as v^:

    q = clip(round(v / s) + z, low, high)         v^ = (q - z) * s        round: ties to even, as ONNX QuantizeLinear rounds

with the gradients of the paper (eq. 3 and section 2.2; through the rounding straight)

    dv^/dv = 1 where nothing was clipped, else 0
    dv^/ds = g * (round(v / s) - v / s where nothing was clipped, else q - z)      g = 1 / sqrt(N * (high - z))

N counts the values that share s: of a weight's channel, or of one sample of a map. Two things differ from the paper. A value counts as
clipped when its code was, not already when v / s passes the last code: the largest weight of a channel lies exactly there at the start,
and would stop learning. And what the optimiser holds is ln s: Adam moves every parameter by about the learning rate, whatever its
gradient, which for a step of 0.001 would be a leap; of ln s it is a percentage, and s never becomes negative. The gradient of ln s is
taken as dL/ds / s, so that plain gradient descent moves s by the same share as in the paper.

Weights: int8, symmetric, a step per output channel. Inputs: one step per tensor and a zero point that calibration fixes, so that 0 (and
with it the padding of convolutions) stays exact. Biases: whole numbers of input step * weight step, for runtimes add them to sums of
codes; left as they are, onnxruntime rounds them, and with that alone one pixel in 500 had another class. The files keep them in float32.
Sums of maps, norms, softmax and the products of attention stay in float32, and so do the logits.
"""

import copy
import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models import freeze_idle
from stages.observed import SMALLEST, Codes, calibrated, flow

TAKES = (nn.Conv2d, nn.Linear)  # exactly these: what is derived from them may treat its weights otherwise
LARGEST = 1 << 22  # units of a bias
TOP = 127  # codes of a weight: -127 .. 127, the same either way


class Form(NamedTuple):
    """What a runtime wants to find in a file."""

    codes: Codes  # of inputs
    outputs: bool  # whether it computes a convolution in int8 only if its output is rounded too


# OpenVINO gives other classes on half of the pixels where inputs are signed; TensorRT takes symmetric ones only.
RUNTIMES = {
    "onnxruntime": Form(Codes(0, 255, symmetric=False), outputs=True),
    "openvino": Form(Codes(0, 255, symmetric=False), outputs=False),
    "tensorrt": Form(Codes(-128, 127, symmetric=True), outputs=False),
}


def fake_quantised(folded: nn.Module, images: Iterable[Tensor], form: Form, left_out: tuple[str, ...] = ()) -> "FakeQuantised":
    """A copy of a folded network with rounding in it. `images`: (1, 3, H, W), 0..255, to take ranges from; they are gone over twice.

    `left_out`: prefixes of parts that stay as they are and learn nothing, for no engine will hold them.
    """
    net, images = copy.deepcopy(folded).eval(), list(images)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(not name.startswith(left_out))
    layers = {name: part for name, part in net.named_modules() if takes(part) and not name.startswith(left_out)}
    groups, leaving = flow(net, layers, images[0])
    leaving = {name: relu for name, relu in leaving.items() if form.outputs and isinstance(layers[name], nn.Conv2d)}
    entering = {names[0]: layers[names[0]] for names in groups}
    found = calibrated(net, entering, {name: (layers[name], relu) for name, relu in leaving.items()}, images, form.codes)
    for names in groups:
        inputs = Rounding(form.codes, *found[names[0], "input"])
        for name in names:
            parent, _, own = name.rpartition(".")
            output = Rounding(form.codes, *found[name, "output"]) if name in leaving else None
            setattr(net.get_submodule(parent), own, Quantised(layers[name], inputs, output))
    made = FakeQuantised(net)
    freeze_idle(made, lambda: made(images[0]))
    return made


def takes(part: nn.Module) -> bool:
    return type(part) in TAKES and getattr(part, "padding_mode", "zeros") == "zeros"  # other padding is not exact


class Rounded(torch.autograd.Function):
    """v^ of the equations above. `step` broadcasts against v; `zero`, `low` and `high` are whole numbers; `scale` is g, one or per step."""

    @staticmethod
    def forward(ctx, v: Tensor, step: Tensor, zero: Tensor | int, low: int, high: int, scale: Tensor | float) -> Tensor:
        ctx.save_for_backward(v, step)
        ctx.codes = zero, low, high, scale
        return (v / step).round_().add_(zero).clamp_(low, high).sub_(zero).mul_(step)

    @staticmethod
    def backward(ctx, upstream: Tensor):
        (v, step), (zero, low, high, scale) = ctx.saved_tensors, ctx.codes
        ratio = v / step
        free = ratio.round().add_(zero)
        kept = free.clamp(low, high)
        inside = free == kept
        by_step = kept.sub_(zero).sub_(ratio.mul_(inside)).mul_(upstream)
        return upstream * inside, by_step.sum_to_size(step.shape) * scale, None, None, None, None


class Rounding(nn.Module):
    """Rounds a tensor, to whatever layers it goes."""

    def __init__(self, codes: Codes, step: float, zero: int):
        super().__init__()
        self.codes = codes
        self.log_step = nn.Parameter(torch.tensor(math.log(step)))
        self.register_buffer("zero", torch.tensor(float(zero)))

    def forward(self, x: Tensor) -> Tensor:
        step = self.log_step.exp()
        scale = ((self.codes.high - self.zero).clamp(min=1) * x[0].numel()).rsqrt() / step.detach().square()
        return Rounded.apply(x, step, self.zero, self.codes.low, self.codes.high, scale)


class Quantised(nn.Module):
    """A Conv2d or Linear that works on rounded inputs with rounded weights."""

    def __init__(self, layer: nn.Module, inputs: Rounding, output: Rounding | None):
        super().__init__()
        self.layer, self.inputs, self.output = layer, inputs, output
        step = layer.weight.detach().flatten(1).abs().amax(1) / TOP
        if layer.bias is not None:  # which then is a whole number of units, and float32 holds it
            step = step.maximum(layer.bias.detach().abs() / inputs.log_step.detach().exp() / LARGEST)
        self.log_step = nn.Parameter(torch.where(step > SMALLEST, step, 1.0).log())

    def forward(self, x: Tensor) -> Tensor:
        weight, steps = self.layer.weight, self.steps()
        scale = 1 / math.sqrt(weight[0].numel() * TOP) / steps.detach().square()
        made = applied(self.layer, self.inputs(x), Rounded.apply(weight, steps, 0, -TOP, TOP, scale), self.bias())
        return self.output(made) if self.output else made

    def __getattr__(self, name: str):
        """What a network asks of its layer, such as its stride, to pad a map before it."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def bias(self) -> Tensor | None:
        """In whole units of input step * weight step, as integer convolutions add it."""
        bias = self.layer.bias
        if bias is None:
            return None
        unit = (self.inputs.log_step.exp() * self.log_step.exp()).detach()
        return bias + ((bias / unit).round() * unit - bias).detach()

    def steps(self) -> Tensor:
        """(C_out, 1, ...), to divide the weight by."""
        return self.log_step.exp().view(-1, *[1] * (self.layer.weight.ndim - 1))


def applied(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What the layer does, with another weight and bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


class FakeQuantised(nn.Module):
    """A network that learns as its engine will compute: always in eval mode, for neither dropout nor BatchNorm will be in that engine."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.align_corners, self.widths = net, net.align_corners, net.widths
        super().train(False)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.net(image)

    def train(self, mode: bool = True) -> "FakeQuantised":
        return self

    def layers(self) -> list[Quantised]:
        return [part for part in self.modules() if isinstance(part, Quantised)]
