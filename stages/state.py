"""Training state that survives interruption: tensors in safetensors, the rest in JSON, complete or not there at all; no pickle.

Each saving is a fresh folder `step-NNNNNNNNN` that appears by one rename after everything in it is on disk. The last two are
kept: should the newest be damaged, the one before it is used, and said so.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline import fsops
from pipeline.errors import BadStore

TENSORS, FACTS = "tensors.safetensors", "state.json"
KEPT = 2


class State(NamedTuple):
    step: int  # optimiser steps done
    tensors: dict[str, Tensor]
    facts: dict[str, Any]  # what is not a tensor, as JSON


def save(folder: Path, state: State) -> None:
    fsops.make_folder(folder)
    fresh, final = folder / f"tmp-{state.step:09d}", folder / f"step-{state.step:09d}"
    fsops.remove(fresh)  # left behind by a run that was killed
    fresh.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in state.tensors.items()}, fresh / TENSORS)
    fsops.sync_file(fresh / TENSORS)
    facts = {"step": state.step, "tensors": sorted(state.tensors), "facts": state.facts}
    sealed = {"content": facts, "sha256": {"content": _digest(facts), TENSORS: fsops.sha256(fresh / TENSORS)[1]}}
    fsops.write_new(fresh / FACTS, json.dumps(sealed).encode())
    fsops.sync_folder(fresh)
    fsops.remove(final)  # the same step saved before: equal, or damaged
    fsops.rename_folder(fresh, final)
    for old in _saved(folder)[KEPT:]:
        fsops.remove(old)


def newest(folder: Path, say) -> State | None:
    """The newest sound state, or None if nothing was ever saved. Damaged ones are named through `say`; if all are, it is an error."""
    found = _saved(folder)
    for path in found:
        try:
            return _load(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            say(f"the training state {path.name} is damaged ({error}); trying the one before it")
    if found:
        raise BadStore(f"no saved training state in {folder} can be read ({len(found)} tried); delete that folder to start over")
    return None


def _saved(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _load(path: Path) -> State:
    sealed = json.loads((path / FACTS).read_bytes())
    content, digests = sealed["content"], sealed["sha256"]
    if _digest(content) != digests["content"]:
        raise ValueError(f"{FACTS} does not have the digest it names")
    if fsops.sha256(path / TENSORS)[1] != digests[TENSORS]:
        raise ValueError(f"{TENSORS} does not have the digest that {FACTS} names")
    tensors = load_file(path / TENSORS)
    if sorted(tensors) != content["tensors"]:
        raise ValueError(f"{TENSORS} does not hold the tensors that {FACTS} names")
    return State(content["step"], tensors, content["facts"])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
