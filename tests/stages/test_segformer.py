"""SegFormer against transformers' own, for every size and both generations of weight names."""

import pytest
import torch

from pipeline.errors import BadData
from stages.models.segformer import SegFormer
from stages.models.segformer.net import DEPTHS, HEAD_WIDTH, WIDTHS
from stages.weights import load_into

PARAMETERS = {"b0": 3.72, "b1": 13.68, "b2": 27.36, "b3": 47.24, "b4": 64.01, "b5": 84.61}  # millions, with 19 classes


def theirs(size="b0", classes=5, seed=0, **other):
    transformers = pytest.importorskip("transformers", reason="comparing SegFormer needs transformers")
    torch.manual_seed(seed)
    config = transformers.SegformerConfig(
        hidden_sizes=WIDTHS[size],
        depths=DEPTHS[size],
        decoder_hidden_size=HEAD_WIDTH[size],
        num_attention_heads=(1, 2, 5, 8),
        num_labels=classes,
        **other,
    )
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    with torch.no_grad():  # random weights of a size that makes every part of the network count
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
        model.decode_head.batch_norm.running_mean.normal_(std=0.1)
        model.decode_head.batch_norm.running_var.uniform_(0.5, 2)
    return model


def assert_equal_logits(ours, model, h=64, w=96):
    image = 255 * torch.rand(2, 3, h, w, generator=torch.Generator().manual_seed(1))
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        expected = model(pixel_values=(image / 255 - mean) / std, output_hidden_states=True)
        got = ours.eval()(image)
    assert expected.logits.std() > 0.05, "a network that says nothing proves nothing"
    torch.testing.assert_close(got["logits"], expected.logits, atol=1e-5, rtol=1e-5)
    for name, x in zip(("c1", "c2", "c3", "c4"), expected.hidden_states, strict=True):
        torch.testing.assert_close(got[name], x, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", ["b0", "b2"])
def test_logits_and_pyramid_equal_transformers_for_a_saved_checkpoint(size, tmp_path):
    model = theirs(size)
    model.save_pretrained(tmp_path)
    row = SegFormer(kind="segformer", size=size)
    ours = row.build(5)
    assert row.load(ours, tmp_path) == []
    assert_equal_logits(ours, model)


def test_logits_equal_transformers_for_its_names_in_memory():
    model, row = theirs(), SegFormer(kind="segformer")
    ours = row.build(5)
    assert row.load(ours, model.state_dict()) == []
    assert_equal_logits(ours, model, 96, 64)


def test_both_generations_of_names_become_ours():
    new = [
        "segformer.stages.1.patch_embeddings.proj.weight",
        "segformer.stages.1.blocks.0.attention.sequence_reduction.sequence_reduction.weight",
        "segformer.stages.1.blocks.0.attention.sequence_reduction.layer_norm.bias",
        "segformer.stages.1.blocks.0.attention.q_proj.weight",
        "segformer.stages.1.blocks.0.attention.o_proj.bias",
        "segformer.stages.1.blocks.0.layernorm_after.weight",
        "segformer.stages.1.blocks.0.mlp.fc2.bias",
        "segformer.stages.1.layer_norm.weight",
        "decode_head.linear_projections.3.proj.weight",
        "decode_head.linear_fuse.weight",
    ]
    old = [
        "segformer.encoder.patch_embeddings.1.proj.weight",
        "segformer.encoder.block.1.0.attention.self.sr.weight",
        "segformer.encoder.block.1.0.attention.self.layer_norm.bias",
        "segformer.encoder.block.1.0.attention.self.query.weight",
        "segformer.encoder.block.1.0.attention.output.dense.bias",
        "segformer.encoder.block.1.0.layer_norm_2.weight",
        "segformer.encoder.block.1.0.mlp.dense2.bias",
        "segformer.encoder.layer_norm.1.weight",
        "decode_head.linear_c.3.proj.weight",
        "decode_head.linear_fuse.weight",
    ]
    row = SegFormer(kind="segformer")
    assert list(row.convert(dict.fromkeys(new, 0))) == old
    assert list(row.convert(dict.fromkeys(old, 0))) == old
    assert list(row.convert(dict.fromkeys(["encoder.block.0.0.mlp.dense1.bias", "stages.0.blocks.0.mlp.fc1.bias"], 0))) == [
        "segformer.encoder.block.0.0.mlp.dense1.bias"
    ]
    assert set(old) <= row.build(3).state_dict().keys()


def test_an_encoder_trained_on_imagenet_starts_a_model_and_the_missing_head_is_reported(tmp_path):
    transformers = pytest.importorskip("transformers", reason="making an encoder checkpoint needs transformers")
    config = transformers.SegformerConfig(hidden_sizes=WIDTHS["b0"], num_attention_heads=(1, 2, 5, 8), num_labels=10)
    encoder = transformers.SegformerForImageClassification(config)
    encoder.save_pretrained(tmp_path)
    row = SegFormer(kind="segformer")
    ours = row.build(5)
    before = ours.decode_head.classifier.weight.clone()
    missing = row.load(ours, tmp_path, init=True)
    assert "decode_head.classifier.weight" in missing and all(key.startswith("decode_head.") for key in missing)
    assert torch.equal(ours.decode_head.classifier.weight, before)
    mine = row.convert(encoder.state_dict())
    assert torch.equal(
        ours.state_dict()["segformer.encoder.block.2.1.attention.self.key.weight"],
        mine.pop("segformer.encoder.block.2.1.attention.self.key.weight"),
    )
    with pytest.raises(BadData, match=r"decode_head\.linear_c\.0\.proj\.weight: expected float32 \[256, 32\], found nothing"):
        row.load(ours, tmp_path)


def test_a_head_for_other_classes_is_refused_with_both_numbers_and_kept_out_of_a_start():
    row = SegFormer(kind="segformer")
    torch.manual_seed(0)
    given, ours = row.build(150).state_dict(), row.build(19)
    with pytest.raises(BadData, match="these weights know 150 classes, the data has 19"):
        row.load(ours, given)
    assert row.load(ours, given, init=True) == ["decode_head.classifier.weight", "decode_head.classifier.bias"]
    assert torch.equal(ours.decode_head.linear_fuse.weight, given["decode_head.linear_fuse.weight"])


def test_weights_of_another_size_are_refused_with_at_most_ten_lines():
    row = SegFormer(kind="segformer")
    with pytest.raises(BadData) as e:
        load_into(row.build(5), SegFormer(kind="segformer", size="b1").build(5).state_dict(), row.convert)
    assert "segformer.encoder.patch_embeddings.0.proj.weight: expected float32 [32, 3, 7, 7], found float32 [64, 3, 7, 7]" in str(e.value)
    assert str(e.value).count(": expected") == 10 and "more" in str(e.value)


@pytest.mark.parametrize("size", PARAMETERS)
def test_each_size_has_the_published_number_of_parameters(size):
    with torch.device("meta"):
        model = SegFormer(kind="segformer", size=size).build(19)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(PARAMETERS[size], abs=0.01)


def test_blocks_are_skipped_more_often_with_depth_and_never_in_eval():
    model = SegFormer(kind="segformer", size="b0", drop_path=0.3).build(5)
    rates = [block.drop_path for stage in model.segformer["encoder"].block for block in stage]
    assert rates == pytest.approx([0.3 * i / 7 for i in range(8)])
    block = model.segformer["encoder"].block[3][1]
    x = torch.ones(2000, 1, 4)
    torch.manual_seed(0)
    kept = block.sometimes(x)[:, 0, 0]
    assert sorted(set(kept.tolist())) == pytest.approx([0, 1 / 0.7])
    assert kept.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(block.eval().sometimes(x), x)


def test_fresh_weights_are_drawn_as_the_paper_does():
    torch.manual_seed(0)
    state = SegFormer(kind="segformer", size="b1").build(5).state_dict()
    assert state["segformer.encoder.block.3.0.mlp.dense1.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    dw = state["segformer.encoder.block.3.0.mlp.dwconv.dwconv.weight"]
    assert dw.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)  # fan-out of a depthwise 3x3 is 9
    assert not state["segformer.encoder.block.3.0.mlp.dense1.bias"].any()
