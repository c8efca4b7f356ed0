"""Rounding while learning: the codes of ONNX, the gradients of the paper, and every parameter saved and put back."""

import importlib.util

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from pipeline.errors import Stopped
from stages.fakequant import RUNTIMES, TOP, Quantised, Rounded, Rounding, fake_quantised
from stages.loop import fit
from stages.models import TABLE
from stages.observed import Codes, spread
from tests.stages.small_fit import Job, Memory, Net, digest, forget_accelerate, settings, terms_of
from tests.stages.test_fold import ROWS, trained

torch.set_num_threads(1)
UNSIGNED, SIGNED = RUNTIMES["openvino"].codes, RUNTIMES["tensorrt"].codes


def by_the_paper(v, s, z, low, high, upstream):
    """v^, dv^/dv and dv^/ds as the equations say, number by number in float64."""
    back, to_v, to_s = np.empty_like(v), np.empty_like(v), np.zeros(len(v))
    for c, i in np.ndindex(*v.shape):
        q = np.rint(v[c, i] / s[c]) + z
        clipped = min(max(q, low), high)
        back[c, i] = (clipped - z) * s[c]
        to_v[c, i] = upstream[c, i] if q == clipped else 0
        by_s = np.rint(v[c, i] / s[c]) - v[c, i] / s[c] if q == clipped else clipped - z
        to_s[c] += by_s * upstream[c, i]
    return back, to_v, to_s


@pytest.mark.parametrize(("z", "low", "high"), [(0, -TOP, TOP), (0, -128, 127), (37, 0, 255), (0, 0, 255)])
def test_values_and_gradients_are_those_of_the_paper(z, low, high):
    rng = np.random.RandomState(0)
    v, s, upstream = rng.randn(4, 300), np.array([0.5, 0.05, 0.004, 1e-5]), rng.randn(4, 300)
    given = torch.tensor(v, requires_grad=True)
    step = torch.tensor(s[:, None], requires_grad=True)
    found = Rounded.apply(given, step, z, low, high, 0.125)
    found.backward(torch.tensor(upstream))
    back, to_v, to_s = by_the_paper(v, s, z, low, high, upstream)
    assert 0 < (to_v == 0).mean() < 1  # some were clipped
    np.testing.assert_allclose(found.detach(), back, rtol=1e-12)
    np.testing.assert_array_equal(given.grad, to_v)
    np.testing.assert_allclose(step.grad[:, 0], 0.125 * to_s, rtol=1e-10)


def test_the_logarithm_of_a_step_moves_by_the_share_that_the_paper_moves_the_step_by():
    x = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0)).double()
    one = Rounding(UNSIGNED, 0.02, 100).double()
    one(x).sum().backward()
    s = one.log_step.exp().item()
    _, _, to_s = by_the_paper(x.reshape(1, -1).numpy(), [s], 100, 0, 255, np.ones((1, 30)))
    assert float(one.log_step.grad) == pytest.approx(to_s[0] / np.sqrt(10 * 155) / s, rel=1e-6)  # 10 values a sample, 155 codes above 0


@pytest.mark.parametrize("codes", [UNSIGNED, SIGNED], ids=["uint8", "int8"])
@pytest.mark.parametrize("step", [0.25, 0.0371, 1.3e-4])
def test_rounding_is_what_onnxruntime_makes_of_the_nodes_with_ties_and_clipping(codes, step):
    kind, zero = (np.int8, 0) if codes.symmetric else (np.uint8, 93)
    x = np.random.RandomState(1).randn(20000).astype(np.float32) * np.float32(90 * step)
    x[:2000] = (np.arange(2000) - 1000) * np.float32(step / 2)  # every second one lies between two codes
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]), helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [20000]) for name in "xy"]
    constants = [numpy_helper.from_array(np.array(value, t), name) for name, value, t in (("s", step, np.float32), ("z", zero, kind))]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ours = Rounded.apply(torch.from_numpy(x), torch.tensor(step), torch.tensor(float(zero)), codes.low, codes.high, 1.0)
    theirs = session.run(None, {"x": x})[0]
    np.testing.assert_array_equal(ours, theirs)
    assert len(np.unique(theirs)) == 256 and (np.abs(theirs - x) > step).any()


@pytest.mark.parametrize("ends", [(0.0, 3.0), (-0.17, 9.0), (-4.0, 0.0), (-1.0, 1.0), (0.0, 0.0)])
@pytest.mark.parametrize("codes", [UNSIGNED, SIGNED, Codes(0, 15, False)])
def test_zero_stays_zero_and_both_ends_of_the_range_are_reached(ends, codes):
    step, zero = spread(*ends, codes)
    back = Rounded.apply(torch.tensor([0.0, *ends]), torch.tensor(step), zero, codes.low, codes.high, 1.0)
    assert back[0] == 0 and torch.allclose(back[1:], torch.tensor(ends), atol=step)
    assert codes.low <= zero <= codes.high and (zero == 0 or not codes.symmetric)


UNSIGNED_FORM = RUNTIMES["openvino"]


def images(m, count=2):
    return [255 * torch.rand(1, 3, m, m, generator=torch.Generator().manual_seed(i)) for i in range(count)]


