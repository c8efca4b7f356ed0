"""The values of fitnet against its formula in float64. Nothing in it depends on the number of classes."""

import pytest
import torch

from tests.stages.kd_double import GRIDS, agree, heads, module_for, resized, step_of


@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("widths", [(3, 4), (6, 2), (4, 4)], ids=str)
def test_fitnet_is_the_mean_squared_difference_in_the_teachers_width(widths, grids):
    student, teacher = heads(widths, grids)
    module = module_for({"kind": "fitnet"}, ({"head": widths[0]}, {"head": widths[1]}), 5)
    (term, weight), *others = module(step_of({"head": student}, {"head": teacher})).values()
    (w,) = list(module.parameters()) or [None]
    assert (w is None) == (widths[0] == widths[1]) and weight == 10.0 and not others
    x, total = resized(student, teacher), 0.0
    for c in range(widths[1]):
        projected = x[:, c] if w is None else sum(w[c, d, 0, 0] * x[:, d] for d in range(widths[0]))
        total = total + ((projected - teacher[:, c]) ** 2).sum()
    agree(term, total / teacher.numel(), [student] + ([] if w is None else [w]))


def test_the_projector_finds_the_teachers_features_where_a_linear_map_gives_them():
    student, _ = heads()
    teacher = torch.einsum(
        "dc,bchw->bdhw", torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), student.detach()
    )
    module = module_for({"kind": "fitnet"}, ({"head": 3}, {"head": 4}), 5)
    optimizer = torch.optim.LBFGS(module.parameters(), max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = module(step_of({"head": student.detach()}, {"head": teacher}))["fitnet"][0]
        loss.backward()
        return loss

    optimizer.step(closure)
    assert closure().item() < 1e-6
