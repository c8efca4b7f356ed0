"""Crops that the device makes of a split in its memory are those of the host: same draws, same labels, same images but for rounding."""

import math
import platform

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.errors import BadData, BadRecipe, Missing, Stopped
from stages import resident as module
from stages.augment import FILL, augment, drawn
from stages.batches import crops, faster, held
from stages.chance import draws
from stages.fit import Augment
from stages.loop import fit
from stages.peers import Peers
from stages.resample import BITS, axis
from stages.resident import Resident
from tests.stages.small_fit import Job, Memory, Net, forget_accelerate, settings, terms_of, trained

CPU = torch.device("cpu")
X86 = platform.machine() in ("x86_64", "AMD64")  # elsewhere Pillow may be built with fused multiplication
SIZES, SCALES = [(64, 96), (20, 30), (20, 200), (33, 47), (3, 5)], [(0.5, 2.0), (0.3, 0.4), (3.0, 4.0), (1.0, 1.0), (0.97, 1.03)]


@pytest.fixture(autouse=True)
def fresh_accelerate():
    forget_accelerate()


class Noise(Memory):
    """Random pixels: every value and every neighbour counts."""

    def __init__(self, size, n=4):
        rng = np.random.RandomState(0)
        self.size, self.images, self.labels = size, rng.randint(0, 256, (n, *size, 3), np.uint8), rng.randint(0, 20, (n, *size), np.uint8)


def resident_of(samples) -> Resident:
    resident = Resident(samples, CPU)
    resident.put(0, torch.from_numpy(samples.images), torch.from_numpy(samples.labels))
    return resident


class One:
    """The process that trains alone."""

    num_processes, process_index = 1, 0


def exact(varied, crop) -> bool:
    """Whether Pillow adds up in the order, and without fused multiplication, that tables follow."""
    (a, b, u, v), (c, d, s, t) = varied.rows, varied.columns
    taken = [math.ceil(b) - int(a) - (v - u), math.ceil(d) - int(c) - (t - s)]  # rows and columns that resizing takes away
    columns_first = int(PIL.__version__.split(".")[0]) >= 13 and taken[0] > 0 and taken[0] > 2 * taken[1]
    return not columns_first and X86


# What it makes


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", SCALES)
def test_crops_equal_those_of_the_host_at_every_size_scale_flip_and_colour(size, scale):
    samples = Noise(size)
    resident, indices, met = resident_of(samples), list(range(4)), 0
    for crop, colour in (((40, 56), 0.0), ((17, 33), 0.2), ((23, 16), 0.9)):
        how = Augment(scale=scale, flip=0.5, colour=colour)
        for n in range(4):
            varied = [drawn(size, crop, how, draws(n, i)) for i in indices]
            images, labels = resident.crops(indices, varied, crop, colour > 0)
            for i in indices:
                image, label = augment(*samples[i], crop, how, draws(n, i))
                assert np.array_equal(labels[i].numpy(), label)
                apart = np.abs(images[i].numpy().astype(int) - image)
                assert apart.max() <= (0 if exact(varied[i], crop) else 3 if colour else 1)
                met += exact(varied[i], crop)
    assert met > 24 or not X86


def test_pillow_itself_agrees_with_the_tables_of_one_axis():
    row = np.random.RandomState(0).randint(0, 256, (1, 40), np.uint8)
    for n in range(300):
        rng = np.random.RandomState(n)
        span, side = rng.uniform(1, 40), rng.randint(2, 60)
        a = rng.uniform(0, 40 - span)
        left, right = int(a), math.ceil(a + span)
        box = (a - left, 0, min(a + span - left, right - left), 1)
        part = Image.fromarray(row[:, left:right])
        table = axis([(a, a + span, 0, side)], 40, side)
        taps = np.minimum(table.first[0] + np.arange(table.weights.shape[1])[:, None], 39)
        mixed = ((row[0][taps].astype(int) * table.weights[0]).sum(0) + (1 << (BITS - 1))) >> BITS
        assert np.abs(mixed - np.asarray(part.resize((side, 1), Image.Resampling.BILINEAR, box))[0]).max() <= (not X86)
        assert np.array_equal(row[0][table.nearest[0]], np.asarray(part.resize((side, 1), Image.Resampling.NEAREST, box))[0])


def test_weights_add_up_to_one_and_stay_inside_the_window():
    windows = [(3.7, 20.2, 0, 16), (0.0, 31.0, 2, 11), (30.25, 31.0, 0, 16), (0.0, 0.4, 0, 16)]
    table = axis(windows, 31, 16, [False, True, False, True])
    assert np.abs(table.weights.sum(1) - (1 << BITS)).max() <= table.weights.shape[1] and table.weights.min() >= 0
    taps = table.first[:, None] + np.arange(table.weights.shape[1])[:, None]
    low, high = (np.array(side)[:, None, None] for side in ([3, 0, 30, 0], [21, 31, 31, 1]))
    assert ((table.weights == 0) | ((taps >= low) & (taps < high))).all()
    assert (table.nearest[1] < 0).tolist() == [True] * 5 + [False] * 9 + [True] * 2  # mirrored: 2 to 11 of 16 is 5 to 14


