"""PSPNet's head, against adaptive average pooling and its definition in float64."""

import pytest
import torch
import torch.nn.functional as F

from stages.models.pspnet import PSPNet
from stages.models.pspnet.net import BINS, Head, averages


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (6, 12), (9, 13), (64, 128)])
@pytest.mark.parametrize("bins", BINS)
def test_averages_are_adaptive_average_pooling_and_so_is_their_gradient(size, bins):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    ours, theirs = averages(x, bins), F.adaptive_avg_pool2d(x, bins)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(ours)
    first, second = (torch.autograd.grad((y * upstream).sum(), x)[0] for y in (ours, theirs))
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(5, 7), (9, 13)])
def test_the_head_is_its_definition(size, align_corners):
    torch.manual_seed(0)
    head = Head(8, 4, 3, align_corners).double().eval()
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    with torch.no_grad():
        maps = [x]
        for bins, branch in zip((1, 2, 3, 6), head.pyramid, strict=True):
            assert branch[0].weight.shape == (2, 8, 1, 1)
            pooled = branch(F.adaptive_avg_pool2d(x, bins))
            maps.append(F.interpolate(pooled, size, mode="bilinear", align_corners=align_corners))
        expected = head.bottleneck(torch.cat(maps, 1))
        logits, seen = head(x)
    torch.testing.assert_close(seen, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(logits, F.conv2d(expected, head.last.weight, head.last.bias), rtol=1e-9, atol=1e-9)
    assert head.bottleneck[0].weight.shape == (4, 16, 3, 3)


def test_the_size_follows_from_the_backbone_and_the_width():
    with torch.device("meta"):
        models = [PSPNet(kind="pspnet", backbone=b, width=w, aux=False).build(19) for b, w in (("resnet18", 128), ("resnet101", 512))]
    counts = [sum(p.numel() for p in model.classifier.parameters()) for model in models]

    def expected(c, width):
        return 4 * (c * c // 4 + c // 2) + 9 * 2 * c * width + 2 * width + 19 * width + 19

    assert counts == [expected(512, 128), expected(2048, 512)]
    assert [model.widths["head"] for model in models] == [128, 512] and models[1].widths["c4"] == 2048
