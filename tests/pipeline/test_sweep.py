"""A sweep of runs over named axes, through the real command line, over a toy table without torch."""

import json
import re
import signal
import time

import pytest

from pipeline import axes, recipe
from pipeline.errors import BadRecipe
from tests.pipeline.toy_place import Place, wait_for

RECIPE = """
name: toy
stages:
  one: {kind: number, value: 1}
  two: {kind: number, value: 2}
  sum: {kind: sum, of: [one, two]}
  judge: {kind: judge, of: sum, at_most: 10}
"""
SWEEP = """
recipe: toy.yaml
axes:
  times: {one: {stages.sum.times: 1.0}, two: {stages.sum.times: 2.0}}
  second: {5: {stages.two.value: 5}, 7: {stages.two.value: 7, stages.two.size: 2}}
figures: [sum.value, sum.seconds]
"""


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    place.recipe.write_text(RECIPE)
    (tmp_path / "grid.yaml").write_text(SWEEP)
    return place


def sweep(place, *more, code=0):
    return place.call("sweep", "grid.yaml", "--profile", "none", *more, code=code)


def results(place):
    return json.loads((place.folder / "runs/grid/results.json").read_text())["results"]


@pytest.mark.parametrize("jobs", [1, 3])
def test_every_combination_is_a_run_and_what_they_share_is_made_once(place, jobs):
    said = sweep(place, "--jobs", jobs)
    assert "grid: 4 runs" in said and "[4/4]" in said
    found = results(place)
    assert [(r["values"], r["figures"]["sum.value"], r["exit"]) for r in found] == [
        ({"times": "one", "second": "5"}, 6.0, 0),
        ({"times": "one", "second": "7"}, 8.0, 0),
        ({"times": "two", "second": "5"}, 12.0, 3),  # its gate fails, which is a result
        ({"times": "two", "second": "7"}, 16.0, 3),
    ]
    assert [r["run"] for r in found] == ["toy.one.5-1", "toy.one.7-1", "toy.two.5-1", "toy.two.7-1"]
    assert len({r["artifacts"]["one"] for r in found}) == 1
    states = [place.states(r["run"])["one"] for r in found]
    assert sorted(states) == ["kept", "kept", "kept", "made"]
    table = (place.folder / "runs/grid/table.md").read_text()
    assert table in said and "| two | 7 | 16 |" in table


def test_the_same_command_again_keeps_everything(place):
    sweep(place)
    before = results(place)
    sweep(place)
    assert [r["run"] for r in results(place)] == [r["run"] for r in before]


def test_sets_hold_for_all_runs_and_an_axis_is_laid_over_them(place):
    sweep(place, "--set", "stages.one.value=10", "--set", "stages.two.value=1000")
    assert [r["figures"]["sum.value"] for r in results(place)] == [15.0, 17.0, 30.0, 34.0]


def test_a_failing_run_does_not_stop_the_others_and_decides_the_exit_code(place):
    place.edit("two: {kind: number, value: 2}", "two: {kind: number, value: 2, fail: data}")
    (place.folder / "grid.yaml").write_text(
        "recipe: toy.yaml\naxes: {two: {bad: {stages.two.value: 3}, good: {stages.two.fail: no}}}\nfigures: [sum.value]\n"
    )
    said = sweep(place, code=2)
    assert "1 of 2 runs did not end well, the first is toy.bad: see its log" in said and "| bad | - |" in said and "| good | 3 |" in said
    assert "picture.png is missing" in (place.folder / "runs/grid/toy.bad.log").read_text()


def test_stopped_it_stops_its_runs_and_goes_on_with_the_same_command(place):
    place.recipe.write_text("name: toy\nstages: {one: {kind: number}, far: {kind: count, of: one}}\n")
    (place.folder / "grid.yaml").write_text("recipe: toy.yaml\naxes: {far: {a: {stages.far.steps: 400}, b: {stages.far.steps: 401}}}\n")
    process = place.start("sweep", "grid.yaml", "--profile", "none", "--jobs", "2")
    wait_for(process, "grid: 2 runs")
    logs = [place.folder / f"runs/grid/toy.{v}.log" for v in "ab"]
    deadline = time.monotonic() + 30
    while not all(log.exists() and "counting" in log.read_text() for log in logs):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1.0)  # a stage that has not asked yet whether it shall stop has nothing to save
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "stopped with 2 of 2 runs ended; the same command goes on" in out + err
    assert [r["exit"] for r in results(place)] == [130, 130]
    sweep(place)
    starts = [re.findall(r"counting from (\d+)", log.read_text()) for log in logs]
    assert all(len(found) == 2 and found[0] == "0" and int(found[1]) > 0 for found in starts)


