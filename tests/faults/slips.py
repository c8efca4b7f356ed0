"""Every name in a recipe, and what a slip of one finger makes of it: with each the suggestion that would be right.

A name is a field, a kind, a value out of a closed set, a stage that is referred to, a step of a dotted path, a profile, a boolean,
null, a metric. What is right is known from where the word stood before the slip; nothing is asked of the code that suggests.
"""

import importlib
import json
import re
import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, get_args, get_origin

from pipeline.parse import parse
from pipeline.recipe import takes
from pipeline.shape import ANY, Shape

LETTERS = string.ascii_lowercase + string.digits + "_"
PROFILES = ("none", "auto")  # what --profile understands in every recipe


@dataclass(frozen=True)
class Name:
    """A word at text[start:start + len(word)]. `known`: the words that would be understood there. `right`: what to suggest."""

    role: str
    word: str
    start: int
    known: frozenset[str]
    right: str


@dataclass(frozen=True)
class Slip:
    """One letter went wrong. `lands`: the typo is another word that would be understood there, so nothing can be suggested."""

    role: str
    text: str
    typed: str
    right: str
    lands: bool


def slipped(chance: Random, text: str, name: Name) -> Slip:
    """The text with one letter of the name left out, added, replaced, or swapped with its neighbour."""
    typed = slip(chance, name.word)
    text = text[: name.start] + typed + text[name.start + len(name.word) :]
    return Slip(name.role, text, typed, name.right, typed in name.known)


def slip(chance: Random, word: str) -> str:
    while True:
        i, letter, way = chance.randrange(len(word)), chance.choice(LETTERS), chance.randrange(4)
        inserted = chance.randrange(len(word) + 1)
        typed = (
            word[:i] + word[i + 1 :],
            word[:inserted] + letter + word[inserted:],
            word[:i] + letter + word[i + 1 :],
            word[:i] + word[i + 1 : i + 2] + word[i] + word[i + 2 :],
        )[way]
        if typed and typed != word:
            return typed


def suggested(message: str, right: str) -> bool:
    """Whether some line suggests just that, alone or as one of two or three."""
    words = (re.split(r", | or ", found) for found in re.findall(r"did you mean ([^?]+)\?", message))
    return any(right in found for found in words)


def names(text: str, kinds: Mapping[str, str]) -> list[Name]:
    """Every name in the text of a good recipe."""
    data, marks = parse(text, "seed")
    lines = [0, *(m.end() for m in re.finditer("\n", text))]

    def at(path: tuple, key: bool) -> int:
        line, column = marks[path][2:] if key else marks[path][:2]
        start = lines[line - 1] + column - 1
        return start + (text[start] in "\"'")

    found = [Name("field", key, at((key,), True), frozenset(("name", "stages", "profiles")), key) for key in data]
    for path, role, word, known in _of_stages(data, kinds):
        found.append(Name(role, word, at(path, role == "field"), frozenset(known), word))
    for profile, overlay in data.get("profiles", {}).items():
        for words, value in overlay.items():
            place = ("profiles", profile, words)
            found += [_moved(name, at(place, True)) for name in of_path(words, data, kinds)]
            for path, role, word, known in _at_path(words, value, data, kinds):
                found.append(Name(role, word, at((*place, *path), role == "field"), frozenset(known), word))
    assert all(text.startswith(name.word, name.start) for name in found)
    return [name for name in found if name.role != "stage"]


def overrides(data: dict[str, Any], kinds: Mapping[str, str]) -> list[tuple[str, list[Name]]]:
    """Everything in a recipe as a --set of what it is already, with the names in it."""
    found = []
    for path, value in _leaves(data["stages"], ("stages",)):
        words = ".".join(map(str, path))
        text = f"{words}={written(value)}"
        held = of_path(words, data, kinds)
        for inside, role, word, known in _at_path(words, value, data, kinds):
            if not inside:
                held.append(Name(role, word, len(words) + 1, frozenset(known), word))
        found.append((text, held))
    return found


def of_path(words: str, data: dict[str, Any], kinds: Mapping[str, str]) -> list[Name]:
    """The steps of a dotted path."""
    steps, found = words.split("."), []
    node, shape = data["stages"], None
    for i, step in enumerate(steps):
        start = len(".".join(steps[:i])) + bool(i)
        right = ".".join(steps[: i + 1])
        if i == 0:
            known: Iterable[str] = ("stages",)
        elif i == 1:
            known = data["stages"]
            node, shape = node[step], Shape((_class(node[step], kinds),))
        else:
            shape = shape.fitting(node) or ANY
            known = [*shape.fields(), *(node if isinstance(node, dict) else ())]
            key = int(step) if isinstance(node, list) else step
            node = node[key] if isinstance(node, list) or key in node else None
            shape = shape.inside(key) or ANY
        if not step.isdigit():
            found.append(Name("path", step, start, frozenset(known), right))
    return found


