"""MGD and Af-DCD against their equations in float64. Neither knows how many classes there are: only features are compared."""

import pytest
import torch
from torch.nn.functional import conv2d, relu

from pipeline.errors import BadRecipe
from stages.kd.afdcd.loss import contrast, samples
from tests.stages.kd_cases import STUDENT, TEACHER, built, labels, step_for, taps
from tests.stages.kd_double import agree

SIZE = (40, 56)  # of logits; c4 is 5 x 7


def made_by(module, student, seed):
    """The generator, written out; the mask is the first thing that is drawn."""
    generator = module.generator
    torch.manual_seed(seed)
    seen = torch.rand(len(student), 1, *student.shape[2:]) >= generator.mask
    x = conv2d(student, generator.align.weight) * seen
    *convs, last = list(generator.generate)[::2]
    for conv in convs:
        x = relu(conv2d(x, conv.weight, conv.bias, padding=1))
    return conv2d(x, last.weight, last.bias, padding=1)


@pytest.mark.parametrize("settings", [{"kind": "mgd"}, {"kind": "mgd", "hidden": 3, "mask": 0.5}, {"kind": "afdcd"}], ids=str)
def test_the_squared_error_is_a_sum_over_channels_and_pixels(settings):
    row, module = built(settings)
    module.double()
    student, teacher = ({"c4": t["c4"].double()} for t in (taps(1, STUDENT, SIZE), taps(2, TEACHER, SIZE)))
    student["c4"].requires_grad_()
    torch.manual_seed(5)
    terms = module(step_for(row, student, teacher, labels(size=(160, 224))))
    made = made_by(module, student["c4"], 5)
    expected = {settings["kind"]: (made - teacher["c4"]).square().sum() / 2}
    if settings["kind"] == "afdcd":
        expected["afdcd_contrast"] = cross_entropy(*(in_patches(maps, module.groups) for maps in (made, teacher["c4"])), 0.07)
    assert terms.keys() == expected.keys() and len(module.generator.generate) == {"mgd": 3, "afdcd": 7}[settings["kind"]]
    assert [weight for _, weight in terms.values()] == [row.weight, 0.005][: len(terms)]
    for name, truth in expected.items():
        agree(terms[name][0], truth, [student["c4"], *module.parameters()])


def in_patches(maps, groups):
    """Maps of 5 x 7 cells are not pooled, and hold one patch of 4 x 4 in each image."""
    return torch.stack([image[:, :4, :4].unflatten(0, (groups, -1)).flatten(2).mT for image in maps])  # patches, groups, positions, width


def cross_entropy(made, teacher, temperature):
    losses = []
    for x, u in zip(made, teacher, strict=True):
        for a in range(len(x)):
            for i in range(x.shape[1]):
                away = [-(x[a, i] - u[b, j]).abs().sum() / temperature for b in range(len(x)) for j in range(x.shape[1]) if b != a]
                own = -(x[a, i] - u[a, i]).abs().sum() / temperature
                losses.append(torch.stack([own, *away]).logsumexp(0) - own)
    return torch.stack(losses).mean()


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
    agree(contrast(made, teacher, 0.5), cross_entropy(made, teacher, 0.5), [made])


def test_a_width_without_groups_is_refused_unless_there_is_no_contrast():
    odd = TEACHER | {"c4": 7}
    with pytest.raises(BadRecipe, match="c4 of the teacher has 7 channels, an odd number, which make no groups: set contrast_weight: 0"):
        built({"kind": "afdcd"}, STUDENT, odd)
    built({"kind": "afdcd", "contrast_weight": 0.0}, STUDENT, odd)


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
