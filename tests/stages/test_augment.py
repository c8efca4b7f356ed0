"""Augmentation: label and image stay together, what lies beyond the edge is ignored, and the draws depend on the place alone."""

import subprocess
import sys
import time

import numpy as np
import pytest

from stages.augment import FILL, augment
from stages.chance import draws, order, sample_at, seed_of
from stages.fit import Augment

PLAIN = Augment(scale=(1.0, 1.0), flip=0.0, colour=0.0)


def scene(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of one colour per class: the class can be read back from the image."""
    label = (np.arange(height)[:, None] // 8 + np.arange(width)[None] // 8).astype(np.uint8) % 7
    return np.repeat(label[..., None] * 30, 3, 2).astype(np.uint8), label


def test_without_any_variation_a_crop_of_the_full_size_is_the_image_itself():
    image, label = np.random.RandomState(0).randint(0, 256, (24, 40, 3), np.uint8), scene(24, 40)[1]
    out = augment(image, label, (24, 40), PLAIN, draws(1))
    assert np.array_equal(out[0], image) and np.array_equal(out[1], label)


def test_at_scale_one_a_crop_is_a_window_of_the_image_unchanged():
    image, label = np.random.RandomState(0).randint(0, 256, (30, 50, 3), np.uint8), scene(30, 50)[1]
    places = set()
    for n in range(20):
        out, mask = augment(image, label, (16, 16), PLAIN, draws(n))
        found = [
            (y, x)
            for y in range(15)
            for x in range(35)
            if np.array_equal(image[y : y + 16, x : x + 16], out) and np.array_equal(label[y : y + 16, x : x + 16], mask)
        ]
        assert len(found) == 1
        places.add(found[0])
    assert len(places) > 15


@pytest.mark.parametrize("size", [(64, 96), (20, 30), (20, 200), (33, 47)])
@pytest.mark.parametrize("scale", [(0.5, 2.0), (0.3, 0.4), (3.0, 4.0)])
def test_image_and_label_move_together_at_every_scale_and_flip(size, scale):
    image, label = scene(*size)
    settings = Augment(scale=scale, flip=0.5, colour=0.0)
    for n in range(20):
        out, mask = augment(image, label, (40, 56), settings, draws(n))
        assert out.shape == (40, 56, 3) and mask.shape == (40, 56) and out.dtype == mask.dtype == np.uint8
        beyond = mask == 255
        assert (out[beyond] == FILL).all()
        read = np.rint(out[..., 0] / 30.0)
        agree = (read == mask)[~beyond].mean()
        # pixels between two blocks are blends: at scale 0.3 a block is 2.4 pixels wide
        assert agree > {0.5: 0.6, 0.3: 0.25, 3.0: 0.85}[scale[0]], (n, agree)


def test_an_image_smaller_than_the_crop_lies_whole_somewhere_inside_it():
    image, label = scene(16, 24)
    rows, columns = set(), set()
    for n in range(60):
        out, mask = augment(image, label, (32, 32), PLAIN, draws(n))
        ys, xs = np.nonzero(mask != 255)
        rows.add(ys.min())
        columns.add(xs.min())
        assert np.array_equal(mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1], label)
        assert np.array_equal(out[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1], image)
    assert min(rows) == 0 and max(rows) == 16 and min(columns) == 0 and max(columns) == 8


def test_flip_happens_as_often_as_asked():
    image, label = scene(8, 16)
    settings = Augment(scale=(1.0, 1.0), flip=0.25, colour=0.0)
    flipped = sum(np.array_equal(augment(image, label, (8, 16), settings, draws(n))[1], label[:, ::-1]) for n in range(400))
    assert 70 <= flipped <= 130


def test_colour_changes_the_image_and_never_the_label():
    image, label = scene(16, 16)
    image = np.stack([image[..., 0], 255 - image[..., 0], image[..., 0] // 2], 2)
    settings = Augment(scale=(1.0, 1.0), flip=0.0, colour=0.4)
    results = [augment(image, label, (16, 16), settings, draws(n)) for n in range(8)]
    assert all(np.array_equal(mask, label) for _, mask in results)
    assert len({out.tobytes() for out, _ in results}) == 8
    assert all(np.abs(out.astype(int) - image).mean() < 80 for out, _ in results)


def test_zero_colour_leaves_every_value_as_it_was():
    image, label = np.random.RandomState(0).randint(0, 256, (16, 16, 3), np.uint8), scene(16, 16)[1]
    assert np.array_equal(augment(image, label, (16, 16), Augment(scale=(1.0, 1.0), flip=0.0, colour=0.0), draws(3))[0], image)


def test_the_draws_are_the_same_in_another_process_and_differ_between_places():
    code = "from stages.chance import *; print(seed_of(3, 'augment', 1, 2), draws(3, 'a').random(), order(3, 0, 5).tolist())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == f"{seed_of(3, 'augment', 1, 2)} {draws(3, 'a').random()} {order(3, 0, 5).tolist()}\n"
    assert len({seed_of(s, "augment", e, i) for s in range(5) for e in range(5) for i in range(5)}) == 125


def test_every_epoch_visits_every_sample_once_in_its_own_order():
    visits = [sample_at(p, 9, 7) for p in range(28)]
    epochs = [[index for epoch, index in visits if epoch == e] for e in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_sample_of_64_x_128_costs_less_than_half_a_millisecond():
    image, label = np.random.RandomState(0).randint(0, 256, (64, 128, 3), np.uint8), scene(64, 128)[1]
    spent = []
    for n in range(300):
        start = time.perf_counter()
        augment(image, label, (64, 128), Augment(), draws(n))
        spent.append(time.perf_counter() - start)
    assert sorted(spent)[75] < 0.5e-3  # the lower quartile: other processes of this machine may disturb the rest
