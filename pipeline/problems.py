"""A recipe is told all its faults at once: one line each, in the order of the file, on one screen."""

import difflib
import re
from collections.abc import Iterable
from typing import NamedTuple

from .errors import BadRecipe

SCREEN = 20  # lines
LINE = 400  # characters of one problem at most

_hidden = re.compile(r"[^\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|[\u2028-\u202e\u2066-\u2069\ufeff]")


class Problem(NamedTuple):
    """`line` 0 stands for the command line, which is listed after the file."""

    where: str  # "recipe.yaml:3:7", or "--set stages.x.y=..."
    line: int
    column: int
    text: str


def together(problems: Iterable[Problem]) -> BadRecipe:
    """One error that holds them all, sorted as the file reads, each said once."""
    ordered = sorted(dict.fromkeys(problems), key=lambda p: (p.line == 0, p.line, p.column))
    lines = [_short(visible(f"{p.where}  {p.text}"), LINE) for p in ordered]
    if len(lines) > SCREEN:
        lines = [*lines[:SCREEN], f"and {len(lines) - SCREEN} more"]
    return BadRecipe("\n".join(lines))


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant: one slip of the finger away, else alike to the eye of difflib."""
    known = [k for k in known if k != word]
    slips = [k for k in known if _one_slip(word, k)]
    # Among several, a letter too many or too few or swapped keeps more of the word than a replaced one; difflib ranks that.
    close = difflib.get_close_matches(word, slips or known, n=1, cutoff=0.0 if slips else 0.6)
    return close[0] if close else None


def meant(word: str, known: Iterable[str], prefix: str = "") -> str:
    """What follows a complaint about an unknown word: a suggestion, or nothing."""
    found = nearest(word, known)
    return f"; did you mean {prefix}{found}?" if found else ""


def meant_or_listed(word: str, known: Iterable[str], prefix: str = "") -> str:
    """A suggestion, or else what there is."""
    known = list(known)
    return meant(word, known, prefix) or (f"; there {'are' if len(known) > 1 else 'is'} {listed(known, 'and')}" if known else "")


def listed(words: Iterable[str], last: str = "or", most: int = 12) -> str:
    """a, b or c; a long list is cut."""
    words = list(words)
    if len(words) > most:
        return ", ".join(words[:most]) + f", ... ({len(words)} in all)"
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else "none"


def shown(value: object, most: int = 60) -> str:
    """A value of a recipe as one would write it there, cut to a readable length."""
    return _short(_written(value), most)


def visible(text: str) -> str:
    """Text for a terminal: what a terminal would obey (escapes, line breaks, changes of direction) is spelled out."""
    return _hidden.sub(lambda m: f"\\u{ord(m[0]):04x}", text)


def _written(value: object, room: int = 200) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_written(v, room // 2)}" for k, v in list(value.items())[:room]) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_written(v, room // 2) for v in value[:room]) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def _one_slip(a: str, b: str) -> bool:
    """Whether one letter was added, left out, replaced, or swapped with its neighbour."""
    if abs(len(a) - len(b)) > 1 or max(len(a), len(b)) < 2:
        return False
    i = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    swapped = a[i : i + 2] == b[i : i + 2][::-1] and a[i + 2 :] == b[i + 2 :]
    return a[i + 1 :] == b[i + 1 :] or a[i:] == b[i + 1 :] or a[i + 1 :] == b[i:] or swapped
