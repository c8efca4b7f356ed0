"""The whole line: a real recipe through the real command line, twice, changed, stopped and rehearsed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.xdist_group("line")  # one process: the line is run once for all of them


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    return Line(tmp_path_factory.mktemp("line"))


class Line:
    def __init__(self, folder):
        self.folder, self.recipe = folder, folder / "smoke.yaml"
        self.recipe.write_text((ROOT / "recipes/smoke.yaml").read_text())
        self.first = self.run()

    def start(self, *arguments):
        command = [sys.executable, "-m", "pipeline", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": self.folder, "env": environment}
        return subprocess.Popen(command, start_new_session=True, **options)

    def call(self, *arguments, code=0):
        process = self.start(*arguments)
        out, _ = process.communicate(timeout=300)
        assert process.returncode == code, out
        return out

    def run(self, *more, code=0):
        return self.call("run", self.recipe, *more, code=code)

    def shown(self, what, *more):
        return json.loads(self.call("show", what, *more))


def test_the_line_ends_with_a_verdict_a_bundle_and_a_page(line):
    assert ": passed, " in line.first
    folder = line.folder / "runs/smoke-1"
    facts = json.loads((folder / "page.json").read_text())
    assert facts["verdict"]["state"] == "passed"
    assert [hop["name"] for hop in facts["waterfall"]["hops"]] == ["student", "student rewritten", "onnx", "rounded", "engine"]
    names = {p.name for p in (folder / "bundle").iterdir()}
    assert {"run.py", "model.onnx", "engine.onnx", "expected.png", "requirements.txt", "bundle.json", "run.json"} <= names


def test_the_line_has_an_int8_engine_whose_loss_is_known(line):
    found = line.shown("smoke-1/int8")["facts"]
    assert found["precision"] == "int8" and found["quantized"]["layers"] == 15 and found["quantized"]["loss"] <= 5.0
    measured = json.loads((line.folder / "runs/smoke-1/page.json").read_text())
    assert "rounded" in json.dumps(measured)


def test_the_bundle_runs_on_its_own(line):
    bundle = line.folder / "runs/smoke-1/bundle"
    for arguments in (["--check"], ["sample.png", "-o", str(line.folder / "mask.png")]):
        done = subprocess.run([sys.executable, "-Es", bundle / "run.py", *arguments], cwd=bundle, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (line.folder / "mask.png").stat().st_size > 100


def test_the_same_command_again_keeps_every_stage_within_two_seconds(line):
    began = time.monotonic()
    out = line.run()
    assert "every stage kept" in out and " made " not in out and time.monotonic() - began < 2


def test_another_weight_of_a_loss_reruns_the_student_and_what_follows_only(line):
    change = "--set=stages.student.losses=[{kind: pixel, weight: 0.5, temperature: 1.0, at: labels}, {kind: cwd, weight: 0.1}]"
    assert "config.losses[0].weight: 1.0 -> 0.5" in line.call("why", "student", line.recipe, change)
    plan = [text.split()[2] for text in line.call("plan", line.recipe, change).splitlines()]
    assert plan == ["kept"] * 3 + ["runs"] * 8


def test_a_stopped_teacher_goes_on_to_the_same_checkpoint(line):
    change = ("--set=stages.teacher.fit.steps=100", "--set=stages.teacher.fit.save_every=0.1")
    store = line.folder / "other"
    process = line.start("run", line.recipe, *change, "--store", store)
    while process.poll() is None and not list(store.glob("state/*/round-*-step-*")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert "resumed at step" in line.run(*change, "--store", store)
    assert "resumed" not in line.run(*change)
    ids = [line.shown("smoke-2/teacher", *more)["id"] for more in (("--store", store), ())]
    assert ids[0] == ids[1]


def test_a_rehearsal_touches_neither_store_nor_runs(line):
    before = sorted((line.folder / ".stillhouse").rglob("*"))
    assert "every stage of smoke works" in line.run("--rehearse")
    assert sorted((line.folder / ".stillhouse").rglob("*")) == before


def test_a_pickle_is_refused_with_exit_code_7_and_the_way_to_convert(line):
    weights = line.folder / "teacher.pth"
    weights.write_bytes(b"\x80\x04K\x01.")
    teacher = f"--set=stages.teacher={{kind: load, data: data, model: {{kind: tiny, size: large}}, weights: {{file: '{weights}'}}}}"
    out = line.run(teacher, code=7)
    assert "safetensors" in out and "Traceback" not in out


def test_a_teacher_saved_by_transformers_is_measured_and_teaches(line):
    transformers = pytest.importorskip("transformers")
    import torch

    from pipeline.artifact import Artifact
    from stages.models import open_model

    torch.manual_seed(0)
    settings = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64], "decoder_hidden_size": 32, "num_labels": 12}
    theirs = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**settings)).eval()
    theirs.save_pretrained(line.folder / "theirs")
    teacher = f"--set=stages.teacher={{kind: load, data: data, model: {{kind: hf}}, weights: {{file: '{line.folder / 'theirs'}'}}}}"
    out = line.run(teacher)
    assert "teacher: " in out and ": passed, " in out
    run = max((line.folder / ".stillhouse/refs/runs").iterdir(), key=lambda p: p.stat().st_mtime_ns).name
    found = line.shown(f"{run}/teacher")
    assert 0 <= found["facts"]["val"]["miou"] < 50
    ours = open_model(Artifact("teacher", "Checkpoint", found["id"], Path(found["folder"]), found["facts"]))
    image = torch.rand(2, 3, 64, 128) * 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(ours(image)["logits"], theirs((image / 255 - mean) / std).logits, atol=1e-5)
