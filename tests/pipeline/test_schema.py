"""The JSON schema that editors use says the same as the classes that validate."""

import json
import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field

from pipeline.parse import parse
from pipeline.schema import schema
from pipeline.stage import Dataset, Stage
from pipeline.table import Row
from stages import KINDS as REAL

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


class Streets(Row):
    """Draws scenes.

    More about it."""

    kind: Literal["streets"]
    seed: int = Field(0, ge=0, description="The seed.")


class Folder(Row):
    kind: Literal["folder"]
    root: str = Field(description="The folder.")


class Data(Stage):
    """Brings data in."""

    kind: Literal["data"] = "data"
    makes: ClassVar[str] = "Dataset"
    source: Annotated[Streets | Folder, Field(discriminator="kind")] = Field(description="Where from.")
    size: Annotated[tuple[int, int], Field(strict=False)] | Literal["native"] = Field("native", description="The size.")


class Train(Stage):
    """Trains."""

    kind: Literal["train"]
    makes: ClassVar[str] = "Checkpoint"
    data: Dataset
    lr: float = Field(1.0, gt=0, description="The learning rate.")


TOY = {"data": f"{__name__}:Data", "train": f"{__name__}:Train"}
GOOD = {
    "name": "x",
    "stages": {"data": {"kind": "data", "source": {"kind": "streets", "seed": 3}, "size": [1, 2]}, "t": {"kind": "train", "data": "data"}},
}


def faults(value, rules, root):
    """What of JSON schema these schemas use, read by someone else than pydantic. Yields the paths that break a rule."""
    if "$ref" in rules:
        yield from faults(value, root["$defs"][rules["$ref"].removeprefix("#/$defs/")], root)
    names = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int, "number": (int, float)}
    if "type" in rules and not (isinstance(value, names[rules["type"]]) and isinstance(value, bool) == (rules["type"] == "boolean")):
        yield "type"
        return
    yield from ("const" for _ in range("const" in rules and value != rules["const"]))
    yield from ("enum" for _ in range("enum" in rules and value not in rules["enum"]))
    for word, many in (("oneOf", False), ("anyOf", True)):
        fits = sum(not list(faults(value, option, root)) for option in rules.get(word, ()))
        if word in rules and (fits == 0 or (fits > 1 and not many)):
            yield word
    if "not" in rules and not list(faults(value, rules["not"], root)):
        yield "not"
    if isinstance(value, str) and not re.search(rules.get("pattern", ""), value):
        yield "pattern"
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high = rules.get("minimum", -1e99), rules.get("maximum", 1e99)
        if not low <= value <= high or value <= rules.get("exclusiveMinimum", -1e99) or value >= rules.get("exclusiveMaximum", 1e99):
            yield "range"
    if isinstance(value, dict):
        known = rules.get("properties", {})
        yield from (f"missing {key}" for key in rules.get("required", ()) if key not in value)
        yield from ("minProperties" for _ in range(len(value) < rules.get("minProperties", 0)))
        for key, inner in value.items():
            yield from faults(key, rules.get("propertyNames", {}), root)
            more = rules.get("additionalProperties", {})
            if key not in known and more is False:
                yield f"extra {key}"
            else:
                yield from faults(inner, known.get(key, more if isinstance(more, dict) else {}), root)
    if isinstance(value, list):
        if not rules.get("minItems", 0) <= len(value) <= rules.get("maxItems", 1e9):
            yield "length"
        firsts = rules.get("prefixItems", [])
        for i, inner in enumerate(value):
            yield from faults(inner, firsts[i] if i < len(firsts) else rules.get("items", {}), root)


def test_a_good_recipe_fits():
    found = schema(TOY)
    assert list(faults(GOOD, found, found)) == []
    assert found["$schema"].endswith("2020-12/schema")
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.pop("name"),
        lambda r: r.update(name="Not a name"),
        lambda r: r.update(stgaes={}),
        lambda r: r.update(stages={}),
        lambda r: r["stages"].update(released=r["stages"]["data"]),
        lambda r: r["stages"].update({"A-b": r["stages"]["data"]}),
        lambda r: r["stages"]["data"].pop("kind"),
        lambda r: r["stages"]["data"].update(kind="date"),
        lambda r: r["stages"]["data"].update(sise=[1, 2]),
        lambda r: r["stages"]["data"].update(size=[1]),
        lambda r: r["stages"]["data"]["source"].update(kind="folder"),
        lambda r: r["stages"]["data"]["source"].update(seed=-1),
        lambda r: r["stages"]["data"]["source"].update(seed="1"),
        lambda r: r["stages"]["t"].update(lr=0),
        lambda r: r["stages"]["t"].pop("data"),
        lambda r: r.update(profiles={"auto": {}}),
        lambda r: r.update(profiles={"cpu": {"data.size": 1}}),
        lambda r: r.update(profiles={"cpu": []}),
    ],
)
def test_a_mistake_does_not_fit(change):
    found, recipe = schema(TOY), json.loads(json.dumps(GOOD))
    change(recipe)
    assert list(faults(recipe, found, found))


def test_a_kind_is_described_by_what_it_is_for():
    definitions = schema(TOY)["$defs"]
    assert definitions["Streets"]["properties"]["kind"]["description"] == "Draws scenes."
    assert definitions["Folder"]["properties"]["kind"]["description"] == __doc__  # a row that says it on top of its file


@pytest.mark.parametrize("kinds", [TOY, REAL], ids=["toy", "real"])
def test_every_field_is_described_and_nothing_else_may_be_written(kinds):
    found = schema(kinds)
    for name, definition in found["$defs"].items():
        assert definition["additionalProperties"] is False, name
        for field, rules in definition["properties"].items():
            rules = found["$defs"][rules["$ref"].removeprefix("#/$defs/")] if "description" not in rules and "$ref" in rules else rules
            assert len(rules.get("description", "")) > 3, f"{name}.{field} has no description"


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_the_recipes_in_the_repository_fit(path):
    found = schema(REAL)
    assert list(faults(parse(path.read_bytes(), path.name)[0], found, found)) == []


def test_a_table_of_one_kind_has_a_schema_too():
    found = schema({"train": TOY["train"]})
    assert list(faults({"name": "x", "stages": {"t": {"kind": "train", "data": "d"}}}, found, found)) == []
    assert list(faults({"name": "x", "stages": {"t": {"kind": "train"}}}, found, found))
