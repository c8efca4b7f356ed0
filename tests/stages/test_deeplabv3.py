"""DeepLabV3's head, against its definition in float64 and the figures of torchvision's networks."""

import pytest
import torch
import torch.nn.functional as F

from stages.models.deeplabv3 import DeepLabV3
from stages.models.deeplabv3.net import Head

KEYS = {  # of the head of torchvision's deeplabv3_resnet50
    "classifier.0.convs.0.0.weight": (256, 2048, 1, 1),
    "classifier.0.convs.0.1.running_mean": (256,),
    "classifier.0.convs.1.0.weight": (256, 2048, 3, 3),
    "classifier.0.convs.3.1.running_var": (256,),
    "classifier.0.convs.4.1.weight": (256, 2048, 1, 1),
    "classifier.0.convs.4.2.bias": (256,),
    "classifier.0.project.0.weight": (256, 1280, 1, 1),
    "classifier.0.project.1.weight": (256,),
    "classifier.1.weight": (256, 256, 3, 3),
    "classifier.2.num_batches_tracked": (),
    "classifier.4.weight": (21, 256, 1, 1),
    "classifier.4.bias": (21,),
    "aux_classifier.0.weight": (256, 1024, 3, 3),
    "aux_classifier.1.bias": (256,),
    "aux_classifier.4.weight": (21, 256, 1, 1),
    "aux_classifier.4.bias": (21,),
}


@pytest.mark.parametrize(("backbone", "parameters"), [("resnet50", 42_004_074), ("resnet101", 60_996_202)])
def test_it_has_as_many_parameters_as_torchvisions_and_their_names(backbone, parameters):
    with torch.device("meta"):
        model = DeepLabV3(kind="deeplabv3", backbone=backbone).build(21)
    assert sum(p.numel() for p in model.parameters()) == parameters
    state = model.state_dict()
    assert {key: tuple(state[key].shape) for key in KEYS} == KEYS
    assert {key.partition(".")[0] for key in state} == {"backbone", "classifier", "aux_classifier"}
    heads = [key for key in state if not key.startswith("backbone.") and not key.endswith("num_batches_tracked")]
    assert len(heads) == 5 * 5 + 5 + 5 + 2 + 5 + 2, "no weight has a bias or a norm that is not published"


def test_the_student_of_the_literature_has_the_size_it_reports():
    with torch.device("meta"):
        model = DeepLabV3(kind="deeplabv3", backbone="mobilenet_v2", width=128, aux=False).build(19)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(3.2e6, rel=0.02)  # 3.2 M in the tables of CIRKD and KT


@pytest.mark.parametrize("size", [(5, 7), (40, 30)])  # the largest dilation, 36, reaches outside, and inside
def test_the_head_is_its_definition(size):
    torch.manual_seed(0)
    head = Head(6, 4, 3).double().eval()
    state = head.state_dict()
    for key, value in state.items():
        if key.endswith(("running_mean", "running_var", "weight", "bias")):
            value.uniform_(0.2, 1.5) if key.endswith("running_var") else value.normal_()
    x = torch.randn(2, 6, *size, dtype=torch.float64)

    def block(y, at, number=0, dilation=1):
        weight = state[f"{at}.{number}.weight" if at else f"{number}.weight"]
        after = f"{at}.{number + 1}" if at else f"{number + 1}"
        y = F.conv2d(y, weight, padding=weight.shape[-1] // 2 * dilation, dilation=dilation)
        mean, var, scale, shift = (state[f"{after}.{k}"].view(1, -1, 1, 1) for k in ("running_mean", "running_var", "weight", "bias"))
        return ((y - mean) / (var + 1e-5).sqrt() * scale + shift).relu()

    rates = [1, 12, 24, 36]
    maps = [block(x, f"0.convs.{i}", dilation=rate) for i, rate in enumerate(rates)]
    whole = block(x.mean((2, 3), keepdim=True), "0.convs.4", number=1)
    maps.append(F.interpolate(whole, size, mode="bilinear"))
    expected = block(block(torch.cat(maps, 1), "0.project"), "", number=1)
    with torch.no_grad():
        logits, seen = head(x)
    torch.testing.assert_close(seen, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(logits, F.conv2d(expected, state["4.weight"], state["4.bias"]), rtol=1e-9, atol=1e-9)
    assert seen.std() > 0.1
