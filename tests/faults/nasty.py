"""Recipes made nasty by hand, each by name: what has broken readers of YAML, of paths and of settings before, and what would break ours."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nasty_texts as texts
import nasty_values as values
from good_recipes import BASE


@dataclass(frozen=True)
class Nasty:
    """A file, arguments beside it, and whether it is a good recipe all the same."""

    file: Path
    arguments: tuple[str, ...] = ()
    good: bool = False


def files() -> dict[str, Callable[[Path], Nasty]]:
    """Name -> what makes it in an empty folder."""
    found = {name: _holding(text) for name, text in (texts.WRONG | texts.LARGE).items()}
    found |= {name: _holding(text, good=True) for name, text in texts.GOOD.items()}
    found |= {name: _holding(_changed(*change)) for name, change in values.CHANGED.items()}
    found |= {name: _holding(BASE, sets) for name, sets in values.SETS.items()}
    found |= {name: _holding(BASE, sets, good=True) for name, sets in values.GOOD_SETS.items()}
    found |= {name: _lying(make) for name, make in PLACES.items()}
    return found | {name: _lying(make, good=True) for name, make in GOOD_PLACES.items()}


def _holding(content: str | bytes, sets: tuple[str, ...] = (), good: bool = False) -> Callable[[Path], Nasty]:
    def make(place: Path) -> Nasty:
        file = place / "r.yaml"
        file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return Nasty(file, tuple(f"--set={text}" for text in sets), good)

    return make


def _lying(make: Callable[[Path], Path], good: bool = False) -> Callable[[Path], Nasty]:
    return lambda place: Nasty(make(place), (), good)


def _changed(old: str, new: str) -> str:
    assert old in BASE, old
    return BASE.replace(old, new, 1)


# -- what is nasty about the name or the kind of a file


def _folder(place: Path) -> Path:
    (place / "r.yaml").mkdir()
    return place / "r.yaml"


def _absent(place: Path) -> Path:
    (place / "recipe.yaml").write_text(BASE)
    return place / "recpie.yaml"


def _pipe(place: Path) -> Path:
    os.mkfifo(place / "r.yaml")
    return place / "r.yaml"


def _socket(place: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(place / "r.yaml"))
    return place / "r.yaml"


def _loop(place: Path) -> Path:
    (place / "r.yaml").symlink_to("r.yaml")
    return place / "r.yaml"


def _dangling(place: Path) -> Path:
    (place / "r.yaml").symlink_to("nothing")
    return place / "r.yaml"


def _device(place: Path) -> Path:
    (place / "r.yaml").symlink_to("/dev/zero")
    return place / "r.yaml"


def _long(place: Path) -> Path:
    return place / ("r" * 300)


def _deep(place: Path) -> Path:
    return place / "/".join(["r"] * 3000)


def _beneath(place: Path) -> Path:
    (place / "r.yaml").write_text(BASE)
    return place / "r.yaml/r.yaml"


def _broken_name(place: Path) -> Path:
    (place / "r\n\x1b[31m.yaml").write_text(BASE.replace("steps", "stps"))
    return place / "r\n\x1b[31m.yaml"


def _far(place: Path) -> Path:
    folder = place / "/".join(["a_folder_with_a_long_name" * 4] * 8)
    folder.mkdir(parents=True)
    (folder / "r.yaml").write_text(BASE.replace("steps", "stps"))
    return folder / "r.yaml"


def _names(place: Path) -> Path:
    for name in ("\x1b[2J.yaml", "a\nb.yaml", "x" * 200 + ".yaml", "\u202ex.yaml"):
        (place / name).write_text(BASE)
    return place


def _sparse(place: Path) -> Path:
    with (place / "r.yaml").open("wb") as file:
        file.truncate(2**30)
    return place / "r.yaml"


def _linked(place: Path) -> Path:
    (place / "real.yaml").write_text(BASE)
    (place / "r.yaml").symlink_to("real.yaml")
    return place / "r.yaml"


def _read_only(place: Path) -> Path:
    (place / "r.yaml").write_text(BASE)
    (place / "r.yaml").chmod(0o400)
    return place / "r.yaml"


PLACES: dict[str, Callable[[Path], Path]] = {
    "a folder": _folder,
    "a file that is not there": _absent,
    "a pipe that nobody fills": _pipe,
    "a socket": _socket,
    "a link to itself": _loop,
    "a link to nothing": _dangling,
    "a link to a device": _device,
    "a name that is too long": _long,
    "a path that is too long": _deep,
    "a file used as a folder": _beneath,
    "a wrong recipe with a line break in its name": _broken_name,
    "a wrong recipe deep in folders": _far,
    "a folder with nasty names in it": _names,
    "a sparse gigabyte": _sparse,
}
GOOD_PLACES: dict[str, Callable[[Path], Path]] = {
    "a good recipe behind a link": _linked,
    "a good recipe that may not be written": _read_only,
}
