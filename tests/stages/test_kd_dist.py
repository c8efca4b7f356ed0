"""The values of dist against Pearson's correlation written out in float64."""

import numpy as np
import pytest
import torch

from stages.kd.dist.loss import correlation
from tests.stages.kd_double import GRIDS, B, agree, maps, module_for, resized, step_of

PAIR = ["dist_inter", "dist_intra"]


def dist(student, teacher, classes, **settings):
    widths = ({tap: classes for tap in student}, {tap: classes for tap in teacher})
    return module_for({"kind": "dist", **settings}, widths, classes)(step_of(student, teacher))


def pearson(x, y):
    """Of two vectors."""
    x, y = x - x.sum() / len(x), y - y.sum() / len(y)
    return (x * y).sum() / ((x**2).sum().sqrt() * (y**2).sum().sqrt() + 1e-8)


def truth(student, teacher, temperature=1.0):
    """Both terms, row by row and column by column."""
    p, q = (torch.softmax(v.movedim(1, -1).reshape(-1, v.shape[1]) / temperature, 1) for v in (student, teacher))  # (R, K)
    inter = sum(1 - pearson(p[r], q[r]) for r in range(len(p))) / len(p)
    intra = sum(1 - pearson(p[:, k], q[:, k]) for k in range(p.shape[1])) / p.shape[1]
    return inter, intra


@pytest.mark.parametrize("classes", [2, 5, 11, 19, 21, 150])
def test_dist_is_one_minus_the_mean_correlation_of_rows_and_of_columns(classes):
    student, teacher = maps(1, classes, (5, 7)).requires_grad_(), maps(2, classes, (5, 7))
    terms = dist({"logits": student}, {"logits": teacher}, classes)
    assert list(terms) == PAIR and [w for _, w in terms.values()] == [1.0, 1.0]
    for (ours, _), true in zip(terms.values(), truth(student, teacher), strict=True):
        agree(ours, true, [student])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
def test_the_temperature_softens_and_the_teachers_grid_is_where_they_meet(grids, temperature):
    student, teacher = maps(1, 5, grids[0]).requires_grad_(), maps(2, 5, grids[1])
    terms = dist({"logits": student}, {"logits": teacher}, 5, temperature=temperature)
    for (ours, _), true in zip(terms.values(), truth(resized(student, teacher), teacher, temperature), strict=True):
        agree(ours, true, [student])


def test_the_auxiliary_logits_count_where_both_networks_have_them():
    student, teacher = ({"logits": maps(s, 5, (5, 7)), "aux": maps(s + 2, 5, (3, 4))} for s in (1, 2))
    terms = dist(student, teacher, 5, weight=2.0)
    assert list(terms) == [*PAIR, "dist_aux_inter", "dist_aux_intra"] and [w for _, w in terms.values()] == [2.0, 2.0, 0.8, 0.8]
    for (ours, _), true in zip(list(terms.values())[2:], truth(student["aux"], teacher["aux"]), strict=True):
        torch.testing.assert_close(ours, true)
    assert list(dist(student, {"logits": teacher["logits"]}, 5)) == list(dist(student, teacher, 5, aux_weight=0.0)) == PAIR


def test_the_correlation_is_that_of_numpy_and_that_of_five_raw_moments():
    x, y = maps(1, 3, (5, 7)).softmax(1), maps(2, 3, (5, 7)).softmax(1)
    found = correlation(x, y, (0, 2, 3))
    for k in range(3):
        a, b = x[:, k].flatten(), y[:, k].flatten()
        assert float(found[k]) == pytest.approx(np.corrcoef(a, b)[0, 1], rel=1e-6)
        n, sa, sb = len(a), a.sum(), b.sum()
        raw = (n * (a * b).sum() - sa * sb) / ((n * (a * a).sum() - sa**2).sqrt() * (n * (b * b).sum() - sb**2).sqrt())
        assert float(found[k]) == pytest.approx(float(raw), rel=1e-6)


def test_rare_classes_keep_their_correlation_in_float32():
    """Probabilities that vary by 1e-4 around 0.2: in float32 raw moments are already wrong, and means taken off first are not."""
    g = torch.Generator().manual_seed(1)
    shared, own = (torch.randn(2, 1, 64, 128, generator=g, dtype=torch.float64) for _ in range(2))
    x, y = 0.2 + 1e-4 * shared, 0.2 + 1e-4 * (0.5 * shared + own)
    assert 0.5e-8 < x.var() < 2e-8
    exact, found = pearson(x.flatten(), y.flatten()), correlation(x.float(), y.float(), (0, 2, 3))
    assert float(found) == pytest.approx(float(exact), rel=1e-4)
    a, b = x.float(), y.float()
    raw = ((a * b).mean() - a.mean() * b.mean()) / ((a * a).mean() - a.mean() ** 2).sqrt() / ((b * b).mean() - b.mean() ** 2).sqrt()
    assert not abs(float(raw) - float(exact)) < 0.01


def test_the_loss_of_a_rare_class_in_float32_is_that_in_float64():
    student, teacher = maps(1, 19, (32, 48)), maps(2, 19, (32, 48))
    for net in (student, teacher):
        net[:, 15:] -= 7  # a probability of about 1e-5 to 1e-3
    assert teacher.softmax(1)[:, 15:].var() < 1e-7
    exact, found = (dist({"logits": student.to(d)}, {"logits": teacher.to(d)}, 19) for d in (torch.float64, torch.float32))
    for name in PAIR:
        assert found[name][0].dtype == torch.float32 and float(found[name][0]) == pytest.approx(float(exact[name][0]), rel=1e-5)


def test_a_class_is_correlated_over_pixels_not_over_images():
    """Fed with maps instead of rows, a loss that correlates over the first dimension says nothing about a single image."""
    student, teacher = maps(1, 5, (5, 7), b=1).requires_grad_(), maps(2, 5, (5, 7), b=1)
    term = dist({"logits": student}, {"logits": teacher}, 5)["dist_intra"][0]
    agree(term, truth(student, teacher)[1], [student])
    assert float(dist({"logits": teacher}, {"logits": teacher}, 5)["dist_intra"][0]) < 1e-6


def test_what_has_another_scale_and_offset_agrees():
    teacher = 3 + maps(1, 3, (4, 5))
    torch.testing.assert_close(correlation(0.5 * teacher + 1, teacher, (1,)), torch.ones(B, 4, 5, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("flat", [0.0, 0.37], ids=["exactly flat", "flat up to rounding"])
def test_a_network_that_is_equally_sure_everywhere_counts_one_and_gives_no_gradient(flat, kind):
    """Divided by 1e-8, what is only rounding would give gradients of a million."""
    known = maps(2, 7, (15, 17)).to(kind)
    same = flat + 1e-9 * torch.randn(known.shape, generator=torch.Generator().manual_seed(0)) * bool(flat)
    for student, teacher in ((same.to(kind), known), (known, same.to(kind)), (same.to(kind), same.to(kind))):
        student = student.clone().requires_grad_()
        for x, y, over in ((student, teacher, (1,)), (student, teacher, (0, 2, 3))):
            found = correlation(x.softmax(1), y.softmax(1), over)
            (gradient,) = torch.autograd.grad(found.sum(), student)
            assert found.abs().max() == 0 and gradient.abs().max() == 0
