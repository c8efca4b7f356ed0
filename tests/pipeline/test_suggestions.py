"""What is suggested for a slip, and how much a reader of recipes does before it says enough."""

import time

import pytest

from pipeline.errors import BadRecipe
from pipeline.problems import meant, near, shortened, visible
from pipeline.recipe import PROFILES, STAGES, check, read
from tests.pipeline import toy_stages

KINDS = {kind: f"tests.pipeline.{target}" for kind, target in toy_stages.KINDS.items()}

RECIPE = """\
name: toy
stages:
  one: {kind: number, value: 1}
  two: {kind: sum, of: [one], times: 2.0}
  judge: {kind: judge, of: two, at_most: 5.0}
profiles:
  cpu: {stages.one.value: 2}
"""


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
        return tmp_path / "r.yaml"

    return write


def said(run, *arguments, **more):
    with pytest.raises(BadRecipe) as error:
        run(*arguments, KINDS, **more)
    return str(error.value).splitlines()


@pytest.mark.parametrize(
    ("typed", "known", "found"),
    [
        ("fb16", ["fp32", "fp16", "bf16"], ["bf16"]),  # swapped keeps more of the word than replaced
        ("f16", ["fp32", "fp16", "bf16"], ["fp16", "bf16"]),  # nothing tells them apart
        ("b9", ["b0", "b1", "b2", "b3"], []),  # four would be a list, not a suggestion
        ("Train", ["train", "brain"], ["train"]),
        ("TRAIN", ["train"], ["train"]),
        ("distil", ["distill", "data"], ["distill"]),
        ("validation", ["validate", "data"], ["validate"]),  # no slip, but alike
        ("a", ["b", "c"], []),
        ("x" * 60_000, ["train"], []),
    ],
)
def test_the_nearest_word_is_the_one_that_a_slip_would_have_kept_most_of(typed, known, found):
    assert near(typed, known) == found


def test_several_suggestions_are_said_as_a_choice():
    assert meant("f16", ["fp16", "bf16"], "x.") == "; did you mean x.fp16 or x.bf16?"


def test_a_profile_is_suggested_among_those_that_every_recipe_has(recipe):
    path = recipe(RECIPE)
    assert said(read, path, profile="nnoe") == ["--profile nnoe  no such profile; did you mean none?"]
    assert said(read, path, profile="cup") == ["--profile cup  no such profile; did you mean cpu?"]


def test_a_profile_that_leaves_a_stage_alone_changes_nothing_of_it(recipe):
    base, cpu = check(recipe(RECIPE), KINDS)
    assert (base.stages["one"].value, cpu.stages["one"].value) == (1, 2)
    assert base.resolved["stages"]["one"]["value"] == 1 and cpu.resolved["stages"]["one"]["value"] == 2
    assert base.stages["two"] is cpu.stages["two"]


def test_a_profile_that_breaks_a_stage_is_told_though_the_stage_was_good_before(recipe):
    found = said(check, recipe(RECIPE.replace("stages.one.value: 2", "stages.two.times: x, stages.two.of: [judge]")))
    assert len(found) == 2 and all(line.endswith("(profile cpu)") for line in found)


def test_overrides_cannot_nest_deeper_than_a_file(recipe):
    deep = "{a: " * 20 + "1" + "}" * 20
    sets = [f"stages.one={{kind: number, a: {deep}}}", *(f"stages.one{'.a' * (20 * i + 1)}={deep}" for i in range(1, 100))]
    assert any("nested deeper than 32 levels" in line for line in said(read, recipe(RECIPE), sets=sets))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            "".join(f"  s{i}: {{kind: number}}\n" for i in range(STAGES)),
            f"{STAGES + 3} stages stand here, and a recipe has at most {STAGES}",
        ),
        ("".join(f"  p{i}: {{}}\n" for i in range(PROFILES)), f"{PROFILES + 1} profiles stand here, and a recipe has at most {PROFILES}"),
    ],
)
def test_more_than_can_be_checked_within_a_second_is_told(recipe, more, words):
    text = RECIPE.replace("profiles:\n", f"{more}profiles:\n") if "kind" in more else RECIPE + more
    assert words in said(check, recipe(text))[0]


def test_looking_for_problems_ends_long_before_the_last_of_thousands(recipe):
    text = RECIPE.replace("[one]", f"[{'onee, ' * 5000}one]")
    check(recipe(RECIPE), KINDS)
    path = recipe(text)
    began = time.process_time()
    found = said(check, path)
    assert time.process_time() - began < 1
    assert len(found) == 21 and found[-1] == "and 40 more at least"


def test_a_place_is_cut_in_its_middle_so_that_the_message_stays(tmp_path):
    folder = tmp_path / ("a" * 100) / ("b" * 100) / ("c" * 200)
    folder.mkdir(parents=True)
    (folder / "r.yaml").write_text(RECIPE.replace("value: 1", "valeu: 1"))
    (line,) = said(read, folder / "r.yaml")
    assert line.startswith("/") and "r.yaml:3:23  stages.one.valeu: is no key here; did you mean value?" in line
    assert shortened("a" * 200, 20) == f"{'a' * 10}...{'a' * 10}" and shortened("a" * 20, 20) == "a" * 20


def test_what_a_terminal_would_obey_or_hide_is_spelled_out():
    assert visible("a\x1b\u200b\u202e\xa0\U000e0041\ud800") == "a\\u001b\\u200b\\u202e\\u00a0\\U000e0041\\ud800"
    assert visible("\u00e9 \U0001f600") == "\u00e9 \U0001f600"
