"""The measurement that speaks for a run, read so that nothing in it can surprise whoever compares two."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.artifact import Artifact
from stages.page.pictures import PLAIN
from stages.page.words import name


@dataclass(frozen=True)
class Measured:
    run: str
    artifact: Artifact
    told: dict[str, Any]  # measurement.json
    at: str  # when it was measured

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """Those whose names can be part of a file's name."""
        told = mapping(self.told.get("models"))
        return {key: model for key, model in told.items() if isinstance(model, dict) and PLAIN.fullmatch(key)}

    @property
    def classes(self) -> list[str]:
        found = self.told.get("classes")
        return [name(c) for c in found] if isinstance(found, list) else []

    @property
    def fingerprint(self) -> dict[str, Any]:
        return mapping(self.told.get("fingerprint"))

    def counts(self, model: str) -> np.ndarray | None:
        """int64 (N, C, 3): tp, fp, fn of every image and class; None where they are not as they should be."""
        try:
            found = np.load(self.artifact.file(f"counts_{model}.npy"), allow_pickle=False)
        except (OSError, ValueError):
            return None
        good = (
            isinstance(found, np.ndarray)
            and found.ndim == 3
            and found.shape[1:] == (len(self.classes), 3)
            and np.issubdtype(found.dtype, np.integer)
            and len(found)
        )
        return found.astype(np.int64) if good else None


def of(run: str, artifacts: dict[str, Artifact], settings: dict[str, Any], story: Any) -> Measured | None:
    """The one that the gate judged, or the last; None, and a note, where there is none that can be read."""
    made = {key: artifact for key, artifact in artifacts.items() if artifact.kind == "Measurement"}
    judged = [s.get("measured") for s in settings.values() if isinstance(s, dict) and s.get("kind") in ("gate", "bundle")]
    chosen = made.get(next((m for m in reversed(judged) if m in made), list(made)[-1] if made else None))
    if chosen is None:
        lost = [stage for stage, s in settings.items() if isinstance(s, dict) and s.get("kind") == "validate"]
        if not any(note.startswith(f"{stage} of {run} is not compared") for stage in lost for note in story.notes):
            story.notes.append(f"{run} has no measurement to compare")
        return None
    if len(made) > 1:
        story.notes.append(f"{run} has {len(made)} measurements; {name(chosen.name)} is compared")
    at = story.at[[about["run"] for about in story.runs].index(run)].get(chosen.name, "")
    try:
        return Measured(name(run), chosen, mapping(json.loads(chosen.file("measurement.json").read_bytes())), at)
    except (OSError, ValueError, RecursionError):
        story.notes.append(f"measurement.json of {run} cannot be read: run its recipe again")
        return None


def mapping(value: Any) -> dict:
    return value if isinstance(value, dict) else {}
