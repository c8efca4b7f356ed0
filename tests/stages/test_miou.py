"""mIoU against a count made one pixel at a time."""

import numpy as np
import pytest

from pipeline.errors import BadData
from stages.measure.miou import counts, miou


def counted_by_hand(pred, label, classes):
    table = [[0, 0, 0] for _ in range(classes)]
    for p, t in zip(pred.ravel().tolist(), label.ravel().tolist(), strict=True):
        if t == 255:
            continue
        if p == t:
            table[t][0] += 1
        else:
            table[t][2] += 1
            if p < classes:
                table[p][1] += 1
    return table


@pytest.mark.parametrize("classes, shape", [(2, (1, 1)), (3, (7, 5)), (19, (33, 31)), (254, (40, 3))])
def test_counts_equal_a_count_made_one_pixel_at_a_time(classes, shape):
    random = np.random.default_rng(classes)
    for _ in range(5):
        pred = random.integers(0, classes, shape, dtype=np.uint8)
        label = random.integers(0, classes, shape, dtype=np.uint8)
        label[random.random(shape) < 0.3] = 255
        found = counts(pred, label, classes)
        assert found.dtype == np.int64 and found.shape == (classes, 3)
        assert found.tolist() == counted_by_hand(pred, label, classes)


def test_a_label_of_only_ignored_pixels_counts_nothing():
    ignored = np.full((4, 4), 255, np.uint8)
    assert counts(np.zeros((4, 4), np.uint8), ignored, 3).sum() == 0
    assert miou(np.zeros((3, 3), np.int64)) == (0.0, [None, None, None])


def test_a_prediction_outside_the_class_table_is_a_miss_and_nobodys_false_positive():
    found = counts(np.array([[0, 9]], np.uint8), np.array([[0, 1]], np.uint8), 2)
    assert found.tolist() == [[1, 0, 0], [0, 0, 1]]


def test_the_mean_is_over_classes_in_the_union_and_images_are_summed_first():
    first = np.array([[8, 2, 0], [0, 0, 0], [0, 0, 0]])
    second = np.array([[1, 0, 9], [0, 5, 0], [0, 0, 0]])
    mean, iou = miou(first + second)
    assert iou == [pytest.approx(100 * 9 / 20), 0.0, None]  # a class that is only predicted counts, as 0
    assert mean == pytest.approx((45.0 + 0.0) / 2)


def test_a_label_outside_the_class_table_is_named():
    with pytest.raises(BadData, match="class 7, but there are 3"):
        counts(np.zeros((2, 2), np.uint8), np.full((2, 2), 7, np.uint8), 3)


def test_maps_of_different_sizes_are_refused_not_resized():
    with pytest.raises(BadData, match="one size"):
        counts(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8), 3)
