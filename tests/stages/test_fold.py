"""Rewrites leave every map as it is: to rounding in float32, and to nothing in float64."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stages.fold import fold_norms
from stages.measure.flops import flops
from stages.models import TABLE, classmap
from stages.models.segformer.net import HEAD_WIDTH, WIDTHS

torch.set_num_threads(1)
CLASSES = 5
HF = {"model_type": "segformer", "hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4, "num_attention_heads": [1, 1, 1, 2]}
ROWS = [
    *({"kind": "tiny", "align_corners": a} for a in (False, True)),
    *({"kind": "segformer", "align_corners": a} for a in (False, True)),
    *({"kind": "deeplabv3", "backbone": "mobilenet_v2", "width": 24, "align_corners": a} for a in (False, True)),
    *({"kind": "pspnet", "width": 24, "align_corners": a} for a in (False, True)),
    {"kind": "hf", "settings": HF | {"decoder_hidden_size": 16}},
]


def test_every_model_is_tested():
    assert {row["kind"] for row in ROWS} == set(TABLE.names())


def trained(row, m):
    """The network with BatchNorms that know means, spreads, factors and summands. It takes no step: two on noise end anywhere."""
    torch.manual_seed(0)
    model = row.build(CLASSES).train()
    with torch.no_grad():
        for norm in norms(model):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(std=0.2)
        if row.kind == "hf":  # as transformers draws its weights, every pixel has the same class
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
        for _ in range(3):
            model(255 * torch.rand(2, 3, 2 * m, 2 * m))
        mean = model.eval()(255 * torch.rand(2, 3, 3 * m, 5 * m))["logits"].mean((0, 2, 3))
        for conv in (c for c in model.modules() if isinstance(c, nn.Conv2d) and c.out_channels == CLASSES and c.bias is not None):
            conv.bias -= mean  # else one class may be the best everywhere
    return model


def norms(model):
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize("settings", ROWS, ids=lambda s: f"{s['kind']}-{'corners' if s.get('align_corners') else 'centres'}")
def test_every_map_stays_as_it_is(settings):
    if settings["kind"] == "hf" and importlib.util.find_spec("transformers") is None:
        pytest.skip("model hf needs transformers")
    row = TABLE.row(settings["kind"]).model_validate(settings)
    model = trained(row, m := row.multiple)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    folded = row.folded(model)
    assert torch.equal(torch.get_rng_state(), random), "folding a teacher must not shift the student's random numbers"
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items()) and norms(model)
    assert not norms(folded) and not folded.training and not any(p.requires_grad for p in folded.parameters())
    assert folded.widths == model.widths and folded.strides == model.strides and folded.align_corners == model.align_corners
    image = 255 * torch.rand(2, 3, 3 * m, 5 * m)
    with torch.no_grad():
        ours, theirs = folded(image), model(image)
        exact = model.double()(image.double())
        algebra = row.folded(model)(image.double())
    assert ours.keys() == theirs.keys() == row.taps()
    for name in exact:
        scale = exact[name].abs().max()
        assert (algebra[name] - exact[name]).abs().max() <= 1e-12 * scale, name
        own = (theirs[name] - exact[name]).abs().max()  # what rounding makes of the network as it is
        assert (ours[name] - exact[name]).abs().max() <= max(1e-5 * scale, 3 * own), name
    size = image.shape[2:]
    assert torch.equal(argmax(algebra["logits"], size, model), argmax(exact["logits"], size, model))
    best = F.interpolate(exact["logits"], size, mode="bilinear", align_corners=model.align_corners).topk(2, 1).values
    clear = best[:, 0] - best[:, 1] > 1e-5 * exact["logits"].abs().max()  # elsewhere two classes are equal within float32
    assert clear.float().mean() > 0.999
    maps = [classmap(taps["logits"], size, model.align_corners) for taps in (ours, theirs)]
    assert torch.equal(maps[0][clear], maps[1][clear])
    assert len(maps[1].unique()) > 1


def argmax(logits, size, model):
    return F.interpolate(logits, size, mode="bilinear", align_corners=model.align_corners).argmax(1)


def test_the_head_of_segformer_costs_its_share_and_nothing_else_changes():
    row = TABLE.row("segformer")(kind="segformer")
    with torch.device("meta"):
        model = row.build(19)
    cells, dim = [(512 // s) ** 2 for s in (4, 8, 16, 32)], HEAD_WIDTH["b0"]
    saved = 2 * 4 * dim * dim * cells[0]  # the fusion of four enlarged maps; what is left of it is in the projections
    before, after = (flops(m, (512, 512)) for m in (model, row.folded(model)))
    assert before - after == saved
    head = 2 * (sum(n * width for n, width in zip(cells, WIDTHS["b0"], strict=True)) * dim + cells[0] * dim * 19)
    assert after > head
    attention = 2 * 2 * 2 * 256 * sum(n * width for n, width in zip(cells, WIDTHS["b0"], strict=True))  # two blocks each, 256 keys
    assert (before - attention) / 1e9 == pytest.approx(13.6, abs=0.05) and (after - attention) / 1e9 == pytest.approx(5.0, abs=0.05)
    assert before / 1e9 == pytest.approx(15.68, abs=0.01) and after / 1e9 == pytest.approx(7.09, abs=0.01)


@pytest.mark.parametrize("kind, backbone", [("deeplabv3", "resnet18"), ("pspnet", "resnet18"), ("tiny", None)])
def test_what_dilated_networks_save(kind, backbone):
    row = TABLE.row(kind).model_validate({"kind": kind} | ({"backbone": backbone} if backbone else {}))
    model = row.build(19)
    before, after = (flops(m, (64, 96), row.aux_keys) for m in (model, row.folded(model)))
    cells = 8 * 12
    assert (
        before - after
        == {
            "deeplabv3": 2 * 256 * 256 * (cells - 1),  # the whole image: once, not per cell
            "pspnet": 2
            * 512
            * (9 * 512 * cells - 9 * 128 * 50 - 9 * 50 * 12 - 36 * cells),  # 50 bins in all, 36 rows of three times 12 bins
            "tiny": 0,
        }[kind]
    )


def test_flops_are_two_per_weight_and_cell_and_leave_out_what_is_not_exported():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.aux, self.dense = nn.Conv2d(3, 7, 3, 2, 1), nn.Conv2d(7, 5, 1), nn.Linear(7, 4)

        def forward(self, x):
            x = self.first(x)
            q = self.dense(x.flatten(2).transpose(1, 2)).unsqueeze(1)
            return self.aux(x), F.scaled_dot_product_attention(q, q, q)

    first, aux, dense, attention = 2 * 27 * 7 * 20, 2 * 7 * 5 * 20, 2 * 7 * 4 * 20, 2 * 2 * 20 * 20 * 4
    assert flops(Net(), (8, 10)) == first + aux + dense + attention
    assert flops(Net(), (8, 10), ("aux.",)) == first + dense + attention


class Scaled(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight / self.weight.std())


class WithAct(nn.BatchNorm2d):
    def forward(self, x):
        return F.relu(super().forward(x))


class Twice(nn.Module):
    """Uses what its convolution makes in `way`, beside the norm."""

    def __init__(self, way):
        super().__init__()
        self.way, self.conv, self.norm = way, nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        z = self.norm(y)
        return {
            "tap": lambda: (z, [y]),
            "sum": lambda: z + y,
            "shape": lambda: z * y.shape[1],
            "view": lambda: (z, y.flatten(1)),
            "again": lambda: z + self.conv(x + 1),
            "both": lambda: z + self.norm(x[:, [0, 1, 2, 0]]),
            "next": lambda: self.norm(z),
        }[self.way]()


class Cells(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


class Tokens(nn.Module):
    def forward(self, x):
        return x.flatten(2)[:, :, :3]  # (B, 3, 3): three channels, and three numbers for each


LEFT = {  # network: how many norms must stay
    "plain": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, groups=1, bias=False), nn.BatchNorm2d(4)), 0),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6)), 0),
    "without factors": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)), 0),
    "linear": (lambda: nn.Sequential(Cells(), nn.Linear(3, 4), nn.BatchNorm1d(4)), 0),
    "two": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)), 0),
    "shape": (lambda: Twice("shape"), 0),
    "linear over tokens": (lambda: nn.Sequential(Tokens(), nn.Linear(3, 3), nn.BatchNorm1d(3)), 1),
    "before its convolution": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)), 1),
    "an activation between": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)), 1),
    "in place between": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.BatchNorm2d(4)), 1),
    "of each batch": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)), 1),
    "a convolution of its own kind": (lambda: nn.Sequential(Scaled(3, 4, 1, bias=False), nn.BatchNorm2d(4)), 1),
    "a norm of its own kind": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), WithAct(4)), 1),
    **{way: (lambda way=way: Twice(way), 1) for way in ("tap", "sum", "view", "again", "both", "next")},
}


@pytest.mark.parametrize("name", LEFT)
def test_a_norm_is_folded_where_that_is_exact_and_nowhere_else(name):
    make, left = LEFT[name]
    torch.manual_seed(0)
    net = make().eval().double()
    for norm in norms(net):
        if norm.running_mean is not None:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
        if norm.weight is not None:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    image = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    expected = net(image)
    fold_norms(net, lambda: net(image))
    assert len(norms(net)) == left
    torch.testing.assert_close(net(image), expected, rtol=1e-12, atol=1e-12)


def test_a_norm_that_has_two_names_is_gone_under_both():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    net.alias = nn.ModuleList([net[1]])
    fold_norms(net, lambda: net[1](net[0](torch.rand(1, 3, 4, 4))))
    assert not norms(net)
