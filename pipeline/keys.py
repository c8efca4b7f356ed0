"""When two makings mean the same: the key of a stage, and its pre-image, so that any difference can be named."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from .stage import Aside, Later, Stage, Takes
from .table import Row

SCHEMA = 1


def canonical(value: Any) -> bytes:
    """JSON with one spelling per value; floats as Python's shortest repr; NaN refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def digest(value: Any) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()


def seal(value: Any) -> bytes:
    """Small records carry their own digest: a damaged one reads as if it were not there."""
    return canonical({"content": value, "sha256": digest(value)})


def unseal(data: bytes) -> Any:
    """What was sealed, or None where these bytes are not a whole and undamaged record."""
    try:
        record = json.loads(data)
        return record["content"] if seal(record["content"]) == data else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def taken(stage: Stage) -> dict[str, tuple[Takes, list[str]]]:
    """The fields of a stage that name earlier stages, with the names they hold."""
    fields = {}
    for field, info in type(stage).model_fields.items():
        takes = next((m for m in info.metadata if isinstance(m, Takes)), None)
        value = getattr(stage, field)
        if takes and value is not None:
            fields[field] = (takes, [value] if isinstance(value, str) else list(value))
    return fields


def pre_image(stage: Stage, ids: Mapping[str, str | None]) -> dict[str, Any]:
    """Everything the result depends on. `ids` maps stage names to artifact ids; None where the input is yet to be made."""
    fields = taken(stage)
    inputs = {f: [[n, ids[n]] if takes.named else ids[n] for n in names] for f, (takes, names) in fields.items()}
    return {
        "schema": SCHEMA,
        "stage": stage.kind,
        "version": stage.version,
        "rows": {path: [row.kind, row.version] for path, row in rows(stage)},
        "config": {field: value for field, value in settings(stage).items() if field not in fields},
        "inputs": inputs,
        "outside": stage.outside() | _released(stage),
        "environment": stage.environment(),
    }


def _released(stage: Stage) -> dict[str, str]:
    if not stage.names_released():
        return {}
    return {"released": stage.released.digest if stage.released else "none"}


def settings(value: Any) -> Any:
    """Settings as plain data, without what is marked Aside, and without defaults of what is marked Later."""
    if isinstance(value, BaseModel):
        kept = {f: info for f, info in type(value).model_fields.items() if not any(isinstance(m, Aside) for m in info.metadata)}
        late = {f for f, info in kept.items() if any(isinstance(m, Later) for m in info.metadata) and getattr(value, f) == info.default}
        return {field: settings(getattr(value, field)) for field in kept if field not in late}
    if isinstance(value, list | tuple):
        return [settings(v) for v in value]
    return {k: settings(v) for k, v in value.items()} if isinstance(value, dict) else value


def rows(value: Any, path: str = "") -> Iterator[tuple[str, Row]]:
    """Every row of an open table inside a stage's settings, with its dotted path."""
    if isinstance(value, list | tuple):
        children = [(f"{path}.{i}", v) for i, v in enumerate(value)]
    elif hasattr(type(value), "model_fields"):
        if isinstance(value, Row) and not isinstance(value, Stage):
            yield path, value
        children = [(f"{path}.{f}" if path else f, getattr(value, f)) for f in type(value).model_fields]
    else:
        children = []
    for child_path, child in children:
        yield from rows(child, child_path)


def differences(before: Any, after: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """The leaves in which two pieces of data differ: (dotted path, before, after); absent leaves are None."""
    if isinstance(before, dict) and isinstance(after, dict):
        found = []
        for name in dict.fromkeys((*before, *after)):
            found += differences(before.get(name), after.get(name), f"{path}.{name}" if path else name)
        return found
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [d for i, (b, a) in enumerate(zip(before, after, strict=True)) for d in differences(b, a, f"{path}[{i}]")]
    return [] if before == after else [(path, before, after)]
