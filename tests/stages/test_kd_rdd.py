"""rdd against its equations in float64, pixel by pixel, and what its masks and its two stages must be."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, interpolate

from pipeline.errors import BadRecipe
from stages.kd import Pair
from stages.kd._terms import Terms
from stages.models.tiny import Tiny
from stages.train import unmet
from tests.stages.kd_cases import row_of, step_for

ALL = {"logits", "aux"}


def nets(classes, size=(5, 7), teacher_size=None, aux_size=None, b=2, sharp=3.0):
    """float64 taps; the student's want gradients. `sharp` spreads confidences around the threshold for few classes and many."""
    g = torch.Generator().manual_seed(classes)
    student, teacher = (
        {tap: sharp * torch.randn(b, classes, *size, generator=g, dtype=torch.float64) for tap, size in sizes.items()}
        for sizes in ({"logits": size, "aux": aux_size or size}, {"logits": teacher_size or size, "aux": teacher_size or size})
    )
    return {tap: v.requires_grad_() for tap, v in student.items()}, teacher


def labels(classes, size=(20, 28), b=2, like=None):
    """Half at random, half as the teacher says, so that it is sure of many."""
    g = torch.Generator().manual_seed(4)
    y = torch.randint(0, classes, (b, *size), generator=g, dtype=torch.uint8)
    if like is not None:
        y = torch.where(torch.rand(y.shape, generator=g) < 0.5, interpolate(like, size, mode="bilinear").argmax(1).to(torch.uint8), y)
    y[0, : size[0] // 3] = 255
    return y


def module_for(settings, classes, student=ALL, teacher=ALL):
    row = row_of({"kind": "rdd"} | settings)
    return row, row.build(Pair(dict.fromkeys(student, classes), dict.fromkeys(teacher, classes), classes))


def terms_of(settings, classes, student, teacher, y, progress=0.5, **rules):
    row, module = module_for(settings, classes, student, teacher)
    return module(step_for(row, student, teacher, y, progress, **rules))


# The equations.


def probabilities(logits, size, align):
    up = interpolate(logits.detach(), size, mode="bilinear", align_corners=align).numpy()
    up = np.exp(up - up.max(1, keepdims=True))
    return up / up.sum(1, keepdims=True)


def hard(logits, y, align, s):
    """(B, H, W) bool, pixel by pixel."""
    p, known = probabilities(logits, y.shape[-2:], align), y.numpy() != 255
    confidence = np.ones(y.shape)
    for n, i, j in np.argwhere(known):
        confidence[n, i, j] = p[n, y[n, i, j], i, j] if s.confidence == "gt_prob" else p[n, :, i, j].max()
    limit, kept = s.threshold, min(round(s.min_kept_frac * y.numel()), known.sum())
    if kept:
        limit = max(limit, sorted(confidence[known])[kept - 1])
    return known & (confidence <= limit)


def first_stage(teacher, y, align, s):
    """R (B, H, W)."""
    p = probabilities(teacher["logits"], y.shape[-2:], align)
    if s.difficulty == "entropy":
        return torch.tensor(np.exp((p * np.log(p)).sum(1) / np.log(p.shape[1])))
    u, v = (probabilities(teacher[tap], teacher[tap].shape[-2:], False) for tap in ("logits", "aux"))
    a, b = (v, u) if s.direction == "aux_to_main" else (u, v)
    r = torch.tensor(np.exp(-(a * np.log(a / b)).sum(1)))
    return interpolate(r[:, None], y.shape[-2:], mode="bilinear", align_corners=align)[:, 0]


def second_stage(ce, student, teacher, y, aligns, s):
    hard_s, hard_t = hard(student, y, aligns[0], s), hard(teacher, y, aligns[1], s)
    chosen = {"xor": hard_s != hard_t, "or": hard_s | hard_t, "and": hard_s & hard_t, "ohem": hard_s}[s.mode]
    assert 0 < chosen.sum() < chosen.size
    above = below = 0
    for n, i, j in np.argwhere(chosen):
        omega = s.class_weights[y[n, i, j]] if s.class_weights else 1.0
        above, below = above + omega * ce[n, i, j], below + omega
    return above / (below if s.norm == "selected" else y.numel())


def expected(student, teacher, y, progress, aligns, s):
    found = {}
    for name, tap in (("rdd", "logits"), ("rdd_aux", "aux")):
        up = interpolate(student[tap], y.shape[-2:], mode="bilinear", align_corners=aligns[0])
        ce = cross_entropy(up, y.long(), ignore_index=255, reduction="none")
        first = (first_stage(teacher, y, aligns[1], s) * ce).sum() / y.numel()
        if progress < s.tfe:
            found[name] = first
        else:
            share = (1 - progress) / (1 - s.tfe) if s.switch == "linear" else 0.0
            found[name] = share * first + (1 - share) * second_stage(ce, student[tap], teacher[tap], y, aligns, s)
    return found


CASES = [  # settings, classes, the teacher's grid, the labels', progress, rules of enlarging
    ({}, 19, (5, 7), (20, 28), 0.05, (False, False)),
    ({}, 19, (5, 7), (20, 28), 0.5, (False, False)),
    ({}, 21, (3, 4), (23, 31), 0.5, (True, False)),
    ({"preset": "paper"}, 11, (7, 9), (21, 30), 0.0, (True, True)),
    ({"preset": "paper"}, 11, (7, 9), (21, 30), 0.9, (False, True)),
    ({"min_kept_frac": 0.6}, 5, (5, 7), (17, 19), 0.5, (False, False)),
    ({"mode": "or", "class_weights": [0.5, 1.0, 1.5, 0.8, 1.2]}, 5, (5, 7), (17, 19), 0.5, (False, False)),
    ({"mode": "and", "switch": "linear", "norm": "all_pixels", "class_weights": [0.5, 2]}, 2, (4, 5), (19, 23), 0.4, (False, True)),
    ({"mode": "ohem", "difficulty": "entropy", "switch": "linear", "tfe": 0.2, "aux_weight": 0.7}, 5, (4, 5), (19, 23), 0.3, (True, True)),
    ({"difficulty": "entropy", "tfe": 0.4}, 150, (3, 4), (9, 12), 0.39, (False, False)),
    ({"threshold": 0.5, "confidence": "max_prob", "min_kept_frac": 0.7}, 150, (3, 4), (9, 12), 0.4, (False, False)),
]


@pytest.mark.parametrize(("settings", "classes", "teacher_size", "at", "progress", "aligns"), CASES, ids=[f"{c[1]}: {c[0]}" for c in CASES])
def test_every_term_is_its_equation_in_value_and_gradient(settings, classes, teacher_size, at, progress, aligns):
    student, teacher = nets(classes, (5, 7), teacher_size, aux_size=(3, 4), sharp=3.0 if classes < 100 else 5.0)
    y, s = labels(classes, at, like=teacher["logits"]), row_of({"kind": "rdd"} | settings)
    found = terms_of(settings, classes, student, teacher, y, progress, align_corners=aligns[0], teacher_align_corners=aligns[1])
    assert {name: weight for name, (_, weight) in found.items()} == {"rdd": 1.0, "rdd_aux": s.aux_weight}
    for name, value in expected(student, teacher, y, progress, aligns, s).items():
        assert found[name][0].item() == pytest.approx(value.item(), rel=1e-9), name
        tap = student["aux" if name == "rdd_aux" else "logits"]
        got, want = (torch.autograd.grad(v, tap, retain_graph=True)[0] for v in (found[name][0], value))
        assert (got - want).abs().max() <= 1e-7 * want.abs().max(), name


# What follows from the equations.


def test_a_teacher_of_one_mind_makes_the_first_stage_the_plain_cross_entropy_over_all_pixels():
    student, teacher = nets(5)
    y = labels(5)
    plain = cross_entropy(interpolate(student["logits"], y.shape[-2:], mode="bilinear"), y.long(), ignore_index=255, reduction="sum")
    agreed = terms_of({}, 5, student, teacher | {"aux": teacher["logits"]}, y, 0.0)["rdd"][0]
    doubted = terms_of({}, 5, student, teacher, y, 0.0)["rdd"][0]
    assert agreed.item() == pytest.approx(plain.item() / y.numel(), rel=1e-9) and doubted < 0.9 * agreed


def test_heads_that_could_not_differ_more_weigh_next_to_nothing():
    student, teacher = nets(5)
    far = {"logits": 1e4 * teacher["logits"], "aux": -1e4 * teacher["logits"]}
    term = terms_of({}, 5, student, far, labels(5), 0.0)["rdd"][0]
    assert 0 < term.item() < 1e-6


@pytest.mark.parametrize("settings", [{}, {"preset": "paper"}, {"class_weights": [1.0, 2.0, 3.0, 4.0, 5.0]}], ids=str)
def test_where_nothing_is_selected_the_loss_is_zero_and_still_differentiable(settings):
    student, _ = nets(5)
    terms = terms_of(settings, 5, student, dict(student), labels(5))
    for term, _ in terms.values():
        assert term.item() == 0
        term.backward()
    assert all(tap.grad.abs().max() == 0 for tap in student.values())


def test_any_hard_pixel_is_hard_for_both_or_for_one_alone():
    student, teacher = nets(5)
    y = labels(5, like=teacher["logits"])
    masks = {}
    for mode in ("xor", "or", "and", "ohem"):
        row, module = module_for({"mode": mode}, 5)
        masks[mode] = module._mask(step_for(row, student, teacher, y), "logits", "logits")
    assert torch.equal(masks["or"], masks["and"] | masks["xor"]) and not (masks["and"] & masks["xor"]).any()
    assert all(mask.any() for mask in masks.values()) and not (masks["ohem"] & ~masks["or"]).any() and not masks["or"][y == 255].any()


def test_the_threshold_rises_only_where_fewer_than_k_pixels_are_below_it():
    module = module_for({"min_kept_frac": 0.5}, 5)[1]
    confidence = torch.linspace(0, 1, 10).view(1, 2, 5)
    assert module._limit(confidence).item() == pytest.approx(0.7)
    assert module._limit(0.5 + confidence / 2).item() == pytest.approx(0.5 + 4 / 18)  # the fifth of ten
    assert module._limit(torch.full((1, 2, 5), 0.9)).item() == pytest.approx(0.9)
    assert module_for({"min_kept_frac": 0.0}, 5)[1]._limit(confidence) == 0.7


def test_every_labelled_pixel_is_hard_where_fewer_than_k_have_a_label():
    student, teacher = nets(5, sharp=30.0)  # sure of nearly everything
    y = torch.full((2, 20, 28), 255, dtype=torch.uint8)
    y[1, 3, 5:9] = 2
    ce = cross_entropy(interpolate(student["logits"], (20, 28), mode="bilinear"), y.long(), ignore_index=255, reduction="sum")
    term = terms_of({"mode": "and"}, 5, student, teacher, y)["rdd"][0]
    assert term.item() == pytest.approx(ce.item() / 4, rel=1e-9)


def test_the_second_stage_begins_exactly_where_the_first_ends():
    student, teacher = nets(5)
    y = labels(5, like=teacher["logits"])
    at = {p: terms_of({}, 5, student, teacher, y, p)["rdd"][0].item() for p in (0.0, 3 / 40, 4 / 40, 0.9)}
    assert at[0.0] == at[3 / 40] != at[4 / 40] == at[0.9]


def test_a_linear_switch_goes_evenly_from_the_first_stage_to_the_second():
    student, teacher = nets(5)
    y = labels(5, like=teacher["logits"])
    first, second = (terms_of({}, 5, student, teacher, y, p)["rdd"][0].item() for p in (0.0, 0.9))
    for progress, share in ((0.0, 1.0), (0.5, 1.0), (0.75, 0.5), (0.875, 0.25)):
        found = terms_of({"tfe": 0.5, "switch": "linear"}, 5, student, teacher, y, progress)["rdd"][0].item()
        assert found == pytest.approx(share * first + (1 - share) * second, rel=1e-9)


def test_a_student_with_an_auxiliary_head_learns_there_though_its_teacher_has_none():
    student, teacher = nets(5)
    y, bare = labels(5, like=teacher["logits"]), {"logits": teacher["logits"]}
    for progress in (0.0, 0.5):
        lone = terms_of({"difficulty": "entropy"}, 5, student, bare, y, progress)["rdd_aux"][0]
        twin = terms_of({"difficulty": "entropy"}, 5, student, bare | {"aux": teacher["logits"]}, y, progress)["rdd_aux"][0]
        assert lone.item() == twin.item() and torch.autograd.grad(lone, student["aux"])[0].abs().max() > 0


def test_a_student_without_an_auxiliary_head_has_one_term():
    student, teacher = nets(5)
    for progress in (0.0, 0.5):
        assert list(terms_of({}, 5, {"logits": student["logits"]}, teacher, labels(5), progress)) == ["rdd"]


def test_the_presets_are_the_released_code_and_the_paper():
    code, paper = (row_of({"kind": "rdd", "preset": name}) for name in ("code", "paper"))
    assert row_of({"kind": "rdd"}) == code and round(code.min_kept_frac * 4 * 512 * 1024) == 100_000
    same = {"tfe": 0.1, "threshold": 0.7, "mode": "xor", "switch": "hard", "difficulty": "aux", "class_weights": None, "aux_weight": 0.4}
    differing = ("confidence", "direction", "norm", "min_kept_frac")
    assert all(getattr(code, name) == getattr(paper, name) == value for name, value in same.items())
    assert [getattr(code, name) for name in differing[:3]] == ["gt_prob", "aux_to_main", "selected"]
    assert [getattr(paper, name) for name in differing] == ["max_prob", "main_to_aux", "all_pixels", 0.0]
    assert row_of({"kind": "rdd", "preset": "paper", "norm": "selected"}).norm == "selected"


def test_a_teacher_without_an_auxiliary_head_is_refused_with_the_ways_out():
    tiny = Tiny(kind="tiny")
    for settings in ({}, {"preset": "paper"}, {"tfe": 0.0, "switch": "linear"}):
        ((where, message),) = unmet(("task",), row_of({"kind": "rdd"} | settings), tiny, tiny)
        assert where == ("task",)
        assert (
            message == "rdd needs aux of the teacher, and tiny as set here has none: train one onto it (a stage of kind train "
            "with frozen:), or set difficulty: entropy, or tfe: 0 with switch: hard"
        )
    for settings in ({"difficulty": "entropy"}, {"tfe": 0.0}):
        assert unmet(("task",), row_of({"kind": "rdd"} | settings), tiny, tiny) == []


def test_class_weights_that_do_not_fit_the_classes_are_refused():
    row = row_of({"kind": "rdd", "class_weights": [1.0, 2.0]})
    with pytest.raises(BadRecipe, match=r"rdd\.class_weights: holds 2 numbers and the data 5 classes: give one for each"):
        Terms(row, [], Pair({"logits": 5}, {"logits": 5}, 5), 0)
    assert row.misfits(2) == row.misfits(None) == []
    assert math.isfinite(terms_of({"class_weights": [1.0, 2.0]}, 2, *nets(2), labels(2))["rdd"][0].item())
