"""What deeplabv3 and pspnet share: dilated backbones that take published weights, and an auxiliary head that stays at home."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from pipeline.errors import BadData
from stages.fit import Fit
from stages.models import TABLE, open_model
from stages.models._dilated import PooledNorm, backbone_of
from stages.models._resnet import SIZES
from stages.pupil import optimizer_for
from stages.samples import open_samples
from tests.stages import small_line

KINDS = ("deeplabv3", "pspnet")
WEIGHTS = {  # of torchvision's image classifiers, and of what lies behind the part that is used here
    "resnet18": (11_689_512, 513_000),
    "resnet50": (25_557_032, 2_049_000),
    "resnet101": (44_549_160, 2_049_000),
    "mobilenet_v2": (3_504_872, 412_160 + 1_281_000),
}
KEYS = {  # written from torchvision's checkpoints
    "resnet18": {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_var": (64,),
        "layer1.0.conv1.weight": (64, 64, 3, 3),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer3.1.bn2.bias": (256,),
        "layer4.0.downsample.1.running_mean": (512,),
    },
    "resnet50": {
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer2.3.conv2.weight": (128, 128, 3, 3),
        "layer3.5.bn3.weight": (1024,),
        "layer4.0.downsample.0.weight": (2048, 1024, 1, 1),
        "layer4.2.conv3.weight": (2048, 512, 1, 1),
        "layer4.2.bn3.num_batches_tracked": (),
    },
    "resnet101": {"layer3.22.conv1.weight": (256, 1024, 1, 1)},
    "mobilenet_v2": {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.0.1.running_mean": (32,),
        "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.1.conv.1.weight": (16, 32, 1, 1),
        "features.1.conv.2.bias": (16,),
        "features.2.conv.0.0.weight": (96, 16, 1, 1),
        "features.2.conv.1.0.weight": (96, 1, 3, 3),
        "features.2.conv.2.weight": (24, 96, 1, 1),
        "features.17.conv.3.running_var": (320,),
    },
}


def row_of(kind, **settings):
    return TABLE.row(kind).model_validate({"kind": kind} | settings)


def built(row, classes=5, seed=0):
    torch.manual_seed(seed)
    return row.build(classes)


def image(h=40, w=56, b=2, seed=0):
    return 255 * torch.rand(b, 3, h, w, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_backbone_has_the_weights_and_names_of_the_published_one(name):
    with torch.device("meta"):
        backbone = backbone_of(name)
    whole, behind = WEIGHTS[name]
    assert sum(p.numel() for p in backbone.parameters()) == whole - behind
    state = backbone.state_dict()
    assert {key: tuple(state[key].shape) for key in KEYS[name]} == KEYS[name]
    assert "layer1.0.downsample.0.weight" in state or name in ("resnet18", "mobilenet_v2")


# The original networks, with strides 4 to 32 and no dilation, in float64.


def conv(state, name, x, stride=1):
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=x.shape[1] // weight.shape[1])


def norm(state, name, x):
    return F.batch_norm(x, *(state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")))


def strided_resnet(state, x, depths):
    x, pyramid = F.max_pool2d(norm(state, "bn1", conv(state, "conv1", x, 2)).relu(), 3, 2, 1), []
    for stage, depth in enumerate(depths, 1):
        for block in range(depth):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            deep = f"{at}.conv3.weight" in state
            y = norm(state, f"{at}.bn1", conv(state, f"{at}.conv1", x, 1 if deep else stride)).relu()
            y = norm(state, f"{at}.bn2", conv(state, f"{at}.conv2", y, stride if deep else 1))
            if deep:
                y = norm(state, f"{at}.bn3", conv(state, f"{at}.conv3", y.relu()))
            if f"{at}.downsample.0.weight" in state:
                x = norm(state, f"{at}.downsample.1", conv(state, f"{at}.downsample.0", x, stride))
            x = (x + y).relu()
        pyramid.append(x)
    return pyramid


def strided_mobilenet(state, x):
    x, pyramid = norm(state, "features.0.1", conv(state, "features.0.0", x, 2)).clamp(0, 6), []
    for i in range(1, 18):
        at, y, last = f"features.{i}.conv", x, 1 if i == 1 else 2
        for j in range(last):
            y = conv(state, f"{at}.{j}.0", y, 2 if j == last - 1 and i in (2, 4, 7, 14) else 1)
            y = norm(state, f"{at}.{j}.1", y).clamp(0, 6)
        y = norm(state, f"{at}.{last + 1}", conv(state, f"{at}.{last}", y))
        x = x + y if x.shape == y.shape else y
        if i in (3, 6, 13, 17):
            pyramid.append(x)
    return pyramid


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
def test_a_dilated_backbone_computes_what_the_strided_one_does_and_what_lies_between(name):
    torch.manual_seed(0)
    backbone = backbone_of(name).double().eval()
    for key, value in backbone.state_dict().items():
        if key.endswith("running_mean"):
            value.normal_(std=0.1)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    x = torch.randn(1, 3, 40, 56, dtype=torch.float64)
    with torch.no_grad():
        pyramid = backbone(x)
        state = backbone.state_dict()
        original = strided_mobilenet(state, x) if name == "mobilenet_v2" else strided_resnet(state, x, SIZES[name][1])
    assert [tuple(y.shape[1:]) for y in pyramid] == [(c, *g) for c, g in zip(backbone.widths, [(10, 14)] + 3 * [(5, 7)], strict=True)]
    for ours, theirs, apart in zip(pyramid, original, (1, 1, 2, 4), strict=True):
        assert theirs.std() > 1e-3
        torch.testing.assert_close(ours[:, :, ::apart, ::apart], theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("size", [(8, 8), (40, 56), (72, 24)])
def test_maps_lie_on_their_grids_at_odd_multiples_of_8(kind, backbone, size):
    model = built(row_of(kind, backbone=backbone, width=32)).eval()
    with torch.no_grad():
        taps = model(image(*size))
    for name, x in taps.items():
        assert x.shape == (2, model.widths[name], *(side // model.strides[name] for side in size)), name
        assert x.isfinite().all(), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_auxiliary_head_is_a_setting_and_the_rest_starts_the_same_without_it(kind):
    rows = row_of(kind, width=32), row_of(kind, width=32, aux=False)
    assert [row.taps() ^ {"logits", "head", "c1", "c2", "c3", "c4"} for row in rows] == [{"aux"}, set()]
    on, off = (built(row).eval() for row in rows)
    state = on.state_dict()
    assert state.keys() - off.state_dict().keys() == {key for key in state if key.startswith("aux_classifier.")} != set()
    assert all(torch.equal(value, state[key]) for key, value in off.state_dict().items())
    with torch.no_grad():
        first, second = on(image()), off(image())
    assert first.keys() - second.keys() == {"aux"} and torch.equal(first["logits"], second["logits"])
    torch.testing.assert_close(first["aux"], on.aux_classifier(first["c3"]))
    assert torch.equal(on(image())["aux"], first["aux"]), "a teacher in eval mode has it too, without dropout"


def test_a_graph_is_traced_without_the_auxiliary_head():
    model = built(row_of("deeplabv3", width=32)).eval()
    program = torch.export.export(model, (image(),))
    assert set(torch.utils._pytree.tree_unflatten(range(6), program.call_spec.out_spec)) == set(model.widths) - {"aux"}


@pytest.mark.parametrize("kind", KINDS)
def test_in_training_the_head_is_what_the_last_convolution_sees_with_its_dropout(kind):
    model = built(row_of(kind, width=64)).train()
    taps = model(image())
    last = next(m for m in reversed(list(model.classifier.modules())) if isinstance(m, torch.nn.Conv2d))
    torch.testing.assert_close(last(taps["head"]), taps["logits"])
    torch.manual_seed(1)
    again = model(image())["head"]
    dropped = (taps["head"] == 0) != (again == 0)
    assert 0.05 < dropped.float().mean() < 0.2, "two draws differ where one of them dropped a value above 0"


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_image_can_train(kind):
    model = built(row_of(kind, width=32)).train()
    sum(x.square().mean() for x in model(image(b=1)).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    pooled = {name: m for name, m in model.named_modules() if isinstance(m, PooledNorm)}
    assert pooled and all(m.running_mean.isfinite().all() and m.running_var.isfinite().all() for m in pooled.values())


def test_the_norm_of_one_value_is_that_of_eval_and_of_more_the_usual_one():
    torch.manual_seed(0)
    ours, usual = PooledNorm(3), torch.nn.BatchNorm2d(3)
    for module in (ours, usual):
        module.running_mean.fill_(0.5), module.running_var.fill_(4.0)
    one, two = torch.randn(1, 3, 1, 1), torch.randn(2, 3, 1, 1)
    torch.testing.assert_close(ours(one), (one - 0.5) / 2, rtol=1e-4, atol=1e-5)
    assert torch.equal(ours.running_mean, usual.running_mean)
    assert torch.equal(ours(two), usual(two)) and torch.equal(ours.running_var, usual.running_var)
    assert torch.equal(ours.eval()(one), usual.eval()(one))


# Published weights.


def published(model, **other):
    """As torchvision would have saved it, from before BatchNorm counted its steps."""
    return {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")} | other


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
def test_an_image_classifier_starts_the_backbone_and_the_missing_heads_are_reported(kind, backbone, tmp_path):
    from safetensors.torch import save_file

    row = row_of(kind, backbone=backbone, width=32)
    given, ours = built(row, seed=1), built(row, seed=2)
    bare = {key.removeprefix("backbone."): value for key, value in published(given).items() if key.startswith("backbone.")}
    if backbone == "resnet18":
        bare |= {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
    else:
        bare |= {"classifier.1.weight": torch.zeros(10, 1280), "classifier.1.bias": torch.zeros(10)}
        bare |= {"features.18.0.weight": torch.zeros(1280, 320, 1, 1), "features.18.1.weight": torch.zeros(1280)}
    save_file(bare, tmp_path / "classifier.safetensors")
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    missing = row.load(ours, tmp_path / "classifier.safetensors", init=True)
    assert set(missing) == {key for key in before if key.startswith(row.head_keys) and not key.endswith("num_batches_tracked")}
    for key, value in ours.state_dict().items():
        source = given.state_dict() if key.startswith("backbone.") and not key.endswith("num_batches_tracked") else before
        assert torch.equal(value, source[key]), key
    with pytest.raises(BadData, match="found nothing"):
        row.load(ours, tmp_path / "classifier.safetensors")


def test_a_published_segmentation_network_loads_whole_with_and_without_its_auxiliary_head():
    row, without = row_of("deeplabv3", width=32), row_of("deeplabv3", width=32, aux=False)
    given = built(row, seed=1).eval()
    ours, bare = built(row, seed=2).eval(), built(without, seed=2).eval()
    assert row.load(ours, published(given)) == [] == without.load(bare, published(given))
    with torch.no_grad():
        expected, found, short = (model(image()) for model in (given, ours, bare))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(short["logits"], expected["logits"])
    headless = {key: value for key, value in published(given).items() if not key.startswith("aux_classifier.")}
    with pytest.raises(BadData, match=r"aux_classifier\.0\.weight: expected float32 \[64, 256, 3, 3\], found nothing"):
        row.load(ours, headless)
    assert all(key.startswith("aux_classifier.") for key in row.load(ours, headless, init=True))


def test_a_head_for_other_classes_is_refused_and_kept_out_of_a_start():
    row = row_of("deeplabv3", width=32)
    given, ours = built(row, classes=21), built(row, classes=5)
    with pytest.raises(BadData, match="these weights know 21 classes, the data has 5"):
        row.load(ours, published(given))
    missing = row.load(ours, published(given), init=True)
    assert missing == ["classifier.4.weight", "classifier.4.bias", "aux_classifier.4.weight", "aux_classifier.4.bias"]


def test_pspnet_starts_from_the_backbone_of_a_published_deeplabv3():
    given, row = built(row_of("deeplabv3", width=32), seed=1), row_of("pspnet", width=32)
    ours = built(row, seed=2)
    missing = row.load(ours, published(given), init=True)
    assert missing and all(key.startswith("classifier.") for key in missing)
    assert torch.equal(ours.backbone.layer4[1].conv2.weight, given.backbone.layer4[1].conv2.weight)
    assert torch.equal(ours.aux_classifier[4].weight, given.aux_classifier[4].weight)


@pytest.mark.parametrize("kind", KINDS)
def test_both_heads_have_the_learning_rate_of_heads(kind):
    row = row_of(kind, width=32)
    model = built(row)
    optimizer = optimizer_for(model, torch.nn.Identity(), Fit(head_lr=10.0), row.head_keys)
    fast = {p for group in optimizer.param_groups if group["scale"] == 10 for p in group["params"]}
    assert fast == {*model.classifier.parameters(), *model.aux_classifier.parameters()}


# In the line.


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return small_line.data(tmp_path_factory.mktemp("data"), size=(72, 104))  # 9 x 13 cells: no grid of averages divides them


@pytest.mark.parametrize(
    "model",
    [{"kind": "deeplabv3", "width": 32}, {"kind": "pspnet", "width": 32, "align_corners": True}],
    ids=KINDS,
)
def test_the_exported_graph_is_the_network_without_its_auxiliary_head(model, dataset, tmp_path):
    student = small_line.checkpoint(tmp_path, dataset, model=model)
    made = small_line.exported(tmp_path, dataset, student, logits=True)
    module, samples = open_model(student), open_samples(dataset, "val")
    images = np.stack([samples[i][0] for i in range(3)])
    session = onnxruntime.InferenceSession(made.file("model.onnx"), providers=["CPUExecutionProvider"])
    classes, logits = session.run(["classmap", "logits"], {"image": images})
    with torch.no_grad():
        ours = module(torch.from_numpy(images).permute(0, 3, 1, 2).float())["logits"].numpy()
        exact = module.double()(torch.from_numpy(images).permute(0, 3, 1, 2).double())["logits"]
    assert np.abs(logits - ours).max() < 1e-4 * np.abs(ours).max() and ours.std() > 1e-3
    large = F.interpolate(exact, (72, 104), mode="bilinear", align_corners=module.align_corners)
    first, second = large.topk(2, 1).values.unbind(1)
    clear = (first - second > 1e-3 * large.abs().max()).numpy()
    assert clear.mean() > 0.9 and (classes == large.argmax(1).numpy())[clear].all()
    proto = onnx.load(made.file("model.onnx"))
    inside = sum(int(np.prod(x.dims)) for x in proto.graph.initializer)
    kept = sum(p.numel() for name, p in module.named_parameters() if not name.startswith("aux_classifier."))
    assert made.facts["parameters"] == kept < sum(p.numel() for p in module.parameters())
    assert inside < kept + 5000, "BatchNorm is folded; what is left over are the matrices of the averages"
    assert made.facts["flops"]["after"] < made.facts["flops"]["before"]
    assert not any("aux" in x.name for x in proto.graph.initializer)
    assert not {node.op_type for node in proto.graph.node} & {"Gather", "Range", "Loop", "If", "Where"}


TINY = {"kind": "tiny", "size": "large"}
CNN = {"kind": "deeplabv3", "width": 16, "backbone": "mobilenet_v2"}
LOSSES = [{"kind": "pixel"}, {"kind": "pixel", "at": "logits"}, {"kind": "cwd", "weight": 0.5}]


@pytest.fixture
def alone():
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for one in (AcceleratorState, GradientState, PartialState):
        one._reset_state()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("teacher", "student"),
    [(CNN, {"kind": "segformer"}), ({"kind": "segformer"}, CNN), ({"kind": "pspnet", "width": 16}, CNN | {"aux": False})],
    ids=["cnn teaches segformer", "segformer teaches cnn", "without the auxiliary head"],
)
def test_networks_of_other_strides_and_widths_teach_each_other(teacher, student, dataset, tmp_path):
    from stages.distill import Distill

    master = small_line.checkpoint(tmp_path, dataset, name="teacher", model=teacher)
    settings = {"kind": "distill", "data": "data", "teacher": "teacher", "model": student, "losses": LOSSES}
    stage = Distill.model_validate(settings | {"fit": {"steps": 2, "batch": 2, "crop": [32, 32], "val_images": 1}})
    shrunk = small_line.Artifact(dataset.name, dataset.kind, dataset.id, dataset.folder, dataset.facts | {"splits": {"train": 2}})
    made = small_line.made(stage, "student", {"data": shrunk, "teacher": master}, tmp_path)
    terms = made.json("curves.json")["train"][-1]["terms"]
    assert {"ce", "pixel", "pixel_2", "cwd"} <= terms.keys() and all(value > 0 for value in terms.values())
    assert ("aux" in terms) == (student["kind"] == "deeplabv3" and student.get("aux", True))


def test_a_crop_that_only_the_student_can_take_is_found_before_anything_runs():
    from stages.data import Data
    from stages.distill import Distill
    from stages.train import Train

    earlier = {
        "data": Data.model_validate({"kind": "data", "source": {"kind": "streets"}, "size": [64, 96]}),
        "teacher": Train.model_validate({"kind": "train", "data": "data", "model": TINY}),
        "small": Train.model_validate({"kind": "train", "data": "data", "model": CNN}),
    }
    settings = {"kind": "distill", "data": "data", "model": CNN, "fit": {"crop": [40, 64]}}
    stage = Distill.model_validate(settings | {"teacher": "teacher"})
    assert stage.problems(earlier) == [(("fit", "crop"), "crop [40, 64]: the teacher needs multiples of 32; the nearest is [32, 64]")]
    assert Distill.model_validate(settings | {"teacher": "small"}).problems(earlier) == []


def test_an_auxiliary_head_that_nothing_would_train_is_found_before_anything_runs():
    from stages.train import Train

    settings = {"kind": "train", "data": "data", "fit": {"crop": [40, 64]}, "task": {"kind": "ce", "aux_weight": 0.0}}
    said = "0 leaves the auxiliary head of deeplabv3 untrained: write aux: false in the model, or a weight"
    assert Train.model_validate(settings | {"model": CNN}).problems({}) == [(("task", "aux_weight"), said)]
    assert Train.model_validate(settings | {"model": CNN | {"aux": False}}).problems({}) == []
    assert Train.model_validate(settings | {"model": TINY}).problems({})[0][0] == ("fit", "crop")
