"""What a recipe may hold at a path: a walk over the types of pydantic models, guided by the data that were written.

Two readers need it: errors, to name the field and the keys it has, and overrides, to tell whether a path exists.
"""

import re
import types
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from .problems import listed


@dataclass(frozen=True)
class Shape:
    """The types a value may have. Several options are told apart by `kind` where they are tagged, else by how the value looks."""

    options: tuple[Any, ...]  # without Annotated, Union and None
    limits: tuple[Any, ...] = ()  # Ge, Le, MinLen ... that hold for the value
    optional: bool = False
    tagged: bool = False

    @property
    def models(self) -> list[type[BaseModel]]:
        return [o for o in self.options if isinstance(o, type) and issubclass(o, BaseModel)]

    def tags(self) -> dict[str, type[BaseModel]]:
        """The kinds that can stand here."""
        kinds = [(m, m.model_fields["kind"].annotation) for m in self.models if "kind" in m.model_fields]
        return {tag: model for model, literal in kinds if get_origin(literal) is Literal for tag in get_args(literal)}

    def only(self, option: Any) -> "Shape":
        return Shape((option,), self.limits)

    def fitting(self, value: Any) -> "Shape | None":
        """The one option that the value was meant for, as far as its look tells."""
        if len(self.options) == 1:
            return self
        if isinstance(value, dict):
            tagged = self.tags().get(value["kind"]) if isinstance(value.get("kind"), str) else None
            alike = sorted(self.models, key=lambda m: len(value.keys() & m.model_fields.keys()), reverse=True)
            fits = [tagged] if tagged else alike if not self.tagged else []
            fits += [o for o in self.options if get_origin(o) is dict or o is dict]
        else:
            fits = [o for o in self.options if _looks_like(value, o)]
        return self.only(fits[0]) if fits else None

    def inside(self, key: str | int) -> "Shape | None":
        """The shape of what `key` names in here; None when there is no such thing."""
        for option in self.options:
            origin, args = get_origin(option) or option, get_args(option)
            if option in self.models:
                if key in option.model_fields:
                    return of_field(option.model_fields[key])
            elif origin is dict and isinstance(key, str):
                return of(args[1]) if args else ANY
            elif origin is list and isinstance(key, int):
                return of(args[0]) if args else ANY
            elif origin is tuple and isinstance(key, int):
                args = [a for a in args if a is not Ellipsis]
                return of(args[min(key, len(args) - 1)]) if args else ANY
            elif option is Any:
                return ANY
        return None

    def fields(self) -> list[str]:
        """The fields that may be written here."""
        return list(dict.fromkeys(f for m in self.models for f in m.model_fields))

    def expected(self) -> str:
        """In plain words, with limits."""
        if tags := self.tags():
            words = [f"a mapping with a kind ({listed(tags)})"]
            words += [_named(o) for o in self.options if o not in self.models]
        else:
            words = [_named(o) for o in self.options]
        if self.optional:
            words.append("null")
        return listed(dict.fromkeys(words)) + _limited(self.limits)


ANY = Shape((Any,))


def of_field(info: FieldInfo) -> Shape:
    return of(info.annotation, tuple(info.metadata), info.discriminator is not None)


def of(annotation: Any, limits: tuple[Any, ...] = (), tagged: bool = False) -> Shape:
    if get_origin(annotation) is Annotated:
        inner, *extras = get_args(annotation)
        infos = [e for e in extras if isinstance(e, FieldInfo)]
        more = [e for e in extras if not isinstance(e, FieldInfo)] + [m for i in infos for m in i.metadata]
        return of(inner, (*limits, *more), tagged or any(i.discriminator is not None for i in infos))
    if get_origin(annotation) in (Union, types.UnionType):
        members = [of(a) for a in get_args(annotation) if a is not type(None)]
        return Shape(
            tuple(o for m in members for o in m.options),
            limits + tuple(x for m in members for x in m.limits),
            any(m.optional for m in members) or len(members) < len(get_args(annotation)),
            tagged or any(m.tagged for m in members),
        )
    return Shape((annotation,), limits, annotation is type(None), tagged)


