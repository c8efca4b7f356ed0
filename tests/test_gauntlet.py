"""What the gauntlet keeps of a sweep and tells of it: paired differences, intervals, equal time, and every trial of tuning."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import gauntlet, gauntlet_page
from pipeline.axes import read
from stages import KINDS


def runs(*mious, ms=100.0, steps=1000):
    return {seed: {"miou": miou, "ms": ms, "steps": steps, "drives": {"a": miou}} for seed, miou in enumerate(mious, 1)}


def test_the_interval_is_students_t_over_the_seeds():
    centre, half = gauntlet_page.interval([1.0, 2.0, 4.5])
    assert centre == pytest.approx(2.5) and half == pytest.approx(4.303 * 1.802776 / math.sqrt(3), rel=1e-5)
    assert gauntlet_page.bounds(*gauntlet_page.interval([1.5])) == "one seed"


def test_at_equal_time_a_method_is_held_against_plain_training_of_more_steps():
    budgets = {"none": runs(30.0, 32.0), "none_2x": runs(34.0, 36.0, steps=2000)}
    assert gauntlet_page.equal_time(runs(35.0, 37.0, ms=150.0), budgets) == pytest.approx(36.0 - 33.0)
    assert gauntlet_page.equal_time(runs(35.0, 37.0, ms=250.0), budgets) is None, "beyond the longest budget nothing is told"
    assert gauntlet_page.equal_time(runs(35.0, 37.0, ms=None), budgets) is None


def test_the_plot_has_a_dot_for_each_seed_and_a_line_for_each_interval():
    svg = gauntlet_page.drawn([("kt", runs(31.0, 33.5)), ("cwd", runs(31.5))], runs(30.0, 32.0))
    assert svg.count("<circle") == 3 and svg.count("stroke-width") == 1 and ">kt<" in svg and ">cwd<" in svg


def trial(name, miou, **settings):
    given = {f"stages.student.{path}": json.dumps(value) for path, value in settings.items()}
    return {
        "method": name.partition("_")[0],
        "trial": name,
        "miou": miou,
        "settings": given,
        "seed": 101,
        "drives": {"0006R0": miou},
        "steps": 1200,
    }


PIXEL = [{"kind": "pixel", "weight": 3.0}]
TRIALS = [
    trial("none", 40.0),
    trial("none_low", 41.5, **{"fit.lr": 0.006}),
    trial("pixel", 39.0, losses=[{"kind": "pixel"}]),
    trial("pixel_high", 42.0, losses=PIXEL),
    trial("pixel_low", 38.0, losses=[{"kind": "pixel", "weight": 0.3}]),
]


def kept(runs, trials=()):
    common = {"teacher_miou": 45.5, "steps": 1200, "split": "test", "added": "2026-11-22", "ms": 100.0}
    plan = {"teacher": {"kind": "tiny", "size": "large"}, "teacher_steps": 3000, "student": {"kind": "tiny", "size": "small"}}
    return {
        "machine": {"cpu": "A CPU", "cores": 2, "gpus": []},
        "schedule": plan | {"size": [192, 256]},
        "runs": [common | run for run in runs],
        "trials": [common | {"split": "val"} | run for run in trials],
    }


def results_of(method, *mious, **settings):
    given = {f"stages.student.{path}": json.dumps(value) for path, value in settings.items()}
    return [{"method": method, "seed": i, "miou": m, "drives": {"a": m}, "settings": given} for i, m in enumerate(mious, 1)]


def test_every_trial_is_told_and_which_won():
    table = gauntlet_page.trial_table(kept([], TRIALS)["trials"])
    assert "Trials on drive 0006R0" in table and "with seed 101" in table and ": 3 for each method at most" in table
    assert [line for line in table.splitlines() if line.startswith("| ")][1:] == [
        "| none | none | as in the recipe | 40.00 |  |",
        "| none | none_low | `fit.lr: 0.006` | 41.50 | won, of 2 |",
        '| pixel | pixel | `losses: [{"kind": "pixel"}]` | 39.00 |  |',
        '| pixel | pixel_high | `losses: [{"kind": "pixel", "weight": 3.0}]` | 42.00 | won, of 3 |',
        '| pixel | pixel_low | `losses: [{"kind": "pixel", "weight": 0.3}]` | 38.00 |  |',
    ]


def test_tuned_results_stand_beside_those_of_the_defaults():
    defaults = kept([*results_of("none", 30.0, 32.0), *results_of("pixel", 29.0, 31.5)])
    tuned = kept([*results_of("none", 33.0, 33.0, **{"fit.lr": 0.006}), *results_of("pixel", 34.0, 36.0, losses=PIXEL)], TRIALS)
    page = gauntlet_page.section("x-tuned", tuned, defaults)
    assert (
        "Seeds 1, 2, 4 runs; each method with the best of its trials, here below." in page and "student tiny small at 192x256, 1200" in page
    )
    assert "| none | 2 | 33.00 ± 0.00 | | | | 100 | | none_low | 31.00 mIoU |" in page
    assert "| pixel | 2 | 35.00 ± 1.41 | +2.00 | -10.71 .. +14.71 | a +2.00 | 100 | +2.00 | pixel_high | -0.75 |" in page
    other = kept([*results_of("none", 33.0), *results_of("pixel", 34.0, losses=[{"kind": "pixel"}])], TRIALS)
    assert "| NOT those that won | -0.75 |" in gauntlet_page.section("x-tuned", other, defaults)
    plain = gauntlet_page.section("x", defaults)
    assert "no setting was tuned" in plain and "untuned" not in plain and "Trials" not in plain


def test_a_method_is_also_held_against_what_stands_beside_it_with_the_same_settings():
    pixel, task = {"kind": "pixel"}, {"kind": "rdd"}
    plain, gskd = results_of("pixel", 29.0, 31.0, losses=[pixel]), results_of("gskd", 30.0, 33.0, losses=[pixel, {"kind": "gskd"}])
    rdd = results_of("rdd", 30.0, 33.0, losses=[pixel, {"kind": "kt"}], task=task)
    alone = results_of("none", 28.0, 28.0)
    told = gauntlet_page.beside(gauntlet_page.grouped([*plain, *gskd, *rdd, *alone]))
    assert told == "Over the method that stands beside them: gskd +1.50 (-4.85 .. +7.85) over `pixel`."
    slower = results_of("pixel", 29.0, 31.0, losses=[pixel], **{"fit.lr": 0.006})
    assert gauntlet_page.beside(gauntlet_page.grouped([*slower, *gskd])) == "", "nor is a pixel that learnt at another rate"
    other = results_of("pixel", 29.0, 31.0, losses=PIXEL)
    assert gauntlet_page.beside(gauntlet_page.grouped([*other, *gskd])) == "", "a pixel of another weight is not what stands beside it"


def test_a_report_can_be_written_before_plain_training_has_ended():
    page = gauntlet_page.section("x", kept(results_of("pixel", 29.0, 31.5, losses=PIXEL)))
    assert "| pixel | 0 | 30.25 ± 1.77 | - | - |  | 100 | - |" in page


def test_the_winners_are_a_sweep_that_can_be_run(tmp_path):
    (tmp_path / "sweeps").mkdir()
    shutil.copy(gauntlet.ROOT / "recipes/gauntlet_camvid.yaml", tmp_path)
    file = tmp_path / "sweeps/tuned.yaml"
    file.write_text(gauntlet.winners(TRIALS))
    found = {v.name: v.recipe.stages["student"] for v in read(file, KINDS, profile_for=lambda recipe: "cpu", sets=[]).variants}
    assert len(found) == 3 * 4 and found["gauntlet_camvid.2.pixel"].losses[0].weight == 3.0
    assert [found[f"gauntlet_camvid.1.{name}"].fit.lr for name in ("none", "none_2x", "pixel")] == [0.006, 0.006, 0.012]
    assert [found[f"gauntlet_camvid.3.{name}"].fit.steps for name in ("none", "none_2x", "none_5x")] == [1200, 2400, 6000]


def test_what_is_kept_of_a_trial_holds_its_settings_and_no_path_of_the_machine(tmp_path, monkeypatch):
    """Figures from counts (images, classes, [right, said wrongly, missed]): 100 and 50 IoU of two classes."""
    facts = {"model": {"kind": "tiny"}, "steps": 1200, "size": [192, 256]}
    for name in ("data", "measured", "student", "teacher"):
        (tmp_path / name).mkdir()
    (tmp_path / "data/index.json").write_text(json.dumps({"val": [{"image": "/somewhere/0006R0_1.png"}]}))
    measurement = {"reference": "student", "split": "val", "classes": ["road", "sky"], "models": {"teacher": {"miou": 45.5}}}
    (tmp_path / "measured/measurement.json").write_text(json.dumps(measurement))
    np.save(tmp_path / "measured/counts_student.npy", np.array([[[8, 0, 0], [2, 2, 0]]]))
    begun = {
        "event": "begin",
        "sets": ["stages.data.source.root=/somewhere", "stages.student.fit.seed=101", 'stages.student.losses=[{"kind": "cwd"}]'],
        "resolved": {"stages": {"student": {"fit": {"seed": 101}}}},
    }
    store = SimpleNamespace(
        manifest=lambda id: {"kind": "X", "facts": facts},
        folder=lambda id: tmp_path / id,
        journal=lambda run: SimpleNamespace(read=lambda: [begun]),
    )
    ids = {name: name for name in ("data", "measured", "student", "teacher")}
    result = {"values": {"on": "held_out", "trial": "cwd_low"}, "run": "x-1", "artifacts": ids, "figures": {}}
    (tmp_path / "results.json").write_text(json.dumps({"machine": {"gpus": []}, "results": [result, result | {"artifacts": {}}]}))
    monkeypatch.setattr(gauntlet, "KEPT", tmp_path / "kept")
    for _ in range(2):  # again, it changes nothing
        gauntlet.add(tmp_path / "results.json", "x-tuned", store)
    other = {"machine": {"gpus": [], "cpu": "B"}, "results": [result | {"artifacts": ids | {"student": "data"}}]}
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(SystemExit, match=r"x-tuned has another machine .cpu B, not None.: add these under another --name"):
        gauntlet.add(tmp_path / "other.json", "x-tuned", store)
    (tmp_path / "other.json").write_text(json.dumps(other | {"machine": {"gpus": []}}))
    with pytest.raises(SystemExit, match="x-tuned has another cwd_low of seed 101"):
        gauntlet.add(tmp_path / "other.json", "x-tuned", store)
    written = (tmp_path / "kept/x-tuned.json").read_text()
    (one,), none = json.loads(written)["trials"], json.loads(written)["runs"]
    assert (one["method"], one["trial"], one["seed"], one["miou"], one["drives"]) == ("cwd", "cwd_low", 101, 75.0, {"0006R0": 75.0})
    assert one["settings"] == {"stages.student.losses": '[{"kind": "cwd"}]'} and none == [] and "somewhere" not in written
