"""What this machine has and lacks, part by part, in words that say what to install; and whether an engine would run on it."""

import importlib.util
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from . import finding
from .errors import BadData, Missing, Refused
from .show import plain
from .store import Store

NAME = re.compile(r"^[A-Za-z0-9._-]+")
EXTRA = re.compile(r"extra == ['\"]([^'\"]+)['\"]")


def examine(store: Path, parts: Any) -> int:
    """Prints one line per finding. Returns 0, or 2 when something that every run needs is missing."""
    for name, value in parts.machine().items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else value
        print(plain(f"{name:<14} {text or 'none'}"))
    print(f"{'CUDA device':<14} {'found' if parts.has_device() else 'none: recipes take their cpu profile'}")
    free = shutil.disk_usage(next(p for p in (store.absolute(), *store.absolute().parents) if p.exists())).free
    print(plain(f"{'store':<14} {store} ({'there' if (store / 'store.json').exists() else 'not made yet'}), {free / 1e9:.0f} GB free"))
    missing = _packages()
    if parts.kernels and importlib.util.find_spec("torch"):
        print(plain(f"{'kernels':<14} {parts.kernels()}"))
    if importlib.util.find_spec("torchvision"):
        print("torchvision is installed: nothing here needs it, and a build that does not match torch breaks transformers")
    if missing:
        print(f"needed by every run and missing: {', '.join(missing)}\n  {sys.executable} -m pip install -e .")
    return 2 if missing else 0


class Finding(NamedTuple):
    """One fact about an engine, compared with this machine."""

    part: str
    state: str  # good | differs (it runs, not as it was measured) | lacks (it does not run) | damaged
    text: str


def engine(what: str, store: Store, parts: Any) -> int:
    """Prints one line per fact of an engine. Returns 0 when it will run here, 2 when something is lacking, 7 when it is not whole."""
    found = parts.engine(_folder(what, store))
    marks = {"good": "", "differs": "other: ", "lacks": "LACKS: ", "damaged": "DAMAGED: "}
    for part, state, text in found:
        print(plain(f"{part:<14} {marks[state]}{text}"))
    states = {state for _, state, _ in found}
    if "damaged" in states:
        print("not whole: do not run it")
        return Refused.code
    if "lacks" in states:
        print("it will not run here: build it on this machine, from the same ONNX file (its sha256 stands in engine.json)")
        return Missing.code
    print("it will run here" + (", but not as it was measured" if "differs" in states else ""))
    return 0


def _folder(what: str, store: Store) -> Path:
    """Where engine.json lies: WHAT is that file, a folder that holds it, RUN/STAGE, or the start of an artifact's id."""
    path = Path(what)
    if path.name == "engine.json":
        return path.parent
    if path.is_dir():
        return path
    id = finding.artifact(store, what)
    kind = store.kind(id)
    if kind not in ("Engine", "Bundle"):
        a = "an" if kind[0] in "EO" else "a"
        raise BadData(f"{what} holds {a} {kind}: name a stage that makes an Engine or a Bundle, an engine.json, or a bundle's folder")
    return store.folder(id)


def requirements() -> dict[str, str]:
    """Package -> the extra that brings it ("" for every run), from the distribution's own metadata."""
    found: dict[str, str] = {}
    try:
        declared = metadata.requires("stillhouse") or []
    except metadata.PackageNotFoundError:
        return found
    for text in declared:
        extra = EXTRA.search(text)
        found.setdefault(NAME.match(text).group(), extra.group(1) if extra else "")
    return found


def _packages() -> list[str]:
    """Prints the installed packages by extra; returns the core ones that are missing."""
    wanted = requirements()
    if not wanted:
        print("stillhouse itself is not installed (pip install -e .): its packages cannot be listed")
    missing = []
    for extra in dict.fromkeys(wanted.values()):
        states = []
        for name in (n for n, e in wanted.items() if e == extra):
            try:
                states.append(f"{name} {metadata.version(name)}")
            except metadata.PackageNotFoundError:
                states.append(f"{name} MISSING" if not extra else f"{name} -")
                missing += [name] if not extra else []
        print(f"{extra or 'core':<14} {', '.join(states)}")
    return missing
