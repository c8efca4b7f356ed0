"""The values of cwd at both of its places against its formula in float64."""

import pytest
import torch

from tests.stages.kd_cases import row_of
from tests.stages.kd_double import GRIDS, B, agree, heads, maps, module_for, resized, step_of


def truth(student, teacher, temperature):
    total = 0.0
    for b in range(B):
        for c in range(teacher.shape[1]):
            q, p = (torch.log_softmax(net[b, c].flatten() / temperature, 0) for net in (student, teacher))
            total = total + (p.exp() * (p - q)).sum()
    return temperature**2 * total / (B * teacher.shape[1])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("widths", [(3, 4), (5, 5)], ids=str)
def test_at_the_head_features_are_compared_in_the_teachers_width(widths, grids, temperature):
    student, teacher = heads(widths, grids)
    settings = {"kind": "cwd", "at": "head", "temperature": temperature}
    module = module_for(settings, ({"logits": 5, "head": widths[0]}, {"logits": 5, "head": widths[1]}), 5)
    terms = module(step_of({"head": student}, {"head": teacher}))
    weights = list(module.parameters())
    assert list(terms) == ["cwd"] and len(weights) == (widths[0] != widths[1])
    x = resized(student, teacher)
    x = torch.einsum("dc,bchw->bdhw", weights[0][:, :, 0, 0], x) if weights else x
    agree(terms["cwd"][0], truth(x, teacher, temperature), [student, *weights])


@pytest.mark.parametrize("classes", [2, 5, 11, 19, 21, 150])
def test_at_the_logits_nothing_is_projected(classes):
    student, teacher = maps(1, classes, (5, 7)).requires_grad_(), maps(2, classes, (5, 7))
    module = module_for({"kind": "cwd"}, ({"logits": classes, "head": 3}, {"logits": classes, "head": 4}), classes)
    assert not list(module.parameters())
    agree(module(step_of({"logits": student}, {"logits": teacher}))["cwd"][0], truth(student, teacher, 4.0), [student])


@pytest.mark.parametrize(
    ("settings", "weight"),
    [({}, 3.0), ({"at": "logits"}, 3.0), ({"at": "head"}, 50.0), ({"at": "head", "weight": 5.0}, 5.0), ({"weight": 0.3}, 0.3)],
    ids=str,
)
def test_the_weight_is_the_usual_one_of_the_place_unless_it_is_said(settings, weight):
    row = row_of({"kind": "cwd", **settings})
    assert row.weight == weight and row_of(row.model_dump()) == row


@pytest.mark.parametrize("at", ["heads", 3, [1], {}], ids=str)
def test_a_place_that_is_none_is_told(at):
    with pytest.raises(ValueError, match="'logits' or 'head'"):
        row_of({"kind": "cwd", "at": at})
