"""The baseline of a recipe: what its committed file says of an accepted run, and the artifacts that the file names.

recipes/baselines/<recipe>.<profile>.json is small and read in pull requests. The artifacts stay in stores: `store push` and `store pull`
hand them on. Stages that speak of `released` get both; what is in the file is their business, but for "artifacts": id -> kind.
"""

import json
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from .artifact import Artifact
from .keys import digest
from .manifest import Damaged
from .recipe import Recipe
from .store import Store

FOLDER = "baselines"  # beside the recipe
BYTES, MOST = 1 << 20, 64  # of a file; artifacts it may name
ID = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Released:
    file: str  # its folder and name: verdicts hold no path of a machine
    content: dict[str, Any] | None  # None: there is no baseline, and `problem` says why and what to do
    problem: str = ""
    artifacts: dict[str, Artifact] = field(default_factory=dict)  # by id: those that the store holds

    @property
    def digest(self) -> str:
        """Belongs to the keys of the stages that speak of it; an artifact that is fetched later changes it."""
        return digest([self.content, sorted(self.artifacts)])

    @property
    def accept(self) -> str:
        return "`python -m pipeline gate RUN --accept` makes a run the baseline"

    def missing(self, id: str, what: str) -> str:
        return f"{what} (artifact {id[:12]}) is not in this store: `python -m pipeline store pull DIR {id}`, from where it was pushed to"

    def told(self) -> dict[str, Any]:
        """For verdicts: all that judging again needs besides the artifacts."""
        return {"file": self.file, "content": self.content, "problem": self.problem, "artifacts": sorted(self.artifacts)}

    def described(self) -> dict[str, Any]:
        told = {"file": self.file, "content": self.content, "problem": self.problem}
        return told | {"artifacts": {id: {**asdict(a), "folder": str(a.folder)} for id, a in self.artifacts.items()}}

    @classmethod
    def of(cls, described: dict[str, Any] | None) -> Self | None:
        if described is None:
            return None
        found = {id: Artifact(**a | {"folder": Path(a["folder"])}) for id, a in described["artifacts"].items()}
        return cls(described["file"], described["content"], described["problem"], found)

    def verified(self, store: Store) -> "Released":
        """The same without artifacts whose bytes are not what they were: those are moved out of the way."""
        sound = dict(self.artifacts)
        for id in self.artifacts:
            try:
                store.verify(id)
            except Damaged as damage:
                if not store.read_only:
                    store.quarantine(damage)
                del sound[id]
        return Released(self.file, self.content, self.problem, sound)


def place(recipe: Path, name: str, profile: str | None) -> Path:
    return recipe.parent / FOLDER / f"{name}{f'.{profile}' if profile else ''}.json"


def read(file: Path, store: Store, of: tuple[str, str | None] | None = None) -> Released:
    """Never raises for what is wrong with the file: who compares says that it cannot be told. `of`: the recipe and profile whose file it
    should be, where nobody named this one."""
    accept, shown = "make a run the baseline: `python -m pipeline gate RUN --accept`", str(Path(file.parent.name, file.name))
    try:
        with file.open("rb") as opened:
            data = opened.read(BYTES + 1)
    except OSError as error:
        why = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        return Released(shown, None, f"{shown} {why}: name the right one with --baseline, or {accept}")
    try:
        content = json.loads(data) if len(data) <= BYTES else None
        digest(content)  # refuses what JSON does not know, as NaN
    except (ValueError, RecursionError):
        content = None
    ids = content.get("artifacts") if isinstance(content, dict) else None
    if not isinstance(ids, dict) or len(ids) > MOST or not all(ID.fullmatch(id) for id in ids):
        return Released(shown, None, f"{shown} is no baseline: take it from version control again, or {accept}")
    if of and (kept := (content.get("recipe"), content.get("profile"))) != of:
        text = f"{shown} is the baseline of {_spoken(*kept)}, not of {_spoken(*of)}: {accept}, or name it with --baseline"
        return Released(shown, None, text)
    return with_artifacts(shown, content, store)


def with_artifacts(name: str, content: dict[str, Any], store: Store) -> Released:
    return Released(name, content, "", {id: found for id in content["artifacts"] if (found := _held(store, id))})


def with_committed(recipe: Recipe, store: Store) -> Recipe:
    """The recipe whose stages know the committed baseline, where they speak of it."""
    if not any(stage.names_released() for stage in recipe.stages.values()):
        return recipe
    released = read(place(recipe.path, recipe.name, recipe.profile), store, (recipe.name, recipe.profile))
    stages = {name: stage.knowing(released) if stage.names_released() else stage for name, stage in recipe.stages.items()}
    return replace(recipe, stages=stages)


def _spoken(recipe: Any, profile: Any) -> str:
    return f"{recipe}, {f'profile {profile}' if profile else 'no profile'}"


def _held(store: Store, id: str) -> Artifact | None:
    try:
        manifest = store.manifest(id)
    except Damaged:
        return None
    return Artifact(id[:12], manifest["kind"], id, store.folder(id), manifest["facts"])
