"""A data set of a few small scenes and an untrained network on it, as artifacts: what the tests of later stages start from."""

import json
import shutil
from pathlib import Path

import torch

from pipeline.artifact import Artifact

torch.set_num_threads(1)

SIZE = (64, 96)


class Job:
    """What the runner lends to a stage, with everything it says kept."""

    def __init__(self, folder: Path):
        self.out, self.state = folder / "out", folder / "state"
        for path in (self.out, self.state):
            path.mkdir(parents=True)
        self.rehearsing, self.said, self.stop, self.target, self.lineage, self.released = False, [], 0, None, {}, None

    def say(self, text):
        self.said.append(text)

    def progress(self, done, total, **figures):
        pass

    def stop_asked(self):
        return self.stop


def made(stage, name: str, inputs: dict, folder: Path, **lent) -> Artifact:
    """Runs a stage and hands back its artifact; facts go through JSON as they would through a manifest. `lent`: members of the job."""
    job = Job(folder / name)
    vars(job).update(lent)
    result = stage.run(inputs, job)
    shutil.rmtree(job.state)
    facts = json.loads(json.dumps(result.facts))
    return Artifact(name, stage.makes, f"id-{name}", job.out, facts, json.loads(json.dumps(result.beside)))


def data(folder: Path, size=SIZE, val=3) -> Artifact:
    from stages.data import Data

    source = {"kind": "streets", "seed": 5, "train": 2, "val": val, "test": 0}
    return made(Data.model_validate({"kind": "data", "source": source, "size": list(size)}), "data", {}, folder)


def checkpoint(folder: Path, dataset: Artifact, name="student", seed=0, model=None) -> Artifact:
    """An untrained network whose logits are spread enough to use all classes."""
    from stages.models import TABLE
    from stages.weights import save_checkpoint

    settings = model or {"kind": "tiny", "size": "small"}
    row = TABLE.row(settings["kind"]).model_validate(settings)
    torch.manual_seed(seed)
    module = row.build(len(dataset.facts["classes"]))
    for key, value in module.state_dict().items():  # BatchNorm's statistics, as training would leave them: not at their start
        if key.endswith("running_var"):
            value.uniform_(0.5, 2.0)
    (folder / name).mkdir()
    save_checkpoint(folder / name, module.state_dict())
    (folder / name / "curves.json").write_text('{"train": [], "val": []}')
    facts = {"model": row.model_dump(mode="json"), "steps": 0, "val": None}
    facts |= {key: dataset.facts[key] for key in ("classes", "colours", "size")}
    return Artifact(name, "Checkpoint", f"id-{name}", folder / name, json.loads(json.dumps(facts)), {})


def exported(folder: Path, dataset: Artifact, student: Artifact, name="onnx", **settings) -> Artifact:
    from stages.export import Export

    stage = Export(kind="export", data="data", checkpoint=student.name, parity_images=2, **settings)
    return made(stage, name, {"data": dataset, "checkpoint": student}, folder)


def engine(folder: Path, source: Artifact, name="engine", **row) -> Artifact:
    from stages.optimize import FIELDS, Optimize

    field = FIELDS[source.kind]
    stage = Optimize.model_validate({"kind": "optimize", field: source.name, "engine": row})
    return made(stage, name, {field: source}, folder)


def bundled(folder: Path, passes: bool, **row) -> tuple[dict[str, Artifact], Artifact]:
    """Everything from data to a bundle of such an engine, whose gate it passes or not: (what the bundle was made of, the bundle)."""
    from stages.bundle import Bundle
    from stages.gate import Gate
    from stages.validate import Validate

    dataset = data(folder)
    student = checkpoint(folder, dataset)
    onnx = exported(folder, dataset, student)
    packed = engine(folder, onnx, threads=1, **row)
    names = {"data": "data", "reference": "student", "candidates": ["engine"]}
    stage = Validate.model_validate({"kind": "validate", "pictures": 0} | names)
    measured = made(stage, "measured", {"data": dataset, "reference": student, "candidates": [packed], "latency_of": []}, folder)
    rule = {"metric": "miou", "of": "engine", "at_least": 0 if passes else 101}
    stage = Gate.model_validate({"kind": "gate", "measured": "measured", "rules": [rule]})
    verdict = made(stage, "gate", {"measured": measured}, folder)
    inputs = {"data": dataset, "onnx": onnx, "engine": packed, "measured": measured, "verdict": verdict}
    stage = Bundle(kind="bundle", data="data", onnx="onnx", engine="engine", measured="measured", verdict="gate")
    return inputs, made(stage, "bundle", inputs, folder)
