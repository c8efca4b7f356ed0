"""What is committed of a run that was accepted: small enough to be read in a pull request, enough to judge against without its network.

Figures stand in the file; counts per image and ONNX files are artifacts that it names by their ids. An engine is never part of a baseline:
it is built anew, from the ONNX file, on the machine that judges.
"""

import hashlib
from math import isclose
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.artifact import Artifact
from pipeline.errors import BadRecipe
from stages.evidence import Unknown, digest, read
from stages.rules import RELEASED, Rule

if TYPE_CHECKING:
    import numpy as np

SCHEMA = 1
LATENCIES = ("image_ms", "engine_ms", "image_cpu_ms", "engine_cpu_ms")
OF_A_TIME = ("p50", "p90", "p99", "n")
Id = Field(pattern=r"^[0-9a-f]{64}$")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class Onnx(Strict):
    id: str = Id
    sha256: str = Id


class Model(Strict):
    """One model that a rule of the gate is about."""

    miou: float = Field(allow_inf_nan=False)
    iou: dict[str, float | None]
    boundary_f: float
    agreement: float
    size_mb: float
    precision: str
    runtime: str
    counts_sha256: str = Id
    latency: dict[str, dict[str, float]] | None  # facts for people: times are compared by running both, never with these
    engine: dict[str, Any] | None  # settings of its row
    onnx: Onnx | None  # what an engine is built from


class Seen(Strict):
    """What another measurement must have in common with it (measure/fingerprint.py)."""

    images: int
    image_digest: str
    label_digest: str
    ignore: int
    classes: list[str]


class Baseline(Strict):
    schema_: int = Field(alias="schema", le=SCHEMA)
    recipe: str
    profile: str | None
    run: str
    passed: bool | None
    split: str
    fingerprint: Seen
    machine: dict[str, Any]
    models: dict[str, Model]
    measured: str = Id
    artifacts: dict[str, str]  # id -> kind: all that is named here, for `store push`

    @classmethod
    def read(cls, content: dict[str, Any]) -> Self:
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise Unknown(f"the baseline is not one of this version ({where}: {first['msg']}): accept a run anew") from None

    def agrees(self, name: str, counts: "np.ndarray") -> bool:
        """Whether the figures of a model are those of its counts: the file is text, which can be edited or merged."""
        from stages.measure.miou import miou

        mean, of_classes = miou(counts.sum(axis=0))
        model = self.models[name]
        told, found = [model.miou, *(model.iou.get(one) for one in self.fingerprint.classes)], [mean, *of_classes]
        return len(told) == len(found) and all(
            one is other or (None not in (one, other) and isclose(one, other, abs_tol=1e-6)) for one, other in zip(told, found, strict=True)
        )

    def as_measurement(self) -> dict[str, Any]:
        """classes and models as measurement.json has them."""
        classes = self.fingerprint.classes
        models = {name: model.model_dump() | {"iou": [model.iou.get(c) for c in classes]} for name, model in self.models.items()}
        return {"classes": classes, "models": models}


def accepted(
    gate: dict[str, Any], inputs: dict[str, Artifact], artifacts: dict[str, Artifact], lineage: dict[str, dict[str, list[str]]]
) -> dict[str, Any]:
    """The content of the file, besides recipe, profile and run. `gate`: the settings of the gate whose run is accepted."""
    rules = [Rule.model_validate(rule) for rule in gate["rules"]]
    measured = inputs["measured"]
    measurement = measurement_of(measured)
    compared = [rule.of for rule in rules if rule.against == RELEASED] or [rule.of for rule in rules]
    judged = next(artifact for artifact in artifacts.values() if artifact.kind == "Verdict")
    names = [name for name in dict.fromkeys(compared) if name in measurement["models"]]
    models = {name: told(name, measurement, measured.folder, artifacts, lineage) for name in names}
    named = {measured.id: "Measurement"} | {one["onnx"]["id"]: "OnnxModel" for one in models.values() if one["onnx"]}
    where = {key: measurement["machine"].get(key) for key in ("cpu", "cores")}
    where |= {"gpus": [gpu["name"] for gpu in measurement["machine"].get("gpus", [])]}
    return {
        "schema": SCHEMA,
        "passed": judged.facts["passed"],
        "split": measurement["split"],
        "fingerprint": measurement["fingerprint"],
        "machine": where,
        "models": models,
        "measured": measured.id,
        "artifacts": named,
    }


def told(name: str, measurement: dict[str, Any], folder: Path, artifacts: dict[str, Artifact], lineage: dict) -> dict[str, Any]:
    model = measurement["models"][name]
    latency = model["latency"] and {way: {key: model["latency"][way][key] for key in OF_A_TIME} for way in LATENCIES}
    artifact = artifacts.get(name)
    onnx = onnx_of(name, artifacts, lineage)
    return {
        **{key: model[key] for key in ("miou", "boundary_f", "agreement", "size_mb", "precision", "runtime")},
        "iou": dict(zip(measurement["classes"], model["iou"], strict=True)),
        "counts_sha256": digest(read(folder, f"counts_{name}")),
        "latency": latency,
        "engine": artifact.facts["engine"] if artifact and artifact.kind == "Engine" else None,
        "onnx": None if onnx is None else {"id": onnx.id, "sha256": onnx_digest(onnx)},
    }


def onnx_of(name: str, artifacts: dict[str, Artifact], lineage: dict[str, dict[str, list[str]]]) -> Artifact | None:
    """The ONNX file that a model is or was built from; None for a checkpoint."""
    for one in (name, *lineage.get(name, {}).get("onnx", [])):
        if one in artifacts and artifacts[one].kind == "OnnxModel":
            return artifacts[one]
    return None


def onnx_digest(onnx: Artifact) -> str:
    return hashlib.sha256(onnx.file("model.onnx").read_bytes()).hexdigest()


def measurement_of(measured: Artifact) -> dict[str, Any]:
    found = measured.json("measurement.json")
    if "fingerprint" not in found:
        raise BadRecipe("this measurement was made before baselines were known: run the recipe again, then accept that run")
    return found
