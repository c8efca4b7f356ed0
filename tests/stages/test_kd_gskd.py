"""gskd: where it samples, and its term against the equations in float64."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from pipeline.errors import BadRecipe
from stages.kd import Pair
from stages.kd._step import Step
from stages.kd._terms import Terms
from stages.kd.gskd.balanced import balanced
from stages.kd.gskd.loss import dealt, descriptor_kl
from tests.stages.kd_cases import TEACHER, built, pair, row_of, step_for, taps


def gen(seed):
    return torch.Generator().manual_seed(seed)


# Sampling.


@pytest.mark.parametrize("classes", [2, 5, 11, 19, 21, 150])
def test_of_each_class_as_many_points_are_drawn_and_the_teacher_is_right_at_every_one(classes):
    torch.manual_seed(classes)
    n, pixels = 4, 7 * 13
    y = torch.randint(0, classes, (6, pixels))
    y[torch.rand(y.shape) < 0.2] = 255
    right = (torch.rand(y.shape) < 0.5) & (y != 255)
    right[4] &= y[4] == 1  # a single class
    right[5] = False
    points = balanced(y, right, classes, n)
    assert points.index.shape == (6, min(classes, 32), n) and points.valid.shape == points.classes.shape == (6, min(classes, 32))
    full = 0
    for b in range(6):
        present = set(y[b][right[b]].tolist())
        used = points.classes[b][points.valid[b]].tolist()
        if len(present) < 2:
            assert used == []
            continue
        assert len(set(used)) == len(used) == min(len(present), 32) and set(used) <= present
        for k, drawn in zip(used, points.index[b][: len(used)].tolist(), strict=True):
            own = min(n, int((right[b] & (y[b] == k)).sum()))
            assert right[b][drawn].all()
            assert (y[b][drawn[:own]] == k).all() and len(set(drawn[:own])) == own
            assert (y[b][drawn[own:]] != k).all()
            full += own == n
    assert full > 0 or classes == 150


def test_each_right_pixel_of_a_class_has_the_same_chance_and_so_has_each_that_fills_up():
    torch.manual_seed(0)
    images, n = 6000, 3
    y = torch.tensor([0] * 9 + [1] * 2 + [2] * 5 + [255])
    right = torch.tensor([True] * 7 + [False] * 2 + [True] * 9 + [True])[:17] & (y != 255)
    points = balanced(y.expand(images, -1), right.expand(images, -1), 3, n)
    drawn = points.index.gather(1, points.classes.argsort(1)[..., None].expand(-1, -1, n))  # by class
    for k, slots, among in ((0, slice(0, 3), range(7)), (2, slice(0, 3), range(11, 16)), (1, slice(2, 3), [*range(7), *range(11, 16)])):
        counts = np.bincount(drawn[:, k, slots].flatten(), minlength=17)
        expected = images * (slots.stop - slots.start) / len(among)
        assert counts.sum() == counts[list(among)].sum() and abs(counts[list(among)] - expected).max() < 4.5 * expected**0.5, k


def test_of_more_classes_than_are_sampled_each_has_its_turn():
    torch.manual_seed(0)
    y = torch.arange(40).repeat_interleave(2).expand(400, -1)
    points = balanced(y, torch.ones_like(y, dtype=torch.bool), 150, 2)
    assert points.valid.all()
    counts = torch.bincount(points.classes.flatten(), minlength=150)
    assert (counts[40:] == 0).all() and (counts[:40] - 320).abs().max() < 5 * (400 * 0.8 * 0.2) ** 0.5


# Descriptors.


def some_cosines(seed, m, counts, masked, dtype=torch.float64):
    unit = torch.nn.functional.normalize(torch.randn(len(counts), m, 6, generator=gen(seed), dtype=dtype), dim=2)
    other = torch.nn.functional.normalize(unit + torch.randn(unit.shape, generator=gen(seed + 1), dtype=dtype) / 3, dim=2)
    valid = torch.arange(m) < torch.tensor(counts)[:, None]
    live = valid[:, :, None] & valid[:, None, :]
    if masked:
        live &= ~torch.eye(m, dtype=torch.bool)
    return (unit @ unit.mT).requires_grad_(), other @ other.mT, live


def gathered(student, teacher, live, group, temperature):
    """The mean over descriptors of KL(softmax || softmax), each descriptor written out."""
    found = []
    for b in range(len(live)):
        each = []
        for g in range(int(group[b].max()) + 1):
            t, s = (v[b][live[b] & (group[b] == g)] / temperature for v in (teacher, student))
            if len(t):
                t, s = t.log_softmax(0), s.log_softmax(0)
                each.append((t.exp() * (t - s)).sum())
        found.append(torch.stack(each).mean() if each else student.sum() * 0)
    return torch.stack(found)


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "whole"])
@pytest.mark.parametrize("temperature", [1.0, 0.2, 4.0])
@pytest.mark.parametrize("size", [1, 3, 5, 0])
def test_one_pass_gives_what_gathering_every_descriptor_gives(size, temperature, masked):
    m, counts = 15, [15, 9, 6, 0]
    student, teacher, live = some_cosines(1, m, counts, masked)
    torch.manual_seed(2)
    group = dealt(live, torch.full((4,), size)) if size else torch.zeros_like(live, dtype=torch.long)
    groups = -(-m // size) if size else 1
    found = descriptor_kl(student, teacher, live, group, groups, temperature)
    expected = gathered(student, teacher, live, group, temperature)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    upstream = torch.tensor([0.3, -1.0, 2.0, 5.0], dtype=torch.float64)
    one, two = (torch.autograd.grad((v * upstream).sum(), student, retain_graph=True)[0] for v in (found, expected))
    torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-14)
    assert one.isfinite().all() and not one[3].any() and one[0].any()


def test_every_row_deals_its_live_relations_evenly_and_in_its_own_order():
    _, _, live = some_cosines(1, 24, [24, 12], True)
    torch.manual_seed(0)
    group = dealt(live, torch.tensor([5, 3]))
    for b, (size, last) in enumerate(((5, 3), (3, 2))):
        rows = [np.bincount(group[b, i][live[b, i]]).tolist() for i in range(int(live[b].any(1).sum()))]
        full = (len(rows) - 1) // size
        assert all(row == [size] * full + [last] for row in rows)
        assert len({tuple(group[b, i].tolist()) for i in range(len(rows))}) == len(rows)


def test_the_loss_is_about_half_the_variance_of_what_cosines_differ_by():
    student, teacher, live = some_cosines(1, 104, [104], True)
    torch.manual_seed(0)
    whole = descriptor_kl(student, teacher, live, torch.zeros_like(live, dtype=torch.long), 1, 1.0)
    grouped = descriptor_kl(student, teacher, live, dealt(live, torch.tensor([13])), 8, 1.0)
    half = 0.5 * (student - teacher)[live].var(correction=0)
    assert float(whole.detach()) == pytest.approx(float(half.detach()), rel=0.1)
    assert float(grouped.detach()) == pytest.approx(float(whole.detach()), rel=0.02)


# The term, where chance has no say: each class has just as many right pixels as are drawn, and one descriptor holds all.


def settled(classes=5, n=3, size=(9, 11), student_size=(5, 6), **settings):
    """A module in float64, taps, labels, and the right pixels of three images: of many classes, of two, of a single one."""
    row = row_of({"kind": "gskd", "per_class": n, "group": 0, **settings})
    torch.manual_seed(1)
    module = row.build(Pair({"head": 6}, {"head": 8}, classes)).double()
    with torch.no_grad():
        for number, p in enumerate(module.parameters()):
            p.add_(torch.randn(p.shape, generator=gen(number), dtype=torch.float64) / 4)
    student = {"head": torch.randn(3, 6, *student_size, generator=gen(10), dtype=torch.float64).requires_grad_()}
    teacher = {"head": torch.randn(3, 8, *size, generator=gen(11), dtype=torch.float64).relu()}
    y = torch.randint(0, classes, (3, *size), generator=gen(12))
    says = (y + 1) % classes  # wrong everywhere but at the points
    y[torch.rand(y.shape, generator=gen(13)) < 0.2] = 255
    points = []
    for b, used in enumerate((range(max(2, min(classes, 48 // n))), (0, 1), (1,))):
        points.append(torch.randperm(size[0] * size[1], generator=gen(20 + b))[: n * len(used)])
        y[b].view(-1)[points[b]] = says[b].view(-1)[points[b]] = torch.tensor(used).repeat_interleave(n)
    teacher["logits"] = torch.nn.functional.one_hot(says, classes).permute(0, 3, 1, 2).double()
    return module, student, teacher, y.to(torch.uint8).repeat_interleave(4, 1).repeat_interleave(4, 2), points


def by_hand(module, student, teacher, points, temperature, masked):
    """The image with a single class adds 0 to the mean over images."""
    first, scale, shift, second = module.project.parameters()
    enlarged = interpolate(student["head"], teacher["head"].shape[-2:], mode="bilinear", align_corners=False)
    total = 0.0
    for b in (0, 1):
        own, theirs = [], []
        for place in points[b].tolist():
            row, column = divmod(place, teacher["head"].shape[-1])
            v = first @ enlarged[b, :, row, column]
            v = (v - v.mean()) / (v.var(correction=0) + 1e-5).sqrt() * scale + shift
            v = second @ v.relu()
            own.append(v / v.norm())
            theirs.append(teacher["head"][b, :, row, column] / teacher["head"][b, :, row, column].norm())
        pairs = [(i, j) for i in range(len(own)) for j in range(len(own)) if i != j or not masked]
        t, s = (torch.stack([rows[i] @ rows[j] for i, j in pairs]).div(temperature).log_softmax(0) for rows in (theirs, own))
        total = total + temperature**2 * (t.exp() * (t - s)).sum()
    return total / 3


CASES = [(2, 1.0, True), (5, 1.0, False), (11, 0.2, True), (19, 4.0, True), (21, 1.0, True), (150, 0.2, False)]


@pytest.mark.parametrize(("classes", "temperature", "masked"), CASES)
def test_the_term_and_its_gradients_equal_the_equations(classes, temperature, masked):
    module, student, teacher, y, points = settled(classes, temperature=temperature, mask_diagonal=masked)
    leaves = [student["head"], *module.parameters()]
    term, weight = module(Step(student, teacher, y))["gskd"]
    expected = by_hand(module, student, teacher, points, temperature, masked)
    assert weight == 10.0
    torch.testing.assert_close(term, expected, rtol=1e-9, atol=1e-13)
    one, two = (torch.autograd.grad(v, leaves) for v in (term, expected))
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-11)
        assert b.any()  # in the released code nothing has a gradient


def test_a_student_comes_to_the_teachers_grid_by_its_own_rule():
    module, student, teacher, y, _ = settled()
    enlarged = {"head": interpolate(student["head"], teacher["head"].shape[-2:], mode="bilinear", align_corners=True)}
    cases = (student, True), (enlarged, True), (student, False)
    one, two, other = (module(Step(net, teacher, y, align_corners=align))["gskd"][0] for net, align in cases)
    torch.testing.assert_close(one, two, rtol=1e-12, atol=0)
    assert not torch.isclose(one, other, rtol=1e-6)


def test_images_and_pixels_may_trade_places():
    module, student, teacher, y, _ = settled(student_size=(9, 11))
    y, order = y[:, ::4, ::4], torch.randperm(99, generator=gen(3))
    found = []
    for images, pixels in ((torch.arange(3), torch.arange(99)), (torch.tensor([2, 0, 1]), torch.arange(99)), (torch.arange(3), order)):
        moved = [{k: v[images].flatten(2)[:, :, pixels].view_as(v) for k, v in net.items()} for net in (student, teacher)]
        found.append(module(Step(*moved, y[images].flatten(1)[:, pixels].view_as(y)))["gskd"][0])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-12, atol=0)


def test_dealing_relations_into_descriptors_estimates_the_loss_of_all_of_them():
    whole = settled(classes=11, n=4)
    grouped = settled(classes=11, n=4, group=None)
    with torch.no_grad():
        expected = float(whole[0](Step(*whole[1:4]))["gskd"][0])
        found = []
        for seed in range(20):
            torch.manual_seed(seed)
            found.append(float(grouped[0](Step(*grouped[1:4]))["gskd"][0]))
    assert len(set(found)) == 20 and np.std(found) < 0.1 * expected
    assert 0.9 * expected < np.mean(found) < expected  # the image with 8 points has descriptors of 14, which miss that much of the variance


def test_both_networks_are_asked_at_the_same_points():
    """A student with its teacher's features, and nothing between them, has the same cosines in whatever descriptors."""
    row, module = built({"kind": "gskd"}, TEACHER, TEACHER)
    module.project = torch.nn.Identity()
    teacher = taps(2, TEACHER)
    head = teacher["head"].clone().requires_grad_()
    term, _ = module(step_for(row, teacher | {"head": head}, teacher))["gskd"]
    term.backward()
    assert abs(term.item()) < 1e-6 and head.grad.abs().max() < 1e-6


