"""embed: a vector per class, told apart by name, from files that may come from anywhere and from a CLIP encoder made on the fly."""

import io
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.artifact import Artifact
from pipeline.errors import BadData, Refused
from stages.embed import Embed, matched, plain
from stages.vectors import look, read
from tests.stages.small_line import Job

CLASSES = ["road", "traffic light", "sky"]
ROWS = ["Sky", "tree", "traffic_light", "road"]  # another order, another spelling, and one more
TABLE = np.arange(1, 21, dtype=np.float32).reshape(4, 5) ** 2


@pytest.fixture
def data(tmp_path):
    return Artifact("streets", "Dataset", "0" * 64, tmp_path / "data", {"classes": CLASSES})


@pytest.fixture
def file(tmp_path):
    np.save(tmp_path / "words.npy", TABLE.astype(np.float16))
    return tmp_path / "words.npy"


def embed(**settings) -> Embed:
    return Embed.model_validate({"kind": "embed", "data": "data", **{k: str(v) if k == "file" else v for k, v in settings.items()}})


def run(stage, data, folder):
    job = Job(folder / "job")
    made = stage.run({"data": data}, job)
    return Artifact("text", "TextMatrix", "1" * 64, job.out, json.loads(json.dumps(made.facts)), made.beside), job


def unit(rows):
    rows = torch.tensor(np.asarray(rows), dtype=torch.float64)
    return (rows / rows.norm(dim=1, keepdim=True)).float()


# From a file.


def test_each_class_gets_the_row_of_its_name_as_a_unit_vector(file, data, tmp_path):
    text, job = run(embed(file=file, rows=ROWS), data, tmp_path)
    found = load_file(text.file("text.safetensors"))
    assert list(found) == ["text"] and found["text"].dtype == torch.float32
    torch.testing.assert_close(found["text"], unit(TABLE[[3, 2, 0]].astype(np.float16)))
    assert text.facts == {"classes": CLASSES, "dim": 5, "source": "words.npy", "said": ["road", "traffic_light", "Sky"]}
    assert text.beside == {"path": str(file)} and "3 classes, 5 numbers each; mean cosine 0.9" in job.said[0]


