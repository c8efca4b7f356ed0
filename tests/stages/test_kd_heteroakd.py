"""heteroakd against its equations in float64, from the networks' features on, and what those equations promise."""

import math

import pytest
import torch
from torch.nn.functional import logsigmoid
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.heteroakd_px import heteroakd_px
from kernels.heteroakd_px.reference import mixture
from stages.kd import Pair
from stages.kd._step import Step
from tests.stages.kd_cases import TEACHER, built, labels, row_of, step_for, taps

B = 2


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def case(classes, settings):
    """A row, its module in float64 with weights and taps that need gradients, and a step: other widths and strides, odd sizes."""
    row = row_of({"kind": "heteroakd", **settings})
    torch.manual_seed(0)
    module = row.build(Pair({"c4": 6}, {"c4": 9}, classes)).double()
    with torch.no_grad():
        for number, p in enumerate(module.parameters()):
            p.add_(normal(number, *p.shape) / 3)
    student = {"c4": normal(10, B, 6, 3, 4).relu().requires_grad_(), "logits": normal(11, B, classes, 7, 9).requires_grad_()}
    teacher = {"c4": normal(12, B, 9, 5, 7).relu(), "logits": normal(13, B, classes, 6, 11) * 2}
    y = torch.randint(0, classes, (B, 29, 41), generator=torch.Generator().manual_seed(14), dtype=torch.uint8)
    y[torch.rand(y.shape, generator=torch.Generator().manual_seed(15)) < 0.3] = 255
    y[0, :11, :12] = 255  # covers a whole cell
    return module, student, teacher, y


# The equations.


def resized(maps, size):
    """Bilinear, with the centres of both grids' pixels spread evenly."""

    def axis(n, to):
        weights = torch.zeros(to, n, dtype=torch.float64)
        for i in range(to):
            at = max(0.0, (i + 0.5) * n / to - 0.5)
            low = min(int(at), n - 1)
            weights[i, low] += 1 - (at - low)
            weights[i, min(low + 1, n - 1)] += at - low
        return weights

    return torch.einsum("ih,jw,bchw->bcij", axis(maps.shape[2], size[0]), axis(maps.shape[3], size[1]), maps)


def shares_of(y, classes, size, down):
    """(B, C, h, w): one-hot of the middle label of a cell, or shares of its labelled pixels; all 0 where there is none."""
    found = torch.zeros(y.shape[0], classes, *size, dtype=torch.float64)
    for b in range(y.shape[0]):
        for r in range(y.shape[1]):
            for c in range(y.shape[2]):
                cell = r * size[0] // y.shape[1], c * size[1] // y.shape[2]
                middle = tuple(math.floor((i + 0.5) * n / m) for i, n, m in zip(cell, y.shape[1:], size, strict=True))
                if y[b, r, c] != 255 and (down == "area" or (r, c) == middle):
                    found[b, int(y[b, r, c]), cell[0], cell[1]] += 1
    return found / found.sum(1, keepdim=True).clamp(min=1)


def projected(features, sequence, relu):
    kernel, gamma, beta = list(sequence.parameters())
    z = torch.einsum("cd,bdhw->bchw", kernel[:, :, 0, 0], features)
    mean = z.mean((0, 2, 3), keepdim=True)
    z = (z - mean) / (((z - mean) ** 2).mean((0, 2, 3), keepdim=True) + 1e-5).sqrt() * gamma[:, None, None] + beta[:, None, None]
    return z.relu() if relu else z


def by_hand(module, student, teacher, y, *, temperature, form, label_down, projector_relu):
    classes, size = student["logits"].shape[1], student["c4"].shape[-2:]
    z_s = projected(student["c4"], module.student, projector_relu)
    z_t = resized(projected(teacher["c4"], module.teacher, projector_relu), size)
    target = shares_of(y, classes, size, label_down)
    main, proj, cells = 0.0, 0.0, 0
    for b in range(B):
        for i in range(size[0]):
            for j in range(size[1]):
                goal = target[b, :, i, j]
                if goal.sum() > 0:
                    main = main + one_cell(z_s[b, :, i, j], z_t[b, :, i, j].detach(), goal, temperature, form)
                    proj = proj - sum((goal * z[b, :, i, j].log_softmax(0)).sum() for z in (z_s, z_t))
                    cells += 1
    u, x = teacher["logits"].log_softmax(1), resized(student["logits"], teacher["logits"].shape[-2:]).log_softmax(1)
    terms = {"heteroakd": temperature**2 * main / cells, "heteroakd_proj": proj / cells}
    return terms | {"heteroakd_pixel": (u.exp() * (u - x)).sum(1).mean()}


