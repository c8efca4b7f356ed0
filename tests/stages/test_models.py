"""The contract of a model row, checked over every row of the table."""

import importlib.util
import json
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from pipeline.artifact import Artifact
from pipeline.errors import BadData
from stages.models import TABLE, classmap, open_model
from stages.weights import save_checkpoint

NEEDS = {"hf": "transformers"}  # row -> optional package
SETTINGS = {  # rows whose defaults build nothing
    "hf": {
        "settings": {
            "model_type": "segformer",
            "hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 1, 1, 2],
            "decoder_hidden_size": 16,
        }
    }
}
CLASSES = 5
STRIDES = {"deeplabv3": [4, 8, 8, 8], "pspnet": [4, 8, 8, 8]}  # of c1 to c4, where they are not 4, 8, 16, 32


@pytest.fixture(params=TABLE.names())
def row(request):
    name = request.param
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"model {name} needs {NEEDS[name]}")
    return TABLE.row(name)(kind=name, **SETTINGS.get(name, {}))


def built(row, seed=0):
    torch.manual_seed(seed)
    return row.build(CLASSES)


def images(seed=0, b=2, h=64, w=96):
    return 255 * torch.rand(b, 3, h, w, generator=torch.Generator().manual_seed(seed))


def test_every_map_has_the_channels_and_the_stride_that_the_model_reports(row):
    model = built(row)
    taps = model(images())
    assert {"logits", "head", "c1", "c2", "c3", "c4"} <= taps.keys()
    assert taps.keys() == model.widths.keys() == model.strides.keys() == row.taps()
    for name, x in taps.items():
        s = model.strides[name]
        assert x.shape == (2, model.widths[name], 64 // s, 96 // s), name
        assert x.dtype == torch.float32
    assert model.widths["logits"] == CLASSES
    pyramid = [model.strides[f"c{i}"] for i in (1, 2, 3, 4)]
    assert pyramid == STRIDES.get(row.kind, [4, 8, 16, 32]), row.kind
    assert all(b % a == 0 for a, b in pairwise(pyramid)) and row.multiple == max(model.strides.values())
    assert model.align_corners is False


def test_the_head_is_what_the_last_classifier_sees(row):
    model = built(row).eval()
    taps = model(images())
    kept = [m for name, m in model.named_modules() if not name.startswith(row.aux_keys)]
    classifier = [m for m in kept if isinstance(m, torch.nn.Conv2d) and m.out_channels == CLASSES][-1]
    torch.testing.assert_close(F.interpolate(classifier(taps["head"]), taps["logits"].shape[2:]), taps["logits"])


def test_normalisation_is_part_of_the_model_but_not_of_its_weights(row):
    model = built(row).eval()
    names = {name.rsplit(".", 1)[-1] for name in model.state_dict()}
    assert not names & {"mean", "std"}
    flat = model.mean.expand(1, 3, 64, 64)
    seen = []
    first = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    first.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    model(flat)
    model(flat + model.std)
    torch.testing.assert_close(seen[0], torch.zeros_like(flat), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[1], torch.ones_like(flat), atol=1e-5, rtol=0)


def test_in_eval_mode_the_same_image_gives_the_same_bits(row):
    model = built(row).eval()
    with torch.no_grad():
        first, second = model(images()), model(images())
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_weights_come_from_torchs_generator_alone(row):
    first, second, other = built(row, 3), built(row, 3), built(row, 4)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.state_dict().values(), other.state_dict().values(), strict=True))


