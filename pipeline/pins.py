"""Artifacts and runs that sweeping must keep, whatever else it may take: the engine that shipped, the run in the paper."""

from pathlib import Path

from . import finding, fsops
from .errors import BadRecipe, BadStore
from .keys import seal, unseal
from .store import Store


def pin(store: Store, what: str) -> list[str]:
    """Pins RUN, RUN/STAGE or the artifact whose id starts so; returns the ids that are kept by it."""
    store.require_writable()
    with store.shared():
        if what in store.runs():
            name, ids = what, [e["id"] for e in finding.stages(store, what).values() if e["id"]]
        else:
            name, ids = what.replace("/", "."), [finding.artifact(store, what)]
        for id in ids:
            store.manifest(id)
        _write(store, name, what, ids)
    return ids


def keep(store: Store, name: str, ids: list[str]) -> None:
    """Pins these artifacts under a name of their own, in place of what it kept before."""
    store.require_writable()
    with store.shared():
        _write(store, name, name, ids)


def unpin(store: Store, what: str) -> None:
    store.require_writable()
    file = _file(store, what.replace("/", "."))
    if not file.exists():
        raise BadRecipe(f"{what!r} is not pinned{finding.meant(what, pinned(store))}")
    fsops.remove(file)


def pinned(store: Store) -> dict[str, list[str]]:
    """What is pinned, and the ids behind it. A damaged pin is an error: what it kept is not known, so nothing may be swept."""
    found = {}
    for file in sorted(store.root.glob("refs/pins/[!.]*.json")):
        try:
            record = unseal(fsops.read(file))
        except OSError:
            record = None
        if record is None:
            raise BadStore(f"{file} is damaged: pin what it named again, or remove it, then repeat")
        found[record["what"]] = record["ids"]
    return found


def _write(store: Store, name: str, what: str, ids: list[str]) -> None:
    fsops.replace(_file(store, name), seal({"what": what, "ids": ids}))


def _file(store: Store, name: str) -> Path:
    return store.root / "refs/pins" / f"{name}.json"
