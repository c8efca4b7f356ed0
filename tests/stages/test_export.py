"""The exported file is the network: same classes, same logits, nothing else inside it, and any number of images at once."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from pipeline.errors import BadData, Stillhouse
from stages import graph, onnxfile
from stages.data import Data
from stages.export import Export, padded
from stages.models import evaluated, open_model
from stages.models.tiny import Tiny
from stages.samples import open_samples
from tests.stages import small_line


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    folder = tmp_path_factory.mktemp("line")
    dataset = small_line.data(folder)
    student = small_line.checkpoint(folder, dataset)
    return folder, dataset, student, small_line.exported(folder, dataset, student)


def run(model, *images, outputs=("classmap",)):
    session = onnxruntime.InferenceSession(model.file("model.onnx"), providers=["CPUExecutionProvider"])
    return session.run(list(outputs), {"image": np.stack(images)})


def in_float64(student, image):
    """The same network evaluated in float64, its preprocessing written out again here."""
    module = open_model(student).double()
    logits = module(torch.from_numpy(image.astype(np.float64).transpose(2, 0, 1)[None]))["logits"]
    return F.interpolate(logits, image.shape[:2], mode="bilinear", align_corners=module.align_corners)[0].detach().numpy()


def test_the_file_gives_the_classes_of_the_network_computed_in_float64(line):
    _, dataset, student, model = line
    samples = open_samples(dataset, "val")
    for i in range(len(samples)):
        image = samples[i][0]
        logits = in_float64(student, image)
        first, second = np.sort(logits, axis=0)[-1], np.sort(logits, axis=0)[-2]
        found = run(model, image)[0][0]
        assert found.dtype == np.uint8 and len(np.unique(found)) > 2
        clear = first - second > 1e-4  # elsewhere two classes are equal within float32
        assert clear.mean() > 0.99
        assert (found == logits.argmax(0))[clear].all()


def test_the_batch_is_symbolic_and_three_images_give_what_one_gives(line):
    _, dataset, _, model = line
    proto = onnx.load(model.file("model.onnx"))
    shape = proto.graph.input[0].type.tensor_type.shape.dim
    assert shape[0].dim_param and [d.dim_value for d in shape[1:]] == [*small_line.SIZE, 3]
    samples = open_samples(dataset, "val")
    together = run(model, *(samples[i][0] for i in range(3)))[0]
    assert together.shape == (3, *small_line.SIZE)
    for i in range(3):
        assert (together[i] == run(model, samples[i][0])[0][0]).all()


def test_the_student_alone_is_inside_and_no_path_of_this_machine(line):
    _, _, student, model = line
    proto = onnx.load(model.file("model.onnx"))
    assert [value.name for value in proto.graph.output] == ["classmap"]
    inside = sum(int(np.prod(x.dims)) for x in proto.graph.initializer)
    own = sum(x.numel() for x in (*open_model(student).parameters(), *open_model(student).buffers()))
    assert own * 0.9 < inside < own + 200  # shapes and scales of the graph itself; BatchNorm may be folded
    content = model.file("model.onnx").read_bytes()
    assert b"stack_trace" not in content and b".py" not in content and str(student.folder).encode() not in content
    assert model.facts["parameters"] == sum(p.numel() for p in open_model(student).parameters())


def test_exporting_again_gives_the_same_bytes(line, tmp_path):
    _, dataset, student, model = line
    again = small_line.exported(tmp_path, dataset, student)
    assert again.file("model.onnx").read_bytes() == model.file("model.onnx").read_bytes()
    assert again.facts == model.facts


def test_preprocessing_says_what_the_graph_really_does(line):
    _, dataset, _, model = line
    said = model.json("preprocessing.json")
    assert said["input"] == {
        "name": "image",
        "dtype": "uint8",
        "layout": "NHWC",
        "order": "RGB",
        "range": [0, 255],
        "size": list(small_line.SIZE),
        "batch": "any",
    }
    assert said["normalise"]["mean"] == pytest.approx([123.675, 116.28, 103.53])
    assert said["normalise"]["std"] == pytest.approx([58.395, 57.12, 57.375])
    assert said["output"]["classes"] == len(dataset.facts["classes"])


def test_logits_come_out_when_asked_for_and_the_parity_is_recorded(line, tmp_path):
    _, dataset, student, _ = line
    model = small_line.exported(tmp_path, dataset, student, logits=True, dynamic_batch=False)
    image = open_samples(dataset, "val")[0][0]
    _, logits = run(model, image, outputs=("classmap", "logits"))
    with torch.no_grad():
        ours = open_model(student)(torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float())["logits"].numpy()
    assert np.abs(logits - ours).max() < 1e-3 * np.abs(ours).max()
    assert model.facts["parity"]["agreement"] >= 0.9999 and model.facts["parity"]["images"] == 2
    assert model.facts["batch"] == 1 and model.json("preprocessing.json")["input"]["batch"] == 1


@pytest.mark.parametrize("broken", ["normalisation", "order", "corners", "folding"])
def test_a_graph_that_is_not_the_network_is_never_published(line, tmp_path, monkeypatch, broken):
    _, dataset, student, _ = line

    class Wrong(graph.Deployed):
        def forward(self, image):
            if broken == "order":
                image = image.flip(3)
            x = image.permute(0, 3, 1, 2).float()
            logits = self.module(x / 255 if broken == "normalisation" else x)["logits"]
            return graph.classmap(logits, (image.shape[1], image.shape[2]), broken == "corners"), logits

    def folded(self, module):
        double = evaluated(module)
        double.classifier.weight.data[[0, 1]] = double.classifier.weight.data[[1, 0]]
        return double

    monkeypatch.setattr(graph, "Deployed", Wrong)
    if broken == "folding":
        monkeypatch.setattr(Tiny, "folded", folded)
    with pytest.raises(Stillhouse, match=r"not the network.*Worst: val_") as caught:
        small_line.exported(tmp_path, dataset, student)
    assert caught.value.code == 1


def test_the_arithmetic_in_the_facts_is_that_of_the_graph(line):
    proto = onnx.shape_inference.infer_shapes(onnx.load(line[3].file("model.onnx")))
    weights = {x.name: x.dims for x in proto.graph.initializer}
    shapes = {x.name: [d.dim_value for d in x.type.tensor_type.shape.dim] for x in proto.graph.value_info}
    convs = [node for node in proto.graph.node if node.op_type == "Conv"]
    counted = sum(2 * int(np.prod(weights[node.input[1]]) * np.prod(shapes[node.output[0]][2:])) for node in convs)
    assert line[3].facts["flops"] == {"before": counted, "after": counted}, "in this network BatchNorm is all there is to fold"


def test_nothing_is_printed_by_the_exporter(line, tmp_path, capfd, recwarn):
    _, dataset, student, _ = line
    small_line.exported(tmp_path, dataset, student)
    out, err = capfd.readouterr()
    assert out == "" and err == "" and not list(recwarn)


def test_sizes_the_network_cannot_divide_are_named_with_the_padded_size(line):
    _, dataset, student, _ = line
    assert "[64, 128]" in padded((50, 100), 32) and padded((64, 96), 32) is None
    stage = Export(kind="export", data="data", checkpoint="student")
    native = Data.model_validate({"kind": "data", "source": {"kind": "streets"}, "size": "native"})
    assert "needs one image size" in stage.problems({"data": native})[0][1]
    odd = small_line.Artifact("data", "Dataset", "x", dataset.folder, dataset.facts | {"size": [60, 96]})
    with pytest.raises(BadData, match=r"\[64, 96\]"):
        stage.run({"data": odd, "checkpoint": student}, None)


def test_a_split_that_is_not_there_is_told_before_anything_is_exported(line, tmp_path, monkeypatch):
    _, dataset, student, _ = line
    monkeypatch.setattr(graph, "exported", None)
    with pytest.raises(BadData, match="data has no split 'test': it has train, val"):
        small_line.exported(tmp_path, dataset, student, split="test")


def message(*fields):
    """Protocol buffers by hand: (number, int) is a varint, (number, bytes) a length-delimited field."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def varint(n):
    out = b""
    while n > 0x7F:
        out, n = out + bytes([n & 0x7F | 0x80]), n >> 7
    return out + bytes([n])


