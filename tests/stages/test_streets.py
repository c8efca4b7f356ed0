"""The drawn streets: the same for the same seed, the same scene at every size, and no riddle that colour alone can solve."""

import time

import numpy as np
import pytest

from stages.sources.streets import CLASSES, Streets
from stages.sources.streets.draw import draw

SIZE = (48, 96)


@pytest.fixture(scope="module")
def scenes():
    return [draw(0, "train", i, SIZE) for i in range(60)]


def test_a_scene_depends_on_seed_split_and_index_alone(scenes):
    again = draw(0, "train", 7, SIZE)
    assert np.array_equal(again[0], scenes[7][0]) and np.array_equal(again[1], scenes[7][1])


@pytest.mark.parametrize("other", [(1, "train", 7), (0, "val", 7), (0, "test", 7), (0, "train", 8), (2**32 - 1, "train", 7)])
def test_another_seed_split_or_index_gives_another_scene(scenes, other):
    assert (draw(*other, SIZE)[1] != scenes[7][1]).mean() > 0.1


def test_images_and_labels_have_their_types_and_values(scenes):
    for image, label in scenes:
        assert image.dtype == label.dtype == np.uint8
        assert image.shape == (*SIZE, 3) and label.shape == SIZE
        assert set(np.unique(label)) <= {*range(len(CLASSES)), 255}


def test_every_class_is_drawn_and_some_are_rare(scenes):
    counts = np.bincount(np.concatenate([label.ravel() for _, label in scenes]), minlength=256)
    share = counts[: len(CLASSES)] / counts.sum()
    assert len(CLASSES) >= 8 and (share > 0).all()
    assert (share < 0.02).sum() >= 4, "thin and rare classes"
    assert share.max() < 0.5
    assert counts[255] > 0, "some pixels are ignored"


@pytest.mark.parametrize("size", [(96, 192), (300, 600)])
def test_the_same_scene_appears_at_another_size(size):
    # the label at this size, picked at the nearest pixels of the small one, differs only along outlines
    for i in range(4):
        small, large = draw(3, "val", i, SIZE)[1], draw(3, "val", i, size)[1]
        rows = ((np.arange(SIZE[0]) + 0.5) * size[0] / SIZE[0]).astype(int)
        columns = ((np.arange(SIZE[1]) + 0.5) * size[1] / SIZE[1]).astype(int)
        assert (large[np.ix_(rows, columns)] == small).mean() > 0.90
        assert abs(draw(3, "val", i, size)[0].mean() - draw(3, "val", i, SIZE)[0].mean()) < 6


def test_an_odd_size_works():
    image, label = draw(0, "val", 0, (33, 47))
    assert image.shape == (33, 47, 3) and label.shape == (33, 47)


def test_colour_alone_does_not_tell_the_classes(scenes):
    # the best guess per cell of a 16 x 16 x 16 colour histogram: an upper bound of what a rule on colour can learn here
    def cells(image):
        q = image.astype(int) >> 4
        return (q[..., 0] << 8 | q[..., 1] << 4 | q[..., 2]).ravel()

    train, rest = scenes[:45], scenes[45:]
    votes = np.zeros((4096, 256))
    for image, label in train:
        np.add.at(votes, (cells(image), label.ravel()), 1)
    guess = votes[:, : len(CLASSES)].argmax(1)
    seen = np.concatenate([label.ravel() for _, label in rest])
    said = np.concatenate([guess[cells(image)] for image, _ in rest])
    said, seen = said[seen != 255], seen[seen != 255]
    iou = [((said == c) & (seen == c)).sum() / max(((said == c) | (seen == c)).sum(), 1) for c in range(len(CLASSES))]
    assert np.mean(iou) < 0.30


def test_drawing_is_fast_enough_for_a_thousand_scenes():
    start = time.process_time()
    for i in range(20):
        draw(5, "train", i, (64, 128))
    assert (time.process_time() - start) / 20 < 0.04  # 7-10 ms on one core of an EPYC; the bound allows for a busy machine


def test_settings_have_bounds():
    with pytest.raises(ValueError):
        Streets(seed=-1)
    with pytest.raises(ValueError):
        Streets(train=0)
    with pytest.raises(ValueError):
        Streets(colour="red")