def written(value: Any) -> str:
    """A value on one line of YAML, words bare where they can be."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{written(k)}: {written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, str) and re.fullmatch(r"[a-z][\w./*-]*", value, re.A) and value not in ("null", "true", "false"):
        return value
    return json.dumps(value)


def spelled_out(data: dict[str, Any]) -> str:
    """A resolved recipe as text, so that every field there is stands in some seed."""
    return f"name: {data['name']}\nstages:\n" + "".join(f"  {name}: {written(stage)}\n" for name, stage in data["stages"].items())


def _moved(name: Name, by: int) -> Name:
    return Name(name.role, name.word, name.start + by, name.known, name.right)


def _of_stages(data: dict[str, Any], kinds: Mapping[str, str]) -> Iterator[tuple[tuple, str, str, Iterable[str]]]:
    for stage, settings in data["stages"].items():
        cls = _class(settings, kinds)
        for path, role, word, known in _inside(Shape((cls,)), settings, (), list(data["stages"]), takes(cls)):
            known = kinds if path == ("kind",) and role == "kind" else known
            yield ("stages", stage, *path), "stage kind" if known is kinds else role, word, known


def _at_path(words: str, value: Any, data: dict[str, Any], kinds: Mapping[str, str]) -> Iterator[tuple[tuple, str, str, Iterable[str]]]:
    """The names in what is set at a dotted path."""
    first, *steps = words.split(".")[1:]
    cls, node = _class(data["stages"][first], kinds), data["stages"][first]
    shape, path = Shape((cls,)), []
    for step in steps:
        shape = shape.fitting(node) or ANY
        path.append(int(step) if isinstance(node, list) else step)
        node = node[path[-1]] if isinstance(node, list) or path[-1] in node else None
        shape = shape.inside(path[-1]) or ANY
    for inner, role, word, known in _inside(shape, value, tuple(path), list(data["stages"]), takes(cls)):
        top = inner == ("kind",) and role == "kind"
        yield inner[len(path) :], "stage kind" if top else role, word, kinds if top else known


def _inside(
    shape: Shape, value: Any, path: tuple, stages: list[str], references: Mapping
) -> Iterator[tuple[tuple, str, str, Iterable[str]]]:
    """(path, role, word, words that would be understood) of every name in a value."""
    if isinstance(value, dict):
        fitting = shape.fitting(value) or ANY
        for key, inner in value.items():
            if fitting.fields():
                yield (*path, key), "field", key, fitting.fields()
            yield from _inside(fitting.inside(key) or ANY, inner, (*path, key), stages, references)
        return
    if isinstance(value, list):
        fitting = shape.fitting(value) or ANY
        for i, inner in enumerate(value):
            yield from _inside(fitting.inside(i) or ANY, inner, (*path, i), stages, references)
        return
    if value is None and shape.optional:
        yield path, "null", "null", ()
    elif isinstance(value, bool):
        yield path, "boolean", json.dumps(value), ("true", "false")
    elif isinstance(value, str) and (role := _role(shape, value, path, stages, references)):
        yield path, *role


def _role(shape: Shape, value: str, path: tuple, stages: list[str], references: Mapping) -> tuple[str, str, Iterable[str]] | None:
    closed = [a for o in shape.options if get_origin(o) is Literal for a in get_args(o)]
    if path[0] in references:
        return "reference", value, stages
    if path[-1] in ("of", "against"):
        return "measured", value, stages
    if path[-1] == "metric":
        return "metric", value, importlib.import_module("stages.gate").METRICS
    if path[-1] == "kind":
        return "kind", value, closed
    return ("value", value, closed) if closed else None


def _leaves(value: Any, path: tuple) -> Iterator[tuple[tuple, Any]]:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(inner, dict | list) and inner:
            yield from _leaves(inner, (*path, key))
        else:
            yield (*path, key), inner


def _class(settings: Any, kinds: Mapping[str, str]) -> type:
    module, _, name = kinds[settings["kind"]].partition(":")
    return getattr(importlib.import_module(module), name)
