"""The JSON schema of a recipe, so that an editor completes and explains it while it is written.

Made from the same classes that validate: there is no second list of fields. It knows one file, not the references between its
stages; `check` knows those too.
"""

import importlib
import sys
from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from .recipe import NAME, PROFILES_RESERVED, RESERVED, STAGE

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema(kinds: Mapping[str, str]) -> dict[str, Any]:
    """`kinds` maps a stage kind to "module:Class"."""
    classes = tuple(_class(place) for place in kinds.values())
    stage = TypeAdapter(Annotated[reduce(or_, classes), Field(discriminator="kind")] if len(classes) > 1 else classes[0])
    any_stage = stage.json_schema(schema_generator=_Described)
    definitions = any_stage.pop("$defs", {})
    return {
        "$schema": DIALECT,
        "title": "Stillhouse recipe",
        "description": "From a teacher to a measured, gated and bundled engine: an ordered mapping of stages.",
        "type": "object",
        "required": ["name", "stages"],
        "additionalProperties": False,
        "properties": {
            "name": {"description": "What runs of this recipe are filed under.", "type": "string", "pattern": f"^{NAME.pattern}$"},
            "stages": {
                "description": "Stage name -> settings. A stage names earlier stages, never later ones.",
                "type": "object",
                "minProperties": 1,
                "propertyNames": {"pattern": f"^{STAGE.pattern}$", "not": {"enum": list(RESERVED)}},
                "additionalProperties": any_stage,
            },
            "profiles": {
                "description": "Profile name -> overlay: dotted path -> value, the same thing as --set path=value.",
                "type": "object",
                "propertyNames": {"pattern": f"^{NAME.pattern}$", "not": {"enum": list(PROFILES_RESERVED)}},
                "additionalProperties": {"type": "object", "propertyNames": {"pattern": "^(name|stages\\..+)$"}},
            },
        },
        "$defs": definitions,
    }


class _Described(GenerateJsonSchema):
    """Without the titles that only repeat the names of fields, and with what each kind is for."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def model_schema(self, schema: Any) -> dict[str, Any]:
        found, cls = super().model_schema(schema), schema["cls"]
        if kind := found.get("properties", {}).get("kind"):
            # A row often says what it is for on top of its file, since the file is the row.
            purpose = _first(cls.__doc__) or _first(sys.modules[cls.__module__].__doc__)
            found["description"] = found.get("description") or purpose
            kind["description"] = purpose
            kind.pop("default", None)
            found["required"] = list(dict.fromkeys(["kind", *found.get("required", [])]))
        return found


def _first(text: str | None) -> str:
    """The first paragraph, on one line."""
    return " ".join((text or "").strip().split("\n\n")[0].split())


def _class(place: str) -> type:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