def test_training_reads_what_was_made(file, data, tmp_path):
    from stages.teach import text_of

    text, _ = run(embed(file=file, rows=ROWS), data, tmp_path)
    assert text_of(text, data).shape == (3, 5)
    with pytest.raises(BadData, match="text knows 3 classes and streets has 2"):
        text_of(text, Artifact("streets", "Dataset", "0" * 64, tmp_path, {"classes": CLASSES[:2]}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_safetensors_file_may_name_its_rows_itself_and_the_recipe_comes_before_it(dtype, data, tmp_path):
    path, table = tmp_path / "words.safetensors", torch.from_numpy(TABLE).to(dtype)
    save_file({"any": table}, path, metadata={"names": json.dumps(ROWS)})
    text, _ = run(embed(file=path), data, tmp_path / "a")
    assert torch.equal(load_file(text.file("text.safetensors"))["text"], unit(table.double()[[3, 2, 0]]))
    text, _ = run(embed(file=path, rows=ROWS[::-1]), data, tmp_path / "b")
    assert torch.equal(load_file(text.file("text.safetensors"))["text"], unit(table.double()[[0, 1, 3]]))


def test_what_it_made_can_be_given_to_it_again(file, data, tmp_path):
    text, _ = run(embed(file=file, rows=ROWS), data, tmp_path / "a")
    again, _ = run(embed(file=text.file("text.safetensors")), data, tmp_path / "b")
    assert [text.file("text.safetensors").read_bytes(), CLASSES] == [again.file("text.safetensors").read_bytes(), again.facts["said"]]


@pytest.mark.parametrize("stored", ["<f2", ">f4", "<f8", "fortran"])
def test_every_order_of_bytes_and_axes_is_read_alike(stored, tmp_path):
    np.save(tmp_path / "t.npy", np.asfortranarray(TABLE) if stored == "fortran" else TABLE.astype(stored))
    table, names = read(tmp_path / "t.npy")
    assert names is None and np.array_equal(table.double().numpy(), TABLE)


def test_all_classes_without_a_row_are_told_at_once_with_what_was_probably_meant(file, tmp_path):
    data = Artifact("town", "Dataset", "0" * 64, tmp_path, {"classes": ["roda", "bicyclist", "sky", "wall"]})
    with pytest.raises(BadData) as e:
        run(embed(file=file, rows=["sky", "tree", "cyclist", "road"], names={"wal": "tree", "Wall": "tre"}), data, tmp_path)
    assert str(e.value).splitlines() == [
        f"the rows of {file} do not fit the 4 classes of town:",
        "  names: wal is no class; did you mean wall?",
        "  roda has no row; did you mean road?",
        "  bicyclist has no row; did you mean cyclist?",
        "  wall (tre) has no row; did you mean tree?",
        "There are rows for sky, tree, cyclist and road. Say which is meant: names: {CLASS: ROW}",
    ]


def test_names_lead_to_rows_that_are_called_otherwise():
    assert matched(["signsymbol", "Road"], ["road", "traffic sign"], {"SignSymbol": "Traffic-Sign"}, "f", "data") == [1, 0]


def test_many_faults_fit_on_a_screen(tmp_path):
    with pytest.raises(BadData) as e:
        matched([f"class{i:03}\x1b[2J" for i in range(200)], [f"r{i}" for i in range(500)], {}, "f", "data")
    lines = str(e.value).splitlines()
    assert len(lines) == 13 and "190 more" in lines[11] and max(map(len, lines)) < 500 and all(line.isprintable() for line in lines)


@pytest.mark.parametrize(("one", "two"), [("traffic light", "Traffic_Light"), ("t-shirt", "T SHIRT"), ("Straße", "STRASSE")])
def test_capitals_and_separators_do_not_tell_names_apart(one, two):
    assert plain(one) == plain(two) != plain(one + "s") and plain("_") != plain("-")


def test_classes_with_one_vector_are_pointed_out(file, data, tmp_path):
    _, job = run(embed(file=file, rows=ROWS, names={"sky": "road"}), data, tmp_path)
    assert "WARNING: road and sky have the same vector" in job.said[1]


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_vectors_without_a_direction_are_refused_by_class(value, data, tmp_path):
    table = TABLE.copy()
    table[2] = value
    np.save(tmp_path / "t.npy", table)
    with pytest.raises(BadData, match="the vectors of traffic light are zero, or hold numbers that are not finite"):
        run(embed(file=tmp_path / "t.npy", rows=ROWS), data, tmp_path)


def test_as_many_names_as_rows(file, data, tmp_path):
    with pytest.raises(BadData, match="has 4 rows, and 3 are named"):
        run(embed(file=file, rows=ROWS[:3]), data, tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (None, r"does not say what its rows are .* 4 of them"),
        ('["a"', "must be a JSON list of texts"),
        ('["road", 2, "sky", "tree"]', "must be a JSON list of texts"),
        ('["road", "", "sky", "tree"]', "must be a JSON list of texts"),
        ("[" * 100_000, "must be a JSON list of texts"),
        ('["road", "Road", "sky", "tree"]', "name several rows"),
    ],
    ids=range(6),
)
def test_what_a_file_says_of_its_rows_must_be_of_use(names, message, data, tmp_path):
    save_file({"t": torch.from_numpy(TABLE)}, tmp_path / "t.safetensors", metadata=None if names is None else {"names": names})
    with pytest.raises(BadData, match=message):
        run(embed(file=tmp_path / "t.safetensors"), data, tmp_path)


# Files that are something else, or lie.


def npy(header, body=b"", version=1):
    head = header.encode()
    return b"\x93NUMPY" + bytes([version, 0]) + len(head).to_bytes(2 if version == 1 else 4, "little") + head + body


class Canary:
    def __reduce__(self):
        return (open, ("/nonexistent/canary", "w"))


def objects():
    np.save(out := io.BytesIO(), np.array([[Canary()]], dtype=object), allow_pickle=True)
    return out.getvalue()


def zipped():
    np.savez(out := io.BytesIO(), a=TABLE)
    return out.getvalue()


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 5), }\n"
HOSTILE = {
    "a pickle": (pickle.dumps(Canary()), Refused, "not safetensors but a pickle"),
    "objects": (objects(), Refused, "holds Python objects"),
    "objects in a record": (npy("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (4, 5), }\n"), BadData, "must hold one table"),
    "an archive": (zipped(), Refused, "archive"),
    "text": (b"road sky", Refused, "does not begin like"),
    "nothing": (b"", Refused, "does not begin like"),
    "whole numbers": (npy(GOOD.replace("f4", "i4"), bytes(80)), BadData, "floating-point"),
    "one axis": (npy(GOOD.replace("(4, 5)", "(20,)"), bytes(80)), BadData, "one table"),
    "three axes": (npy(GOOD.replace("(4, 5)", "(2, 2, 5)"), bytes(80)), BadData, "one table"),
    "cut off": (npy(GOOD, bytes(79)), BadData, "does not fit 4 rows of 5"),
    "too long": (npy(GOOD, bytes(81)), BadData, "does not fit 4 rows of 5"),
    "a petabyte": (npy(GOOD.replace("(4, 5)", "(999999999, 8192)")), BadData, "Is it the right file"),
    "a wide lie": (npy(GOOD.replace("(4, 5)", "(10000, 8192)")), BadData, "does not fit 10000 rows"),
    "a header that computes": (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4**9**9, 5), }\n"), BadData, "one table"),
    "a deep header": (npy("(" * 60_000), BadData, "one table"),
    "a header longer than the file": (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", BadData, "one table"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_that_is_no_table_of_numbers_is_refused_before_it_is_planned(case, tmp_path):
    content, kind, message = HOSTILE[case]
    path = tmp_path / ("words.npz" if case == "an archive" else "words.npy")
    path.write_bytes(content)
    with pytest.raises(kind, match=message):
        embed(file=path, rows=ROWS).outside()
    with pytest.raises(kind, match=message):
        read(path)


def test_the_second_version_of_the_format_is_read(tmp_path):
    (tmp_path / "t.npy").write_bytes(npy(GOOD, TABLE.tobytes(), version=2))
    assert np.array_equal(read(tmp_path / "t.npy")[0].numpy(), TABLE)


@pytest.mark.parametrize(
    "tensors", [{"a": torch.ones(4)}, {"a": torch.ones(4, 5, dtype=torch.int32)}, {"a": torch.ones(4, 5), "b": torch.ones(4, 5)}, {}]
)
def test_a_safetensors_file_must_hold_one_table(tensors, tmp_path):
    save_file(tensors, tmp_path / "t.safetensors")
    with pytest.raises(BadData, match="must hold one tensor of floating-point numbers"):
        read(tmp_path / "t.safetensors")


def test_a_missing_file_and_a_folder_are_told_plainly(tmp_path):
    with pytest.raises(BadData, match=r"nowhere\.npy was not found \(looked from"):
        look(tmp_path / "nowhere.npy")
    with pytest.raises(BadData, match="is no plain file"):
        look(tmp_path)


def test_the_content_of_the_file_belongs_to_the_key(file):
    first = embed(file=file, rows=ROWS).outside()
    np.save(file, TABLE + 1)
    assert embed(file=file, rows=ROWS).outside() != first and len(first["file"]) == 64


# What a recipe may say.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "write either file: PATH or clip"),
        ({"file": "a.npy", "rows": ["a"], "clip": {"file": "b"}}, "write either file: PATH or clip"),
        ({"file": "a.npy"}, "rows is missing"),
        ({"file": "a.npy", "rows": ["traffic light", "sky", "Traffic_light"]}, "'traffic light' and 'Traffic_light' are one name"),
        ({"file": "a.npy", "rows": []}, "at least 1"),
        ({"file": "a.npy", "rows": ["a"], "names": {"a b": "x", "a_b": "y"}}, "'a b' and 'a_b' are one name"),
        ({"file": "a.npy", "rows": ["a"], "prompt": "the {}"}, "prompt is for clip"),
        ({"clip": {"file": "b"}, "rows": ["a"]}, "leave it out with clip"),
        ({"clip": {"file": "b"}, "prompt": "a photo"}, r"must hold \{\} once"),
        ({"clip": {"file": "b"}, "prompt": "{} or {}"}, r"must hold \{\} once"),
        ({"clip": {"hub": "openai/clip-vit-base-patch16"}}, "revision"),
    ],
    ids=range(11),
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        embed(**settings)


