"""The hf row: networks of transformers behind our contract, built without a network and loaded from safetensors only."""

import json

import pytest
import torch

from pipeline.errors import BadData, BadRecipe, Refused

transformers = pytest.importorskip("transformers", reason="the hf row needs transformers")

from stages.fakequant import RUNTIMES, fake_quantised  # noqa: E402
from stages.models.hf import HuggingFace  # noqa: E402

SEGFORMER = {
    "model_type": "segformer",
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 1, 2],
    "decoder_hidden_size": 16,
}
UPERNET = {  # has an auxiliary head, and enlarges its logits itself
    "model_type": "upernet",
    "hidden_size": 32,
    "backbone_config": {
        "model_type": "convnext",
        "num_stages": 4,
        "hidden_sizes": [8, 16, 24, 32],
        "depths": [1, 1, 1, 1],
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
    "use_pretrained_backbone": True,  # must not reach for the hub
    "auxiliary_channels": 16,
    "auxiliary_in_channels": 24,
}
MOBILENET = {"model_type": "mobilenet_v2", "depth_multiplier": 0.25}


def saved(folder, classes=5, settings=SEGFORMER, seed=0):
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(**settings)
    config.num_labels = classes
    model = transformers.AutoModelForSemanticSegmentation.from_config(config).eval()
    model.save_pretrained(folder)
    return model


def image(seed=0, h=64, w=96):
    return 255 * torch.rand(1, 3, h, w, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("settings, stride, width", [(SEGFORMER, 4, 16), (UPERNET, 1, 32), (MOBILENET, 32, 256)])
def test_taps_are_found_in_networks_of_different_make(settings, stride, width):
    model = HuggingFace(kind="hf", settings=settings).build(5).eval()
    taps = model(image())
    assert (model.strides["logits"], model.widths["head"]) == (stride, width)
    for name, x in taps.items():
        s = model.strides[name]
        assert x.shape == (1, model.widths[name], 64 // s, 96 // s), name
    assert {"c1", "c2", "c3", "c4"} <= taps.keys()


def test_the_head_is_the_main_ones_not_the_auxiliary_ones():
    model = HuggingFace(kind="hf", settings=UPERNET).build(5).eval()
    out = model.net.decode_head.classifier(model(image())["head"])
    logits = torch.nn.functional.interpolate(out, (64, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(logits, model(image())["logits"])


@pytest.mark.parametrize("settings", [SEGFORMER, UPERNET, MOBILENET])
def test_a_saved_network_loads_from_its_folder_with_everything_filled_in(settings, tmp_path):
    published = saved(tmp_path, settings={k: v for k, v in settings.items() if k != "use_pretrained_backbone"})
    processor = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "rescale_factor": 0.01}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    row = HuggingFace(kind="hf").completed(tmp_path)
    assert row.settings["model_type"] == settings["model_type"] and "_name_or_path" not in row.settings
    model = row.build(5).eval()
    assert row.load(model, tmp_path) == []
    mean, std = (torch.tensor(processor[k]).view(3, 1, 1) for k in ("image_mean", "image_std"))
    with torch.no_grad():
        expected = published(pixel_values=(image() * 0.01 - mean) / std).logits
        torch.testing.assert_close(model(image())["logits"], expected, atol=1e-5, rtol=1e-5)


def test_what_the_recipe_says_wins_over_the_files_beside_the_weights(tmp_path):
    saved(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5], "do_rescale": False}))
    row = HuggingFace(kind="hf", mean=[0.1, 0.2, 0.3]).completed(tmp_path)
    assert (row.mean, row.std, row.rescale) == ((0.1, 0.2, 0.3), (0.229, 0.224, 0.225), 1.0)


def test_a_normalisation_that_nothing_tells_is_said_aloud(tmp_path):
    saved(tmp_path)
    assert "no preprocessor_config.json beside the weights: mean (0.485, 0.456, 0.406)" in HuggingFace(kind="hf").assumed(tmp_path)
    assert HuggingFace(kind="hf", mean=[0.1, 0.2, 0.3], std=[1.0, 1.0, 1.0]).assumed(tmp_path) is None
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_rescale": True}))
    assert HuggingFace(kind="hf").assumed(tmp_path) is None


def test_a_head_for_other_classes_is_refused_or_left_fresh_in_a_start(tmp_path):
    published = saved(tmp_path, classes=7)
    row = HuggingFace(kind="hf").completed(tmp_path)
    model = row.build(5)
    with pytest.raises(BadData, match="these weights know 7 classes, the data has 5"):
        row.load(model, tmp_path)
    before = model.state_dict()["net.decode_head.classifier.weight"].clone()
    assert row.load(model, tmp_path, init=True) == ["net.decode_head.classifier.bias", "net.decode_head.classifier.weight"]
    assert torch.equal(model.state_dict()["net.decode_head.classifier.weight"], before)
    assert torch.equal(model.net.decode_head.linear_fuse.weight, published.decode_head.linear_fuse.weight)


def test_missing_weights_are_named(tmp_path):
    from safetensors.torch import load_file, save_file

    saved(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["decode_head.batch_norm.bias"]
    save_file(state | {"stray": torch.zeros(3)}, tmp_path / "model.safetensors")
    row = HuggingFace(kind="hf").completed(tmp_path)
    with pytest.raises(
        BadData, match=r"(?s)batch_norm.bias: expected float32 \[16\], found nothing.*stray: expected nothing, found float32 \[3\]"
    ):
        row.load(row.build(5), tmp_path)


def test_pickled_weights_are_refused(tmp_path):
    model = saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(Refused, match="not safetensors but a pickle"):
        HuggingFace(kind="hf").completed(tmp_path)
    row = HuggingFace(kind="hf", settings=SEGFORMER)
    with pytest.raises(Refused, match="not safetensors but a pickle"):
        row.load(row.build(5), tmp_path)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, "model_type"),
        ({"model_type": "nonsense"}, "cannot build 'nonsense'"),
        ({"model_type": "bert"}, "cannot build 'bert' as a semantic segmentation network"),
        ({"model_type": "upernet", "backbone": "facebook/convnext-tiny-224"}, "write its backbone_config"),
    ],
)
def test_settings_that_build_nothing_are_the_recipes_fault(settings, message):
    with pytest.raises(BadRecipe, match=message):
        HuggingFace(kind="hf", settings=settings).build(5)


