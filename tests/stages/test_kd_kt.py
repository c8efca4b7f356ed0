"""kt against its equations in float64, written out per image, channel and row, at the labels' resolution where the method works at less."""

import pytest
import torch
from torch.nn.functional import interpolate

from stages.kd import Pair
from stages.kd.kt.loss import parted
from tests.stages.kd_cases import row_of, step_for

HEADS = (3, 4)  # channels of the student's and the teacher's head
FULL = {"kind": "kt", "channel": 0.5, "logit": 0.7, "feature": 1.5, "contrast": 2.0}


def nets(classes, size=(5, 7), teacher_size=None, aux=True, b=2, seed=0):
    """float64 taps of a student, which want gradients, and of a teacher; features lie about as far apart as the margin is wide."""
    g = torch.Generator().manual_seed(seed)

    def net(width, size):
        maps = {"logits": classes, "head": width} | ({"aux": classes} if aux else {})
        made = {tap: 3 * torch.randn(b, n, *size, generator=g, dtype=torch.float64) for tap, n in maps.items()}
        return made | {"head": made["head"].relu()}

    student, teacher = net(HEADS[0], size), net(HEADS[1], teacher_size or size)
    return {tap: v.requires_grad_() for tap, v in student.items()}, teacher


def labels(classes, size, b=2):
    y = torch.randint(0, classes, (b, *size), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    y[0, : size[0] // 3] = 255
    return y


def module_for(settings, classes, trainable=True, aux=True):
    row = row_of(settings | {"trainable": trainable})
    widths = [{"logits": classes, "head": width} | ({"aux": classes} if aux else {}) for width in HEADS]
    torch.manual_seed(7)
    module = row.build(Pair(*widths, classes)).double()
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(4)  # as drawn they make all so small that no two maps lie apart
    return row, module


# The equations.


def kl_of_rows(t, s, temperature):
    """KL(softmax(t / T) || softmax(s / T)) of two rows of pixels."""
    p, q = (torch.exp(v / temperature) / torch.exp(v / temperature).sum() for v in (t, s))
    return (p * (p / q).log()).sum()


def ckl(t, s, temperature):
    b, c = s.shape[:2]
    rows = [kl_of_rows(t[n, k].flatten(), s[n, k].flatten(), temperature) for n in range(b) for k in range(c)]
    return temperature**2 / (b * c) * sum(rows)


def tailored_logits(student, teacher, y, temperature):
    """Section by section as the paper's code does it: upsample, loop over images and classes, mask."""

    def tailored(z, of_class):
        positive = of_class & (z > 0)
        mu = z[positive].mean() if positive.any() else torch.tensor(-torch.inf, dtype=z.dtype)
        nu = z[~of_class].sum() / z.numel()
        return torch.where(of_class, torch.maximum(z, mu), torch.minimum(z, nu))

    s, t = (interpolate(z, y.shape[-2:], mode="nearest") for z in (student, teacher))
    total = 0
    for n in range(s.shape[0]):
        for c in range(s.shape[1]):
            row_s, row_t, of_class = s[n, c].flatten(), t[n, c].flatten(), (y[n] == c).flatten()
            cut_s, cut_t = tailored(row_s, of_class), tailored(row_t, of_class)
            total = total + kl_of_rows(cut_t, row_s, temperature)
            total = total + kl_of_rows(cut_t * of_class, cut_s * of_class, temperature)
            total = total + kl_of_rows(cut_t * ~of_class, cut_s * ~of_class, temperature)
    return temperature**2 / (s.shape[0] * s.shape[1]) * total


def net_of(weights, name, maps):
    """A 1x1 network as matrices on (c, P)."""
    for i in (0, 2, 4):
        maps = weights[f"{name}.{i}.weight"][:, :, 0, 0] @ maps + weights[f"{name}.{i}.bias"][:, None]
        maps = maps.relu() if i < 4 else maps
    return maps


def tailored_features(student, teacher, weights, early, temperature):
    """kt_feature and kt_contrast."""
    (b, _, h, w), feature, hinges = student.shape, 0, []
    for n in range(b):
        f, d = student[n].flatten(1), teacher[n].flatten(1)
        m = torch.stack([torch.stack([a @ e / (a.norm() * e.norm()) for e in d]) for a in f])
        name, high, low = ("lift", m.T @ f, (1 - m.T) @ f) if early else ("cut", m @ d, (1 - m) @ d)
        near, far = net_of(weights, name, high), net_of(weights, name, low)
        leads, follows = (d, near) if early else (near.detach(), f)
        feature = feature + ckl(leads[None], follows[None], temperature) / b
        anchor = weights["reach.weight"][:, :, 0, 0] @ f if early else f
        for a, p, q in zip(*(v.reshape(-1, h, w) for v in (anchor, near, far)), strict=True):
            for row in range(h):
                near_by, far_off = (((a[row] - other[row] + 1e-7) ** 2).sum().sqrt() for other in (p, q))
                hinges.append((near_by - far_off + 1).clamp(min=0))
    assert 0 < sum(hinge == 0 for hinge in hinges) < len(hinges), "a case where some rows are far apart and some are not"
    return feature, sum(hinges) / len(hinges)


def expected(student, teacher, y, weights, early, temperature, align_corners=False):
    size = student["head"].shape[-2:]
    teacher = {tap: interpolate(v, size, mode="bilinear", align_corners=align_corners) for tap, v in teacher.items()}
    found = {"kt_channel": ckl(teacher["logits"], student["logits"], temperature)}
    if "aux" in student:
        found["kt_channel"] = found["kt_channel"] + 0.4 * ckl(teacher["aux"], student["aux"], temperature)
    found["kt_logit"] = tailored_logits(student["logits"], teacher["logits"], y, temperature)
    found["kt_feature"], found["kt_contrast"] = tailored_features(student["head"], teacher["head"], weights, early, temperature)
    return found


CASES = [  # classes, the logits' size, the teacher's, the labels', temperature, a head more, the teacher's rule of enlarging
    (2, (5, 7), (5, 7), (20, 28), 4.0, True, False),
    (5, (5, 7), (3, 4), (21, 30), 1.0, True, True),
    (11, (4, 5), (7, 9), (17, 19), 4.0, False, False),
    (19, (5, 7), (3, 4), (23, 31), 2.0, True, True),
    (21, (3, 3), (3, 3), (12, 12), 4.0, False, False),
    (150, (3, 5), (4, 3), (9, 15), 4.0, False, False),
]


@pytest.mark.parametrize("progress", [0.0, 0.9], ids=["lifted", "cut"])
@pytest.mark.parametrize(
    ("classes", "size", "teacher_size", "at", "temperature", "aux", "align"), CASES, ids=[str(case[0]) for case in CASES]
)
def test_every_term_is_its_equation_in_value_and_gradient(classes, size, teacher_size, at, temperature, aux, align, progress):
    row, module = module_for(FULL | {"temperature": temperature}, classes, aux=aux)
    student, teacher = nets(classes, size, teacher_size, aux, seed=classes)
    y = labels(classes, at)
    step = step_for(row, student, teacher, y, progress, teacher_align_corners=align)
    found = module(step)
    weights = dict(module.named_parameters())
    wanted = expected(student, teacher, y, weights, progress < 0.25, temperature, align)
    assert {name: weight for name, (_, weight) in found.items()} == {f"kt_{name}": FULL[name] for name in FULL if name != "kind"}
    variables = [*student.values(), *weights.values()]
    for name, value in wanted.items():
        term = found[name][0]
        assert term.item() == pytest.approx(value.item(), rel=1e-9), name
        grads = [torch.autograd.grad(v, variables, retain_graph=True, allow_unused=True, materialize_grads=True) for v in (term, value)]
        for got, want in zip(*grads, strict=True):
            assert (got - want).abs().max() <= 1e-8 * want.abs().max() + 1e-14, name


# What follows from the equations.


def terms_of(module, row, student, teacher, y, progress=0.5):
    return {name: term for name, (term, _) in module(step_for(row, student, teacher, y, progress)).items()}


def test_the_alike_part_and_the_rest_add_up_to_the_sum_over_channels():
    likeness, features = torch.rand(2, 3, 4, dtype=torch.float64), torch.rand(2, 4, 5, 7, dtype=torch.float64)
    high, low = parted(likeness, features)
    torch.testing.assert_close(high + low, features.sum(1, keepdim=True).expand(2, 3, 5, 7))
    torch.testing.assert_close(low.flatten(2), (1 - likeness) @ features.flatten(2))


def test_the_student_is_no_longer_lifted_from_the_very_step_of_the_switch():
    row, module = module_for(FULL, 5)
    student, teacher = nets(5)
    y = labels(5, (20, 28))
    first, last, ninth, tenth = ((terms_of(module, row, student, teacher, y, p)) for p in (0.0, 0.99, 9 / 40, 10 / 40))
    assert ninth == first and tenth == last and first["kt_feature"] != last["kt_feature"] and first["kt_logit"] == last["kt_logit"]


def test_a_student_equal_to_its_teacher_still_learns_from_the_labels():
    row, module = module_for({"kind": "kt"}, 5)
    student, _ = nets(5)
    y, teacher = labels(5, (20, 28)), nets(5)[1] | {tap: student[tap] for tap in ("logits", "aux")}
    terms = terms_of(module, row, student, teacher, y)
    assert abs(terms["kt_channel"].item()) < 1e-12 and terms["kt_logit"].item() > 0.1


def test_a_constant_on_a_class_changes_what_masks_with_zeros_only():
    row, module = module_for({"kind": "kt"}, 5)
    student, teacher = nets(5)
    y = labels(5, (20, 28))
    before = terms_of(module, row, student, teacher, y)
    raised = student | {"logits": student["logits"] + torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None, None]}
    after = terms_of(module, row, raised, teacher, y)
    assert after["kt_channel"].item() == pytest.approx(before["kt_channel"].item(), rel=1e-9)
    assert after["kt_logit"].item() != pytest.approx(before["kt_logit"].item(), rel=1e-3)


def test_tailoring_networks_stay_as_drawn_unless_they_are_to_be_trained():
    fixed, learns = (module_for({"kind": "kt"}, 5, trainable)[1] for trainable in (False, True))
    assert not any(p.requires_grad for p in fixed.parameters()) and all(p.requires_grad for p in learns.parameters())
    assert fixed.state_dict().keys() == learns.state_dict().keys()  # saved either way: another draw would be another loss
    student, teacher = nets(5)
    y = labels(5, (20, 28))
    for progress in (0.0, 0.9):
        one, two = (terms_of(module, row_of({"kind": "kt"}), student, teacher, y, progress) for module in (fixed, learns))
        assert one == two


def test_a_channel_that_is_dead_everywhere_is_alike_to_none_and_gets_no_gradient_for_it():
    row, module = module_for({"kind": "kt", "channel": 0.0, "logit": 0.0, "feature": 0.0}, 5)
    student, teacher = nets(5)
    head = student["head"].detach().clone()
    head[0, 1] = 0
    head.requires_grad_()
    for progress in (0.0, 0.9):
        terms_of(module, row, student | {"head": head}, teacher, labels(5, (20, 28)), progress)["kt_contrast"].backward()
    assert head.grad.isfinite().all() and head.grad.abs().max() < 10


def test_a_weight_of_zero_leaves_a_term_out_and_what_only_it_needs():
    row, module = module_for({"kind": "kt", "feature": 0.0, "contrast": 0.0}, 5)
    student, teacher = nets(5)
    del student["head"], teacher["head"]
    assert list(terms_of(module, row, student, teacher, labels(5, (20, 28)))) == ["kt_channel", "kt_logit"]
    assert not list(module.parameters())


def test_auxiliary_logits_count_only_where_both_networks_have_them():
    row = row_of({"kind": "kt", "logit": 0.0, "feature": 0.0, "contrast": 0.0})
    student, teacher = nets(5)
    with_aux = row.build(Pair({"logits": 5, "aux": 5}, {"logits": 5, "aux": 5}, 5))
    without = row.build(Pair({"logits": 5, "aux": 5}, {"logits": 5}, 5))
    y = labels(5, (20, 28))
    difference = terms_of(with_aux, row, student, teacher, y)["kt_channel"] - terms_of(without, row, student, teacher, y)["kt_channel"]
    assert difference.item() == pytest.approx(0.4 * ckl(teacher["aux"], student["aux"], 4.0).item(), rel=1e-9)


def test_without_any_weight_it_is_refused():
    with pytest.raises(ValueError, match="channel, logit, feature, contrast are all 0, so that nothing is left of kt"):
        row_of({"kind": "kt", "channel": 0, "logit": 0, "feature": 0, "contrast": 0})
