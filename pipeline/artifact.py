"""What stages hand to each other: a folder of files that never changes, and the facts in its manifest."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KINDS = ("Dataset", "Checkpoint", "TextMatrix", "OnnxModel", "Engine", "Measurement", "Verdict", "Bundle")


@dataclass(frozen=True)
class Artifact:
    """One published artifact, as a stage sees it.

    `facts` is the reproducible part of its manifest; `beside` is what was recorded next to it and may differ from one
    making to the next (times, machine, where a data set lies on this disk). `name` is the stage that made it in this recipe.
    """

    name: str
    kind: str
    id: str
    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, Any] = field(default_factory=dict)

    def file(self, name: str) -> Path:
        return self.folder / name

    def json(self, name: str) -> Any:
        return json.loads(self.file(name).read_text(encoding="utf-8"))
