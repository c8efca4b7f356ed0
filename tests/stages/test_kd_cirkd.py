"""CIRKD against its equations in float64, and a memory that keeps the newest of each class, alike in every process."""

import json

import numpy as np
import pytest
import torch

from stages import group
from stages.kd.cirkd.loss import Memory, contrast, pixels_of, regions_of
from tests.stages.kd_cases import STUDENT, TEACHER, C, built, labels, step_for, taps
from tests.stages.small_fit import Job


def unit(v, axis):
    return v / np.linalg.norm(v, axis=axis, keepdims=True)


def log_softmax(v):
    v = v - v.max(-1, keepdims=True)
    return v - np.log(np.exp(v).sum(-1, keepdims=True))


def kl(teacher, student):
    p, q = log_softmax(teacher), log_softmax(student)
    return (np.exp(p) * (p - q)).sum(-1)


@pytest.mark.parametrize("pool", [1, 2])
def test_the_term_between_images_is_the_mean_over_all_ordered_pairs(pool):
    row, module = built({"kind": "cirkd", "pool": pool, "pixel_weight": 0, "region_weight": 0})
    student, teacher = ({"head": t["head"].double()} for t in (taps(1, STUDENT, (6, 4)), taps(2, TEACHER, (6, 4))))
    student["head"].requires_grad_()
    (term, weight) = module(step_for(row, student, teacher, labels(size=(24, 16))))["cirkd"]
    term.backward()

    def expected(head):
        rows = []
        for maps in (head, teacher["head"].numpy()):
            b, c, h, w = maps.shape
            maps = maps.reshape(b, c, h // pool, pool, w // pool, pool).mean((3, 5))
            rows.append(unit(maps.reshape(b, c, -1).swapaxes(1, 2), 2))  # (B, M, C)
        s, t = rows
        return np.mean([kl(t[i] @ t[j].T / 0.1, s[i] @ s[j].T / 0.1).mean() for i in range(len(s)) for j in range(len(s))])

    x = student["head"].detach().numpy()
    assert weight == 1.0 and term.item() == pytest.approx(expected(x), rel=1e-6)
    way = np.random.RandomState(0).randn(*x.shape)
    slope = (expected(x + 1e-5 * way) - expected(x - 1e-5 * way)) / 2e-5
    assert (student["head"].grad.numpy() * way).sum() == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("rows", [7, 2100])  # in one piece, and in three
def test_the_contrast_is_the_mean_over_valid_pixels_of_the_kl_over_filled_keys(rows):
    g = torch.Generator().manual_seed(rows)
    s, t, keys = (torch.nn.functional.normalize(torch.randn(n, 6, dtype=torch.float64, generator=g), dim=1) for n in (rows, rows, 11))
    valid, filled = torch.rand(rows, generator=g) < 0.7, torch.arange(11) % 4 != 1
    s.requires_grad_()
    found = contrast(s, t, valid, keys, filled, 0.1)
    (grad,) = torch.autograd.grad(found, s)

    def expected(own):
        return kl(t.numpy() @ keys[filled].numpy().T / 0.1, own @ keys[filled].numpy().T / 0.1)[valid.numpy()].mean()

    x, way = s.detach().numpy(), np.random.RandomState(1).randn(*s.shape)
    assert found.item() == pytest.approx(expected(x), rel=1e-6)
    slope = (expected(x + 1e-6 * way) - expected(x - 1e-6 * way)) / 2e-6
    assert (grad.numpy() * way).sum() == pytest.approx(slope, rel=1e-5)
    assert contrast(s, t, valid, keys, torch.zeros(11, dtype=torch.bool), 0.1).item() == 0


def test_a_memory_keeps_the_newest_of_each_class():
    memory, kept = Memory(3, 4, 2, 2), [[], [], []]
    rng = np.random.RandomState(0)
    for step in range(6):
        valid = torch.from_numpy(rng.rand(7, 3) < (0.0, 0.4, 0.9))
        vectors = torch.arange(42, dtype=torch.float32).view(7, 3, 2) + 100 * step
        memory.remember(vectors, valid)
        for n in range(7):
            for k in range(3):
                kept[k] += [vectors[n, k].tolist()] if valid[n, k] else []
        for k in range(3):
            there = memory.vectors[k, : min(len(kept[k]), 4)].tolist()
            assert sorted(there) == sorted(kept[k][-4:]) and int(memory.written[k]) == len(kept[k])
    vectors, filled = memory.drawn()
    assert filled.tolist() == [False] * 2 + [True] * 4
    assert all(v in kept[1][-4:] for v in vectors[2:4].tolist()) and all(v in kept[2][-4:] for v in vectors[4:].tolist())


def test_remembered_pixels_are_of_their_class_and_none_comes_twice():
    y = labels(size=(24, 32), b=3)[:, ::4, ::4]
    features = torch.arange(y.numel(), dtype=torch.float32).view_as(y)[:, None]  # each pixel carries its own number
    vectors, valid = pixels_of(features, y, C)
    b_of = torch.arange(3).repeat_interleave(16)
    for k in range(C):
        for b in range(3):
            mine = vectors[b_of == b][:, k, 0][valid[b_of == b][:, k]].long()
            of_class = (y.flatten() == k).nonzero().flatten().tolist()
            there = [p for p in of_class if p // y[0].numel() == b]
            assert len(set(mine.tolist())) == len(mine) == min(16, len(there)) and set(mine.tolist()) <= set(there)


def test_a_remembered_region_is_the_unit_mean_of_a_class_in_an_image():
    features, y = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(1)), labels(size=(24, 40))[:, ::8, ::8]
    means, valid = regions_of(features, y, C)
    for b in range(2):
        for k in range(C):
            pixels = features[b][:, y[b] == k].numpy()
            assert bool(valid[b, k]) == (pixels.size > 0)
            if pixels.size:
                np.testing.assert_allclose(means[b, k].numpy(), unit(pixels.mean(1), 0), rtol=1e-5, atol=1e-6)


def remembered(job) -> str:
    """The regions that a memory holds after each process saw its half of four images; the numbers written, and the sum of vectors."""
    features, y = torch.randn(4, 4, 3, 5, generator=torch.Generator().manual_seed(1)), labels(size=(24, 40), b=4)[:, ::8, ::8]
    world, rank = (torch.distributed.get_world_size(), torch.distributed.get_rank()) if torch.distributed.is_initialized() else (1, 0)
    memory, part = Memory(C, 5, 4, 2), slice(rank * 4 // world, (rank + 1) * 4 // world)
    memory.remember(*regions_of(features[part], y[part], C))
    own = torch.cat([memory.written.double(), memory.vectors[:, :5].double().flatten()])
    if world > 1:
        both = [torch.empty_like(own) for _ in range(world)]
        torch.distributed.all_gather(both, own)
        assert torch.equal(*both)
    return json.dumps(own.tolist())


def test_two_processes_remember_what_both_saw(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(group, "START", "fork")
    together = group.together("tests.stages.test_kd_cirkd:remembered", (), 2, Job(tmp_path))
    assert json.loads(together) == pytest.approx(json.loads(remembered(None)), rel=1e-6)