def test_a_label_is_never_mixed_and_beyond_the_edge_it_is_ignored_under_the_mean_colour():
    samples = Noise((20, 30))
    varied = [drawn((20, 30), (64, 64), Augment(scale=(1.3, 1.9)), draws(i)) for i in range(4)]
    images, labels = resident_of(samples).crops([2, 0, 0, 3], varied, (64, 64), True)
    beyond = labels == 255
    assert beyond.any() and (images[beyond] == torch.from_numpy(FILL)).all() and set(labels[~beyond].unique().tolist()) <= set(range(20))
    assert images.is_contiguous() and images.dtype == labels.dtype == torch.uint8


def test_batches_are_those_of_the_host_from_any_step_on_for_any_number_of_processes_and_parts():
    s, samples = settings(accumulate=2, batch=8, augment={"scale": [1.5, 2.5]}), Noise((32, 48), 7)
    for start, rank, world in ((0, 0, 1), (5, 0, 2), (5, 1, 2)):
        host, device = (crops(them, s, (16, 16), start, rank, world) for them in (samples, resident_of(samples)))
        found = [torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(host, device, strict=True)]
        assert len(found) == 2 * (12 - start) and (all(found) or not X86)


def test_training_takes_the_same_course(tmp_path):
    plain = {"scale": [1.0, 1.0]}
    host, device = (trained(tmp_path / where, settings(data=where, augment=plain))[0] for where in ("host", "device"))
    torch.testing.assert_close(host.weights, device.weights, atol=1e-3, rtol=1e-2)
    assert host.val["miou"] == pytest.approx(device.val["miou"], abs=2)


def test_no_operation_of_a_batch_asks_the_device_for_a_number():
    """On a GPU each of these would wait for everything before it."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            ran.add(op.overloadpacket.__name__)
            return op(*args, **kwargs or {})

    ran, batches = set(), crops(resident_of(Noise((20, 30))), settings(), (16, 16))
    with Watch():
        next(batches)
    waiting = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "equal", "is_nonzero"}
    assert {"gather", "index"} <= ran and not ran & waiting


# Bringing it there


@pytest.mark.parametrize("workers", [0, 1])
def test_every_sample_is_held_whoever_reads_it(tmp_path, workers):
    samples, job = Noise((8, 12), 37), Job(tmp_path)
    resident = held(samples, CPU, workers, job, Peers(One))
    assert torch.equal(resident.images, torch.from_numpy(samples.images).permute(0, 3, 1, 2))
    assert torch.equal(resident.labels, torch.from_numpy(samples.labels)) and len(resident) == 37 and resident.name(5) == "street_5"
    assert job.said == ["the device holds 37 training images (0.0 MB) and varies them itself"]


def test_a_wish_to_stop_is_heard_on_the_way(tmp_path):
    with pytest.raises(Stopped, match="stopped while the training images were brought to the device") as raised:
        held(Noise((8, 12), 37), CPU, 0, Job(tmp_path, stop_at=1), Peers(One))
    assert raised.value.code == 130


def test_a_bad_file_is_named(tmp_path):
    class Broken(Memory):
        def __getitem__(self, i):
            raise BadData("street_0.png: changed since it was indexed; run again")

    with pytest.raises(BadData, match=r"^street_0\.png: changed"):
        fit(Net(), terms_of(), Broken(), None, settings(data="device"), Job(tmp_path))


def test_a_split_too_large_for_the_device_is_refused_with_both_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "free_bytes", lambda: 20_000_000)
    samples = Noise((512, 1024), 6)  # 4 bytes per pixel: 12.6 MB
    with pytest.raises(Missing) as raised:
        Resident(samples, CPU)
    said = "fit.data: device needs 12.6 MB for 6 training images of 512 x 1024, and 10.0 MB may be used for them, "
    assert str(raised.value) == said + "50% of the memory that is free on the device: write data: host, or lower data.size"
    monkeypatch.setattr(module, "free_bytes", lambda: 30_000_000)
    assert Resident(samples, CPU).bytes == 12_582_912
    with pytest.raises(Missing, match=r"needs 12\.6 MB in each of 2 processes for 6 training images"):
        Resident(samples, CPU, 2)


def test_where_the_system_does_not_say_what_is_free_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(module, "free_bytes", lambda: None)
    assert len(Resident(Noise((8, 12)), CPU)) == 4


def test_images_of_many_sizes_are_refused():
    samples = Noise((8, 12))
    samples.size = None
    with pytest.raises(BadRecipe, match=r"needs images of one size.*set data\.size, or write data: host"):
        Resident(samples, CPU)


def test_who_waits_for_data_is_told_what_helps_on_that_device():
    host, cuda = settings(), torch.device("cuda")
    assert faster(host, CPU, 2) == "raise fit.workers (now 2)"
    assert faster(host, cuda, 2) == "raise fit.workers (now 2), or try fit.data: device"
    assert faster(settings(data="device"), CPU, 2) == "try fit.data: host"
