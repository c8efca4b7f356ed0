"""Training state that survives interruption: tensors in safetensors, the rest in JSON, complete or not there at all; no pickle.

Each saving is a fresh folder that appears by one rename after everything in it is on disk. Its name orders it: the round (how often
training went back before, stages/setbacks.py), then the step; the same name always means the same state. The last two are kept: should
the newest be damaged, the one before it is used, and said so. Beside them the last two milestones of the round are kept, to which
training may have to go back.
"""

import hashlib
import json
import os
import re
import secrets
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline import fsops
from pipeline.errors import BadStore

TENSORS, FACTS = "tensors.safetensors", "state.json"
KEPT = 2
MILESTONE, VALIDATED = "-milestone", "-validated"
NAME = re.compile(rf"(round-\d+-step-)(\d{{9}})({MILESTONE}|{VALIDATED})?")
HALF_WRITTEN = re.compile(r"tmp-(\d+)-[0-9a-f]{8}")  # by the process of that id
DAMAGE = (OSError, ValueError, KeyError, TypeError, RecursionError)  # what reading a damaged state may raise


class State(NamedTuple):
    step: int  # optimiser steps done
    tensors: dict[str, Tensor]
    facts: dict[str, Any]  # what is not a tensor, as JSON
    round: int = 0
    milestone: bool = False
    validated: bool = False  # whether the validation that is due at this step is done


def save(folder: Path, state: State) -> None:
    fsops.make_folder(folder)
    _clear_half_written(folder)
    fresh = folder / f"tmp-{os.getpid()}-{secrets.token_hex(4)}"
    final = folder / (_name(state.round, state.step) + (MILESTONE if state.milestone else VALIDATED if state.validated else ""))
    if _is_sound(final):  # saved before (a signal right after a regular saving): never less safe than it was
        return
    fresh.mkdir(mode=0o700)
    try:
        _write(fresh, state)
        fsops.remove(final)  # the same step saved before, and damaged
        fsops.rename_folder(fresh, final)
    finally:
        fsops.remove(fresh)  # there only if something failed, or another process had just saved the same
    for old in _superseded(folder, final.name):
        fsops.remove(folder / old)


def newest(folder: Path, say, before: tuple[int, int] | None = None) -> State | None:
    """The newest sound state, or None if nothing was ever saved. Damaged ones are named through `say`; if all are, it is an error.
    `before`: only those that come before this (round, step)."""
    found = [name for name in _saved(folder) if before is None or name < _name(*before)]
    for name in reversed(found):
        try:
            return _load(folder / name)
        except DAMAGE as error:
            say(f"the training state {name} is damaged ({error}); trying the one before it")
    if found:
        raise BadStore(f"no saved training state in {folder} can be read ({len(found)} tried); delete that folder to start over")
    return None


def milestone(folder: Path, round: int, step: int, say) -> State | None:
    """That milestone, or None if it is missing or damaged."""
    name = _name(round, step) + MILESTONE
    try:
        return _load(folder / name)
    except DAMAGE as error:
        say(f"the training state {name} cannot be used ({error})")
        return None


def _is_sound(path: Path) -> bool:
    try:
        _load(path)
    except DAMAGE:
        return False
    return True


def _name(round: int, step: int) -> str:
    return f"round-{round}-step-{step:09d}"


def _saved(folder: Path) -> list[str]:
    """In the order of training."""
    return sorted(p.name for p in folder.iterdir() if NAME.fullmatch(p.name)) if folder.is_dir() else []


def _superseded(folder: Path, newest: str) -> list[str]:
    """What `newest` makes needless. States that would come after it were damaged, or training went back behind them."""
    found = {name: NAME.fullmatch(name) for name in _saved(folder)}
    this_round, step, _ = found[newest].groups()
    upto = [name for name, parts in found.items() if (parts[1], parts[2]) <= (this_round, step)]
    milestones = [name for name in upto if found[name][1] == this_round and name.endswith(MILESTONE)]
    kept = {*upto[-KEPT:], *milestones[-KEPT:]}
    return [name for name in found if name not in kept]


def _clear_half_written(folder: Path) -> None:
    """Left behind by a process that was killed. One that is still at work (two may overlap for a moment) keeps its own."""
    for path in folder.iterdir():
        owner = HALF_WRITTEN.fullmatch(path.name)
        if owner and (int(owner[1]) == os.getpid() or not _running(int(owner[1]))):
            fsops.remove(path)


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is somebody else's
    return True


def _write(fresh: Path, state: State) -> None:
    save_file({name: tensor.contiguous() for name, tensor in state.tensors.items()}, fresh / TENSORS)
    fsops.sync_file(fresh / TENSORS)
    place = {"step": state.step, "round": state.round, "milestone": state.milestone, "validated": state.validated}
    content = place | {"tensors": sorted(state.tensors), "facts": state.facts}
    sealed = {"content": content, "sha256": {"content": _digest(content), TENSORS: fsops.sha256(fresh / TENSORS)[1]}}
    fsops.write_new(fresh / FACTS, json.dumps(sealed).encode())
    fsops.sync_folder(fresh)


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
    return State(content["step"], tensors, content["facts"], content["round"], content["milestone"], content["validated"])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