def one_cell(x, u, goal, temperature, form):
    def h(z):
        return -goal * logsigmoid(z) - (1 - goal) * logsigmoid(-z)

    with torch.no_grad():
        s = h(x) / (h(x) + h(u) + 1e-6)
        z = s * u + (1 - s) * x
        omega = (h(x) + (h(x) - h(z)).relu()).softmax(0)
    if form == "wce":
        return -(omega * (z / temperature).softmax(0) * (x / temperature).log_softmax(0)).sum()
    a, b = (z / temperature).sigmoid(), (x / temperature).sigmoid()
    return (omega * (a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log())).sum()


CASES = [
    (2, {"form": "wce", "temperature": 4.0, "label_down": "area", "projector_relu": False}),
    (5, {"form": "bernoulli", "temperature": 1.0, "label_down": "nearest", "projector_relu": False}),
    (11, {"form": "wce", "temperature": 1.0, "label_down": "nearest", "projector_relu": True}),
    (19, {"form": "bernoulli", "temperature": 4.0, "label_down": "area", "projector_relu": False}),
    (21, {"form": "wce", "temperature": 4.0, "label_down": "nearest", "projector_relu": False}),
    (150, {"form": "wce", "temperature": 2.0, "label_down": "area", "projector_relu": False}),
]


@pytest.mark.parametrize(("classes", "settings"), CASES, ids=[f"{c} {s['form']} {s['label_down']}" for c, s in CASES])
def test_every_term_and_its_gradients_equal_the_equations(classes, settings):
    module, student, teacher, y = case(classes, settings)
    leaves = [*student.values(), *module.parameters()]
    found = module(Step(student, teacher, y, progress=0.5))
    expected = by_hand(module, student, teacher, y, **settings)
    assert {name: weight for name, (_, weight) in found.items()} == {"heteroakd": 1.0, "heteroakd_proj": 1.0, "heteroakd_pixel": 0.1}
    for name, (term, _) in found.items():
        torch.testing.assert_close(term, expected[name], rtol=1e-9, atol=1e-12)
        one, two = (torch.autograd.grad(t, leaves, retain_graph=True, allow_unused=True) for t in (term, expected[name]))
        for a, b in zip(one, two, strict=True):
            assert (a is None) == (b is None), name
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-10)


# Who teaches whom, and when.


def test_the_teachers_projector_learns_from_labels_alone():
    module, student, teacher, y = case(5, {})
    terms = module(Step(student, teacher, y, progress=0.5))
    for name, (term, _) in terms.items():
        grads = torch.autograd.grad(term, list(module.teacher.parameters()), retain_graph=True, allow_unused=True)
        assert all((g is not None and g.any()) == (name == "heteroakd_proj") for g in grads), name


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        ({}, {0.0: 0, 0.049: 0, 0.0625: 0.5, 0.075: 1, 0.99: 1}),
        ({"warm_up": 0.0, "ramp": 0.0}, {0.0: 1, 0.5: 1}),
        ({"when": {"start": 0.5}}, {0.1: 0, 0.54: 0, 0.5625: 0.5, 0.6: 1}),  # projectors that do not count yet have not learned
    ],
    ids=str,
)
def test_the_mixture_waits_until_the_projectors_have_learned(settings, factors):
    module, *taps_and_labels = case(5, settings)
    full = {name: float(term.detach()) for name, (term, _) in module(Step(*taps_and_labels, progress=0.999)).items()}
    for progress, factor in factors.items():
        found = {name: float(term.detach()) for name, (term, _) in module(Step(*taps_and_labels, progress=progress)).items()}
        assert found == pytest.approx(full | {"heteroakd": factor * full["heteroakd"]}), progress


def test_a_mixture_that_would_never_count_is_refused():
    with pytest.raises(ValueError, match=r"when.start 0.9 \+ warm_up 0.08 \+ ramp 0.025 must lie before when.end 1.0"):
        row_of({"kind": "heteroakd", "when": {"start": 0.9}, "warm_up": 0.08})


