"""The key of a stage changes with everything its result depends on, and with nothing else."""

import hashlib
import json
import math
from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field

from pipeline.keys import canonical, differences, digest, pre_image, rows, seal, settings, taken, unseal
from pipeline.stage import Aside, Later, Stage, Takes
from pipeline.table import Row


class Model(Row):
    """A row of an open table."""

    kind: Literal["model"] = "model"
    version: ClassVar[int] = 1
    width: int = Field(8, description="Channels.")
    chatty: Annotated[bool, Aside()] = Field(False, description="Changes nothing.")


class Fit(Row):
    """Settings with a row inside a list."""

    kind: Literal["fit"] = "fit"
    version: ClassVar[int] = 1
    rate: float = Field(0.1, description="Learning rate.")
    losses: list[Model] = Field([], description="Rows in a list.")
    save_every: Annotated[int, Aside()] = Field(100, description="Changes nothing.")
    newer: Annotated[str, Later()] = Field("as before", description="Came later.")


class Train(Stage):
    kind: Literal["train"] = "train"
    makes: ClassVar[str] = "Checkpoint"
    version: ClassVar[int] = 1
    data: Annotated[str, Takes(("Dataset",))] = "data"
    of: Annotated[list[str], Takes(("Dataset",), named=True)] = ["a", "b"]
    init: Annotated[str | None, Takes(("Checkpoint",))] = None
    model: Model = Model()
    fit: Fit = Fit()
    steps: int = Field(10, description="How many.")
    table: dict[str, float] = Field({}, description="Numbers by name.")
    helpers: Annotated[int, Aside()] = Field(1, description="Changes nothing.")


IDS = {"data": "1" * 64, "a": "2" * 64, "b": "3" * 64, "c": "2" * 64, "start": "4" * 64}


def key(stage=None, ids=IDS):
    return digest(pre_image(stage or Train(), ids))


def derived(**members):
    """A subclass of Train with other members; its fields, kind and settings are the same."""
    return type("Train", (Train,), members)()


CHANGES = {
    "a setting": Train(steps=11),
    "a setting from 0.1 to the next float": Train(fit=Fit(rate=math.nextafter(0.1, 1))),
    "a setting of a row": Train(model=Model(width=9)),
    "a setting in a mapping": Train(table={"x": 1.0}),
    "one row more in a list": Train(fit=Fit(losses=[Model()])),
    "a setting that came later": Train(fit=Fit(newer="otherwise")),
    "the order of inputs": Train(of=["b", "a"]),
    "the name of a named input": Train(of=["c", "b"]),
    "an optional input": Train(init="start"),
    "the version of the stage": derived(version=2),
    "what lies outside": derived(outside=lambda self: {"weights": "5" * 64}),
    "the environment": derived(environment=lambda self: {"runtime": "1.2"}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_key_changes_with(what):
    assert key(CHANGES[what]) != key()


def test_all_these_changes_give_different_keys():
    assert len({key(stage) for stage in CHANGES.values()} | {key()}) == len(CHANGES) + 1


@pytest.mark.parametrize("name", ["data", "a", "b"])
def test_the_key_changes_with_the_artifact_that_an_input_names(name):
    assert key(ids={**IDS, name: "f" * 64}) != key()


def test_the_key_changes_with_the_kind_of_a_stage_that_is_otherwise_the_same():
    class Other(Train):
        kind: Literal["other"] = "other"

    assert key(Other()) != key()


@pytest.mark.parametrize("change", [{"version": 2}, {"kind": "other"}])
def test_the_key_changes_with_the_kind_and_version_of_a_row(monkeypatch, change):
    stage, before = Train(fit=Fit(losses=[Model()])), key(Train(fit=Fit(losses=[Model()])))
    if "version" in change:
        monkeypatch.setattr(Model, "version", 2)
    else:
        stage = Train(fit=Fit(losses=[Model.model_construct(kind="other")]))
    assert key(stage) != before


def test_the_key_changes_with_the_schema_of_keys(monkeypatch):
    before = key()
    monkeypatch.setattr("pipeline.keys.SCHEMA", 2)
    assert key() != before


@pytest.mark.parametrize("stage", [Train(helpers=8), Train(fit=Fit(save_every=1)), Train(fit=Fit(losses=[]), model=Model(chatty=True))])
def test_what_stands_aside_is_not_in_the_key(stage):
    assert key(stage) == key()


def test_a_setting_that_came_later_leaves_old_keys_as_they_were():
    """Whether its default is written down or not."""

    class Fit(Row):  # as it was before
        kind: Literal["fit"] = "fit"
        version: ClassVar[int] = 1
        rate: float = 0.1
        losses: list[Model] = []

    assert key() == key(Train(fit=globals()["Fit"](newer="as before"))) == key(Train.model_construct(fit=Fit()))


def test_an_aside_field_is_left_out_of_rows_inside_lists_too():
    assert key(Train(fit=Fit(losses=[Model(chatty=True)]))) == key(Train(fit=Fit(losses=[Model()])))


def test_another_name_of_the_same_artifact_changes_nothing_where_names_are_not_spoken():
    assert key(Train(data="copy"), {**IDS, "copy": IDS["data"]}) == key()


def test_the_name_of_an_input_is_not_in_the_pre_image_where_it_is_not_spoken():
    image = pre_image(Train(), IDS)
    assert image["inputs"] == {"data": ["1" * 64], "of": [["a", "2" * 64], ["b", "3" * 64]]}
    assert "data" not in image["config"] and "init" not in pre_image(Train(init="start"), IDS)["config"]


def test_the_pre_image_holds_these_parts_and_each_row_with_its_version():
    image = pre_image(Train(fit=Fit(losses=[Model()])), IDS)
    assert list(image) == ["schema", "stage", "version", "rows", "config", "inputs", "outside", "environment"]
    assert image["rows"] == {"model": ["model", 1], "fit": ["fit", 1], "fit.losses.0": ["model", 1]}
    assert dict(rows(Train())).keys() == {"model", "fit"} and taken(Train()).keys() == {"data", "of"}


def test_a_key_is_the_sha256_of_the_canonical_pre_image():
    """A change here means that every artifact of every user is made anew: raise keys.SCHEMA and say so."""
    assert digest({"a": [1, 0.1, "ü"], "b": None}) == hashlib.sha256(b'{"a":[1,0.1,"\\u00fc"],"b":null}').hexdigest()


# One spelling


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: {"a": [v]}])
def test_numbers_that_are_not_finite_have_no_spelling(value, wrap):
    with pytest.raises(ValueError):
        canonical(wrap(value))


