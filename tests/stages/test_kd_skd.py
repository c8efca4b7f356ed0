"""The values of skd against all pairs of nodes, written out in float64. Nothing in it depends on the number of classes."""

import pytest
import torch

from tests.stages.kd_double import GRIDS, B, agree, heads, maps, module_for, resized, step_of


def skd(student, teacher):
    module = module_for({"kind": "skd"}, ({"head": student.shape[1]}, {"head": teacher.shape[1]}), 5)
    terms = module(step_of({"head": student}, {"head": teacher}))
    assert list(terms) == ["skd"] and terms["skd"][1] == 10.0 and not list(module.parameters())
    return terms["skd"][0]


def gram(features):
    """(B, n, n): the cosines of all pairs of nodes, each the maximum of up to 2 x 2 pixels."""
    h, w = features.shape[-2:]
    nodes = [features[:, :, i : i + 2, j : j + 2].amax((2, 3)) for i in range(0, h, 2) for j in range(0, w, 2)]  # n of (B, C)
    nodes = torch.stack([node / (node**2).sum(1, keepdim=True).sqrt() for node in nodes], 2)
    return torch.einsum("bci,bcj->bij", nodes, nodes)


@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("widths", [(3, 4), (40, 50)], ids=str)
def test_skd_is_the_mean_squared_difference_of_the_likeness_of_all_pairs(widths, grids):
    student, teacher = heads(widths, grids)
    truth = ((gram(resized(student, teacher)) - gram(teacher)) ** 2).sum((1, 2))
    n = gram(teacher).shape[-1]
    agree(skd(student, teacher), truth.sum() / (B * n * n), [student])


def test_float32_is_enough_for_a_student_that_is_nearly_its_teacher():
    """Large numbers cancel: an error of 1e-7 of a mean squared cosine remains in the value, and hardly any in the gradient."""
    teacher = maps(2, 64, (32, 48), positive=True)
    student = (teacher + 0.03 * maps(1, 64, (32, 48))).abs()
    found = []
    for kind in (torch.float64, torch.float32):
        leaf = student.to(kind).requires_grad_()
        term = skd(leaf, teacher.to(kind))
        found.append((term.double().detach(), *torch.autograd.grad(term, leaf)))
    (truth, exact), (value, gradient) = found
    assert gradient.dtype == torch.float32 and 1e-6 < truth < 1e-5 and abs(value - truth) < 1e-6
    assert (gradient - exact).norm() < 1e-3 * exact.norm()


def test_a_node_without_activity_gets_no_gradient_and_harms_none():
    student, teacher = heads()
    with torch.no_grad():
        student[0, :, :2, :2] = 0
    term = skd(student, teacher)
    term.backward()
    assert term.isfinite() and student.grad.isfinite().all()
    assert student.grad[0, :, :2, :2].abs().max() == 0 and 0 < student.grad.abs().max() < 1
