"""text against its equations written out in float64, values and gradients, and what keeps its two projections from agreeing on nothing."""

import pytest
import torch
from pydantic import ValidationError

from stages.kd import Pair
from stages.kd._step import Step
from stages.kd.text.loss import Read, directions
from tests.stages.kd_cases import row_of

S, T, D = 6, 8, 13  # widths of the student's head, the teacher's, and of language: read from its own channels, and in the language


def gen(seed):
    return torch.Generator().manual_seed(seed)


def language(classes, seed=0):
    """Unit rows around a common direction, as those of CLIP are."""
    rows = torch.randn(classes, D, generator=gen(seed), dtype=torch.float64) + 2 * torch.ones(D, dtype=torch.float64)
    return rows / rows.square().sum(1, keepdim=True).sqrt()


def made(settings, classes, seed=3):
    torch.manual_seed(seed)
    module = row_of({"kind": "text", "least": 2, **settings}).build(Pair({"head": S}, {"head": T}, classes, language(classes)))
    return module.double()


def scene(classes, student=(7, 9), teacher=(5, 6), labels=(21, 27), b=2):
    """Heads (float64, the student's with a gradient) and labels in patches, a seventh of them ignored."""
    heads = [torch.randn(b, w, *size, generator=gen(s), dtype=torch.float64).relu() for w, size, s in ((S, student, 1), (T, teacher, 2))]
    shown = min(classes, 4)
    y = torch.randint(0, shown, (b, -(-labels[0] // 7), -(-labels[1] // 9)), generator=gen(4), dtype=torch.uint8) * (
        (classes - 1) // shown + 1
    )
    y = y.clamp(max=classes - 1).repeat_interleave(7, 1).repeat_interleave(9, 2)[:, : labels[0], : labels[1]].contiguous()
    y[0, :8, :14] = 255
    return heads[0].requires_grad_(), heads[1], y


def step(student, teacher, y, progress=0.5, classes=5, **more):
    logits = torch.zeros(len(y), classes, 1, 1)  # only how many there are is asked for
    return Step({"head": student, "logits": logits}, {"head": teacher}, y, progress=progress, **more)


# The equations, pixel by pixel.


def softmax(v):
    e = (v - v.max()).exp()
    return e / e.sum()


def kl(p, q):
    return sum(a * (a / b).log() for a, b in zip(p, q, strict=True) if a > 0)


def direction(v):
    n = v.square().sum().sqrt()
    return v / n if n > 1e-6 else torch.zeros_like(v)


def middle_labels(y, size):
    """The label in the middle of each cell."""
    rows, columns = ([int((i + 0.5) * y.shape[d] / n) for i in range(n)] for d, n in ((1, size[0]), (2, size[1])))
    return y[:, rows][:, :, columns].long()


def resized(maps, size, corners):
    """Bilinear, along one side after the other."""

    def matrix(n_in, n_out):
        m = torch.zeros(n_out, n_in, dtype=torch.float64)
        for i in range(n_out):
            at = i * (n_in - 1) / (n_out - 1) if corners else min(max((i + 0.5) * n_in / n_out - 0.5, 0), n_in - 1)
            low = min(int(at), n_in - 2)
            m[i, low] += 1 - (at - low)
            m[i, low + 1] += at - low
        return m

    return matrix(maps.shape[2], size[0]) @ maps @ matrix(maps.shape[3], size[1]).T


def expected(row, text, weights, heads, y, corners=False):
    centred = text - text.mean(0) if row.center else text
    E = torch.stack([direction(r) for r in centred])
    K, B = len(E), len(y)
    units, maps, ys = [], [], []
    for w, f in zip(weights, heads, strict=True):
        u = torch.stack([torch.stack([direction(w[:, :, 0, 0] @ x) for x in image.flatten(1).T], 1) for image in f])  # (B, D, P)
        units.append(u)
        maps.append((E @ u / 0.07).view(B, K, *f.shape[2:]))
        ys.append(middle_labels(y, f.shape[2:]))
    terms = {"text_align": 0, "text_channel": 0, "text_region": 0}
    for m, label in zip(maps, ys, strict=True):
        places = [(b, i, j) for b in range(B) for i in range(m.shape[2]) for j in range(m.shape[3]) if label[b, i, j] != 255]
        terms["text_align"] += sum(-softmax(m[b, :, i, j])[label[b, i, j]].log() for b, i, j in places) / len(places)
    t, (student, teacher) = row.temperature, (resized(maps[0], maps[1].shape[2:], corners), maps[1].detach())
    for b in range(B):
        seen = ys[1][b] != 255
        for k in range(K):
            w = 1 if (y[b] == k).any() else row.absent
            terms["text_channel"] += w * t**2 / (B * K) * kl(softmax(teacher[b, k][seen] / t), softmax(student[b, k][seen] / t))
    t, found = row.region_temperature, []
    for b in range(B):
        for k in range(K):
            inside = [label[b].flatten() == k for label in ys]
            if min(int(m.sum()) for m in inside) < row.least:
                continue
            q_s, q_t = (softmax(E @ direction(u[b][:, m].mean(1)) / 0.07 / t) for u, m in zip(units, inside, strict=True))
            q_t = (1 - row.prior) * q_t + row.prior * softmax(text @ text[k] / 0.05) if row.prior else q_t
            found.append(kl(q_t.detach(), q_s))
    assert found
    terms["text_region"] = t**2 * sum(found) / len(found)
    return terms


CASES = [  # classes, settings, align_corners
    (2, {}, True),
    (5, {"prior": 0.1, "absent": 0.2}, False),
    (11, {"center": False, "temperature": 1.0, "region_temperature": 1.0}, True),
    (19, {"absent": 0.2, "least": 4}, False),
    (21, {"prior": 0.1, "region_temperature": 3.0}, False),
    (150, {"absent": 0.0}, False),
]


@pytest.mark.parametrize(("classes", "settings", "corners"), CASES, ids=str)
def test_every_term_is_its_equation_with_its_gradients(classes, settings, corners):
    module, (student, teacher, y) = made(settings, classes), scene(classes)
    weights = [module.student.weight, module.teacher.weight]
    found = module(step(student, teacher, y, classes=classes, align_corners=corners))
    reference = expected(module.row, language(classes), weights, (student, teacher), y, corners)
    assert {n: w for n, (_, w) in found.items()} == {"text_align": 0.4, "text_channel": 1.0, "text_region": 1.0}
    for name, (term, _) in found.items():
        torch.testing.assert_close(term, reference[name], rtol=1e-6, atol=1e-12)
        gradients = [torch.autograd.grad(v, [student, *weights], allow_unused=True, retain_graph=True) for v in (term, reference[name])]
        for ours, theirs in zip(*gradients, strict=True):
            if theirs is None:
                assert ours is None, name
            else:
                torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9 * float(theirs.abs().max()) + 1e-13)


def test_in_float32_the_compiled_kernels_say_the_same():
    module, (student, teacher, y) = made({"prior": 0.1}, 11), scene(11)
    exact = module(step(student, teacher, y))
    module.float()
    y_none = y.clone()
    y_none[1] = 255  # an image without any label
    for name, (term, _) in module(step(student.float(), teacher.float(), y)).items():
        assert term.dtype == torch.float32 and term.item() == pytest.approx(exact[name][0].item(), rel=1e-5), name
    for labels in (y_none, torch.full_like(y, 255)):
        total = sum(term for term, _ in module(step(student.float(), teacher.float(), labels)).values())
        gradients = torch.autograd.grad(total, [student, module.student.weight, module.teacher.weight])
        assert total.isfinite() and all(g.isfinite().all() for g in gradients)
    assert total.item() == 0


# What keeps it honest.


def test_the_teachers_projection_learns_from_its_own_labels_alone():
    module, (student, teacher, y) = made({"prior": 0.1}, 5), scene(5)
    terms = {name: term for name, (term, _) in module(step(student, teacher, y)).items()}
    for name in ("text_channel", "text_region"):
        weights = (module.student.weight, module.teacher.weight)
        ours, theirs = torch.autograd.grad(terms[name], weights, allow_unused=True, retain_graph=True)
        assert ours.abs().max() > 0 and (theirs is None or theirs.abs().max() == 0), name
    assert torch.autograd.grad(terms["text_align"], module.teacher.weight)[0].abs().max() > 0


def test_training_the_projections_makes_both_read_and_neither_collapse():
    """Colours tell the classes: after some steps both networks name regions rightly, and the maps are not flat."""
    classes, rng = 5, gen(7)
    y = torch.randint(0, classes, (2, 6, 8), generator=rng, dtype=torch.uint8)
    colours = [torch.rand(classes, w, generator=rng) for w in (S, T)]
    heads = [(c[y.long()] + 0.05 * torch.rand(*y.shape, c.shape[1], generator=rng)).permute(0, 3, 1, 2).double() for c in colours]
    module = made({}, classes)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(150):
        terms = module(step(*heads, y))
        optimizer.zero_grad()
        sum(weight * term for term, weight in terms.values()).backward()
        optimizer.step()
    for f, conv in zip(heads, (module.student, module.teacher), strict=True):
        maps = Read(f, conv.weight.flatten(1), module.names).map
        assert (maps.argmax(1) == y).float().mean() > 0.9 and maps.flatten(2).std(2).min() > 0.5
    assert terms["text_region"][0] < 0.1


def test_a_narrow_head_never_writes_vectors_of_the_language_and_says_the_same():
    f, y = torch.randn(2, 5, 6, 7, generator=gen(1), dtype=torch.float64), torch.randint(0, 3, (2, 6, 7), generator=gen(2))
    weight = torch.randn(40, 5, generator=gen(3), dtype=torch.float64)
    names = directions(torch.randn(3, 40, generator=gen(4), dtype=torch.float64), True)
    wide = torch.cat([weight, torch.zeros(40, 60, dtype=torch.float64)], 1)  # the same function of five channels among 65
    both = Read(f, weight, names), Read(torch.cat([f, torch.zeros(2, 60, 6, 7, dtype=torch.float64)], 1), wide, names)
    assert [one.vectors.shape[1] for one in both] == [5, 40]
    torch.testing.assert_close(both[0].map, both[1].map, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(both[0].regions(y), both[1].regions(y), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["text_align", "text_channel", "text_region"])
def test_what_lies_under_ignored_labels_changes_nothing(name):
    module = made({"absent": 0.2}, 5)
    student, teacher, y = scene(5, student=(21, 27), teacher=(21, 27))
    hidden = (y == 255)[:, None]
    other = [torch.where(hidden, torch.rand_like(f) * 9, f.detach()) for f in (student, teacher)]
    assert hidden.any() and module(step(student, teacher, y))[name][0].item() == pytest.approx(
        module(step(*other, y))[name][0].item(), rel=1e-12
    )


def test_only_the_direction_of_a_feature_counts_and_one_without_any_gets_no_gradient():
    module, (student, teacher, y) = made({}, 5), scene(5)
    one, three = ([float(t) for t, _ in module(step(k * student, k * teacher, y)).values()] for k in (1, 3))
    assert one == pytest.approx(three, rel=1e-12)
    dead = student.detach().clone()
    dead[0, :, 6, 8] = 0
    dead.requires_grad_()
    sum(t for t, _ in module(step(dead, teacher, y)).values()).backward()
    assert dead.grad[0, :, 6, 8].abs().max() == 0 and dead.grad.isfinite().all() and dead.grad[0, :, 6, 7].abs().max() > 0


def test_centred_names_stand_apart_and_do_not_know_what_was_common():
    text = language(11)

    def likeness(e):
        return float((e @ e.T)[~torch.eye(len(e), dtype=torch.bool)].mean())

    centred = directions(text, True)
    assert likeness(directions(text, False)) > 0.5 and abs(likeness(centred)) < 0.12
    torch.testing.assert_close(directions(text + 3 * torch.randn(1, D, generator=gen(5), dtype=torch.float64), True), centred)
    torch.testing.assert_close(centred.square().sum(1), torch.ones(11, dtype=torch.float64))
    assert directions(text[:1].expand(4, D), True).abs().max() < 1e-3  # names that are all alike say nothing, and stay finite


@pytest.mark.parametrize(("least", "counts"), [(16, True), (17, False)])
def test_a_region_needs_so_many_cells_on_both_grids(least, counts):
    student, teacher = (torch.rand(1, w, *size, generator=gen(w), dtype=torch.float64) for w, size in ((S, (8, 8)), (T, (4, 4))))
    y = torch.zeros(1, 32, 32, dtype=torch.uint8)  # 64 cells of the student's grid, 16 of the teacher's
    term = made({"least": least}, 5)(step(student, teacher, y))["text_region"][0]
    assert (float(term) > 0) == counts and term.requires_grad


def test_a_class_that_an_image_does_not_show_weighs_less():
    student, teacher, y = scene(5)
    y[:] = 2
    whole, none, fifth = (float(made({"absent": w}, 5)(step(student, teacher, y))["text_channel"][0]) for w in (1.0, 0.0, 0.2))
    assert 0 < none < whole and fifth == pytest.approx(none + 0.2 * (whole - none), rel=1e-9)


def test_it_only_learns_to_read_at_first_and_then_teaches_more_and_more():
    module, heads = made({"warmup": 0.2, "ramp": 0.4}, 5), scene(5)
    terms = {p: {n: float(t) for n, (t, _) in module(step(*heads, progress=p)).items()} for p in (0.0, 0.19, 0.2, 0.4, 0.6, 0.99)}
    for name in ("text_channel", "text_region"):
        shares = [terms[p][name] / terms[0.99][name] for p in terms]
        assert shares == pytest.approx([0, 0, 0, 0.5, 1, 1])
    assert len({t["text_align"] for t in terms.values()}) == 1


def test_a_term_without_weight_is_left_out():
    heads = scene(5)
    assert list(made({"channel_weight": 0.0}, 5)(step(*heads))) == ["text_align", "text_region"]
    assert list(made({"region_weight": 0.0}, 5)(step(*heads))) == ["text_align", "text_channel"]


def test_it_learns_to_read_first_whenever_it_begins():
    module, heads = made({"warmup": 0.1, "ramp": 0.2, "when": {"start": 0.5}}, 5), scene(5)
    found = [float(module(step(*heads, progress=p))["text_channel"][0]) for p in (0.5, 0.59, 0.7, 0.81)]
    assert found[:2] == [0, 0] and found[2] == pytest.approx(found[3] / 2)


@pytest.mark.parametrize(
    "settings",
    [{"when": {"end": 0.02}}, {"when": {"start": 0.96}}, {"warmup": 0.7, "ramp": 0.4}, {"warmup": 1.0, "ramp": 0.0}, {"align_weight": 0.0}],
)
def test_a_schedule_that_never_ends_and_a_missing_anchor_are_refused(settings):
    with pytest.raises(ValidationError):
        row_of({"kind": "text", **settings})
