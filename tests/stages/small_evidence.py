"""A Measurement made of counts, or of class maps, as validate leaves it: what rules on accuracy are judged by."""

import json

import numpy as np

from pipeline.artifact import Artifact
from stages.evidence import of_artifact
from stages.judged import judge
from stages.measure.miou import miou
from stages.measure.mismatch import percents
from stages.rules import Rule

NAMES = ["road", "wall", "tree", "car", "person", "pole"]
PRINT = {"images": 0, "image_digest": "a" * 64, "label_digest": "b" * 64, "ignore": 255}


def measured(folder, counts, touched=None, fingerprint=None, mismatch=None, names=NAMES):
    """Of these counts; the first model is the reference. `touched`, `mismatch`: model -> what validate stores under that name."""
    folder.mkdir()
    models, differ = {}, mismatch or {}
    for name, table in counts.items():
        mean, iou = miou(table.sum(axis=0))
        models[name] = {"miou": mean, "iou": iou, "latency": None, "boundary_f": 50.0, "agreement": 1.0, "size_mb": 2.0}
        models[name] |= {"precision": "f32", "runtime": "onnxruntime on CPU"} | (percents(differ[name]) if name in differ else {})
        np.save(folder / f"counts_{name}.npy", table)
    for kind, tables in (("touched", touched or {}), ("mismatch", differ)):
        for name, table in tables.items():
            np.save(folder / f"{kind}_{name}.npy", table)
    print_ = PRINT | {"classes": names, "images": len(table)} | (fingerprint or {})
    facts = {"classes": names, "models": models, "reference": next(iter(counts)), "fingerprint": print_, "split": "val", "machine": {}}
    (folder / "measurement.json").write_text(json.dumps(facts))
    (folder / "names.json").write_text(json.dumps([f"street_{i}" for i in range(len(next(iter(counts.values()))))]))
    return Artifact("measured", "Measurement", "c" * 64, folder)


def verdict(rules, artifact):
    """Of rules on `engine`, against `student` unless they say otherwise."""
    written = [{"of": "engine", "against": None if "mismatch" in rule["metric"] else "student"} | rule for rule in rules]
    return judge([Rule.model_validate(rule) for rule in written], of_artifact(artifact, None))
