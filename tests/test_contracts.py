"""What every stage kind and every row of every table owes to people who write recipes."""

import importlib
from typing import get_args

import pytest
from pydantic import BaseModel

import stages
from pipeline.artifact import KINDS as ARTIFACTS
from pipeline.stage import Takes

TABLES = ("models", "sources", "kd", "engines")


def load(target):
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


STAGES = {kind: load(target) for kind, target in stages.KINDS.items()}
ROWS = {f"{t}.{name}": row for t in TABLES for name, row in importlib.import_module(f"stages.{t}").TABLE.rows().items()}


def nested(model):
    """The model and every settings class inside its fields."""
    yield model
    for info in model.model_fields.values():
        for part in (info.annotation, *get_args(info.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from nested(part)


@pytest.mark.parametrize("model", [*STAGES.values(), *ROWS.values()], ids=[*STAGES, *ROWS])
def test_every_field_says_in_a_sentence_what_it_means(model):
    for part in nested(model):
        bare = [name for name, info in part.model_fields.items() if name != "kind" and not info.description]
        assert not bare, f"{part.__name__}: {bare}"


@pytest.mark.parametrize("model", STAGES.values(), ids=STAGES)
def test_every_stage_makes_and_takes_known_kinds_and_has_a_version(model):
    assert model.makes in ARTIFACTS and isinstance(model.version, int)
    for info in model.model_fields.values():
        for takes in (m for m in info.metadata if isinstance(m, Takes)):
            assert set(takes.kinds) <= set(ARTIFACTS)


@pytest.mark.parametrize("model", [*STAGES.values(), *ROWS.values()], ids=[*STAGES, *ROWS])
def test_the_kind_in_a_recipe_is_the_one_the_table_lists(model):
    expected = next(name.split(".")[-1] for name, found in [*STAGES.items(), *ROWS.items()] if found is model)
    assert get_args(model.model_fields["kind"].annotation) == (expected,)


def test_a_copied_row_with_the_wrong_kind_is_told_which_line_to_write(tmp_path, monkeypatch):
    from pipeline.table import Table

    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf/__init__.py").write_text("")
    (tmp_path / "shelf/copied.py").write_text(
        'from typing import Literal\nfrom pipeline.table import Row\nclass Copied(Row):\n    kind: Literal["first"]\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TypeError, match='kind: Literal\\["copied"\\]'):
        Table("shelf").row("copied")
