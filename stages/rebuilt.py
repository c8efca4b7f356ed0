"""Engines built anew on this machine, to be timed: the released one, and a candidate whose builder picks by timing once more.

The released one comes from the ONNX file that the committed baseline names, with the settings it had then: an engine that was built
elsewhere is code for another machine and is never opened, and times of another machine say nothing about this one.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.artifact import Artifact
from pipeline.errors import Missing, Refused
from stages.baseline import Baseline, onnx_digest
from stages.evidence import Unknown
from stages.rules import RELEASED


def rebuilt(name: str, released: Any, work: Path) -> Artifact:
    """The model of that name in the baseline, to be timed here under the name `released`; Unknown where that cannot be."""
    if released is None or released.content is None:
        raise Unknown(released.problem if released else "no baseline was given")
    model = Baseline.read(released.content).models.get(name)
    if model is None or model.onnx is None:
        raise Unknown(f"{released.file} holds no {name} with an ONNX file. {released.accept}")
    source = released.artifacts.get(model.onnx.id)
    if source is not None and source.kind != "OnnxModel":
        raise Unknown(f"{released.file} names artifact {source.id[:12]} as an ONNX file, and it is a {source.kind}. {released.accept}")
    if source is None:
        raise Unknown(released.missing(model.onnx.id, f"the ONNX file of its {name}"))
    if onnx_digest(source) != model.onnx.sha256:
        raise Unknown(f"artifact {source.id[:12]} does not hold the ONNX file that the baseline names. {released.accept}")
    if model.engine is None:
        return Artifact(RELEASED, source.kind, source.id, source.folder, source.facts)
    try:
        return replace(built(RELEASED, model.engine, source, work), beside={"engine": model.engine})
    except ValidationError as error:
        raise Unknown(f"its engine has settings of another version ({error.errors()[0]['msg']}). {released.accept}") from None


def is_by_chance(model: Artifact) -> bool:
    """Whether building it again may give another engine."""
    from stages.engines import TABLE as ENGINES

    return model.kind == "Engine" and not ENGINES.row(model.facts["engine"]["kind"]).reproducible


def origin(model: Artifact, held: dict[str, Artifact], lineage: dict[str, dict[str, list[str]]]) -> tuple[Artifact, Path | None]:
    """The ONNX file an engine was built from, and the timing cache that its build began with; Unknown where they are not at hand.

    The cache that the build left is not used: it holds the very choices that another build shall make anew. One that the recipe gave it
    is: what that settles is no chance. `held`: the models that are measured, the only artifacts at hand.
    """
    took = lineage.get(model.name, {})
    [onnx] = took.get("onnx") or [None]
    if onnx not in held:
        what = f"{model.name} is made of {onnx or 'no ONNX file'}"
        raise Unknown(f"{what}, which is not measured here: add that to candidates" if onnx else what)
    if model.facts.get("built", {}).get("timing") != "taken":
        return held[onnx], None
    [timing] = took.get("timing") or [None]
    if timing not in held:
        what = f"the build of {model.name} began with the timing cache of {timing}"
        raise Unknown(f"{what}, which is not measured here: add that to candidates")
    return held[onnx], held[timing].file("engine.timing")


def built(name: str, settings: dict[str, Any], source: Artifact, work: Path, timing: Path | None = None) -> Artifact:
    """An engine of these settings of its row, in the folder `work`; Unknown where this machine cannot build it."""
    from stages.engines import TABLE as ENGINES
    from stages.optimize import TIMING, facts_of

    shutil.rmtree(work, ignore_errors=True)  # of a measurement that was stopped
    work.mkdir(parents=True)
    if timing is not None:
        shutil.copyfile(timing, work / TIMING)
    try:
        row = ENGINES.row(str(settings.get("kind"))).model_validate(settings)
        return Artifact(name, "Engine", source.id, work, facts_of(row, source, row.build(source, work)))
    except (Missing, Refused) as error:
        raise Unknown(f"its engine cannot be built on this machine: {error}") from None