def test_braces_beside_the_place_of_the_class_are_only_text():
    assert embed(clip={"file": "b"}, prompt="{0} {x} {} {{").prompt.replace("{}", "road") == "{0} {x} road {{"


# From a CLIP encoder.


def letters():
    """The characters that stand for bytes in CLIP's vocabulary."""
    plain_ones = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain_ones]
    return [chr(b) for b in plain_ones] + [chr(256 + i) for i in range(len(others))]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder with a text encoder of two small layers and a vocabulary of letters and one word."""
    transformers = pytest.importorskip("transformers", reason="a CLIP encoder needs transformers")
    folder = tmp_path_factory.mktemp("clip")
    merges = ["r o", "ro a", "roa d</w>"]
    words = [*letters(), *(c + "</w>" for c in letters()), *(m.replace(" ", "") for m in merges), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 40}
    config = transformers.CLIPTextConfig(vocab_size=len(words), projection_dim=12, eos_token_id=len(words) - 1, **sizes)
    torch.manual_seed(0)
    net = transformers.CLIPTextModelWithProjection(config).eval()
    for p in net.parameters():
        p.data += 0.2 * torch.randn_like(p)
    net.save_pretrained(folder)
    return folder, net


def copied(clip, folder, **config):
    """The encoder in another folder, with another config."""
    for file in clip[0].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    content = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def theirs(clip, prompts):
    from transformers import CLIPTokenizerFast

    ids = CLIPTokenizerFast.from_pretrained(clip[0], local_files_only=True)(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        return torch.nn.functional.normalize(clip[1](**ids).text_embeds)


def test_clip_reads_each_class_in_a_sentence(clip, data, tmp_path):
    text, _ = run(embed(clip={"file": str(clip[0])}, names={"Sky": "blue heaven"}), data, tmp_path)
    prompts = ["a photo of a road", "a photo of a traffic light", "a photo of a blue heaven"]
    assert text.facts == {"classes": CLASSES, "dim": 12, "source": clip[0].name, "said": prompts}
    found = load_file(text.file("text.safetensors"))["text"]
    torch.testing.assert_close(found, theirs(clip, prompts), atol=1e-5, rtol=1e-5)
    assert (found @ found.T).fill_diagonal_(0).max() < 0.999


def test_the_text_half_of_a_whole_clip_gives_the_same_vectors(clip, data, tmp_path):
    """As published: both towers in one file, an id of the end that is not the tokenizer's, a stray buffer of older versions."""
    state = load_file(clip[0] / "model.safetensors")
    state |= {"logit_scale": torch.ones(()), "vision_model.a": torch.ones(3), "text_model.embeddings.position_ids": torch.arange(40)[None]}
    whole = tmp_path / "whole"
    whole.mkdir()
    text = {k: v for k, v in json.loads((clip[0] / "config.json").read_text()).items() if k != "projection_dim"} | {"eos_token_id": 2}
    copied(clip, whole, model_type="clip", text_config=text, auto_map={"AutoModel": "evil--code.Model"})
    save_file(state, whole / "model.safetensors")
    prompt = {"prompt": "the {} of a town"}
    one, two = (
        load_file(run(embed(clip={"file": str(f)}, **prompt), data, tmp_path / f.name)[0].file("text.safetensors"))["text"]
        for f in (clip[0], whole)
    )
    assert torch.equal(one, two)


