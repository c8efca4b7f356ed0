"""Export of a transformers network through optimum, which needs an environment of its own: `make test-optimum`."""

import importlib.util

import numpy as np
import onnx
import pytest
import torch

from pipeline.errors import Missing
from stages import onnxfile
from stages.export import Export
from stages.measure.predict import open_session
from stages.models import open_model
from stages.samples import open_samples
from tests.stages import small_line


def has_exporter() -> bool:
    try:
        return importlib.util.find_spec("optimum.exporters.onnx") is not None
    except ImportError:
        return False


needs_optimum = pytest.mark.skipif(not has_exporter(), reason="optimum.exporters.onnx is not installed: make test-optimum")
SETTINGS = {
    "model_type": "segformer",
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 3, 4],
    "decoder_hidden_size": 16,
}


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("line")
    dataset = small_line.data(folder)
    return folder, dataset, small_line.checkpoint(folder, dataset, model={"kind": "hf", "settings": SETTINGS, "mean": [0.4, 0.5, 0.6]})


@needs_optimum
@pytest.mark.parametrize("opset", [18, 20])
def test_optimum_exports_a_transformers_network_between_bytes_and_classes(line, tmp_path, opset):
    _, dataset, student = line
    model = small_line.exported(tmp_path, dataset, student, exporter="optimum", opset=opset, logits=True)
    onnxfile.check(model.file("model.onnx"))
    proto = onnx.load(model.file("model.onnx"))
    assert {entry.domain for entry in proto.opset_import} <= {"", "ai.onnx"}
    shape = proto.graph.input[0].type.tensor_type.shape.dim
    assert proto.graph.input[0].name == "image" and shape[0].dim_param and [d.dim_value for d in shape[1:]] == [*small_line.SIZE, 3]
    assert model.facts["exporter"] == "optimum" and model.facts["parity"]["agreement"] >= 0.9999
    samples = open_samples(dataset, "val")
    images = np.stack([samples[i][0] for i in range(3)])
    session = open_session(model)
    assert (session(images) == open_session(student)(images)).mean() >= 0.9999
    logits = session.session.run(["logits"], {"image": images})[0]
    with torch.no_grad():
        ours = open_model(student)(torch.from_numpy(images).permute(0, 3, 1, 2).float())["logits"].numpy()
    assert np.abs(logits - ours).max() < 1e-3


@needs_optimum
def test_one_image_at_a_time_is_fixed_in_the_graph(line, tmp_path):
    _, dataset, student = line
    model = small_line.exported(tmp_path, dataset, student, exporter="optimum", dynamic_batch=False)
    assert onnx.load(model.file("model.onnx")).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


@needs_optimum
def test_a_head_that_normalises_otherwise_is_never_published(line, tmp_path, monkeypatch):
    from pipeline.errors import Stillhouse
    from stages import graph

    real = graph.between_bytes
    monkeypatch.setattr(graph, "between_bytes", lambda core, size, mean, std, *rest: real(core, size, [0.0] * 3, std, *rest))
    _, dataset, student = line
    with pytest.raises(Stillhouse, match="not the network"):
        small_line.exported(tmp_path, dataset, student, exporter="optimum")


@pytest.mark.skipif(has_exporter(), reason="optimum.exporters.onnx is installed")
def test_without_optimum_one_line_says_what_to_install(line, tmp_path):
    _, dataset, student = line
    with pytest.raises(Missing, match=r"optimum-onnx.*stillhouse\[optimum\]"):
        small_line.exported(tmp_path, dataset, student, exporter="optimum")


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_head_and_tail_put_around_a_graph_compute_what_pytorch_does(align_corners):
    """On a graph of our own, so that this part is tested without optimum."""
    import onnxruntime
    import torch.nn.functional as F
    from onnx import TensorProto, helper, numpy_helper

    from stages.graph import between_bytes

    weights = np.random.default_rng(0).normal(size=(5, 3, 3, 3)).astype(np.float32)
    core = helper.make_model(
        helper.make_graph(
            [helper.make_node("Conv", ["pixel_values", "w"], ["logits"], strides=[4, 4], pads=[1, 1, 1, 1])],
            "core",
            [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch_size", 3, "height", "width"])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch_size", 5, "h", "w"])],
            [numpy_helper.from_array(weights, "w")],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    mean, std = [100.0, 110.0, 120.0], [50.0, 60.0, 70.0]
    proto = between_bytes(core, (32, 48), mean, std, align_corners, "batch")
    onnx.checker.check_model(proto, full_check=True)
    images = np.random.default_rng(1).integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    classmap, logits = session.run(["classmap", "logits"], {"image": images})
    x = (torch.from_numpy(images).double() - torch.tensor(mean)) / torch.tensor(std)
    ours = F.conv2d(x.permute(0, 3, 1, 2), torch.from_numpy(weights).double(), stride=4, padding=1)
    expected = F.interpolate(ours, (32, 48), mode="bilinear", align_corners=align_corners).argmax(1).numpy()
    assert np.abs(logits - ours.numpy()).max() < 1e-4
    assert classmap.dtype == np.uint8 and (classmap == expected).mean() > 0.999


def test_only_hf_models_are_exported_by_optimum():
    from stages.models import TABLE

    class Distilled:
        model = TABLE.row("tiny").model_validate({"kind": "tiny"})

    stage = Export(kind="export", data="data", checkpoint="student", exporter="optimum")
    assert stage.problems({"student": Distilled()}) == [
        (("exporter",), "optimum exports models of kind hf; student is of kind tiny: write dynamo")
    ]
