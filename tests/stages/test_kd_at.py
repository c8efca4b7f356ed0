"""The values of at against its formula in float64. Nothing in it depends on the number of classes."""

import pytest
import torch

from tests.stages.kd_double import GRIDS, B, agree, heads, module_for, resized, step_of


def at(student, teacher):
    module = module_for({"kind": "at"}, ({"head": student.shape[1]}, {"head": teacher.shape[1]}), 5)
    terms = module(step_of({"head": student}, {"head": teacher}))
    assert list(terms) == ["at"] and terms["at"][1] == 1e4
    return terms["at"][0]


@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("widths", [(3, 4), (5, 5)], ids=str)
def test_at_is_the_mean_squared_difference_of_unit_maps_of_activity(widths, grids):
    student, teacher = heads(widths, grids)
    x, total = resized(student, teacher), 0.0
    for b in range(B):
        unit = []
        for net in (x[b], teacher[b]):
            energy = sum(net[c] ** 2 for c in range(len(net))) / len(net)
            unit.append(energy / (energy**2).sum().sqrt())
        total = total + ((unit[0] - unit[1]) ** 2).sum()
    agree(at(student, teacher), total / (B * teacher[0, 0].numel()), [student])


def test_neither_the_scale_nor_the_order_of_features_matters():
    student, teacher = heads((4, 4))
    truth = at(student, teacher)
    torch.testing.assert_close(at(7 * student[:, [2, 0, 3, 1]], 0.1 * teacher), truth)
    assert at(3 * teacher, teacher) < 1e-30


def test_an_image_without_any_activity_gives_a_finite_term_and_gradient():
    student, teacher = heads()
    with torch.no_grad():
        student[0] = 0
    term = at(student, teacher)
    term.backward()
    assert term.isfinite() and student.grad.isfinite().all() and student.grad[1].abs().max() > 0
