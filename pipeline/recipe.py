"""A recipe, read from its file and made certain: every stage valid, every reference right, every default filled in.

Whatever is wrong is said at once, with line, column and what to write instead; nothing runs on a recipe that has a problem.
"""

import importlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from .errors import BadRecipe
from .overlay import Draft
from .parse import BYTES, parse, parse_value
from .parse import Path as Place
from .problems import ENOUGH, Problem, listed, meant, meant_or_listed, near, shortened, shown, together, visible
from .shape import Shape, of_field
from .stage import Stage, Takes
from .words import explained, unknown_key

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
STAGE = re.compile(r"[a-z][a-z0-9_]{0,31}")
RESERVED = ("released",)  # will name what is in service, in gates
PROFILES_RESERVED = ("none", "auto")  # what --profile understands besides the names in a recipe
STAGES, PROFILES = 300, 40  # at most: with more, `check` no longer answers within a second


@dataclass(frozen=True)
class Recipe:
    name: str
    path: Path
    profile: str | None
    stages: dict[str, Stage]  # in order: each names earlier ones only
    resolved: dict[str, Any]  # name and stages as plain data, defaults filled in
    profiles: tuple[str, ...]  # the names there are
    sets: tuple[str, ...]


def read(path: Path | str, kinds: Mapping[str, str], *, profile: str = "none", sets: Iterable[str] = ()) -> Recipe:
    """The recipe under one profile. `kinds` maps a stage kind to "module:Class"."""
    recipe, problems = _Reader(path, kinds, sets).made(None if profile == "none" else profile)
    if problems:
        raise together(problems)
    return recipe


def check(path: Path | str, kinds: Mapping[str, str], sets: Iterable[str] = ()) -> list[Recipe]:
    """The recipe as written, then under each of its profiles; all their problems together."""
    reader = _Reader(path, kinds, sets)
    base, problems = reader.made(None)
    recipes, known = [base], set(problems)
    for profile in reader.profiles:
        if len(problems) >= ENOUGH:
            break
        recipe, found = reader.made(profile)
        recipes.append(recipe)
        problems += [p._replace(text=f"{p.text} (profile {profile})") for p in found if p not in known]
    if problems:
        raise together(problems)
    return recipes


def takes(stage: type[Stage]) -> dict[str, Takes]:
    """The fields of a stage class that name earlier stages."""
    fields = ((name, next(_marks_of(info), None)) for name, info in stage.model_fields.items())
    return {name: mark for name, mark in fields if mark}


