"""Boundary F equals a count by hand, pixel by pixel."""

import math

import numpy as np
import pytest

from stages.measure.boundary import boundaries, boundary_f, dilated, tolerance


def by_hand(pred, label, classes):
    radius = tolerance(label.shape)

    def pixels(one):
        found = {c: set() for c in range(256)}
        for y, x in np.ndindex(one.shape):
            around = [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
            inside = [p for p in around if 0 <= p[0] < one.shape[0] and 0 <= p[1] < one.shape[1]]
            if label[y, x] != 255 and any(label[p] != 255 and one[p] != one[y, x] for p in inside):
                found[int(one[y, x])].add((y, x))
        return found

    def near(these, those):
        return sum(any(math.dist(a, b) <= radius for b in those) for a in these)

    mine, theirs = pixels(pred), pixels(label)
    return [[len(mine[c]), near(mine[c], theirs[c]), len(theirs[c]), near(theirs[c], mine[c])] for c in range(classes)]


@pytest.mark.parametrize("classes, shape, scale", [(3, (20, 30), 1), (70, (9, 40), 1), (12, (24, 26), 60)])
def test_counts_equal_those_by_hand(monkeypatch, classes, shape, scale):
    """With ignored pixels, predictions outside the class table, more classes than a word has bits, and a wide tolerance."""
    monkeypatch.setattr("stages.measure.boundary.TOLERANCE", 0.0075 * scale)
    rng = np.random.default_rng(classes)
    label, pred = (rng.integers(0, classes, (shape[0] // 3 + 1, shape[1] // 3 + 1)).repeat(3, 0).repeat(3, 1) for _ in range(2))
    label, pred = (one[: shape[0], : shape[1]].astype(np.uint8) for one in (label, pred))
    label[2:6, 3:9] = 255
    pred[-4:, -3:] = classes
    assert tolerance(shape) == max(1, round(0.0075 * scale * math.hypot(*shape)))
    assert boundaries(pred, label, classes).tolist() == by_hand(pred, label, classes)


def test_a_shift_within_the_tolerance_costs_nothing_and_a_larger_one_all():
    label = np.zeros((90, 120), np.uint8)  # diagonal 150: one pixel
    label[:, 60:] = 1
    for shift, expected in ((0, 100.0), (1, 100.0), (4, 0.0)):
        assert boundary_f(boundaries(np.roll(label, shift, axis=1)[:, 4:], label[:, 4:], 3)) == (expected, [expected, expected, None])


def test_precision_and_recall_are_summed_before_they_are_divided():
    assert boundary_f(np.array([[10, 5, 4, 4], [0, 0, 8, 0], [0, 0, 0, 0]])) == (
        pytest.approx(100 / 3),
        [pytest.approx(200 / 3), 0.0, None],
    )
    assert boundary_f(np.zeros((2, 4), int)) == (0.0, [None, None])


@pytest.mark.parametrize("radius", [1, 2, 5, 40])
def test_a_point_spreads_to_a_disk(radius):
    point = np.zeros((1, 31, 33), np.uint8)
    point[0, 14, 20] = 1
    y, x = np.mgrid[:31, :33]
    assert (dilated(point, radius)[0] == ((y - 14) ** 2 + (x - 20) ** 2 <= radius**2)).all()