def test_points_are_right_where_the_teachers_logits_are_brought_to_its_features():
    module, student, teacher, y, _ = settled()
    coarse = torch.zeros(3, 5, 3, 4, dtype=torch.float64)
    coarse[:, 2] = 1  # says class 2 everywhere, on a grid of its own
    term, _ = module(Step(student, teacher | {"logits": coarse}, y))["gskd"]
    term.backward()
    assert term.item() == 0 and not student["head"].grad.any()  # one class is too few
    coarse[:, 1, :, 2:] = 2
    assert module(Step(student, teacher | {"logits": coarse}, y))["gskd"][0] > 0


@pytest.mark.parametrize(("group", "counts"), [(4, True), (5, False)])  # of 8 points of two classes
def test_fewer_points_than_two_groups_hold_add_nothing(group, counts):
    row, module = built({"kind": "gskd", "per_class": 4, "group": group})
    student, teacher = taps(1), taps(2, TEACHER)
    y = torch.zeros(2, 128, 192, dtype=torch.uint8)
    y[:, 64:] = 1
    term, _ = module(step_for(row, student, teacher, y))["gskd"]
    assert (term.item() > 0) == counts and term.requires_grad


def test_descriptors_that_no_image_could_fill_are_refused():
    ce, wide, good = (row_of(settings) for settings in ({"kind": "ce"}, {"kind": "gskd", "group": 21}, {"kind": "gskd", "group": 20}))
    with pytest.raises(BadRecipe, match=r"gskd\.group: 21 needs 42 points of an image, and of 5 classes, 8 of each, there are 40 at most"):
        Terms(ce, [wide], pair(), 0)
    assert Terms(ce, [good], pair(), 0)
    assert row_of({"kind": "gskd", "group": 128}).misfits(None) == [] != row_of({"kind": "gskd", "group": 129}).misfits(None)


def test_a_preset_gives_what_is_left_open():
    plain, sharp = (row_of({"kind": "gskd", **given}) for given in ({}, {"preset": "sharp", "weight": 2.0}))
    assert (plain.temperature, plain.weight, sharp.temperature, sharp.weight) == (1.0, 10.0, 0.2, 2.0)
    assert row_of({"kind": "gskd", "preset": "sharp", "temperature": 0.5}).temperature == 0.5