def test_weights_and_tokenizer_belong_to_the_key_and_to_what_is_fetched(clip, tmp_path, monkeypatch):
    from stages import weights

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        copied(clip, tmp_path / name)
    one, two = (embed(clip={"file": str(tmp_path / name)}) for name in ("a", "b"))
    assert one.outside() == two.outside()
    (tmp_path / "b/merges.txt").write_text("#version: 0.2\n")
    assert one.outside() != two.outside()
    revision = "0123456789abcdef0123456789abcdef01234567"
    stage = embed(clip={"hub": "org/clip", "revision": revision})
    assert stage.outside() == {"clip": revision}
    asked = []
    monkeypatch.setattr(weights, "hub_file", lambda *given: asked.append(given) or clip[0])
    assert len(stage._encoded(["road", "sky"], "data")[0]) == 2
    assert asked[0][:2] == ("org/clip", revision) and {"vocab.json", "merges.txt", "tokenizer.json"} <= set(asked[0][2])


def test_words_for_classes_that_the_data_lacks_are_told_with_what_was_meant(clip, data, tmp_path):
    with pytest.raises(
        BadData, match=r"(?s)streets does not have:\n  raod; did you mean road\?\nIts classes are road, traffic light and sky"
    ):
        run(embed(clip={"file": str(clip[0])}, names={"raod": "street"}), data, tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "siglip"}, "holds a 'siglip', and only CLIP is read"),
        ({"hidden_size": 24}, "does not fit the model"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide', expected a number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is '1000000000'"),
        ({"num_hidden_layers": 150}, "does not fit the model"),
        ({"hidden_act": "os.system"}, "hidden_act is 'os.system'"),
        ({"num_attention_heads": 3}, "transformers cannot build"),
        ({"vocab_size": 100}, "belongs to another encoder"),
        ({"max_position_embeddings": 9}, "has .* tokens, and this encoder reads 9"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is 'nan'"),
    ],
    ids=range(10),
)
def test_a_config_that_is_not_that_of_the_weights_is_refused(config, message, clip, data, tmp_path):
    with pytest.raises(BadData, match=message):
        run(embed(clip={"file": str(copied(clip, tmp_path, **config))}), data, tmp_path / "run")


