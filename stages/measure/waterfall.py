"""Names the hop that loses: from the network as trained, over its rewritten form and its ONNX files, to every engine.

Each hop is compared with what it was made from, on the same images, so that a loss is seen where it happens and not in what follows.
What was made from what the recipe says (`Job.lineage`). Between a checkpoint and what is exported from it stands one hop that no stage
makes: the rewritten network (`folded` of its row), run by PyTorch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.artifact import Artifact
from stages.measure.allowed import BY_PRECISION, EXACT, Allowed
from stages.measure.paired import Z95, drop, most_lost

FIELDS = ("onnx", "checkpoint")  # of a stage: what its artifact is made from
REWRITTEN = " rewritten"  # after a checkpoint's name; no stage can be called so
PRECISE = {"f32": 0, "bf16": 1, "fp16": 1, "int8": 2}


@dataclass(frozen=True)
class Model:
    """One thing to run over the images. `before` is the model it was made from, `first` the checkpoint at the head of its line."""

    name: str
    artifact: Artifact
    rewritten: bool = False
    before: str | None = None
    first: str | None = None


def models(reference: Artifact, candidates: list[Artifact], lineage: dict[str, dict[str, list[str]]]) -> list[Model]:
    """All that is run, each after what it was made from; the reference comes first."""
    given = {artifact.name: artifact for artifact in (reference, *candidates)}
    found = {reference.name: Model(reference.name, reference)} if source(reference.name, given, lineage) is None else {}

    def place(name: str) -> Model:
        if name in found:
            return found[name]
        artifact, origin = given[name], source(name, given, lineage)
        before = None if origin is None else place(origin)
        if before is not None and before.artifact.kind == "Checkpoint" and is_exported(artifact):
            rewritten = before.name + REWRITTEN
            before = found.setdefault(rewritten, Model(rewritten, before.artifact, True, before.name, before.name))
        head = None if before is None else before.first or before.name
        found[name] = Model(name, artifact, False, None if before is None else before.name, head)
        return found[name]

    for name in given:
        place(name)
    return list(found.values())


def source(name: str, given: dict[str, Artifact], lineage: dict[str, dict[str, list[str]]]) -> str | None:
    """The nearest measured model that `name` was made from; None for a checkpoint: training is no hop."""
    if name in given and given[name].kind == "Checkpoint":
        return None
    made_of = lineage.get(name, {})
    for field in FIELDS:
        for parent in made_of.get(field) or ():
            found = parent if parent in given else source(parent, given, lineage)
            if found is not None:
                return found
    return None


def is_exported(artifact: Artifact) -> bool:
    """Whether it came from a checkpoint by rewriting its network; a pytorch engine runs it as it is, other weights were trained."""
    if artifact.kind == "Engine":
        return artifact.facts.get("engine", {}).get("kind") != "pytorch"
    return (artifact.facts.get("quantized") or {}).get("how") != "aware"


def precision(model: Model, ran: dict[str, Any]) -> str:
    """The coarsest arithmetic inside: f32, bf16, fp16 or int8. An ONNX file says its own; a runtime may round further."""
    facts = model.artifact.facts
    told = facts.get("precision") if model.artifact.kind == "OnnxModel" else (facts.get("onnx") or {}).get("precision")
    return max((told or "f32", ran.get("precision", "f32")), key=lambda name: PRECISE.get(name, -1))


def budget(model: Model, name: str) -> Allowed:
    """What a hop may cost. `name`: its precision."""
    exact = model.rewritten or (model.artifact.kind == "OnnxModel" and name == "f32")
    return EXACT if exact else BY_PRECISION[name]


def hop(model: Model, entries: dict[str, dict], counted: dict[str, np.ndarray], seen: dict[str, np.ndarray], classes: list[str]) -> dict:
    """One entry of the waterfall. `entries` hold the figures of every model, `counted` its counts (N, C, 3); `seen` is of this one."""
    entry = entries[model.name]
    found = {"name": model.name, "from": model.before, "first": model.first, "precision": entry["precision"]}
    found |= {key: entry[key] for key in ("miou", "boundary_f")}
    if model.before is None:
        return found
    before = entries[model.before]
    lost, error = drop(counted[model.before], counted[model.name])
    changes = [None if None in pair else pair[1] - pair[0] for pair in zip(before["iou"], entry["iou"], strict=True)]
    known = [(change, name) for change, name in zip(changes, classes, strict=True) if change is not None]
    allowed = budget(model, entry["precision"])
    found |= {
        "change": -lost,
        "standard_error": error,
        "most_lost": most_lost(seen["touched"], counted[model.before]),
        "agreement": share(seen["before"]),
        "agreement_first": share(seen["first"]),
        "boundary_change": entry["boundary_f"] - before["boundary_f"],
        "classes": changes,
        "worst": dict(zip(("change", "class"), min(known), strict=True)) if known else None,
        "budget": allowed._asdict(),
    }
    return found | judged(found)


def judged(found: dict[str, Any]) -> dict[str, str]:
    """state: loses | keeps | unclear, and a sentence on it.

    Pixels that differ are counted, not estimated: too many of them are a loss whatever the labels say. A drop of mIoU is a loss when it
    is beyond the budget by more than chance can do, and none when the certificate or the estimate with its error stays within.
    """
    lost, error, limit = -found["change"], found["standard_error"], found["budget"]["drop"]
    margin = None if error is None else Z95 * error
    certain = found["most_lost"] <= limit
    faults = []
    if not certain and margin is not None and lost - margin > limit:
        faults.append(f"loses {points(lost)} points of mIoU (asked at most {limit:g})")
    if found["agreement"] < found["budget"]["agreement"]:
        changed, most = 1 - found["agreement"], 1 - found["budget"]["agreement"]
        faults.append(f"changes {changed:.2%} of the pixels (asked at most {most:.2%})")
    if faults:
        text = f"{found['name']} {' and '.join(faults)} against {found['from']}: that is where to look"
        return {"state": "loses", "text": text}
    if certain or (margin is not None and lost + margin <= limit):
        return {"state": "keeps", "text": f"{found['name']} keeps what {found['from']} knows"}
    wide = "of one image alone" if margin is None else f"± {points(margin)}"
    text = (
        f"{found['name']}: {points(-lost, '+')} points of mIoU against {found['from']} {wide}, too few images to tell {limit:g} from none"
    )
    return {"state": "unclear", "text": text}


def summary(hops: list[dict]) -> dict[str, Any]:
    """The waterfall as measurement.json holds it: the hops, who loses (the largest loss first), and one sentence."""
    made = [one for one in hops if one["from"] is not None]
    losing = sorted((one for one in made if one["state"] == "loses"), key=lambda one: one["change"])
    unclear = [one for one in made if one["state"] == "unclear"]
    if losing:
        text = "; ".join(one["text"] for one in losing)
    elif unclear:
        text = "no hop loses for certain; " + "; ".join(one["text"] for one in unclear)
    else:
        text = f"no hop loses: {len(made)} hops within what each may cost" if made else "nothing was made from another here"
    return {"hops": hops, "loses": [one["name"] for one in losing], "text": text}


def share(equal: np.ndarray) -> float:
    """(pixels equal, pixels) -> a fraction."""
    return float(equal[0] / equal[1])


def points(value: float, sign: str = "") -> str:
    return f"{value:{sign}.1f}" if abs(value) >= 1 else f"{value:{sign}.2g}"