def test_every_weight_that_trains_gets_a_gradient(row):
    model = built(row).train()
    sum(x.square().mean() for x in model(images()).values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_size_that_the_strides_do_not_divide_names_the_padded_size(row):
    up = -(-50 // row.multiple) * row.multiple
    said = f"image of 50 x 96: height and width must be multiples of {row.multiple}; pad or resize to {up} x 96"
    with pytest.raises(BadData, match=said):
        built(row)(images(h=50))


def test_a_row_survives_the_manifest(row):
    assert type(row).model_validate(json.loads(json.dumps(row.model_dump()))) == row


def test_a_checkpoint_opens_as_the_network_that_was_saved(row, tmp_path):
    model = built(row, 7).eval()
    save_checkpoint(tmp_path, model.state_dict())
    facts = json.loads(json.dumps({"model": row.model_dump(), "classes": list("abcde")}))
    state = torch.get_rng_state()
    again = open_model(Artifact("teacher", "Checkpoint", "0" * 64, tmp_path, facts))
    assert torch.equal(torch.get_rng_state(), state), "opening a teacher must not shift the student's random numbers"
    assert not again.training
    assert torch.equal(again(images())["logits"], model(images())["logits"])


def test_its_own_weights_load_without_anything_missing(row):
    model, other = built(row, 1), built(row, 2)
    assert row.load(other, model.state_dict()) == []
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_heads_weights_are_told_by_their_names(row):
    model = built(row)
    head = [key for key in model.state_dict() if key.startswith(row.head_keys)]
    assert 0 < len(head) < len(model.state_dict())
    assert any(model.state_dict()[key].shape[:1] == (CLASSES,) for key in head)


def test_a_copy_of_a_model_keeps_its_own_taps(row):
    import copy

    model = built(row).eval()
    double = copy.deepcopy(model)
    with torch.no_grad():
        for p in double.parameters():
            p.mul_(1.5)
    taps = double(images())
    assert taps.keys() == model.widths.keys()
    assert not torch.equal(taps["head"], model(images())["head"])


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_classmap_is_the_argmax_of_logits_enlarged_bilinearly(align_corners):
    torch.manual_seed(0)
    logits = torch.randn(2, 7, 4, 6)
    got = classmap(logits, (16, 24), align_corners)
    double = F.interpolate(logits.double(), (16, 24), mode="bilinear", align_corners=align_corners)
    assert got.dtype == torch.uint8
    assert torch.equal(got.long(), double.argmax(1))


def test_a_classmap_of_known_logits_has_its_border_where_the_halves_meet():
    logits = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 1.0]]]])  # class 0 left, class 1 right
    assert classmap(logits, (2, 8), False).tolist() == [[[0, 0, 0, 0, 1, 1, 1, 1]] * 2]


@pytest.mark.parametrize("size, low, high", [("small", 20e3, 60e3), ("large", 0.5e6, 1e6)])
def test_the_tiny_models_are_as_large_as_they_say(size, low, high):
    model = TABLE.row("tiny")(kind="tiny", size=size).build(19)
    assert low <= sum(p.numel() for p in model.parameters()) <= high


def test_an_auxiliary_head_changes_nothing_else(row):
    """Neither how the network starts nor what it says; and it is one convolution, BatchNorm and classifier on c3."""
    with_head, without = (row.model_copy(update={"aux": aux}) for aux in (True, False))
    more, less = built(with_head, 5).eval(), built(without, 5).eval()
    assert with_head.taps() - without.taps() == {"aux"} and more.widths["aux"] == CLASSES and more.strides["aux"] == more.strides["c3"]
    state = more.state_dict()
    added = {key for key in state if key.startswith(with_head.aux_keys)}
    assert state.keys() - added == less.state_dict().keys() and len(added) == 8
    assert all(torch.equal(value, state[key]) for key, value in less.state_dict().items())
    with torch.no_grad():
        taps, plain = more(images()), less(images())
        torch.testing.assert_close(taps.pop("aux"), more.aux_classifier(taps["c3"]))
        assert taps.keys() == plain.keys() and all(torch.equal(taps[name], plain[name]) for name in plain)
        folded = with_head.folded(more)(images())
    torch.testing.assert_close(folded["aux"], more.aux_classifier(plain["c3"]), rtol=1e-3, atol=1e-4)
