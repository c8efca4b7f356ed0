"""MGD and Af-DCD against their equations in float64."""

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d, relu

from stages.kd.afdcd.loss import contrast, samples
from tests.stages.kd_cases import STUDENT, TEACHER, built, labels, step_for, taps

SIZE = (40, 56)  # of logits; c4 is 5 x 7


def made_by(module, student, seed):
    """The generator, written out; the mask is the first thing that is drawn."""
    generator = module.generator
    torch.manual_seed(seed)
    seen = torch.rand(len(student), 1, *student.shape[2:]) >= generator.mask
    x = conv2d(student, generator.align.weight) * seen
    first, _, second = generator.generate
    return conv2d(relu(conv2d(x, first.weight, first.bias, padding=1)), second.weight, second.bias, padding=1)


@pytest.mark.parametrize("settings", [{"kind": "mgd"}, {"kind": "mgd", "hidden": 3, "mask": 0.5}, {"kind": "afdcd"}], ids=str)
def test_the_squared_error_is_a_sum_over_channels_and_pixels(settings):
    row, module = built(settings)
    module.double()
    student, teacher = ({"c4": t["c4"].double()} for t in (taps(1, STUDENT, SIZE), taps(2, TEACHER, SIZE)))
    student["c4"].requires_grad_()
    torch.manual_seed(5)
    term, weight = module(step_for(row, student, teacher, labels(size=(160, 224))))[settings["kind"]]
    expected = (made_by(module, student["c4"], 5) - teacher["c4"]).square().sum() / 2
    assert weight == row.weight and term.item() == pytest.approx(expected.item(), rel=1e-10)
    wrt = [student["c4"], *module.parameters()]
    for one, other in zip(torch.autograd.grad(term, wrt), torch.autograd.grad(expected, wrt), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-12)


def test_a_hidden_pixel_gives_the_student_no_gradient_of_its_own():
    row, module = built({"kind": "mgd", "mask": 0.75})
    student = {k: v.requires_grad_() for k, v in taps(1, STUDENT, SIZE).items()}
    torch.manual_seed(7)
    hidden = torch.rand(2, 1, 5, 7) < 0.75
    torch.manual_seed(7)
    module(step_for(row, student, taps(2, TEACHER, SIZE)))["mgd"][0].backward()
    gradients = student["c4"].grad.abs().sum(1, keepdim=True)
    assert (gradients[hidden] == 0).all() and (gradients[~hidden] > 0).all()


def test_the_contrast_is_a_cross_entropy_over_samples_of_other_groups():
    g = torch.Generator().manual_seed(0)
    made, teacher = (torch.randn(3, 4, 6, 2, dtype=torch.float64, generator=g) for _ in range(2))  # patches, groups, positions, width
    made.requires_grad_()
    found = contrast(made, teacher, 0.5)
    (grad,) = torch.autograd.grad(found, made)

    def expected(x):
        u, losses = teacher.numpy(), []
        for p, a, i in np.ndindex(3, 4, 6):
            away = [np.exp(-np.abs(x[p, a, i] - u[p, b, j]).sum() / 0.5) for b in range(4) for j in range(6) if b != a]
            own = np.exp(-np.abs(x[p, a, i] - u[p, a, i]).sum() / 0.5)
            losses.append(-np.log(own / (own + sum(away))))
        return np.mean(losses)

    x, way = made.detach().numpy(), np.random.RandomState(0).randn(*made.shape)
    assert found.item() == pytest.approx(expected(x), rel=1e-9)
    slope = (expected(x + 1e-6 * way) - expected(x - 1e-6 * way)) / 2e-6
    assert (grad.numpy() * way).sum() == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize(
    ("size", "patches", "positions", "pool"),
    [((64, 128), 4 * 8, 16, 4), ((16, 24), 1, 16, 4), ((9, 12), 1, 16, 2), ((5, 7), 1, 16, 1), ((2, 9), 2, 8, 1), ((1, 1), 1, 1, 1)],
)
def test_samples_are_the_cells_of_patches_by_groups_of_channels(size, patches, positions, pool):
    maps = torch.randn(2, 12, *size, generator=torch.Generator().manual_seed(0))
    found = samples(maps, 4)
    assert found.shape == (2 * patches, 4, positions, 3)
    pooled = torch.nn.functional.max_pool2d(maps, pool)
    assert torch.equal(found[0, 1, 0], pooled[0, 3:6, 0, 0])
    if positions == 16:
        assert torch.equal(found[0, 2, 6], pooled[0, 6:9, 1, 2])
