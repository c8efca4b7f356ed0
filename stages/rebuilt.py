"""The released engine on this machine: built anew from the ONNX file that the committed baseline names, with the settings it had then.

An engine that was built elsewhere is code for another machine and is never opened, and times of another machine say nothing about this one.
"""

import shutil
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.artifact import Artifact
from pipeline.errors import Missing
from stages.baseline import Baseline, onnx_digest
from stages.evidence import Unknown
from stages.rules import RELEASED


def rebuilt(name: str, released: Any, work: Path) -> Artifact:
    """The model of that name in the baseline, to be timed here under the name `released`; Unknown where that cannot be."""
    from stages.engines import TABLE as ENGINES
    from stages.optimize import facts_of

    if released is None or released.content is None:
        raise Unknown(released.problem if released else "no baseline was given")
    model = Baseline.read(released.content).models.get(name)
    if model is None or model.onnx is None:
        raise Unknown(f"{released.file} holds no {name} with an ONNX file. {released.accept}")
    source = released.artifacts.get(model.onnx.id)
    if source is None:
        raise Unknown(released.missing(model.onnx.id, f"the ONNX file of its {name}"))
    if onnx_digest(source) != model.onnx.sha256:
        raise Unknown(f"artifact {source.id[:12]} does not hold the ONNX file that the baseline names. {released.accept}")
    if model.engine is None:
        return Artifact(RELEASED, source.kind, source.id, source.folder, source.facts)
    shutil.rmtree(work, ignore_errors=True)  # of a measurement that was stopped
    work.mkdir(parents=True)
    try:
        row = ENGINES.row(str(model.engine.get("kind"))).model_validate(model.engine)
        facts = facts_of(row, source, row.build(source, work))
    except Missing as error:
        raise Unknown(f"its engine cannot be built on this machine: {error}") from None
    except ValidationError as error:
        raise Unknown(f"its engine has settings of another version ({error.errors()[0]['msg']}). {released.accept}") from None
    return Artifact(RELEASED, "Engine", source.id, work, facts)