def clean(shape: Shape, location: tuple[str | int, ...], value: Any) -> tuple[tuple[str | int, ...], list[Shape], Any, bool]:
    """Pydantic's location of an error without the names of union members in it.

    Returns the path as written in the file, the shapes passed on the way (the last one is the field's), the value there, and
    whether the error is about the union member that the value was meant for.
    """
    path: list[str | int] = []
    passed = [shape]
    for i, step in enumerate(location):
        if len(shape.options) > 1:  # the step names a member
            member = _member(shape, step, value)
            if member is None:
                return tuple(path), passed, value, False
            if i + 1 < len(location):  # otherwise the error is about the value, and all members are to be named
                shape = passed[-1] = member
            continue
        path.append(step)
        inner = shape.inside(step)
        value = value[step] if (isinstance(value, dict) and step in value) or _has(value, step) else None
        if inner is None:
            return tuple(path), passed, value, True
        shape = inner
        passed.append(shape)
    return tuple(path), passed, value, True


def _member(shape: Shape, step: str | int, value: Any) -> Shape | None:
    if shape.tagged:
        if step in shape.tags():
            return shape.only(shape.tags()[step])
        if str(step).startswith("tagged-union["):
            return Shape(tuple(shape.models), shape.limits, tagged=True) if isinstance(value, dict) else None
    meant = shape.fitting(value)
    return meant if meant and _called(meant.options[0], str(step)) else None


def _called(option: Any, label: str) -> bool:
    """Whether pydantic calls this union member so."""
    label = re.sub(r"^(function-\w+\[[^,]*, )+", "", label).rstrip("]") if label.startswith("function-") else label
    origin = get_origin(option)
    name = "literal" if origin is Literal else (origin or option).__name__
    return label == name or label.startswith((f"{name}[", f"constrained-{name}"))


def _has(value: Any, step: str | int) -> bool:
    return isinstance(value, list) and isinstance(step, int) and 0 <= step < len(value)


def _looks_like(value: Any, option: Any) -> bool:
    if get_origin(option) is Literal:
        return any(type(a) is type(value) for a in get_args(option))
    kind = get_origin(option) or option
    if isinstance(value, list):
        return kind in (list, tuple)
    return kind is type(value) or (kind is float and type(value) is int) or kind is Any


_words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null", Any: "anything"}


def _named(option: Any) -> str:
    origin, args = get_origin(option) or option, get_args(option)
    if origin is Literal:
        return listed(str(a) for a in args)
    if origin is list:
        return f"a list of {_several(args)}" if args else "a list"
    if origin is tuple:
        many = Ellipsis in args
        return f"a list of {_several(args[:1]) if many else f'{len(args)} {_several(args[:1])}'}"
    if origin is dict or (isinstance(option, type) and issubclass(option, BaseModel)):
        return "a mapping" + (f" ({listed(option.model_fields, 'and')})" if origin is not dict else "")
    return _words.get(option) or getattr(option, "__name__", str(option))


def _several(args: tuple) -> str:
    inner = of(args[0])
    if tags := inner.tags():
        return f"mappings with a kind ({listed(tags)})"
    many = {int: "whole numbers", float: "numbers", str: "texts"} | {m: f"mappings ({listed(m.model_fields, 'and')})" for m in inner.models}
    return many.get(inner.options[0]) if len(inner.options) == 1 and inner.options[0] in many else f"({inner.expected()})"


def _limited(limits: tuple) -> str:
    signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "multiple_of": "a multiple of"}
    words = [f"{sign} {getattr(x, name)}" for x in limits for name, sign in signs.items() if getattr(x, name, None) is not None]
    lengths = [f"{sign} {getattr(x, name)} long" for x in limits for name, sign in _lengths.items() if getattr(x, name, None) is not None]
    patterns = [f"matching {x.pattern}" for x in limits if getattr(x, "pattern", None)]
    return "".join(f", {w}" for w in words + lengths + patterns)


_lengths = {"min_length": "at least", "max_length": "at most"}
