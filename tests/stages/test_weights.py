"""Weights from elsewhere: what is read, what is refused, and that refusing happens before anything runs or is allocated."""

import json
import pickle
import struct
import sys

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import BadData, Diverged, Missing, Refused
from stages import weights
from stages.weights import Weights, headers, load_into, read_safetensors, save_checkpoint

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Canary:
    """Unpickling this writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def net(classes=3):
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, classes, 1))


def shard(folder, parts):
    """A sharded save_pretrained folder: {file: {key: tensor}}."""
    for name, tensors in parts.items():
        save_file(tensors, folder / name)
    index = {"metadata": {}, "weight_map": {key: name for name, tensors in parts.items() for key in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


# Where from


@pytest.mark.parametrize("given", [{"file": "a.safetensors"}, {"hub": "nvidia/mit-b0", "revision": REVISION}])
def test_weights_are_a_file_or_a_pinned_hub_revision(given):
    assert Weights.model_validate(given).model_dump(exclude_none=True) == given


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"file": "a", "hub": "a/b", "revision": REVISION},
        {"hub": "nvidia/mit-b0"},
        {"file": "a", "revision": REVISION},
        {"hub": "nvidia/mit-b0", "revision": "main"},
        {"hub": "nvidia/mit-b0", "revision": REVISION[:-1]},
        {"hub": "nvidia/mit-b0", "revision": REVISION.upper()},
        {"hub": "nvidia/mit-b0", "revision": REVISION + "\n"},
        {"hub": "../evil", "revision": REVISION},
        {"hub": "a/b/c", "revision": REVISION},
        {"file": "a", "path": "b"},
        {"file": 3},
    ],
)
def test_anything_else_is_not_a_place_for_weights(given):
    with pytest.raises(ValidationError):
        Weights.model_validate(given)


def test_only_safetensors_and_configs_are_asked_of_the_hub(monkeypatch, tmp_path):
    asked = {}
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **how: asked.update(name=name, **how) or str(tmp_path))
    source = Weights(hub="nvidia/mit-b0", revision=REVISION)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadData, match=r"nvidia/mit-b0 at .* holds no safetensors, and pickles are not read"):
        source.locate()
    (tmp_path / "model.safetensors").touch()
    assert source.locate() == tmp_path and source.digest() == REVISION
    assert asked["name"] == "nvidia/mit-b0" and asked["revision"] == REVISION
    assert set(asked["allow_patterns"]) == {"*.safetensors", "model.safetensors.index.json", "config.json", "preprocessor_config.json"}


def test_a_hub_out_of_reach_is_one_line_with_the_way_out(monkeypatch):
    import huggingface_hub

    def fail(*a, **k):
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(Missing, match=r"nvidia/mit-b0 .* \(no route to host\); download it"):
        Weights(hub="nvidia/mit-b0", revision=REVISION).locate()


def test_the_digest_follows_content_not_names(tmp_path):
    for name, value in (("a", 0.0), ("b", 0.0), ("c", 1.0)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.full((2,), value)}, tmp_path / name / "model.safetensors")
    a, b, c = (Weights(file=str(tmp_path / name)).digest() for name in "abc")
    assert a == b != c
    (tmp_path / "b" / "config.json").write_text("{}")
    assert Weights(file=str(tmp_path / "b")).digest() != a


def test_a_path_that_is_not_there_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(BadData, match="was not found"):
        Weights(file=str(tmp_path / "none.safetensors")).digest()


# What is refused


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.bin", "model.ckpt", "model.pkl", "disguised.safetensors"])
@pytest.mark.parametrize("old_format", [False, True])
def test_a_pickle_is_refused_unopened_with_the_command_that_converts_it(name, old_format, tmp_path):
    file, canary = tmp_path / name, tmp_path / "canary"
    if old_format:
        file.write_bytes(pickle.dumps(Canary(canary)))
    else:
        torch.save({"x": Canary(canary)}, file)
    for act in (read_safetensors, headers, lambda p: Weights(file=str(p)).digest()):
        with pytest.raises(Refused, match=r"(?s)pickle.*Convert it once, in a place you trust: python -c '") as e:
            act(file)
    assert e.value.code == 7 and not canary.exists()


def test_the_command_for_converting_converts(tmp_path):
    import shlex
    import subprocess

    file = tmp_path / "it's old.pth"
    torch.save({"state_dict": net().state_dict()}, file)
    with pytest.raises(Refused) as e:
        read_safetensors(file)
    command = shlex.split(str(e.value).split("trust: ")[1])
    subprocess.run([sys.executable, *command[1:]], check=True)
    assert load_into(net(), tmp_path / "it's old.safetensors") == []


def header_bytes(header, body=b"", size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + body


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        b"\x00" * 64,
        b"<html>not found</html>",
        header_bytes(b"{not json}"),
        header_bytes({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 4),  # body too short
        header_bytes({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 8]}}, b"\0" * 8),  # claims 4 TiB
        header_bytes({"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, b"\0" * 8),
        header_bytes({"w": {"dtype": "EVIL", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8),
        header_bytes({"w": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, b"\0" * 8),
        header_bytes({"w": {}}, b""),
        header_bytes({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8, size=2**62),
    ],
    ids=range(12),
)
def test_a_damaged_file_is_refused(content, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(Refused, match=r"model\.safetensors") as e:
        read_safetensors(file)
    assert e.value.code == 7


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", "a\\b", "a\0b", "x\n"])
def test_an_index_may_only_name_files_of_its_folder(name, tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(Refused, match="only files of that folder"):
        headers(folder)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": {"w": 3}}', "{", "\x00"])
def test_an_index_that_is_none_is_an_error_of_ours(content, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises((Refused, BadData)):
        headers(tmp_path)


def test_links_out_of_a_folder_are_refused_but_the_hubs_cache_is_read(tmp_path):
    secret = tmp_path / "secret.safetensors"
    save_file({"w": torch.arange(2.0)}, secret)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(secret)
    with pytest.raises(Refused, match="link"):
        headers(folder)
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / REVISION).mkdir(parents=True)
    secret.rename(cache / "blobs" / "ab12")
    (cache / "snapshots" / REVISION / "model.safetensors").symlink_to("../../blobs/ab12")
    assert read_safetensors(cache / "snapshots" / REVISION)["w"].tolist() == [0, 1]


# What is read


def test_a_sharded_folder_reads_as_one(tmp_path):
    state = net().state_dict()
    keys = list(state)
    shard(tmp_path, {"model-1.safetensors": {k: state[k] for k in keys[:4]}, "model-2.safetensors": {k: state[k] for k in keys[4:]}})
    again = read_safetensors(tmp_path)
    assert again.keys() == state.keys() and all(torch.equal(again[k], state[k]) for k in keys)


def test_what_does_not_fit_is_listed_before_any_weight_is_touched(tmp_path):
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = {k: v + 1 for k, v in model.state_dict().items()}
    state["0.weight"] = torch.zeros(4, 3, 3, 3)
    state["1.bias"] = torch.zeros(4, dtype=torch.int32)
    del state["2.bias"]
    state["stray"] = torch.zeros(1)
    save_file(state, tmp_path / "w.safetensors")
    for source in (tmp_path / "w.safetensors", state):
        with pytest.raises(BadData) as e:
            load_into(model, source)
        lines = [line.split("] ")[-1].replace("torch.", "") for line in str(e.value).splitlines()[1:]]
        assert [line.strip().split(":")[0] for line in lines] == ["0.weight", "1.bias", "2.bias", "stray"]
        assert "[4, 3, 1, 1], found" in lines[0] and lines[0].endswith("[4, 3, 3, 3]") and lines[2].endswith("found nothing")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_no_tensor_is_read_when_the_header_does_not_fit(tmp_path, monkeypatch):
    save_file(net(150).state_dict(), tmp_path / "w.safetensors")
    monkeypatch.setattr(weights, "values", lambda *a: pytest.fail("a tensor was read"))
    with pytest.raises(BadData, match="these weights know 150 classes, the data has 19"):
        load_into(net(19), tmp_path / "w.safetensors")


def test_one_class_apart_asks_for_the_background(tmp_path):
    with pytest.raises(BadData, match="One apart: is a background class counted"):
        load_into(net(150), net(151).state_dict())


def test_half_precision_weights_fill_a_float32_network(tmp_path):
    given = {k: v.half() if v.is_floating_point() else v for k, v in net().state_dict().items()}
    save_file(given, tmp_path / "w.safetensors")
    model = net()
    assert load_into(model, tmp_path / "w.safetensors") == []
    assert model[0].weight.dtype == torch.float32 and torch.equal(model[0].weight.half(), given["0.weight"])


def test_only_the_keys_that_may_be_missing_are_and_they_are_returned():
    state = {k: v for k, v in net().state_dict().items() if not k.startswith("2.") and not k.endswith("tracked")}
    assert load_into(net(), state, allow_missing=("2.",)) == ["2.weight", "2.bias"]
    with pytest.raises(BadData, match=r"2\.weight: expected float32 \[3, 4, 1, 1\], found nothing"):
        load_into(net(), state)


# What is written


def test_a_checkpoint_is_the_same_bytes_each_time_and_reads_back(tmp_path):
    state = net().state_dict()
    state["twin"] = state["0.weight"]  # shared memory
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_checkpoint(tmp_path / name, state)
    assert (tmp_path / "a" / "weights.safetensors").read_bytes() == (tmp_path / "b" / "weights.safetensors").read_bytes()
    again = read_safetensors(tmp_path / "a" / "weights.safetensors")
    assert all(torch.equal(again[k], v) for k, v in state.items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_not_published(bad, tmp_path):
    state = net().state_dict()
    state["2.bias"][1] = bad
    with pytest.raises(Diverged, match=r"1 of \d+ weights .* the first is 2\.bias") as e:
        save_checkpoint(tmp_path, state)
    assert e.value.code == 6 and list(tmp_path.iterdir()) == []


def test_of_many_names_that_do_not_fit_both_kinds_are_told(tmp_path):
    own = {f"a.{k}": torch.zeros(1) for k in range(20)}
    with pytest.raises(BadData) as found:
        weights.compare(own, {f"module.{key}": value for key, value in own.items()}, (), "w")
    lines = str(found.value).splitlines()
    assert lines[1] == "  a.0: expected float32 [1], found nothing" and lines[6] == "  module.a.0: expected nothing, found float32 [1]"
    assert len(lines) == 12 and lines[-1] == "  ... and 30 more"