def test_without_the_plain_kl_nothing_of_it_is_left():
    row, module = built({"kind": "heteroakd", "pixel_weight": 0.0})
    assert list(module(step_for(row, taps(1), taps(2, TEACHER)))) == ["heteroakd", "heteroakd_proj"]


def test_an_ignored_pixel_speaks_against_no_class():
    row, module = built({"kind": "heteroakd"})
    y = torch.full((B, 128, 192), 3, dtype=torch.uint8)
    few = y.clone()
    few[:, :, ::2] = 255
    with torch.no_grad():
        one, two = (module(step_for(row, taps(1), taps(2, TEACHER), each)) for each in (y, few))
    assert {n: float(t) for n, (t, _) in one.items()} == {n: float(t) for n, (t, _) in two.items()}


def test_shares_are_the_mean_over_a_cells_pixels_of_what_their_labels_ask():
    """Cross-entropy is linear in the labels: area asks what nearest asks on average over where it might have looked."""
    row, module = built({"kind": "heteroakd"})
    student, teacher = taps(1), taps(2, TEACHER)
    y = labels().where(labels() != 255, 0)
    with torch.no_grad():
        area = module(step_for(row, student, teacher, y))["heteroakd_proj"][0]
        each = []
        for r in range(4, 32, 8):  # labels come in patches of 8 x 8, cells are 32 x 32
            for c in range(4, 32, 8):
                one = y[:, r::32, c::32].repeat_interleave(32, 1).repeat_interleave(32, 2)
                each.append(module(step_for(row, student, teacher, one))["heteroakd_proj"][0])
    torch.testing.assert_close(area, torch.stack(each).mean())


# What the equations promise.


def reliability(z, y):
    return -y * logsigmoid(z) - (1 - y) * logsigmoid(-z)


def hard(seed, shape=(2, 11, 5, 3)):
    y = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=torch.Generator().manual_seed(seed))
    return normal(seed, *shape) * 3, normal(seed + 1, *shape) * 3, torch.nn.functional.one_hot(y, shape[1]).permute(0, 3, 1, 2).double(), y


def test_the_mixture_lies_between_both_networks():
    x, u, y, _ = hard(1)
    mixed, omega = mixture(x, u, y)
    assert (mixed >= torch.minimum(x, u) - 1e-12).all() and (mixed <= torch.maximum(x, u) + 1e-12).all()  # S is in [0, 1]
    torch.testing.assert_close(omega.sum(1), torch.ones_like(omega[:, 0]))


def test_a_teacher_without_fault_is_the_mixture():
    x, _, y, _ = hard(2)
    perfect = (2 * y - 1) * 60
    mixed, _ = mixture(x, perfect, y)
    easy = reliability(x, y) < 0.01  # there the 1e-6 that keeps S from 0 / 0 is seen
    torch.testing.assert_close(mixed[~easy], perfect[~easy], rtol=2e-4, atol=0)


def test_a_student_that_is_its_teacher_is_the_mixture_and_nothing_is_added_to_its_difficulty():
    x, _, y, _ = hard(3)
    mixed, omega = mixture(x, x, y)
    torch.testing.assert_close(mixed, x)
    torch.testing.assert_close(omega, reliability(x, y).softmax(1))


def test_with_one_label_difficulty_grows_just_where_the_teacher_is_the_more_reliable():
    x, u, y, _ = hard(4)
    mixed, _ = mixture(x, u, y)
    grows = reliability(x, y) - reliability(mixed, y) > 0
    assert torch.equal(grows, reliability(u, y) < reliability(x, y)) and 0.2 < grows.double().mean() < 0.8


def test_the_bernoulli_form_is_never_negative():
    x, u, _, y = hard(5)
    assert (heteroakd_px(x, u, y, temperature=1.0, form="bernoulli") >= 0).all()


def test_labels_as_indices_are_never_summed_by_the_operation_itself():
    """On a GPU that sum is in no fixed order, and under determinism: strict torch refuses it; term by term it does not."""
    asked = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "nll_loss" in func.overloadpacket.__name__ and "backward" not in func.overloadpacket.__name__:
                asked.append(args[3])
            return func(*args, **(kwargs or {}))

    row, module = built({"kind": "heteroakd", "label_down": "nearest"})
    with Watch():
        module(step_for(row, taps(1), taps(2, TEACHER)))
    assert asked == [0, 0]  # 0: not reduced
