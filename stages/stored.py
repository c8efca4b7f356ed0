"""A network with learned rounding as runtimes for INT8 take it: QuantizeLinear and DequantizeLinear around layers with int8 weights."""

import copy

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from stages.fakequant import TOP, FakeQuantised, Quantised, Rounding, applied


def with_nodes(net: FakeQuantised) -> FakeQuantised:
    """A copy to be exported, never run: its nodes for rounding exist in ONNX only."""
    double = copy.deepcopy(net).requires_grad_(False)
    for parent in list(double.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Quantised):
                setattr(parent, name, Stored(child))
    return double


class Stored(nn.Module):
    """A layer with its weight as int8 and a float32 step per output channel."""

    def __init__(self, quantised: Quantised):
        super().__init__()
        self.layer, self.inputs = quantised.layer, Nodes(quantised.inputs)
        self.output = Nodes(quantised.output) if quantised.output else nn.Identity()
        self.linear = isinstance(self.layer, nn.Linear)
        codes = (self.layer.weight / quantised.steps()).round().clamp(-TOP, TOP).to(torch.int8)
        # A Linear becomes MatMul, which wants (in, out): a Transpose between weight and MatMul would hide the int8 from runtimes.
        self.register_buffer("codes", codes.T.contiguous() if self.linear else codes)
        self.register_buffer("steps", quantised.log_step.exp())
        self.register_buffer("zeros", torch.zeros(len(codes), dtype=torch.int8))
        self.layer.bias = quantised.bias() if self.layer.bias is None else nn.Parameter(quantised.bias(), requires_grad=False)
        del self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        parts = (self.codes, self.steps, self.zeros)
        weight = symbolic("DequantizeLinear", parts, {"axis": int(self.linear)}, dtype=torch.float32, shape=self.codes.shape)
        x = self.inputs(x)
        if not self.linear:
            return self.output(applied(self.layer, x, weight, self.layer.bias))
        made = x @ weight
        return self.output(made if self.layer.bias is None else made + self.layer.bias)


class Nodes(nn.Module):
    """The rounding of a tensor."""

    def __init__(self, rounding: Rounding):
        super().__init__()
        self.type = torch.int8 if rounding.codes.low < 0 else torch.uint8
        self.register_buffer("step", rounding.log_step.exp())
        self.register_buffer("zero", rounding.zero.to(self.type))

    def forward(self, x: Tensor) -> Tensor:
        codes = symbolic("QuantizeLinear", (x, self.step, self.zero), dtype=self.type, shape=x.shape)
        return symbolic("DequantizeLinear", (codes, self.step, self.zero), dtype=torch.float32, shape=x.shape)
