"""The recipe that `init` writes must be good as it stands."""

import itertools
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import BadRecipe
from pipeline.parse import parse
from pipeline.recipe import check
from pipeline.stage import Dataset, Stage, Takes
from pipeline.starter import QUESTIONS, init, starter
from stages import KINDS as REAL

# -- the frame of the real stages, without their rows


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class Data(Stage):
    kind: Literal["data"]
    makes: ClassVar[str] = "Dataset"
    source: Open
    size: list[int]
    limit: int | None = None


class Load(Stage):
    kind: Literal["load"]
    makes: ClassVar[str] = "Checkpoint"
    data: Dataset
    model: Open
    weights: Open


class Train(Stage):
    kind: Literal["train"]
    makes: ClassVar[str] = "Checkpoint"
    data: Dataset
    model: Open
    fit: Open


class Distill(Train):
    kind: Literal["distill"]
    teacher: Annotated[str, Takes(("Checkpoint",))]
    task: Open
    losses: list[Open]


class Export(Stage):
    kind: Literal["export"]
    makes: ClassVar[str] = "OnnxModel"
    data: Dataset
    checkpoint: Annotated[str, Takes(("Checkpoint",))]


class Optimize(Stage):
    kind: Literal["optimize"]
    makes: ClassVar[str] = "Engine"
    onnx: Annotated[str, Takes(("OnnxModel",))]
    engine: Open


class Validate(Stage):
    kind: Literal["validate"]
    makes: ClassVar[str] = "Measurement"
    data: Dataset
    split: str = "val"
    reference: Annotated[str, Takes(("Checkpoint",))]
    candidates: Annotated[list[str], Takes(("Checkpoint", "OnnxModel", "Engine"))]
    latency_of: Annotated[list[str], Takes(("Checkpoint", "OnnxModel", "Engine"))]


class Gate(Stage):
    kind: Literal["gate"]
    makes: ClassVar[str] = "Verdict"
    measured: Annotated[str, Takes(("Measurement",))]
    rules: list[dict[str, Any]] = Field(min_length=1)


class Bundle(Stage):
    kind: Literal["bundle"]
    makes: ClassVar[str] = "Bundle"
    data: Dataset
    onnx: Annotated[str, Takes(("OnnxModel",))]
    engine: Annotated[str, Takes(("Engine",))]
    measured: Annotated[str, Takes(("Measurement",))]
    verdict: Annotated[str, Takes(("Verdict",))]


TOY = {c.__name__.lower(): f"{__name__}:{c.__name__}" for c in (Data, Load, Train, Distill, Export, Optimize, Validate, Gate, Bundle)}


def checked(tmp_path, text, kinds):
    path = tmp_path / "starter.yaml"
    path.write_text(text, encoding="utf-8")
    return check(path, kinds)


@pytest.mark.parametrize("data", ["streets", "folder", "camvid", "cityscapes"])
def test_every_starter_is_a_good_recipe_with_a_good_cpu_profile(tmp_path, data):
    models = itertools.product(("train", "/weights/a b"), ("b5", "tiny"), ("b0", "tiny"), ("onnxruntime", "openvino"))
    for teacher, teacher_model, student_model, engine in models:
        answers = {"data": data, "root": "/d", "teacher": teacher, "engine": engine}
        text = starter(name="x", teacher_model=teacher_model, student_model=student_model, **answers)
        for kinds in (TOY, REAL):
            base, cpu = checked(tmp_path, text, kinds)
            assert (base.profile, cpu.profile) == (None, "cpu")
            assert base.stages["teacher"].kind == ("train" if teacher == "train" else "load")
        assert base.stages["student"].model.kind == ("tiny" if student_model == "tiny" else "segformer")
        assert base.stages["engine"].engine.kind == engine
        assert base.stages["data"].source.kind == data
        assert cpu.stages["data"].limit and cpu.stages["baseline"].fit.steps < 100


def test_a_given_teacher_of_another_family_is_an_hf_model(tmp_path):
    base, _ = checked(tmp_path, starter(name="x", teacher="/models/upernet", teacher_model="hf"), REAL)
    assert base.stages["teacher"].model.kind == "hf" and base.stages["teacher"].weights.file == "/models/upernet"


