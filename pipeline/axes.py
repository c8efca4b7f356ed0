"""A sweep, read from its file: one recipe, and named axes whose values are overlays on it; every combination is a run of its own."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import BadRecipe
from .parse import Path as Place
from .parse import parse
from .problems import Problem, meant_or_listed, shown, together, visible
from .recipe import NAME, Recipe
from .recipe import read as read_recipe

MOST = 1000  # runs of one sweep
KEYS = ("recipe", "axes", "figures")


@dataclass(frozen=True)
class Variant:
    """One value of every axis."""

    name: str  # of its runs: the recipe's name with the values behind it
    values: dict[str, str]  # axis -> value
    recipe: Recipe


@dataclass(frozen=True)
class Sweep:
    name: str  # the file's
    variants: list[Variant]  # the first axis changes last
    figures: list[str]  # dotted paths of what the table shows


def read(path: Path, kinds: Mapping[str, str], *, profile_for: Callable[[Path], str], sets: list[str]) -> Sweep:
    """`sets`, and the profile for the recipe's file, hold for every variant; an axis is laid over them."""
    try:
        data, marks = parse(path.read_bytes(), str(path))
    except OSError as error:
        raise BadRecipe(f"{path}: {error.strerror}") from None
    if "stages" in data and "axes" not in data:
        raise BadRecipe(f"{path} is a recipe, not a sweep: python -m pipeline run {path}")
    if problems := list(_wrong(data, marks, str(path))):
        raise together(problems)
    file, axes = path.parent / data["recipe"], data["axes"]
    profile = profile_for(file)
    recipe = read_recipe(file, kinds, profile=profile, sets=sets)
    if problems := list(_lost(data.get("figures", []), list(recipe.stages), marks, str(path))):
        raise together(problems)
    base = recipe.name
    variants = []
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        name = ".".join((base, *values))
        if name in {variant.name for variant in variants}:
            raise BadRecipe(f"{path}: two of its runs would be called {name}: rename a value of an axis")
        laid = [(words, value) for axis, key in chosen.items() for words, value in axes[axis][key].items()]
        overlays = [f"{words}={json.dumps(value)}" for words, value in laid] + [f"name={name}"]
        try:
            recipe = read_recipe(file, kinds, profile=profile, sets=[*sets, *overlays])
        except BadRecipe as error:
            raise BadRecipe(f"{path}, {', '.join(f'{a}: {v}' for a, v in chosen.items())}:\n{error}") from None
        variants.append(Variant(name, chosen, recipe))
    return Sweep(path.stem, variants, data.get("figures", []))


def check(path: Path, kinds: Mapping[str, str], sets: list[str]) -> tuple[int, tuple[str, ...]]:
    """Every run, with the recipe as written and under each of its profiles: how many runs, and the profiles."""
    found: list[str] = []

    def written(recipe: Path) -> str:
        found.extend(read_recipe(recipe, kinds, sets=sets).profiles)
        return "none"

    runs = len(read(path, kinds, profile_for=written, sets=sets).variants)
    for profile in found:
        read(path, kinds, profile_for=lambda recipe, profile=profile: profile, sets=sets)
    return runs, tuple(found)


def is_sweep(path: Path) -> bool:
    """By its keys; what cannot be read is no sweep, and told by whoever reads it as a recipe."""
    try:
        data, _ = parse(path.read_bytes(), str(path))
    except (OSError, BadRecipe):
        return False
    return "axes" in data and "stages" not in data


def _lost(figures: list[str], stages: list[str], marks: dict[Place, Any], name: str) -> Iterator[Problem]:
    """Figures of no stage: what a stage tells is known once it ran, but not what it is called."""
    for i, figure in enumerate(figures):
        stage, dot, _ = figure.partition(".")
        if stage in stages and dot:
            continue
        mark = marks[("figures", i)]
        found = f"there is no stage {visible(stage)}{meant_or_listed(stage, stages)}"
        found = found if stage not in stages else f"write what of {stage} is meant behind a dot, such as {stage}.value"
        yield Problem(f"{name}:{mark.line}:{mark.column}", mark.line, mark.column, f"figures.{i}: {found}")


def _wrong(data: dict[str, Any], marks: dict[Place, Any], name: str) -> Iterator[Problem]:
    def problem(path: Place, text: str) -> Problem:
        mark = marks.get(path) or marks[()]
        return Problem(f"{name}:{mark.key_line}:{mark.key_column}", mark.key_line, mark.key_column, text)

    for key in data.keys() - set(KEYS):
        yield problem((key,), f"a sweep has no {visible(key)}{meant_or_listed(key, KEYS)}")
    if not isinstance(data.get("recipe"), str):
        yield problem(("recipe",), "recipe: write the path of a recipe, as seen from this file")
    figures = data.get("figures", [])
    if not isinstance(figures, list) or not all(isinstance(f, str) for f in figures):
        yield problem(("figures",), "figures: write a list of dotted paths, such as [measured.models.student.miou]")
    axes = data.get("axes")
    if not isinstance(axes, dict) or not axes:
        yield problem(("axes",), "axes: write at least one, such as {seed: {one: {stages.student.fit.seed: 1}}}")
        return
    taken: dict[str, str] = {}  # a path that an earlier axis sets -> that axis
    count = 1
    for axis, values in axes.items():
        if not isinstance(values, dict) or not values:
            yield problem(("axes", axis), f"axes.{axis}: write its values, each with a mapping of dotted paths to what stands there then")
            continue
        count *= len(values)
        paths = {}
        for value, overlay in values.items():
            if not NAME.fullmatch(value):
                yield problem(("axes", axis, value), f"axes.{axis}.{visible(value)} is no name; write one like {NAME.pattern}")
            if not isinstance(overlay, dict):
                yield problem(("axes", axis, value), f"axes.{axis}.{value}: found {shown(overlay)}, write a mapping of dotted paths")
                continue
            for words in overlay:
                paths[words] = axis
                if words == "name":
                    yield problem(("axes", axis, value, words), "name: a sweep names its runs itself")
                for other in taken:
                    if f"{other}.".startswith(f"{words}."):
                        text = f"{words} is set by axis {axis} and {other} by axis {taken[other]}: one would undo the other"
                        yield problem(("axes", axis, value, words), text)
        taken |= paths
    if count > MOST:
        yield problem(("axes",), f"{count} combinations, and a sweep has at most {MOST}")
