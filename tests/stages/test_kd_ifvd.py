"""The values of ifvd against a loop over pixels in float64."""

import pytest
import torch

from tests.stages.kd_double import GRIDS, B, agree, heads, labels, module_for, resized, step_of


def ifvd(student, teacher, y, classes):
    module = module_for({"kind": "ifvd"}, ({"head": student.shape[1]}, {"head": teacher.shape[1]}), classes)
    terms = module(step_of({"head": student}, {"head": teacher}, y))
    assert list(terms) == ["ifvd"] and terms["ifvd"][1] == 20.0 and not list(module.parameters())
    return terms["ifvd"][0]


def cosines(features, y, constant_centres=False):
    """Of every pixel of every image to the mean of its class; 1 where it has none."""
    found = []
    for b in range(B):
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                if y[b, i, j] == 255:
                    found.append(torch.ones((), dtype=torch.float64))
                    continue
                centre, f = features[b][:, y[b] == y[b, i, j]].mean(1), features[b, :, i, j]
                centre = centre.detach() if constant_centres else centre
                found.append((f * centre).sum() / (f.pow(2).sum().sqrt() * centre.pow(2).sum().sqrt()))
    return torch.stack(found)


@pytest.mark.parametrize("classes", [2, 5, 11, 19, 21, 150])
def test_ifvd_is_the_mean_squared_difference_of_cosines_to_class_centres(classes):
    student, teacher = heads((3, 4))
    y = labels(classes, (5, 7))
    truth = ((cosines(student, y) - cosines(teacher, y)) ** 2).mean()
    agree(ifvd(student, teacher, y, classes), truth, [student])


@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
def test_ifvd_looks_on_the_teachers_grid_at_the_label_in_the_middle_of_each_cell(grids):
    student, teacher = heads((3, 4), grids)
    h, w = grids[1]
    y = labels(5, (3 * h, 3 * w))
    small = y[:, 1::3, 1::3]
    truth = ((cosines(resized(student, teacher), small) - cosines(teacher, small)) ** 2).mean()
    agree(ifvd(student, teacher, y, 5), truth, [student])


def test_the_gradient_flows_through_the_centres():
    student, teacher = heads((3, 4))
    y = labels(5, (5, 7))
    (ours,) = torch.autograd.grad(ifvd(student, teacher, y, 5), student)
    (constant,) = torch.autograd.grad(((cosines(student, y, constant_centres=True) - cosines(teacher, y)) ** 2).mean(), student)
    assert (ours - constant).norm() > 0.1 * ours.norm()


def test_what_is_ignored_counts_as_a_pixel_that_agrees():
    student, teacher = heads((3, 4))
    y = labels(5, (5, 7))
    each = (cosines(student, y) - cosines(teacher, y)) ** 2
    share = (y != 255).double().mean()
    assert 0.5 < share < 0.95
    torch.testing.assert_close(ifvd(student, teacher, y, 5), share * each[y.flatten() != 255].mean())


def test_a_class_without_any_activity_gets_no_gradient_and_harms_none():
    student, teacher = heads((3, 4))
    y = labels(5, (5, 7))
    with torch.no_grad():
        student.mul_((y != 1)[:, None])
    term = ifvd(student, teacher, y, 5)
    term.backward()
    grads = student.grad.movedim(1, -1)
    assert term.isfinite() and grads.isfinite().all() and grads[y == 1].abs().max() == 0 and 0 < grads.abs().max() < 1