def test_the_defaults_of_the_questions_make_a_good_recipe(tmp_path):
    answers = {key: default for key, _, default, _ in QUESTIONS}
    assert starter(**answers) == starter()
    base, _ = checked(tmp_path, starter(), REAL)
    assert base.name == "my_recipe" and base.stages["data"].size == (256, 512)


def test_the_default_of_a_question_is_one_of_its_choices():
    assert all(default in choices for _, _, default, choices in QUESTIONS if choices)


def test_every_line_has_its_comment():
    lines = starter(data="folder", root="/d").splitlines()
    assert all("# " in line and len(line.partition("# ")[2]) > 5 for line in lines)


@pytest.mark.parametrize(
    "root", ["/data/my set", "C:\\data", "~/data", "null", "1e3", "a: b", "# x", "'", '"', "{x}", "données", "-", "*a", "%"]
)
def test_any_folder_name_comes_through(root):
    assert parse(starter(data="camvid", root=root), "f")[0]["stages"]["data"]["source"]["root"] == root


@pytest.mark.parametrize(
    ("given", "name"), [("My Recipe", "my_recipe"), ("123", "123"), ("true", "true"), ("a/b", "a_b"), ("_x", "x"), ("É1", "1")]
)
def test_a_file_name_becomes_a_name(given, name):
    assert parse(starter(name=given), "f")[0]["name"] == name


@pytest.mark.parametrize("size", ["256x512", "256 x 512", "256,512", "[256, 512]", (256, 512), [256, 512]])
def test_a_size_may_be_written_in_several_ways(size):
    assert parse(starter(size=size), "f")[0]["stages"]["data"]["size"] == [256, 512]


def test_answers_that_cannot_be_used_are_told_together():
    with pytest.raises(BadRecipe) as error:
        starter(name="!", data="camvit", size="100x100", teacher_model="hf", egine="x", engine="openvin")
    lines = str(error.value).splitlines()
    assert len(lines) == 6
    assert "--answer  egine: no question is called so; did you mean engine?" in lines
    assert '--answer  data: found "camvit", expected streets, folder, camvid or cityscapes; did you mean camvid?' in lines
    with pytest.raises(BadRecipe, match="root: data folder lies in a folder of yours; say which"):
        starter(data="folder")
    with pytest.raises(BadRecipe, match="invisible character"):
        starter(data="folder", root="/a\x1bb")


class Asked:
    """A person at a terminal with these answers; init(file) asks all questions."""

    def __init__(self, monkeypatch, *answers):
        self.left = list(answers)
        monkeypatch.setattr("sys.stdin", self)
        monkeypatch.setattr("builtins.input", self.answer)

    def isatty(self):
        return True

    def answer(self, _):
        if not self.left:
            raise EOFError
        return self.left.pop(0)

    def init(self, file):
        init(SimpleNamespace(recipe=file, answer=[]), None)


def test_an_answer_that_cannot_be_used_is_asked_for_again_at_once(tmp_path, monkeypatch, capsys):
    file = tmp_path / "to go" / "mine.yaml"
    person = Asked(monkeypatch, "", "camvit", "folder", "", "/d", "", "100x100", "64x96", "", "tiny", "tiny", "")
    person.init(file)
    said = capsys.readouterr().out
    assert person.left == [] and "did you mean camvid?" in said and "say which" in said and "multiples of 32" in said
    base, _ = checked(tmp_path, file.read_text(), REAL)
    assert base.stages["data"].source.root == "/d" and base.stages["data"].size == (64, 96)
    assert f"python -m pipeline check '{file}';" in file.read_text().splitlines()[0]


def test_questions_that_end_early_write_nothing_and_say_so(tmp_path, monkeypatch):
    with pytest.raises(BadRecipe, match="nothing is written"):
        Asked(monkeypatch, "x", "folder").init(tmp_path / "mine.yaml")
    assert not list(tmp_path.iterdir())
