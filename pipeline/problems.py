"""A recipe is told all its faults at once: one line each, in the order of the file, on one screen."""

import difflib
from collections.abc import Iterable
from typing import NamedTuple

from .errors import BadRecipe

SCREEN = 20  # lines
LINE = 400  # characters of one problem at most
PLACE = 160  # characters of the place of a problem, or of a path in its text
ENOUGH = 60  # problems after which nobody looks for more: explaining ten thousand takes seconds, and one screen is shown


class Problem(NamedTuple):
    """`line` 0 stands for the command line, which is listed after the file."""

    where: str  # "recipe.yaml:3:7", or "--set stages.x.y=..."
    line: int
    column: int
    text: str


def together(problems: Iterable[Problem]) -> BadRecipe:
    """One error that holds them all, sorted as the file reads, each said once."""
    ordered = sorted(dict.fromkeys(problems), key=lambda p: (p.line == 0, p.line, p.column))
    lines = [_short(visible(f"{shortened(p.where)}  {p.text}"), LINE) for p in ordered[:SCREEN]]
    if len(ordered) > SCREEN:
        lines.append(f"and {len(ordered) - SCREEN} more" + (" at least" if len(ordered) >= ENOUGH else ""))
    return BadRecipe("\n".join(lines))


def near(word: str, known: Iterable[str]) -> list[str]:
    """The known word that was probably meant; two or three where nothing tells them apart, none where more are equally near."""
    known = [k for k in dict.fromkeys(known) if k != word]
    slips = [(k, rank) for k in known if (rank := _slip(word, k)) is not None]
    if not slips:
        return difflib.get_close_matches(word, known, n=1)
    best = min(rank for _, rank in slips)
    alike = [k for k, rank in slips if rank == best]
    return alike if len(alike) <= 3 else []


def meant(word: str, known: Iterable[str], prefix: str = "") -> str:
    """What follows a complaint about an unknown word: a suggestion, or nothing."""
    found = near(word, known)
    return f"; did you mean {listed(prefix + f for f in found)}?" if found else ""


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


def shortened(text: str, most: int = PLACE) -> str:
    """A place or a path cut in its middle, since both of its ends tell something."""
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-(most // 2) :]}"


def visible(text: str) -> str:
    """Text for a terminal: what it would obey or not show (escapes, line breaks, changes of direction, empty blanks) is spelled out."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _spelled(c) for c in text)


def _spelled(character: str) -> str:
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


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


def _slip(typed: str, word: str) -> int | None:
    """How far from the word one slip of the finger led: 0 capitals or two letters swapped, 1 one too many or too few, 2 one replaced."""
    if abs(len(typed) - len(word)) > 1 or max(len(typed), len(word)) < 2:
        return None
    if typed.lower() == word.lower():
        return 0
    i = next((i for i, (x, y) in enumerate(zip(typed, word, strict=False)) if x != y), min(len(typed), len(word)))
    if typed[i : i + 2] == word[i : i + 2][::-1] and typed[i + 2 :] == word[i + 2 :]:
        return 0
    if typed[i + 1 :] == word[i:] or typed[i:] == word[i + 1 :]:
        return 1
    return 2 if typed[i + 1 :] == word[i + 1 :] else None