def nested(depth):
    graph_ = message((2, b"leaf"))
    for _ in range(depth):
        graph_ = message((1, message((5, message((6, graph_))))))
    return graph_


HOSTILE = {
    "external data": message((7, message((5, message((1, 1), (13, message((1, b"location"), (2, b"/etc/passwd")))))))),
    "external data ": message((7, message((1, message((5, message((5, message((14, 1)))))))))),  # in the attribute of a node
    "domain": message((7, message((1, message((4, b"Run"), (7, b"com.evil")))))),
    "domain ": message((8, message((1, b"com.evil"), (2, 1))), (7, b"")),
    "functions": message((7, b""), (25, b"")),
    "claims": message((7, message((5, message((1, 1 << 40), (9, b"abcd")))))),
    "deeper": message((7, nested(20))),
    "sparse": message((7, message((15, b"")))),
    "not an ONNX": b"PK\x03\x04 this is something else",
    "not an ONNX ": message((7, message((5, message((1, 1))))))[:-1],
    "not an ONNX  ": message((8, message((2, 20)))),  # no graph
}


@pytest.mark.parametrize("why", HOSTILE)
def test_hostile_files_are_refused_before_any_parser_sees_them(tmp_path, why):
    file = tmp_path / "model.onnx"
    file.write_bytes(HOSTILE[why])
    with pytest.raises(Stillhouse, match=why.strip()) as caught:
        onnxfile.check(file)
    assert caught.value.code == 7


def test_links_and_empty_files_are_refused_and_garbage_never_escapes(tmp_path, line):
    real = line[3].file("model.onnx")
    link = tmp_path / "model.onnx"
    link.symlink_to(real)
    with pytest.raises(Stillhouse, match="plain file"):
        onnxfile.check(link)
    empty = tmp_path / "empty.onnx"
    empty.touch()
    with pytest.raises(Stillhouse, match="0 bytes"):
        onnxfile.check(empty)
    content, random = bytearray(real.read_bytes()), np.random.default_rng(0)
    for k in range(200):  # whatever is damaged, the answer is yes or Refused
        damaged = bytearray(content[: random.integers(1, len(content))]) if k % 2 else bytearray(content)
        for at in random.integers(0, min(4000, len(damaged)), 5):
            damaged[at] = random.integers(0, 256)
        empty.write_bytes(damaged)
        try:
            onnxfile.check(empty)
        except Stillhouse as refused:
            assert refused.code == 7


def test_external_data_written_by_onnx_itself_is_refused(tmp_path, line):
    proto = onnx.load(line[3].file("model.onnx"))
    onnx.save(proto, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(Stillhouse, match="external data"):
        onnxfile.check(tmp_path / "model.onnx")


def test_facts_survive_json(line):
    assert json.loads(json.dumps(line[3].facts))["source"]["model"]["kind"] == "tiny"