def test_there_is_one_spelling_whatever_the_order_of_names():
    assert canonical({"b": 1, "a": [1.5, "ü"]}) == canonical({"a": [1.5, "ü"], "b": 1}) == b'{"a":[1.5,"\\u00fc"],"b":1}'


@pytest.mark.parametrize(
    ("value", "spelt"), [(0.1, b"0.1"), (1e-3, b"0.001"), (6.0e-5, b"6e-05"), (1e22, b"1e+22"), (0.1 + 0.2, b"0.30000000000000004")]
)
def test_a_float_is_spelt_by_its_shortest_digits_and_reads_back_the_same(value, spelt):
    assert canonical(value) == spelt and json.loads(spelt) == value


def test_numbers_that_differ_in_type_or_sign_differ_in_spelling():
    assert len({canonical(v) for v in (1, 1.0, True, "1", -0.0, 0.0, 0)}) == 7


def test_settings_are_plain_data():
    plain = settings(Train(table={"x": 0.5}, fit=Fit(losses=[Model()])))
    assert json.loads(canonical(plain)) == {**plain, "of": ["a", "b"]}


# Sealed records


def test_a_sealed_record_comes_back_and_any_other_byte_is_seen():
    sealed = seal({"id": "x", "n": [1, 2.5, None]})
    assert unseal(sealed) == {"id": "x", "n": [1, 2.5, None]}
    for at in range(len(sealed)):
        assert unseal(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]) is None
        assert unseal(sealed[:at]) is None
    assert unseal(sealed + b" ") is None and unseal(b"[]") is None and unseal(b'{"content": 1}') is None


def test_a_record_with_the_right_digest_in_another_spelling_is_not_taken():
    value = {"id": "x"}
    assert unseal(json.dumps({"content": value, "sha256": digest(value)}).encode()) is None


def test_differences_name_every_leaf_that_changed():
    before, after = pre_image(Train(), IDS), pre_image(Train(steps=11, init="start"), IDS)
    assert differences(before, after) == [("config.steps", 10, 11), ("inputs.init", None, ["4" * 64])]
