"""The contract of every row of stages/kd, and the values of the rows there are, against formulas written out in float64."""

import numpy as np
import pytest
import torch

import kernels.upsample_ce_kl as operation
from stages.kd import TABLE
from stages.kd import _step as steps
from stages.kd._step import Step
from stages.kd._terms import Terms

B, C = 2, 5
WIDTHS = {"logits": C, "aux": C, "head": 6, "c1": 4, "c2": 6, "c3": 8, "c4": 10}
STRIDES = {"logits": 4, "aux": 8, "head": 4, "c1": 4, "c2": 8, "c3": 16, "c4": 32}

# Every row with its defaults, and the settings that take another path through it.
VARIED = [{"kind": name} for name in TABLE.names()] + [
    {"kind": "pixel", "at": "logits", "temperature": 2.0, "weight": 0.5},
    {"kind": "pixel", "temperature": 4.0},
]


def row_of(settings):
    return TABLE.row(settings["kind"]).model_validate(settings)


def taps(seed: int, grid: int = 32) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        n: torch.randn(B, w, max(1, grid // s * 4), max(1, grid // s * 6), generator=g)
        for (n, w), s in zip(WIDTHS.items(), STRIDES.values(), strict=True)
    }


def labels(seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, C, (B, 128, 192), generator=g, dtype=torch.uint8)
    y[torch.rand(y.shape, generator=g) < 0.15] = 255
    return y


def built(settings):
    row = row_of(settings)
    torch.manual_seed(3)
    return row, row.build(WIDTHS, WIDTHS, C)


def step_for(row, student, teacher, y=None, **more) -> Step:
    return Step(student, teacher, labels() if y is None else y, maps=row.maps(), progress=0.5, **more)


@pytest.mark.parametrize("settings", VARIED, ids=str)
def test_each_enabled_term_teaches_the_student_and_never_the_teacher(settings):
    row, module = built(settings)
    student, teacher = ({k: v.requires_grad_() for k, v in taps(seed).items()} for seed in (1, 2))
    terms = module(step_for(row, student, teacher))
    assert terms and all(name.isidentifier() and isinstance(weight, float) and weight > 0 for name, (_, weight) in terms.items())
    for name, (term, _) in terms.items():
        assert term.dim() == 0 and term.dtype == torch.float32 and term.requires_grad and term.isfinite(), name
        term.backward(retain_graph=True)
        norm = sum(float(v.grad.norm()) for v in student.values() if v.grad is not None)
        assert norm > 0, f"{name} gives the student no gradient"
        assert all(v.grad is None for v in teacher.values()), f"{name} reaches the teacher"
        for v in student.values():
            v.grad = None


@pytest.mark.parametrize("settings", [s for s in VARIED if TABLE.row(s["kind"]).role == "loss"], ids=str)
def test_a_perfect_student_has_nothing_to_learn_from_its_teacher(settings):
    row, module = built(settings)
    teacher = taps(2)
    student = {k: v.clone().requires_grad_() for k, v in teacher.items()}
    for name, (term, _) in module(step_for(row, student, teacher)).items():
        assert abs(term.item()) < 1e-6, name
        (grad,) = torch.autograd.grad(term, student["logits"], retain_graph=True)
        assert grad.abs().max() < 1e-6, name


@pytest.mark.parametrize("settings", VARIED, ids=str)
def test_shuffling_the_pixels_of_everything_alike_changes_no_term(settings):
    row, module = built(settings)
    size = (4, 6)  # labels and all maps on one grid: nothing is interpolated, so pixels may trade places
    order = torch.randperm(24, generator=torch.Generator().manual_seed(5))
    found = []
    for shuffled in (False, True):
        student, teacher = ({k: torch.randn(B, w, *size, generator=_gen(seed)) for k, w in WIDTHS.items()} for seed in (1, 2))
        y = labels()[:, : size[0], : size[1]]
        if shuffled:
            student, teacher = ({k: v.flatten(2)[:, :, order].view_as(v) for k, v in net.items()} for net in (student, teacher))
            y = y.flatten(1)[:, order].view_as(y)
        found.append({name: float(term) for name, (term, _) in module(step_for(row, student, teacher, y)).items()})
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def _gen(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("settings", VARIED, ids=str)
def test_a_batch_without_any_label_gives_finite_terms(settings):
    row, module = built(settings)
    student = {k: v.requires_grad_() for k, v in taps(1).items()}
    terms = module(step_for(row, student, taps(2), torch.full((B, 128, 192), 255, dtype=torch.uint8)))
    total = sum(weight * term for term, weight in terms.values())
    total.backward()
    assert total.isfinite() and student["logits"].grad.isfinite().all()
    if row.role == "task":
        assert total.item() == 0


@pytest.mark.parametrize("settings", VARIED, ids=str)
def test_a_teacher_on_another_grid_is_accepted(settings):
    row, module = built(settings)
    student = {k: v.requires_grad_() for k, v in taps(1).items()}
    terms = module(step_for(row, student, taps(2, grid=64)))
    assert all(term.isfinite() and term.requires_grad for term, _ in terms.values())


@pytest.mark.parametrize("settings", VARIED, ids=str)
def test_half_precision_taps_give_the_same_terms_to_half_precision(settings):
    row, module = built(settings)
    full = module(step_for(row, taps(1), taps(2)))
    half = module(step_for(row, *({k: v.bfloat16() for k, v in taps(s).items()} for s in (1, 2))))
    for name, (term, _) in half.items():
        assert term.dtype == torch.float32 and float(term) == pytest.approx(float(full[name][0]), rel=0.02)


def test_exactly_one_role_and_a_default_task_loss():
    assert {row.role for row in TABLE.rows().values()} == {"task", "loss"}
    assert "ce" in TABLE.rows(role="task")


# The values of each row.


def log_softmax(v, axis):
    v = v - v.max(axis, keepdims=True)
    return v - np.log(np.exp(v).sum(axis, keepdims=True))


def same_size(row, temperature=None):
    """Student logits, teacher logits (float64 numpy) and labels on one grid, and the row's module's terms for them."""
    student, teacher = ({"logits": torch.randn(B, C, 7, 9, generator=_gen(s)) * 2} for s in (1, 2))
    y = torch.randint(0, C, (B, 7, 9), generator=_gen(3), dtype=torch.uint8)
    y[0, 2:4] = 255
    terms = row.build({"logits": C}, {"logits": C}, C)(step_for(row, student, teacher, y))
    return student["logits"].double().numpy(), teacher["logits"].double().numpy(), y.numpy(), terms


def test_ce_is_the_mean_over_labelled_pixels():
    x, _, y, terms = same_size(row_of({"kind": "ce"}))
    logp = log_softmax(x, 1)
    picked = [-logp[b, y[b, i, j], i, j] for b, i, j in np.ndindex(*y.shape) if y[b, i, j] != 255]
    assert list(terms) == ["ce"] and terms["ce"][1] == 1.0
    assert float(terms["ce"][0]) == pytest.approx(np.mean(picked), rel=1e-6)


def test_ce_weighs_the_auxiliary_head_where_the_student_has_one():
    row, module = built({"kind": "ce", "aux_weight": 0.3})
    student = taps(1)
    terms = module(step_for(row, student, None))
    twin = module(step_for(row, student | {"logits": student["aux"]}, None))
    assert terms["aux"][1] == 0.3 and float(terms["aux"][0]) == pytest.approx(float(twin["ce"][0]), rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("at", ["labels", "logits"])
def test_pixel_is_the_mean_kl_times_the_squared_temperature(at, temperature):
    x, u, y, terms = same_size(row_of({"kind": "pixel", "at": at, "temperature": temperature, "weight": 0.7}))
    p, q = log_softmax(u / temperature, 1), log_softmax(x / temperature, 1)
    kl = (np.exp(p) * (p - q)).sum(1)
    mean = kl[y != 255].mean() if at == "labels" else kl.mean()
    assert terms["pixel"][1] == 0.7 and float(terms["pixel"][0]) == pytest.approx(temperature**2 * mean, rel=1e-5)


def test_cwd_is_the_summed_kl_over_pixels_times_the_squared_temperature_per_image_and_channel():
    x, u, _, terms = same_size(row_of({"kind": "cwd", "temperature": 4.0}))
    p, q = (log_softmax(v.reshape(B, C, -1) / 4.0, 2) for v in (u, x))
    assert float(terms["cwd"][0]) == pytest.approx(16 / (B * C) * (np.exp(p) * (p - q)).sum(), rel=1e-5)


# The Step.


@pytest.fixture
def calls(monkeypatch):
    made = []

    def counted(*args, **kwargs):
        made.append(kwargs["temperature"])
        return operation.upsample_ce_kl(*args, **kwargs)

    monkeypatch.setattr(steps, "upsample_ce_kl", counted)
    return made


def test_ce_and_kl_come_from_one_call(calls):
    terms = Terms(row_of({"kind": "ce"}), [row_of({"kind": "pixel", "temperature": 2.0})], {"logits": C}, {"logits": C}, C, 0)
    terms(Step({"logits": taps(1)["logits"]}, taps(2), labels(), maps=terms.maps))
    assert calls == [2.0]


def test_every_temperature_is_computed_once_whoever_asks_first(calls):
    step = Step(taps(1), taps(2), labels(), maps={("kl", 4.0), ("kl", 1.0)})
    first, second = step.kl(4.0), step.kl(1.0)
    assert step.kl(4.0) is first and step.kl(1.0) is second and step.ce is step.ce
    assert sorted(calls) == [1.0, 4.0]


def test_a_map_that_was_not_declared_is_an_error_of_the_method():
    with pytest.raises(KeyError, match=r"kl at temperature 2.0 was asked for but not declared; maps\(\) declared \[1.0\]"):
        Step(taps(1), taps(2), labels(), maps={("kl", 1.0)}).kl(2.0)


def test_a_teacher_that_is_enlarged_by_another_rule_keeps_its_own():
    student, teacher, y = taps(1), taps(2), labels()
    step = Step(student, teacher, y, maps={("kl", 1.0)}, align_corners=False, teacher_align_corners=True)
    up = torch.nn.functional.interpolate
    p = up(teacher["logits"], y.shape[-2:], mode="bilinear", align_corners=True).log_softmax(1)
    q = up(student["logits"], y.shape[-2:], mode="bilinear", align_corners=False).log_softmax(1)
    torch.testing.assert_close(step.kl(1.0), (p.exp() * (p - q)).sum(1), atol=1e-5, rtol=1e-4)


def test_two_methods_of_one_kind_keep_their_names_apart():
    rows = [row_of({"kind": "pixel"}), row_of({"kind": "cwd"}), row_of({"kind": "pixel", "at": "logits", "weight": 2.0})]
    terms = Terms(row_of({"kind": "ce"}), rows, {"logits": C}, {"logits": C}, C, 0)
    found, task = terms(Step({"logits": taps(1)["logits"]}, taps(2), labels(), maps=terms.maps))
    assert list(found) == ["ce", "pixel", "cwd", "pixel_2"] and task == {"ce"}


def test_building_the_losses_leaves_the_random_generator_as_it_was():
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    Terms(row_of({"kind": "ce"}), [row_of({"kind": n}) for n in TABLE.rows(role="loss")], WIDTHS, WIDTHS, C, 11)
    assert torch.equal(torch.rand(3), expected)