def test_remote_code_named_in_a_config_is_dropped(tmp_path):
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil--code.Model"}, "_name_or_path": "/home/me"}))
    settings = HuggingFace(kind="hf").completed(tmp_path).settings
    assert not settings.keys() & {"auto_map", "_name_or_path", "id2label"}


def test_images_in_bgr_are_refused(tmp_path):
    saved(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_flip_channel_order": True}))
    with pytest.raises(BadData, match="BGR"):
        HuggingFace(kind="hf").completed(tmp_path)


@pytest.mark.parametrize(
    "settings, kind, message",
    [
        ({"attn_implementation": "org/attention"}, Refused, "would fetch a program"),
        ({"backbone_config": {"_attn_implementation_internal": "org/attention"}}, Refused, "would fetch a program"),
        ({"backbone": "resnet50", "use_timm_backbone": True}, BadRecipe, "write its backbone_config"),
        ({"backbone_config": {"model_type": "timm_backbone", "backbone": "hf-hub:org/name"}}, Refused, "have to be fetched"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, Refused, "besides the weights"),
        ({"__class__": "x"}, Refused, "no setting of a network"),
        ({"hidden_sizes": [8, 16, 24, 10**9]}, BadRecipe, "out of range"),
        ({"initializer_range": float("nan")}, BadRecipe, "out of range"),
        ({"depths": [[[[[[[[[1]]]]]]]]]}, BadRecipe, "nested deeper"),
        ({"hidden_act": "\x1b[2J"}, BadRecipe, "no word of a config"),
        ({"hidden_sizes": "wide"}, BadRecipe, "cannot build 'segformer'"),
        ({"depths": [10**6, 1, 1, 1]}, BadData, "processor time|memory"),
        ({"hidden_sizes": [10**7, 16, 24, 32]}, BadRecipe, "is the limit"),
    ],
)
def test_settings_that_fetch_code_or_describe_absurd_networks_are_refused(settings, kind, message):
    with pytest.raises(kind, match=message):
        HuggingFace(kind="hf", settings=SEGFORMER | settings).build(5)


def test_a_config_that_describes_more_than_the_weights_beside_it_is_seen_before_anything_is_allocated(tmp_path):
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_sizes": [4096, 8192, 8192, 8192]}))
    with pytest.raises(BadData, match="do not belong together"):
        HuggingFace(kind="hf").completed(tmp_path)


@pytest.mark.parametrize(
    "processor",
    [{"image_std": [0, 1, 1]}, {"image_mean": "grey"}, {"image_mean": [1, 2]}, {"rescale_factor": 1e400}, {"rescale_factor": None}],
)
def test_a_normalisation_without_use_is_refused(processor, tmp_path):
    saved(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(BadData, match=r"preprocessor_config\.json: (image_mean|image_std|rescale_factor) is"):
        HuggingFace(kind="hf").completed(tmp_path)


def test_an_auxiliary_head_of_ours_is_no_part_of_published_weights(tmp_path):
    saved(tmp_path)
    row = HuggingFace(kind="hf", settings=SEGFORMER, aux=True)
    with pytest.raises(BadData, match="lack an auxiliary head of ours: write aux: false here, and train one in a stage with frozen"):
        row.load(row.build(5), tmp_path)
    fresh = row.load(row.build(5), tmp_path, init=True)
    assert len(fresh) == 8 and all(key.startswith("aux_classifier.") for key in fresh)


IDLE = {
    "upernet": "net.auxiliary_head.",
    "mobilenet_v2": "net.mobilenet_v2.conv_1x1.",
}  # what transformers computes, or builds, for nothing


@pytest.mark.parametrize("settings", [SEGFORMER, UPERNET, MOBILENET | {"tf_padding": False}], ids=lambda s: s["model_type"])
@pytest.mark.parametrize("rounded", [False, True], ids=["as it is", "with rounding in it"])
def test_exactly_the_weights_that_a_gradient_of_the_logits_reaches_ask_for_one(settings, rounded):
    """Several processes would wait for the others."""
    row = HuggingFace(kind="hf", settings=settings, aux=True)
    with torch.no_grad():  # whoever builds it
        model = row.build(5)
    assert not any(value.any() for name, value in model.named_buffers() if name.endswith("running_mean"))  # looking moves no averages
    assert all(p.requires_grad for p in model.aux_classifier.parameters())  # ours
    if rounded:
        model = fake_quantised(row.folded(model), [image()], RUNTIMES["tensorrt"], row.aux_keys)
    asking = {name for name, p in model.named_parameters() if p.requires_grad and "aux_classifier." not in name}
    for p in model.parameters():
        p.requires_grad_(True)
    model.eval()(image())["logits"].square().mean().backward()
    assert asking == {name for name, p in model.named_parameters() if p.grad is not None}
    idle = {name for name, p in model.named_parameters() if p.grad is None and "aux_classifier." not in name}
    part = IDLE.get(settings["model_type"])
    assert bool(idle) == bool(part) and all(part in name for name in idle)
