"""Argmax outside the graph: the class maps of the graph, from logits read where the runtime left them, and a cut that is looked at."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from pipeline.artifact import Artifact
from pipeline.errors import BadData, Missing
from stages import graph
from stages.engines import TABLE, _tail, onnxruntime
from stages.measure import latency
from stages.measure.parity import agreement, probes
from stages.models.tiny.net import TinyNet

SIZE = (64, 96)
NETS = [(2, False, "odd"), (150, False, "whole"), (150, True, "odd")]  # classes, align_corners, ratio
KINDS = [kind for kind, row in TABLE.rows().items() if not row(kind=kind).no_native() and importlib.util.find_spec(row.package)]
IMAGES = np.stack([image for _, image in probes(SIZE, 3)])


class Cropped(nn.Module):
    """A network whose logits are no whole part of the image."""

    def __init__(self, module):
        super().__init__()
        self.module, self.align_corners = module, module.align_corners

    def forward(self, image):
        return {"logits": self.module(image)["logits"][:, :, :-1, :-3]}


@pytest.fixture(scope="module", params=NETS, ids=str)
def network(request, tmp_path_factory):
    """An exported network whose logits are spread enough that all of its classes win somewhere."""
    classes, align_corners, ratio = request.param
    torch.manual_seed(0)
    module = TinyNet("small", classes, align_corners).eval()
    nn.init.normal_(module.classifier.bias)
    return exported(tmp_path_factory.mktemp("onnx"), Cropped(module) if ratio == "odd" else module, classes)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    torch.manual_seed(0)
    return exported(tmp_path_factory.mktemp("small"), TinyNet("small", 5, False).eval(), 5)


def exported(folder, module, classes):
    proto = graph.exported(module, SIZE, "dynamo", 20, True)
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    facts = {"size": list(SIZE), "align_corners": module.align_corners, "classes": [str(i) for i in range(classes)], "colours": []}
    return Artifact("onnx", "OnnxModel", "id", folder, facts, {})


def opened(folder, source, kind, argmax, **settings):
    row = TABLE.row(kind).model_validate({"kind": kind, "argmax": argmax, "threads": 1} | settings)
    facts = json.loads(json.dumps(row.build(source, folder)))
    return row.open(folder, facts), facts


def folders(tmp_path):
    for name in ("graph", "native"):
        (tmp_path / name).mkdir()
        yield tmp_path / name


def enlarged(source, images):
    """The logits that the exported network gives, at the image's size, float64 (B, C, H, W)."""
    session = onnxruntime.session_of(source.file("model.onnx")).session
    logits = torch.from_numpy(session.run(["logits"], {"image": images})[0]).double()
    how = {"mode": "bilinear", "align_corners": source.facts["align_corners"]}
    return nn.functional.interpolate(logits, SIZE, **how).numpy(), float(logits.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_the_class_maps_are_those_of_the_graph_but_for_ties(network, tmp_path, kind):
    (plain, _), (session, facts) = (opened(folder, network, kind, folder.name) for folder in folders(tmp_path))
    assert (plain.ran["argmax"], session.ran["argmax"]) == ("graph", "native") and facts["ran"] == session.ran
    wide, largest = enlarged(network, IMAGES)
    assert agreement(plain(IMAGES), onnxruntime.session_of(network.file("model.onnx"))(IMAGES)) > 0.9999, "not the exported network"
    for batch in (IMAGES, IMAGES[1:2]):
        found, expected = session(batch), plain(batch)
        assert found.dtype == np.uint8 and found.shape == expected.shape == batch.shape[:3]
        at = np.argwhere(found != expected)
        first = 0 if len(batch) == 3 else 1
        gaps = [abs(wide[b + first, found[b, y, x], y, x] - wide[b + first, expected[b, y, x], y, x]) for b, y, x in at]
        assert len(at) <= 3 and max(gaps, default=0) <= 1e-5 * largest
    assert len(np.unique(session(IMAGES))) >= min(10, len(network.facts["classes"]))


@pytest.mark.parametrize("kind", KINDS)
def test_bound_images_are_named_too_and_threads_change_nothing(small, tmp_path, kind, monkeypatch):
    session, _ = opened(tmp_path, small, kind, "native", threads=2)
    maps, room = [], session.tail.room

    def kept(images):
        maps.append(room(images))
        return maps[-1]

    monkeypatch.setattr(session.tail, "room", kept)
    given = IMAGES[1:2].copy()
    run = session.bind(given)
    maps[0][:] = 99
    run()
    one = opened(tmp_path, small, kind, "native")[0]
    assert (maps[0] == one(given)).all() and (one(IMAGES)[1:2] == maps[0]).all()
    assert (one(IMAGES[:, ::-1]) == one(IMAGES[:, ::-1].copy())).all(), "images with gaps between them"
    assert one.tail.threads == 1 and session.tail.threads == 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_are_read_where_the_runtime_left_them(small, tmp_path, kind, monkeypatch):
    session, _ = opened(tmp_path, small, kind, "native")
    seen, real = [], session.tail.enlarge

    def spied(logits, *rest):
        seen.append((logits.flags.owndata, logits.shape[:2]))
        real(logits, *rest)

    monkeypatch.setattr(session.tail, "enlarge", spied)
    session(IMAGES[:1])
    session.bind(IMAGES.copy())()
    assert seen == [(False, (1, 5)), (False, (3, 5))]


def as_it_is(graph, classes):
    pass


def test_the_cut_network_ends_at_the_logits_and_the_rest_makes_the_class_map_of_them(network, tmp_path):
    whole = onnx.load(network.file("model.onnx"))
    cut, facts = _tail.cut(network, tmp_path, as_it_is)
    cut, tail = onnx.load_from_string(cut), onnx.load(tmp_path / _tail.FILE)
    assert facts == {"size": list(SIZE), "align_corners": network.facts["align_corners"], "classes": len(network.facts["classes"])}
    assert [value.name for value in cut.graph.output] == [value.name for value in tail.graph.input] == ["logits"]
    assert len(cut.graph.node) + len(tail.graph.node) == len(whole.graph.node) and len(tail.graph.node) < 10
    assert "ArgMax" not in {node.op_type for node in cut.graph.node} and tail.ByteSize() < 2000
    names = {name for node in cut.graph.node for name in node.input}
    assert {tensor.name for tensor in cut.graph.initializer} <= names
    import onnxruntime as ort

    logits = ort.InferenceSession(cut.SerializeToString()).run(["logits"], {"image": IMAGES})[0]
    found = ort.InferenceSession(tail.SerializeToString()).run(["classmap"], {"logits": logits})[0]
    assert (found == onnxruntime.session_of(network.file("model.onnx"))(IMAGES)).mean() > 0.9999


def test_a_process_that_times_it_holds_no_torch(small, tmp_path):
    _, facts = opened(tmp_path, small, "onnxruntime", "native")
    facts |= {"engine": {"kind": "onnxruntime", "argmax": "native", "threads": None}, "size": list(SIZE)}
    np.save(tmp_path / "image.npy", IMAGES[0])
    common = {"images": [str(tmp_path / "image.npy")], "size": list(SIZE), "warmup_ms": 0, "threads": 1}
    child = latency.Child(Artifact("engine", "Engine", "id", tmp_path, facts, {}), common, tmp_path)
    try:
        child.opened()
        assert child.modules == ["onnxruntime"] and child.ran["argmax"] == "native"
        assert all(len(values) == 2 for values in child.timed(2).values())
    finally:
        child.end()


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"kind": "pytorch"}, "kind pytorch takes the argmax by itself"),
        ({"kind": "onnxruntime", "provider": "cuda"}, "provider cuda leaves"),
    ],
    ids=str,
)
def test_a_recipe_that_asks_for_it_where_it_cannot_be_is_told_so(row, why):
    with pytest.raises(ValueError, match=f"{why}.*write argmax: graph"):
        TABLE.row(row["kind"]).model_validate(row | {"argmax": "native"})