def stage_class(settings: Any, kinds: Mapping[str, str]) -> type[Stage] | None:
    """None for a kind that this version does not know."""
    kind = settings.get("kind") if isinstance(settings, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        return None
    module, _, name = kinds[kind].partition(":")
    return getattr(importlib.import_module(module), name)


class _Reader:
    """One file, of which several recipes can be made."""

    def __init__(self, path: Path | str, kinds: Mapping[str, str], sets: Iterable[str]):
        self.path, self.kinds, self.sets = Path(path), kinds, tuple(sets)
        self.name = str(path)
        self.data, self.marks = parse(_bytes(self.path), self.name)
        if "axes" in self.data and "stages" not in self.data:
            raise BadRecipe(f"{self.name} is a sweep, not a recipe: python -m pipeline sweep {self.name}")
        self.problems = list(islice(self._top(), ENOUGH))
        if not isinstance(self.data.get("stages"), dict) or len(self.data["stages"]) > STAGES:
            raise together(self.problems)
        self.profiles = tuple(self.data["profiles"])[:PROFILES] if isinstance(self.data.get("profiles"), dict) else ()
        self.sound: Valid = {}  # as written: profiles that leave them alone share them

    def made(self, profile: str | None) -> tuple[Recipe | None, list[Problem]]:
        """The recipe, or what is wrong with it."""
        draft = Draft(self.name, self.data, self.marks)
        problems = self.problems + list(islice(self._overlaid(draft, profile), ENOUGH))
        stages, found = _stages(draft, self.kinds, self.sound)
        problems += found
        if problems:
            return None, problems
        name = draft.data["name"]
        resolved = {"name": name, "stages": {n: plain for n, (_, plain) in stages.items()}}
        return Recipe(name, self.path, profile, {n: s for n, (s, _) in stages.items()}, resolved, self.profiles, self.sets), []

    def _top(self) -> Iterator[Problem]:
        """What is wrong with the frame of the file, whatever its stages are."""
        draft, known = Draft(self.name, self.data, self.marks), ("name", "stages", "profiles")
        unknown = {key: unknown_key(key, list(known), self.data) for key in islice((k for k in self.data if k not in known), ENOUGH)}
        for key, (text, _) in unknown.items():
            yield draft.problem((key,), text, at_key=True)
        meanings = [meaning for _, meaning in unknown.values()]
        for key, example in (("name", "name: my_recipe"), ("stages", "stages: {data: {kind: data}}")):
            if key not in self.data and key not in meanings:
                yield draft.problem((key,), f"is missing, write for example {example}")
        if "stages" in self.data and (not isinstance(self.data["stages"], dict) or not self.data["stages"]):
            yield draft.problem(("stages",), f"found {shown(self.data['stages'])}, expected a mapping of stage names to settings")
        elif len(self.data.get("stages", ())) > STAGES:
            yield draft.problem(
                ("stages",), f"{len(self.data['stages'])} stages stand here, and a recipe has at most {STAGES}", at_key=True
            )
        yield from self._profiles(draft)

    def _profiles(self, draft: Draft) -> Iterator[Problem]:
        profiles = self.data.get("profiles", {})
        if not isinstance(profiles, dict):
            yield draft.problem(("profiles",), f"found {shown(profiles)}, expected a mapping of profile names to overlays")
            return
        if len(profiles) > PROFILES:
            yield draft.problem(("profiles",), f"{len(profiles)} profiles stand here, and a recipe has at most {PROFILES}", at_key=True)
        for name, overlay in profiles.items():
            if name in PROFILES_RESERVED or not NAME.fullmatch(name):
                why = "is reserved, choose another name" if name in PROFILES_RESERVED else f"is no name; write one like {NAME.pattern}"
                yield draft.problem(("profiles", name), why, at_key=True)
            if not isinstance(overlay, dict):
                yield draft.problem(("profiles", name), f"found {shown(overlay)}, expected a mapping of dotted paths to values")

    def _overlaid(self, draft: Draft, profile: str | None) -> Iterator[Problem]:
        """Lays the profile and then --set onto the draft; yields what cannot be laid."""
        if profile is not None and profile not in self.profiles:
            there = meant(profile, [*self.profiles, *PROFILES_RESERVED]) or meant_or_listed(profile, self.profiles)
            there = there or "; the recipe has no profiles"
            yield Problem(f"--profile {profile}", 0, 0, f"no such profile{there}")
        overlay = draft.data["profiles"].get(profile) if profile in self.profiles else None
        for words, value in overlay.items() if isinstance(overlay, dict) else ():
            source = ("profiles", profile, words)
            if wrong := draft.lay(words, value, source, self._shapes(draft)):
                mark = self.marks[source]
                yield Problem(f"{self.name}:{mark.key_line}:{mark.key_column}", *mark[2:], f"{shortened(words)}: {wrong}")
        for text in self.sets:
            words, equals, written = text.partition("=")
            if not equals or not words.strip():
                yield Problem(f"--set {text}", 0, 0, "expected PATH=VALUE, for example --set stages.student.fit.steps=100")
                continue
            try:
                value = parse_value(written)
            except BadRecipe as error:
                yield from (Problem(f"--set {text}", 0, 0, line.removeprefix("value  ")) for line in str(error).splitlines())
                continue
            if wrong := draft.lay(words.strip(), value, text, self._shapes(draft)):
                yield Problem(f"--set {text}", 0, 0, wrong)

    def _shapes(self, draft: Draft) -> "_Shapes":
        return _Shapes(draft.data["stages"], self.kinds)


class _Shapes:
    """Stage name -> shape, looked up when asked for, since an overlay may change a stage's kind."""

    def __init__(self, stages: dict[str, Any], kinds: Mapping[str, str]):
        self.stages, self.kinds = stages, kinds

    def get(self, name: str, default: Shape) -> Shape:
        found = stage_class(self.stages.get(name), self.kinds)
        return Shape((found,)) if found else default


Valid = dict[str, tuple[Stage, dict[str, Any]]]  # by name: the stage, and it as plain data


def _stages(draft: Draft, kinds: Mapping[str, str], known: Valid) -> tuple[Valid, list[Problem]]:
    """Every stage, validated alone, then in its place among the others. `known` are stages as written that were valid before."""
    written = draft.data["stages"]
    problems = _named(draft)
    line = _Line({name: stage_class(settings, kinds) for name, settings in written.items()})
    good: Valid = {}
    sound: dict[str, Stage] = {}  # good, and so is everything it rests on
    for name, settings in written.items():
        found, cls = [], line.classes[name]
        if len(problems) >= ENOUGH:
            break
        if cls is None:
            found.append(_kindless(draft, name, settings, kinds))
        else:
            good[name] = _valid(draft, name, cls, settings, found, known)
            found += islice(_references(draft, name, settings, line), ENOUGH)
        if not found and all(r in sound for r in _named_by(cls, settings)):
            stage = good[name][0]
            found = [draft.problem(("stages", name, *path), text) for path, text in islice(stage.problems(dict(sound)), ENOUGH)]
            sound |= {} if found else {name: stage}
        problems += found
    return good, problems


class _Line:
    """The stages by name, in order, with their classes (None: of no known kind)."""

    def __init__(self, classes: dict[str, type[Stage] | None]):
        self.classes = classes
        self.at = {name: i for i, name in enumerate(classes)}

    def is_earlier(self, named: str, name: str) -> bool:
        return named in self.at and self.at[named] < self.at[name]

    def earlier(self, name: str) -> list[str]:
        return list(self.at)[: self.at[name]]

    def made_by(self, name: str) -> str | None:
        return self.classes[name].makes if self.classes[name] else None


def _named(draft: Draft) -> list[Problem]:
    problems, name = [], draft.data.get("name")
    if "name" in draft.data and not (isinstance(name, str) and NAME.fullmatch(name)):
        like = "small letters, digits and _ . - (64 at most), a letter or digit first"
        problems.append(draft.problem(("name",), f"found {shown(name)}, expected {like}"))
    for stage in draft.data["stages"]:
        if stage in RESERVED:
            problems.append(draft.problem(("stages", stage), "is a reserved word, choose another name for the stage", at_key=True))
        elif not STAGE.fullmatch(stage):
            like = "small letters, digits and _ (32 at most), a letter first"
            problems.append(draft.problem(("stages", stage), f"is no name for a stage, expected {like}", at_key=True))
    return problems


def _valid(
    draft: Draft, name: str, cls: type[Stage], settings: dict[str, Any], problems: list[Problem], known: Valid
) -> tuple[Stage, dict[str, Any]] | None:
    if name in known and name not in draft.touched:
        return known[name]
    try:
        stage = cls.model_validate(settings)
        valid = stage, stage.model_dump(mode="json")
        if name not in draft.touched:
            known[name] = valid
        return valid
    except ValidationError as error:
        problems += [draft.problem(("stages", name, *m.path), m.text, m.about_key) for m in explained(cls, settings, error)]
        return None


def _kindless(draft: Draft, name: str, settings: Any, kinds: Mapping[str, str]) -> Problem:
    place = ("stages", name)
    if not isinstance(settings, dict):
        return draft.problem(place, f"found {shown(settings)}, expected a mapping with a kind ({listed(kinds)})")
    if "kind" in settings:
        kind = settings["kind"]
        return draft.problem((*place, "kind"), f"found {shown(kind)}, expected {listed(kinds)}{meant(str(kind), kinds)}")
    if close := next((key for key in settings if near(key, ["kind"])), None):
        return draft.problem((*place, close), "is no key here; did you mean kind?", at_key=True)
    return draft.problem((*place, "kind"), f"is missing, {listed(kinds)} is expected")


def _references(draft: Draft, name: str, settings: dict[str, Any], line: _Line) -> Iterator[Problem]:
    """What is wrong with the stages that this one names. Read from what is written, so that it is said along with all else."""
    cls = line.classes[name]
    for field, mark in takes(cls).items():
        for place, named in _names(field, _value(cls, field, settings)):
            if wrong := _reference(named, name, mark, line, of_field(cls.model_fields[field]).optional):
                yield draft.problem(("stages", name, *place), wrong)


def _reference(named: str, name: str, mark: Takes, line: _Line, optional: bool) -> str | None:
    if line.is_earlier(named, name):
        made = line.made_by(named)
        if made is None or made in mark.kinds:
            return None
        needed = listed(_a(kind) for kind in mark.kinds)
        return f"{shown(named)} makes {_a(made)}, {needed} is needed{_those_that_make(mark, name, line)}"
    if named == name:
        return f"{shown(named)} names its own stage; name an earlier one{_those_that_make(mark, name, line)}"
    if named in line.at:
        return f"{shown(named)} names a later stage: move it up, above {name}"
    words = line.earlier(name) + ["null"] * optional
    return f"{shown(named)} is no stage{meant(named, words) or meant(named, line.at) or _those_that_make(mark, name, line)}"


def _those_that_make(mark: Takes, name: str, line: _Line) -> str:
    fit = [n for n in line.earlier(name) if line.made_by(n) in mark.kinds]
    return f"; {listed(fit)} would do" if fit else ""


def _named_by(cls: type[Stage], settings: dict[str, Any]) -> list[str]:
    return [named for field in takes(cls) for _, named in _names(field, _value(cls, field, settings))]


def _names(field: str, value: Any) -> Iterator[tuple[Place, str]]:
    """The names in a field, each with its place; what is not text is for pydantic to report."""
    if isinstance(value, str):
        yield (field,), value
    elif isinstance(value, list | tuple):
        yield from (((field, i), v) for i, v in enumerate(value) if isinstance(v, str))


def _value(cls: type[Stage], field: str, settings: dict[str, Any]) -> Any:
    return settings[field] if field in settings else cls.model_fields[field].get_default(call_default_factory=True, validated_data={})


def _marks_of(annotation: Any) -> Iterator[Takes]:
    """Takes marks anywhere in an annotation: on the field, inside Optional, on the elements of a list."""
    if isinstance(annotation, FieldInfo):
        yield from (m for m in annotation.metadata if isinstance(m, Takes))
        yield from _marks_of(annotation.annotation)
    elif get_origin(annotation) is not None:
        extras = annotation.__metadata__ if get_origin(annotation) is Annotated else ()
        yield from (m for m in extras if isinstance(m, Takes))
        for inner in get_args(annotation):
            yield from _marks_of(inner)


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIO' else 'a'} {noun}"


def _bytes(path: Path) -> bytes:
    name = visible(shortened(str(path)))
    try:
        if "\0" in str(path):
            raise ValueError("a name holds no NUL character")
        if path.is_dir():
            raise BadRecipe(f"{name} is a folder; name a recipe file in it{_recipes_in(path)}")
        if not path.exists():
            beside = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
            raise BadRecipe(f"{name} does not exist{visible(meant(path.name, beside, f'{path.parent}/'))}")
        if not path.is_file():
            raise BadRecipe(f"{name} is no regular file: a recipe is a YAML file")
        with path.open("rb") as file:
            return file.read(BYTES + 1)
    except (OSError, ValueError) as error:  # no permission, a name too long, a NUL in it
        raise BadRecipe(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _recipes_in(folder: Path) -> str:
    names = sorted(p.name for p in folder.glob("*.yaml"))
    return visible(f": {listed(map(shortened, names))}") if names else ""
