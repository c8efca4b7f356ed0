"""Profiles and --set: flat overlays, dotted path -> value, put onto the written recipe before defaults are filled in.

A path must exist in the recipe as it stands by then, defaults included. A mapping or a list is replaced whole.
"""

from copy import deepcopy
from typing import Any

from pydantic import BaseModel

from .parse import DEPTH, Mark, Path
from .problems import Problem, meant, meant_or_listed, shortened, shown
from .shape import ANY, Shape


class Draft:
    """The written data of a recipe with overlays on it, remembering where each value came from."""

    def __init__(self, name: str, data: dict[str, Any], marks: dict[Path, Mark]):
        self.name, self.marks = name, marks
        self.data = dict(data)
        if isinstance(data.get("stages"), dict):
            self.data["stages"] = dict(data["stages"])  # a stage is copied once an overlay touches it
        self.touched: set[str] = set()
        self.overlays: list[tuple[Path, Path | str]] = []  # (path that was set, path of its profile entry or the --set itself)

    def problem(self, path: Path, text: str, at_key: bool = False, note: str = "") -> Problem:
        """A problem with what stands at this path, located in the file or on the command line."""
        where, line, column = self._located(path, at_key)
        return Problem(where, line, column, f"{shortened(dotted(path))}: {text}{note}" if path else text + note)

    def lay(self, words: str, value: Any, source: Path | str, shapes: dict[str, Shape]) -> str | None:
        """Sets one dotted path; `shapes` are those of the stages by name. Returns what is wrong with the path, if anything."""
        steps = words.split(".")
        if wrong := self._reached(steps, shapes):
            return wrong
        if len(steps) + _depth(value) > DEPTH:  # laid often enough, overlays would nest as deep as they like
            return f"nested deeper than {DEPTH} levels"
        if len(steps) > 1 and steps[1] not in self.touched:
            self.touched.add(steps[1])
            self.data["stages"][steps[1]] = deepcopy(self.data["stages"][steps[1]])
        path, holder = self._holder(steps, shapes)
        holder[path[-1]] = deepcopy(value)
        self.overlays.append((path, source))
        return None

    def _reached(self, steps: list[str], shapes: dict[str, Shape]) -> str | None:
        stages = self.data["stages"]
        if steps == ["name"]:
            return None
        if steps[0] != "stages":
            if steps[0] in stages:
                return f"no such path; did you mean stages.{'.'.join(steps)}?"
            return "no such path: paths start with stages." + meant(steps[0], ["stages"])
        if len(steps) < 2:
            return "stages are neither added nor removed: name one stage, stages.NAME, and what is inside"
        if steps[1] not in stages:
            return f"no such path: {shown(steps[1])} is no stage{meant_or_listed(steps[1], stages, 'stages.')}"
        return _missing(shapes.get(steps[1], ANY), stages[steps[1]], steps, 2)

    def _holder(self, steps: list[str], shapes: dict[str, Shape]) -> tuple[Path, Any]:
        """What holds the last step, with defaults written out on the way; and the path with list positions as numbers."""
        if steps == ["name"]:
            return ("name",), self.data
        node, shape, path = self.data["stages"], None, ["stages"]
        for step in steps[1:-1]:
            key = _key(node, step)
            if isinstance(node, dict) and key not in node:
                node[key] = _default(shape, key)
            shape = shapes.get(step, ANY) if shape is None else shape.inside(key) or ANY
            node = node[key]
            shape = shape.fitting(node) or ANY
            path.append(key)
        return (*path, _key(node, steps[-1])), node

    def _located(self, path: Path, at_key: bool) -> tuple[str, int, int]:
        for target, source in reversed(self.overlays):
            if path[: len(target)] == target:
                if isinstance(source, str):
                    return f"--set {source}", 0, 0
                # The key of a profile entry is a path, so a problem with the key itself stands there too.
                return self._marked((*source, *path[len(target) :]), at_key, len(source))
        return self._marked(path, at_key, 0)

    def _marked(self, path: Path, at_key: bool, least: int) -> tuple[str, int, int]:
        for length in range(len(path), least - 1, -1):
            if mark := self.marks.get(path[:length]):
                # What is missing has no place; the key of what it is missing from has.
                exact = length == len(path) and not at_key
                line, column = mark[:2] if exact else mark[2:]
                return f"{self.name}:{line}:{column}", line, column
        return self.name, 1, 1


def dotted(path: Path) -> str:
    return ".".join(map(str, path))


def _missing(shape: Shape, node: Any, steps: list[str], at: int) -> str | None:
    """Why steps[at:] does not exist in `node`, or None."""
    for i in range(at, len(steps)):
        shape = shape.fitting(node) or ANY
        key, so_far = _key(node, steps[i]), shortened(".".join(steps[:i]))
        if isinstance(node, list):
            if not isinstance(key, int) or key >= len(node):
                return f"no such path: {so_far} is a list of {len(node)}, counted from 0"
        elif not isinstance(node, dict):
            return f"no such path: {so_far} is {shown(node)} and has nothing inside; set {so_far} as a whole"
        elif key not in node and key not in shape.fields():
            known = list(dict.fromkeys([*shape.fields(), *node]))
            return f"no such path: {so_far} has no {shown(key)}{meant_or_listed(str(key), known, f'{so_far}.')}"
        node = node[key] if isinstance(node, list) or key in node else _default(shape, key)
        shape = shape.inside(key) or ANY
    return None


def _key(node: Any, step: str) -> str | int:
    return int(step) if isinstance(node, list) and step.isascii() and step.isdigit() and len(step) < 6 else step


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


def _default(shape: Shape | None, key: str | int) -> Any:
    """The default of a field as one would write it: only what differs from the defaults inside it, so that those stay alive."""
    for model in shape.models if shape else ():
        if key in model.model_fields and not model.model_fields[key].is_required():
            return _written(model.model_fields[key].get_default(call_default_factory=True, validated_data={}))
    return None


def _written(value: Any) -> Any:
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {f: _written(getattr(value, f)) for f in fields if fields[f].is_required() or getattr(value, f) != _own(fields[f])}
    if isinstance(value, list | tuple):
        return [_written(v) for v in value]
    return {k: _written(v) for k, v in value.items()} if isinstance(value, dict) else value


def _own(info: Any) -> Any:
    return info.get_default(call_default_factory=True, validated_data={})
