"""CIRKD against its equations in float64, and a memory that keeps the newest of each class, alike in every process."""

import json

import numpy as np
import pytest
import torch

from stages import group
from stages.guard import Guard
from stages.kd.cirkd.loss import Memory, contrast, pixels_of, regions_of
from tests.stages import kd_double
from tests.stages.kd_cases import STUDENT, TEACHER, C, built, labels, step_for, taps
from tests.stages.kd_double import GRIDS, agree, heads, module_for, resized, step_of
from tests.stages.small_fit import Job


def unit(v):
    return v / (v**2).sum(-1, keepdim=True).sqrt()


def kl(teacher, student):
    """Of rows of likenesses over T."""
    p, q = (v.exp() / v.exp().sum(-1, keepdim=True) for v in (teacher, student))
    return (p * (p / q).log()).sum(-1)


def rows(maps):
    """(B, C, h, w) -> (B, M, C)."""
    return maps.flatten(2).mT


def averaged(maps, pool):
    """The means of all whole squares of `pool` x `pool` cells."""
    h, w = (n // pool * pool for n in maps.shape[2:])
    return torch.stack([maps[:, :, i:h:pool, j:w:pool] for i in range(pool) for j in range(pool)]).mean(0)


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
def test_the_term_between_images_is_the_mean_over_all_ordered_pairs(grids, pool):
    student, teacher = heads((3, 4), grids)
    settings = {"kind": "cirkd", "pool": pool, "pixel_weight": 0, "region_weight": 0}
    terms = module_for(settings, ({"head": 3}, {"head": 4}), 5)(step_of({"head": student}, {"head": teacher}))
    s, t = (unit(rows(averaged(f, pool))) for f in (resized(student, teacher), teacher))
    truth = sum(kl(t[i] @ t[j].T / 0.1, s[i] @ s[j].T / 0.1).mean() for i in range(len(s)) for j in range(len(s))) / len(s) ** 2
    assert {name: weight for name, (_, weight) in terms.items()} == {"cirkd": 1.0}
    agree(terms["cirkd"][0], truth, [student])


@pytest.mark.parametrize("classes", [2, 5, 11, 19, 21, 150])
def test_the_terms_against_memories_are_means_over_labelled_pixels(classes):
    """Through the projector, on the teacher's grid, in the second step: what is remembered is of both."""
    student, teacher = heads((3, 4), GRIDS["a finer teacher"])
    module = module_for({"kind": "cirkd", "queue": 40, "weight": 0, "pixel_weight": 0.3}, ({"head": 3}, {"head": 4}), classes)
    y = kd_double.labels(classes, (21, 15))
    seen = {kind: memory.drawn for kind, memory in module.memories.items()}
    keys = {}
    for kind, memory in module.memories.items():
        memory.drawn = lambda kind=kind: keys.setdefault(kind, seen[kind]())
    module(step_of({"head": student}, {"head": kd_double.maps(9, 4, (7, 5), positive=True)}, y))
    keys.clear()
    terms = module(step_of({"head": student}, {"head": teacher}, y))
    assert {name: weight for name, (_, weight) in terms.items()} == {"cirkd_pixel": 0.3, "cirkd_region": 0.1}

    first, norm, _, second = module.project
    z = torch.einsum("dc,bchw->bdhw", first.weight[:, :, 0, 0], resized(student, teacher))
    mean = z.mean((0, 2, 3), keepdim=True)
    z = (z - mean) / (((z - mean) ** 2).mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
    z = (z * norm.weight[:, None, None] + norm.bias[:, None, None]).relu()
    s = unit(rows(torch.einsum("dc,bchw->bdhw", second.weight[:, :, 0, 0], z))).flatten(0, 1)
    t, small = unit(rows(teacher)).flatten(0, 1), y[:, 1::3, 1::3]
    labelled = (small != 255).flatten()
    for kind, count in (("pixel", 4096 // classes + 1), ("region", 1024 // classes + 1)):
        vectors, filled = keys[kind]
        count = min(count, 40)
        assert len(vectors) == classes * count
        assert filled.view(classes, count).all(1).tolist() == [bool((small == k).any()) for k in range(classes)]
        q = vectors[filled]
        truth = kl(t[labelled] @ q.T / 0.1, s[labelled] @ q.T / 0.1).mean()
        agree(terms[f"cirkd_{kind}"][0], truth, [student, *module.parameters()])
    for k in range(classes):  # and no key is of another class than its place says
        own = torch.cat(
            [unit(rows(f)).flatten(0, 1)[(small == k).flatten()] for f in (kd_double.maps(9, 4, (7, 5), positive=True), teacher)]
        )
        mine = keys["pixel"][0].view(classes, -1, 4)[k]
        assert not len(own) or ((mine[:, None] - own).abs().amax(-1) < 1e-12).any(1).all()


@pytest.mark.parametrize("count", [7, 2100])  # in one piece, and in three
def test_the_contrast_is_the_mean_over_valid_pixels_of_the_kl_over_filled_keys(count):
    g = torch.Generator().manual_seed(count)
    s, t, keys = (unit(torch.randn(n, 6, dtype=torch.float64, generator=g)) for n in (count, count, 11))
    valid, filled = torch.rand(count, generator=g) < 0.7, torch.arange(11) % 4 != 1
    s.requires_grad_()
    truth = kl(t @ keys[filled].T / 0.1, s @ keys[filled].T / 0.1)[valid].mean()
    agree(contrast(s, t, valid, keys, filled, 0.1), truth, [s])
    assert contrast(s, t, valid, keys, torch.zeros(11, dtype=torch.bool), 0.1).item() == 0


def test_the_order_of_the_images_changes_no_term():
    """Where every pixel is remembered, and compared with."""
    row, module = built({"kind": "cirkd", "queue": 100})
    module.double()
    for memory in module.memories.values():
        memory.drawn = lambda m=memory: (m.vectors[:, :-1].flatten(0, 1), (torch.arange(m.length) < m.written[:, None]).flatten())
    student, teacher = ({"head": t["head"].double()} for t in (taps(1, STUDENT, (6, 4), 3), taps(2, TEACHER, (6, 4), 3)))
    y, order, found = labels(size=(48, 32), b=3)[:, ::2, ::2], [2, 0, 1], []
    for images in ([0, 1, 2], order):
        for memory in module.memories.values():
            memory.written.zero_()
        one, two = ({"head": net["head"][images]} for net in (student, teacher))
        found.append({name: term.item() for name, (term, _) in module(step_for(row, one, two, y[images])).items()})
    assert found[0] == pytest.approx(found[1], rel=1e-9) and all(found[0].values())


def test_a_step_that_fails_leaves_the_memories_as_they_were():
    row, module = built({"kind": "cirkd", "queue": 40})
    guard = Guard((module,), torch.optim.SGD(module.parameters(), lr=0.1, fused=True), None)
    for number, scale in enumerate((1.0, float("nan"), 1.0)):
        student = {k: v.requires_grad_() for k, v in taps(number, STUDENT, (6, 4)).items()}
        before = {k: v.clone() for k, v in module.state_dict().items()}
        guard.begin()
        loss = scale * sum(w * t for t, w in module(step_for(row, student, taps(5, TEACHER, (6, 4)), labels(size=(24, 16)))).values())
        loss.backward()
        assert bool(guard.update([loss.detach()])) == (number == 1)
        alike = [torch.equal(v, before[k]) for k, v in module.state_dict().items()]
        assert all(alike) if number == 1 else not any(alike)


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
            assert sorted(there) == sorted(kept[k][-4:])
            assert int(memory.written[k]) == (len(kept[k]) if len(kept[k]) < 4 else 4 + len(kept[k]) % 4)
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
                mean = pixels.mean(1)
                np.testing.assert_allclose(means[b, k].numpy(), mean / np.linalg.norm(mean), rtol=1e-5, atol=1e-6)


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
