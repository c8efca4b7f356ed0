"""Finds what a person names in a store: a run, the newest run, a stage of a run, an artifact by the start of its id."""

import difflib
from typing import Any

from .errors import BadRecipe
from .store import Store


def newest(store: Store) -> str:
    runs = store.runs()
    if not runs:
        raise BadRecipe(f"no run in {store.root} yet: python -m pipeline run RECIPE")
    return max(runs, key=store.sequence)


def run_named(store: Store, name: str) -> str:
    runs = store.runs()
    if name not in runs:
        raise BadRecipe(f"no run {name!r} in {store.root}{meant(name, runs)}; `ls` lists them")
    return name


def begin(store: Store, name: str) -> dict[str, Any]:
    entries = store.journal(name).read()
    if not entries or entries[0]["event"] != "begin":
        raise BadRecipe(f"run {name} never began: nothing is known of it")
    return entries[0]


def stages(store: Store, name: str) -> dict[str, dict[str, Any]]:
    """How each stage of a run ended: its last entry in the journal."""
    return {e["stage"]: e for e in store.journal(name).read() if e["event"] == "stage"}


def outcome(entries: list[dict[str, Any]]) -> str:
    """How a run ended, in a word or two, as its journal tells."""
    if entries[-1]["event"] != "end":
        return "unfinished"
    return {0: "good", 3: "gate failed", 4: "undecided"}.get(entries[-1]["code"], f"exit {entries[-1]['code']}")


def artifact(store: Store, what: str) -> str:
    """The id of RUN/STAGE, or of an artifact by its first characters."""
    name, _, stage = what.partition("/")
    if not stage and name in store.runs():
        raise BadRecipe(f"{name} is a run: name one of its stages, {name}/STAGE; `ls {name}` lists them")
    if not stage or not name:
        return store.complete(what)
    ended = stages(store, run_named(store, name))
    if stage not in ended or not ended[stage]["id"]:
        raise BadRecipe(f"run {name} made no stage {stage!r}{meant(stage, ended)}")
    return ended[stage]["id"]


def meant(word: str, known: Any) -> str:
    """The end of an error about a word: what was probably meant, or what there is."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(known)}" if known else ""