def test_sizes_that_are_not_those_of_the_weights_are_seen_before_the_encoder_is_allocated(clip, data, tmp_path, monkeypatch):
    monkeypatch.setattr("stages.clip.load_into", lambda *_: pytest.fail("an encoder was built"))
    with pytest.raises(BadData, match="does not fit the model"):
        run(embed(clip={"file": str(copied(clip, tmp_path, intermediate_size=64))}), data, tmp_path / "run")


def test_a_folder_without_tokenizer_or_weights_of_the_projection_is_refused(clip, data, tmp_path):
    copied(clip, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in state.items() if k != "text_projection.weight"}, tmp_path / "model.safetensors")
    with pytest.raises(BadData, match=r"text_projection.weight: expected float32 \[512, 16\], found nothing"):
        run(embed(clip={"file": str(tmp_path)}), data, tmp_path / "a")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink()
    with pytest.raises(BadData, match="no tokenizer beside the weights"):
        run(embed(clip={"file": str(tmp_path)}), data, tmp_path / "b")
    (tmp_path / "config.json").unlink()
    with pytest.raises(BadData, match=r"no config\.json beside the weights"):
        run(embed(clip={"file": str(tmp_path)}), data, tmp_path / "c")


def test_letters_that_the_tokenizer_lacks_are_no_end_of_the_sentence(clip, data, tmp_path):
    copied(clip, tmp_path)
    words = json.loads((tmp_path / "vocab.json").read_text())
    words["never"] = words.pop("y</w>")
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    with pytest.raises(BadData, match="does not know all of 'a photo of a sky'"):
        run(embed(clip={"file": str(tmp_path)}), data, tmp_path / "run")


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json"])
def test_a_tokenizer_that_is_none_is_refused(name, clip, data, tmp_path):
    copied(clip, tmp_path)
    (tmp_path / name).write_text('{"a": [')
    with pytest.raises(BadData, match=r"the tokenizer of .* cannot be read"):
        run(embed(clip={"file": str(tmp_path)}), data, tmp_path / "run")
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/etc/hostname")
    with pytest.raises(Refused, match="leads out of its folder"):
        embed(clip={"file": str(tmp_path)}).outside()


def test_the_artifact_has_one_note_so_that_its_bytes_do_not_depend_on_an_order(file, data, tmp_path):
    text, _ = run(embed(file=file, rows=ROWS), data, tmp_path)
    with safe_open(text.file("text.safetensors"), framework="pt") as f:
        assert f.metadata() == {"names": json.dumps(CLASSES)}
    assert not re.search(r"/", json.dumps(text.facts))  # no path of this machine in what is reproducible


def test_planning_looks_at_the_file_without_torch_or_numpy(file):
    code = (
        "import sys; from stages.embed import Embed; "
        f"e = Embed(kind='embed', data='data', file={str(file)!r}, rows=['a']); assert len(e.outside()['file']) == 64; "
        "assert not {'torch', 'numpy', 'transformers', 'safetensors'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
