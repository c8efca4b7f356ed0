"""Says in plain words what pydantic found wrong: what stands there, what was expected, what was probably meant."""

from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError

from . import shape as shapes
from .parse import Path
from .problems import ENOUGH, listed, meant, near, shown
from .shape import Shape


class Mistake(NamedTuple):
    path: Path  # inside the data; its last step may be missing there
    text: str
    about_key: bool = False  # the key itself is wrong
    meaning: str | None = None  # the key that was meant


def explained(model: type[BaseModel], data: Any, error: ValidationError) -> list[Mistake]:
    """Every mistake once, as far as anybody reads. A key that is missing because it was misspelt is not reported a second time."""
    root = Shape((model,))
    found = [_one(root, data, e) for e in error.errors(include_url=False, include_input=False)[:ENOUGH]]
    misspelt = {(*m.path[:-1], m.meaning) for m in found if m.meaning}
    return list(dict.fromkeys(m for m in found if m.text and m.path not in misspelt))


def unknown_key(key: str, known: list[str], given: Any) -> tuple[str, str | None]:
    """The sentence about a key that does not belong, and the key that was meant."""
    meanings = near(key, [k for k in known if k not in given]) or near(key, known)
    if meanings:
        return f"is no key here; did you mean {listed(meanings)}?", meanings[0]
    return f"is no key here; keys are {listed(known, 'and')}" if known else "is no key here, there are none", None


def _one(root: Shape, data: Any, error: dict) -> Mistake:
    path, passed, value, of_the_meant = shapes.clean(root, error["loc"], data)
    kind, here = error["type"], passed[-1]
    if not of_the_meant:  # another member of a union; all say the same unless one of them fits the look of the value
        return Mistake(path, "" if here.fitting(value) else _mismatch(here, value))
    if kind == "extra_forbidden":
        text, meaning = unknown_key(str(path[-1]), here.fields(), _at(data, path[:-1]))
        return Mistake(path, text, True, meaning)
    if kind == "missing" and isinstance(path[-1], int):
        return Mistake(path[:-1], _mismatch(passed[-2], _at(data, path[:-1])))
    if kind == "missing":
        return Mistake(path, f"is missing, {here.expected()} is expected")
    if kind == "union_tag_invalid":
        tag = value.get("kind")
        hint = meant(str(tag), here.tags()) or _elsewhere(passed[:-1], str(tag))
        return Mistake((*path, "kind"), f"found {shown(tag)}, expected {listed(here.tags())}{hint}")
    if kind == "union_tag_not_found":
        close = next((k for k in value if near(k, ["kind"])), None) if isinstance(value, dict) else None
        if close:
            return Mistake((*path, close), "is no key here; did you mean kind?", True, "kind")
        return Mistake((*path, "kind"), f"is missing, {listed(here.tags())} is expected")
    if kind in ("value_error", "assertion_error"):
        return Mistake(path, str(error["ctx"]["error"]) or error["msg"])
    return Mistake(path, _mismatch(here, value))


def _mismatch(shape: Shape, value: Any) -> str:
    return f"found {shown(value)}, expected {shape.expected()}{_hint(shape, value)}"


def _hint(shape: Shape, value: Any) -> str:
    if isinstance(value, list) and shape.tags():
        return "; exactly one stands here, without brackets"
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return ""
    word = str(value)
    if word in shape.tags():
        return f"; write {{kind: {word}}}"
    if shape.optional and word.lower() in ("none", "~", "nil", "null", ""):
        return "; write null"
    if bool in shape.options and word.lower() in ("yes", "no", "on", "off", "true", "false"):
        return f"; write {'true' if word.lower() in ('yes', 'on', 'true') else 'false'}"
    return meant(word, _words(shape)) or _as_kind(word, shape)


def _words(shape: Shape) -> list[str]:
    """The words that can stand here."""
    words = [a for o in shape.options if get_origin(o) is Literal for a in get_args(o) if isinstance(a, str)]
    return words + ["true", "false"] * (bool in shape.options) + ["null"] * shape.optional


def _elsewhere(around: list[Shape], kind: str) -> str:
    """A kind that belongs under another key of what is around: the nearest one is named."""
    for shape in reversed(around):
        for key in shape.fields():
            there = shape.inside(key)
            many = there.inside(0)
            if kind in there.tags():
                return f"; {kind} stands under {key}: write {key}: {{kind: {kind}}}"
            if many and kind in many.tags():
                return f"; {kind} stands under {key}: write {key}: [{{kind: {kind}}}]"
    return ""


def _as_kind(word: str, shape: Shape) -> str:
    """`model: segfomer` needs two corrections, a mapping and its spelling."""
    close = near(word, shape.tags())
    return f"; did you mean {listed(f'{{kind: {kind}}}' for kind in close)}?" if close else ""


def _at(data: Any, path: Path) -> Any:
    for step in path:
        data = data[step]
    return data