def test_killed_it_leaves_the_table_of_the_runs_that_ended_and_nothing_of_earlier_settings(place):
    place.recipe.write_text("name: toy\nstages: {one: {kind: number}, far: {kind: count, of: one}}\n")
    axes = "recipe: toy.yaml\naxes: {far: {a: {stages.far.steps: 2}, b: {stages.far.steps: 3}}}\nfigures: [far.value]\n"
    (place.folder / "grid.yaml").write_text(axes)
    sweep(place)
    assert [r["figures"] for r in results(place)] == [{"far.value": 2.0}, {"far.value": 3.0}]
    (place.folder / "grid.yaml").write_text(axes.replace("steps: 3", "steps: 4000"))
    process = place.start("sweep", "grid.yaml", "--profile", "none")
    wait_for(process, "[1/2]")
    process.kill()
    process.communicate(timeout=30)
    assert [(r["figures"]["far.value"], r["run"], r["exit"]) for r in results(place)] == [(2.0, "toy.a-1", 0), (None, None, None)]
    assert results(place)[1]["artifacts"].keys() == {"one"}, "which both settings share"
    assert "| a | 2 |\n| b | - |" in (place.folder / "runs/grid/table.md").read_text()
    (place.folder / "grid.yaml").write_text(axes.replace("steps: 2", "steps: 4"))
    process = place.start("sweep", "grid.yaml", "--profile", "none")
    wait_for(process, "[1/2]")
    process.kill()
    process.communicate(timeout=30)
    assert [r["figures"]["far.value"] for r in results(place)] == [4, 3], "the second was made before, with these settings"


def test_a_reader_who_goes_away_ends_no_run(place):
    process = place.start("sweep", "grid.yaml", "--profile", "none")
    process.stdout.close()
    process.stderr.close()
    process.wait(timeout=60)
    assert [r["exit"] for r in results(place)] == [0, 0, 3, 3]


def test_a_figure_that_a_run_does_not_give_is_told_after_the_first_and_the_table_is_there_all_the_same(place):
    (place.folder / "grid.yaml").write_text(SWEEP.replace("sum.value", "sum.valu"))
    process = place.start("sweep", "grid.yaml", "--profile", "none")
    told = process.stderr.readline()
    said = "(the others run on: corrected, the same command keeps them)"
    assert told == f"  toy.one.5 has no figure sum.valu; did you mean sum.value? {said}\n"
    assert process.poll() is None, "told while the others run"
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2 and "no run has a figure sum.valu; did you mean sum.value?" in told
    assert "| one | 5 | - |" in (place.folder / "runs/grid/table.md").read_text()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("recipe: toy.yaml\n", "axes: write at least one"),
        ("axes: {a: {b: {}}}\n", "recipe: write the path of a recipe"),
        (SWEEP.replace("figures", "figure"), "a sweep has no figure; did you mean figures?"),
        (SWEEP.replace("stages.sum.times: 2.0", "stages.two.value: 2"), "stages.two.value is set by axis second and"),
        (SWEEP.replace("one: {stages.sum", "One: {stages.sum"), "axes.times.One is no name"),
        (SWEEP.replace("stages.sum.times: 2.0", "stages.sum.time: 2.0"), "times: two, second: 5"),
        (SWEEP.replace("toy.yaml", "toi.yaml"), "toi.yaml"),
        (
            SWEEP.replace("{5:", "{one.5: {}, 5:").replace("two: {stages.sum", "one.one: {stages.sum"),
            "two of its runs would be called toy.one.one.5",
        ),
        (SWEEP.replace("sum.value", "summ.value"), "grid.yaml:6:11  figures.0: there is no stage summ; did you mean sum?"),
        (SWEEP.replace("sum.value", "sum"), "figures.0: write what of sum is meant behind a dot, such as sum.value"),
        (SWEEP.replace("stages.two.value: 5", "name: x"), "a sweep names its runs itself"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_told_in_its_own_words(place, text, told):
    (place.folder / "grid.yaml").write_text(text)
    assert told in sweep(place, code=2)


def test_a_missing_file_and_a_senseless_number_of_jobs_are_refused(place):
    assert "gird.yaml: No such file" in place.call("sweep", "gird.yaml", code=2)
    assert "--jobs 0" in sweep(place, "--jobs", "0", code=2)


def test_check_tells_what_is_wrong_with_any_run_of_a_sweep(place):
    assert "grid.yaml: 4 runs, good, as written" in place.call("check", "grid.yaml")
    (place.folder / "grid.yaml").write_text(SWEEP.replace("stages.sum.times: 2.0", "stages.sum.times: many"))
    assert "times: two, second: 5" in place.call("check", "grid.yaml", code=2)


def test_a_sweep_taken_for_a_recipe_and_a_recipe_taken_for_a_sweep_are_told_the_command(tmp_path):
    one, two = tmp_path / "toy.yaml", tmp_path / "grid.yaml"
    one.write_text(RECIPE)
    two.write_text(SWEEP)
    with pytest.raises(BadRecipe, match=f"{two} is a sweep, not a recipe: python -m pipeline sweep {two}"):
        recipe.read(two, {})
    with pytest.raises(BadRecipe, match=f"{one} is a recipe, not a sweep: python -m pipeline run {one}"):
        axes.read(one, {}, profile_for=str, sets=[])
