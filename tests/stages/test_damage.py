"""Damage of the kinds that deployment does to a model, planted in class maps: each is caught, and what only moves ties is not."""

import numpy as np
import pytest

from stages.measure import mismatch, paired
from stages.measure.miou import counts

IMAGES, CLASSES, SIZE = 100, 6, (48, 72)
SURE = 0.05  # a gap of logits that rounding does not close


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


def judged(scenes, candidate, tolerance):
    label, logits = scenes
    tables = [np.stack([counts(p, t, CLASSES) for p, t in zip(predicted, label, strict=True)]) for predicted in (maps(logits), candidate)]
    touched = sum(paired.touched(*pair, CLASSES) for pair in zip(maps(logits), candidate, label, strict=True))
    return paired.judge(*tables, tolerance=tolerance, touched=touched)


def split(scenes, candidate):
    label, logits = scenes
    rows = zip(maps(logits), candidate, label, logits, strict=True)
    return mismatch.judge_mismatch(sum(mismatch.mismatches(a, b, t, mismatch.top_two_gap(z), SURE) for a, b, t, z in rows), 0.02)


def test_ties_that_rounding_moves_pass_for_certain(scenes):
    logits = scenes[1]
    candidate = maps(logits + 2e-5 * np.random.default_rng(1).normal(0, 1, logits.shape))
    assert (candidate != maps(logits)).sum() > 3  # some did move
    found = judged(scenes, candidate, paired.TOLERANCES["f32"])
    assert found.passed and 0 < found.certificate <= paired.TOLERANCES["f32"] and not found.low_power
    assert split(scenes, candidate).passed and split(scenes, candidate).decided == 0


def test_noise_of_half_precision_passes_by_its_drop_though_many_pixels_moved(scenes):
    logits = scenes[1]
    found = judged(scenes, maps(logits + 0.004 * smooth(np.random.default_rng(2), 4)), paired.TOLERANCES["fp16"])
    assert found.passed and found.certificate > paired.TOLERANCES["fp16"] and found.drop.se < 0.02


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
def test_damage_is_caught_even_at_the_tolerance_of_eight_bits(scenes, kind):
    candidate = DAMAGE[kind](*scenes)
    found = judged(scenes, candidate, paired.TOLERANCES["int8"])
    assert not found.passed and found.drop.points > paired.TOLERANCES["int8"] and "mIoU drops by" in found.text
    assert split(scenes, candidate).decided > 0 and not split(scenes, candidate).passed


def test_of_swapped_classes_both_are_named_and_no_other(scenes):
    found = judged(scenes, swapped(*scenes), 50.0)
    assert [c for c, one in enumerate(found.classes) if one.lost] == [1, 2] and not found.passed