@pytest.mark.parametrize("settings_", [row for row in ROWS if not row.get("align_corners")], ids=lambda row: row["kind"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_every_network_learns_with_rounding_in_it(settings_, runtime):
    if settings_["kind"] == "hf" and importlib.util.find_spec("transformers") is None:
        pytest.skip("model hf needs transformers")
    row = TABLE.row(settings_["kind"]).model_validate(settings_)
    folded, shown = row.folded(trained(row, row.multiple)), images(2 * row.multiple)
    net = fake_quantised(folded, shown, RUNTIMES[runtime], row.aux_keys).train()
    logits, wanted = net(shown[0])["logits"], folded(shown[0])["logits"]
    assert 0 < (logits - wanted).norm() < 0.15 * wanted.norm()
    logits.square().mean().backward()
    idle = [name for name, p in net.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())]
    assert not idle and len(net.layers()) > 10


def test_a_tensor_is_rounded_once_for_all_layers_that_take_it_and_the_logits_never():
    row = TABLE.row("tiny").model_validate({"kind": "tiny"})
    torch.manual_seed(0)
    folded = row.folded(row.build(5))
    net = fake_quantised(folded, images(64), RUNTIMES["onnxruntime"]).net
    assert net.lateral[0].inputs is net.stages[1][0][0].inputs is not net.lateral[1].inputs
    assert net.classifier.output is None
    # onnxruntime wants the outputs that no layer rounds: of what is added, not of what a ReLU hands to the next layer.
    assert net.stem[0].output is None and net.stages[1][1].second.output is not None and net.lateral[0].output is not None
    assert all(part.output is None for part in fake_quantised(folded, images(64), RUNTIMES["openvino"]).layers())


def test_an_output_before_a_relu_alone_spends_no_codes_on_what_the_relu_takes_away():
    class Pooled(nn.Module):
        align_corners, widths = False, {}

        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1)

        def forward(self, x):
            return {"logits": self.last(nn.functional.max_pool2d(self.first(x / 255 - 0.5).relu(), 2))}

    torch.manual_seed(0)
    net = fake_quantised(Pooled(), images(32), RUNTIMES["onnxruntime"]).net
    assert net.first.output.zero == 0 and net.first.inputs.zero > 100


def test_dropout_and_batchnorm_do_as_in_the_engine_while_it_learns():
    net = fake_quantised(Net(), images(16), UNSIGNED_FORM)
    before = net.net.norm.running_mean.clone()
    one, other = (net.train()(images(16)[0])["logits"] for _ in range(2))
    assert torch.equal(one, other) and torch.equal(net.net.norm.running_mean, before)


def learnt(folder, stop_at=None, **changes):
    torch.manual_seed(1)
    student = fake_quantised(Net(), images(16), UNSIGNED_FORM)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    chosen = settings(weight_decay=0.0, **changes)
    done = fit(student, terms_of({"kind": "pixel"}), Memory(), Memory(5, 1), chosen, Job(folder, stop_at), Net().eval())
    return done, before


@pytest.mark.parametrize("changes", [{}, {"ema": 0.9, "optimizer": "sgd"}], ids=str)
def test_stopped_anywhere_and_started_again_weights_and_steps_end_in_the_same_bytes(tmp_path, changes):
    forget_accelerate()
    whole, before = learnt(tmp_path / "whole", **changes)
    still = [key for key, value in whole.weights.items() if torch.equal(value, before[key]) and "norm" not in key]
    assert all(key.endswith("zero") for key in still)  # every weight, bias and step has learnt
    for stop in (0, 4, 11):
        with pytest.raises(Stopped):
            learnt(tmp_path / f"stop{stop}", stop, **changes)
        again, _ = learnt(tmp_path / f"stop{stop}", **changes)
        assert digest(again.weights) == digest(whole.weights) and again.curves == whole.curves


def test_a_channel_of_zeros_keeps_its_bias_in_units_that_float32_can_count():
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight[:2] = 0
        layer.weight[2] *= 1e-9
        layer.bias.copy_(torch.tensor([0.0, 0.7, -3.0]))
    one = Quantised(layer, Rounding(SIGNED, 0.1, 0), None)
    units = one.bias() / (one.steps()[:, 0] * 0.1)
    assert torch.allclose(one.bias(), layer.bias, rtol=1e-6) and (units.abs() < 1 << 23).all()
    assert torch.allclose(units, units.round(), atol=0, rtol=1e-6) and torch.isfinite(one(torch.randn(2, 4))).all()


def test_a_bias_is_a_whole_number_of_steps_and_learns_straight_through():
    torch.manual_seed(0)
    one = Quantised(nn.Conv2d(3, 4, 1), Rounding(UNSIGNED, 0.2, 10), None)
    units = one.bias() / (one.steps()[:, 0, 0, 0] * 0.2)
    assert torch.allclose(units, units.round(), atol=1e-4) and not torch.equal(one.bias(), one.layer.bias)
    one.bias().sum().backward()
    assert torch.equal(one.layer.bias.grad, torch.ones(4)) and one.log_step.grad is None


def test_a_layer_with_rounding_tells_its_stride_and_padding_to_a_network_that_pads_by_itself():
    one = Quantised(nn.Conv2d(3, 4, 3, stride=2, padding=1, dilation=3), Rounding(SIGNED, 0.1, 0), None)
    assert (one.stride, one.kernel_size, one.dilation, one.padding) == ((2, 2), (3, 3), (3, 3), (1, 1))
    with pytest.raises(AttributeError, match="colour"):
        _ = one.colour
