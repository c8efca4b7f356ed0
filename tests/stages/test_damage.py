"""Damage of the kinds that deployment does to a model, planted in class maps: each is caught, and what only moves ties is not."""

import numpy as np
import pytest

from stages.measure import mismatch, paired
from stages.measure.allowed import BY_PRECISION, EXACT
from stages.measure.miou import counts
from tests.stages.small_evidence import NAMES, measured, verdict

IMAGES, CLASSES, SIZE = 100, 6, (48, 72)


def smooth(random, cell):
    """(N, C, H, W) fields without edges, about 1 high, in cells of so many pixels."""
    height, width = (side // cell + 2 for side in SIZE)
    field = random.normal(0, 1, (IMAGES, CLASSES, height, width)).repeat(cell, -2).repeat(cell, -1)
    for axis in (-2, -1):
        summed = np.cumsum(field, axis=axis)
        ahead = np.take(summed, range(cell, summed.shape[axis]), axis)
        field = (ahead - np.take(summed, range(summed.shape[axis] - cell), axis)) / cell
    return field[..., : SIZE[0], : SIZE[1]]


@pytest.fixture(scope="module")
def scenes():
    """Labels, and the logits of a model that is right on most of them."""
    random = np.random.default_rng(0)
    truth = smooth(random, 12) + np.linspace(0.4, -0.4, CLASSES)[:, None, None]
    label = truth.argmax(axis=1).astype(np.uint8)
    label[random.random(label.shape) < 0.02] = 255
    return label, truth + 0.4 * smooth(random, 4)


def maps(logits):
    return logits.argmax(axis=1).astype(np.uint8)


@pytest.fixture
def judged(scenes, tmp_path):
    """The entries of these rules on a candidate's class maps, from what validate would store of them."""

    def entries(candidate, *rules):
        label, logits = scenes
        reference, clear = maps(logits), mismatch.clear(logits, SIZE, align_corners=False)
        tables = [np.stack([counts(p, t, CLASSES) for p, t in zip(predicted, label, strict=True)]) for predicted in (reference, candidate)]
        rows = list(zip(reference, candidate, label, clear, strict=True))
        touched = np.stack([paired.touched(*row[:3], CLASSES) for row in rows])
        differ = np.stack([mismatch.mismatches(*row) for row in rows])
        stored = {"touched": {"engine": touched}, "mismatch": {"engine": differ}}
        artifact = measured(tmp_path / "measured", dict(zip(("student", "engine"), tables, strict=True)), **stored)
        return verdict(rules, artifact)["rules"]

    return entries


def lost(points):
    return {"metric": "miou", "at_least": -points}


NO_TIES = {"metric": "clear_mismatch", "at_most": 0.01}


def test_ties_that_rounding_moves_pass_for_certain(scenes, judged):
    logits = scenes[1]
    candidate = maps(logits + 2e-5 * np.random.default_rng(1).normal(0, 1, logits.shape))
    assert (candidate != maps(logits)).sum() > 3  # some did move
    drop, clear, all_ = judged(candidate, lost(EXACT.drop), NO_TIES | {"at_most": 0.0}, {"metric": "mismatch", "at_most": 0.0})
    assert drop["passed"] is True and "kept for certain" in drop["text"] and drop["confidence"]["at_least"]["certain"] >= 0
    assert clear["passed"] is True and clear["differ"] == 0
    assert all_["passed"] is False and all_["differ"] > 3  # ties are what a rule on every pixel trips over


def test_noise_of_half_precision_passes_by_its_drop_though_many_pixels_moved(scenes, judged):
    candidate = maps(scenes[1] + 0.004 * smooth(np.random.default_rng(2), 4))
    drop, clear = judged(candidate, lost(BY_PRECISION["fp16"].drop), NO_TIES)
    assert drop["passed"] is True and drop["confidence"]["at_least"]["certain"] < 0 and drop["confidence"]["at_least"]["se"] < 0.02
    assert clear["passed"] is True and (candidate != maps(scenes[1])).mean() > 5e-4


def swapped(label, logits):
    found = maps(logits)
    found[::8] = np.array([0, 2, 1, 3, 4, 5], np.uint8)[found[::8]]  # two classes, in every eighth image
    return found


DAMAGE = {
    "one class taken for another": swapped,
    "shifted by one pixel": lambda label, logits: np.roll(maps(logits), 1, axis=2),
    "nearest in place of bilinear": lambda label, logits: maps(logits)[:, ::3, ::3].repeat(3, 1).repeat(3, 2),
    "eight-bit noise in clumps": lambda label, logits: maps(logits + 0.25 * smooth(np.random.default_rng(3), 6)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_caught_even_at_the_tolerance_of_eight_bits(scenes, judged, kind):
    drop, clear = judged(DAMAGE[kind](*scenes), lost(BY_PRECISION["int8"].drop), NO_TIES | {"at_most": 0.5})
    assert drop["passed"] is False and drop["value"] < -BY_PRECISION["int8"].drop and ", in street_" in drop["text"]
    assert clear["passed"] is False and clear["value"] > 1


def test_of_swapped_classes_both_are_named_and_no_other(scenes, judged):
    rules = [{"metric": f"iou.{name}", "at_least": -2.0} for name in NAMES]
    drop, *classes = judged(swapped(*scenes), lost(1.0), *rules)
    assert [one["metric"] for one in classes if one["passed"] is False] == ["iou.wall", "iou.tree"]
    assert set(list(drop["worst_classes"])[:2]) == {"wall", "tree"} and all(one["image"] % 8 == 0 for one in drop["worst"])