def test_without_the_compiled_library_it_is_an_error_and_never_the_graph(small, tmp_path, monkeypatch):
    monkeypatch.setattr("kernels.arrays.why_not", lambda: "it was not compiled")
    with pytest.raises(Missing, match="it was not compiled; or write argmax: graph"):
        opened(tmp_path, small, "onnxruntime", "native")


def changed(source, folder, change, **facts):
    proto = onnx.load(source.file("model.onnx"))
    change(proto.graph)
    onnx.save(proto, folder / "model.onnx")
    return Artifact("onnx", "OnnxModel", "id", folder, source.facts | facts, {})


def last(graph, operator):
    return [node for node in graph.node if node.op_type == operator][-1]


def nearest(graph):
    next(a for a in last(graph, "Resize").attribute if a.name == "mode").s = b"nearest"


def renamed(graph):
    for node in graph.node:
        node.output[:] = ["other" if name == "logits" else name for name in node.output]
        node.input[:] = ["other" if name == "logits" else name for name in node.input]
    del graph.output[1]


def weighed(graph):
    """The enlarged logits are weighed, as no network of the house does."""
    graph.initializer.append(numpy_helper.from_array(np.ones((1, 5, 1, 1), np.float32), "weights"))
    argmax = last(graph, "ArgMax")
    node = onnx.helper.make_node("Mul", [argmax.input[0], "weights"], ["weighed"])
    argmax.input[0] = "weighed"
    graph.node.insert(list(graph.node).index(argmax), node)


def beside(graph):
    """The size comes from the image, beside the logits."""
    shape = last(graph, "Resize").input[3]
    concat = next(node for node in graph.node if shape in node.output)
    source = next(node for node in graph.node if concat.input[0] in node.output)
    source.input[0] = "image"


@pytest.mark.parametrize(
    ("change", "facts", "says"),
    [
        (nearest, {}, "otherwise than in bilinear enlarging"),
        (weighed, {}, "it holds Mul"),
        (renamed, {}, "no tensor named logits"),
        (beside, {}, "cannot be cut out"),
        (lambda graph: None, {"align_corners": True}, "by half_pixel, and its facts say align_corners: True"),
    ],
    ids=["nearest", "weighed", "renamed", "beside", "flipped"],
)
def test_a_graph_that_ends_otherwise_is_refused(small, tmp_path, change, facts, says):
    with pytest.raises(BadData, match=says):
        _tail.cut(changed(small, tmp_path, change, **facts), tmp_path, as_it_is)


def test_an_export_that_does_not_say_how_it_enlarges_is_to_be_made_again(small):
    old = Artifact("onnx", "OnnxModel", "id", small.folder, {k: v for k, v in small.facts.items() if k != "align_corners"}, {})
    with pytest.raises(BadData, match="export it again"):
        _tail.cut(old, Path("nowhere"), as_it_is)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_another_network_are_an_error(small, tmp_path, kind):
    _, facts = opened(tmp_path, small, kind, "native")
    facts["tail"]["classes"] = 7
    session = TABLE.row(kind).model_validate({"kind": kind, "argmax": "native"}).open(tmp_path, facts)
    with pytest.raises(BadData, match="not of 1 images and 7 classes"):
        session(IMAGES[:1])
