"""The contract of every row of stages/kd, and the values of ce, pixel and cwd against formulas written out in float64."""

import copy
import json

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import kernels.upsample_ce_kl as operation
from pipeline.errors import BadRecipe
from stages import group
from stages.kd import TABLE, Pair, When
from stages.kd import _step as steps
from stages.kd._step import Step
from stages.kd._terms import Terms
from tests.stages.kd_cases import (
    DRAWS,
    GATHERS,
    OVER_THE_BATCH,
    POINTWISE,
    SETTLED,
    STUDENT,
    TEACHER,
    UNDER_LABELS,
    VARIED,
    B,
    C,
    built,
    labels,
    pair,
    row_of,
    step_for,
    taps,
)
from tests.stages.small_fit import Job


def of_kinds(kinds):
    return [s for s in VARIED if s["kind"] in kinds]


def both(size=(32, 48), b=B, teacher_size=None):
    """Taps of a student, with gradients, and of a teacher."""
    student = {k: v.requires_grad_() for k, v in taps(1, STUDENT, size, b).items()}
    return student, taps(2, TEACHER, teacher_size or size, b)


def total(terms):
    return sum(weight * term for term, weight in terms.values())


@pytest.mark.parametrize("settings", VARIED, ids=str)
def test_each_enabled_term_teaches_the_student_and_never_the_teacher(settings):
    row, module = built(settings)
    student, teacher = both()
    teacher = {k: v.requires_grad_() for k, v in teacher.items()}
    torch.manual_seed(0)
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


@pytest.mark.parametrize("settings", VARIED, ids=str)
def test_every_weight_of_a_method_learns_in_every_step(settings):
    """A weight without a gradient would make processes wait for each other forever."""
    row, module = built(settings)
    for progress in (0.0, 0.5, 0.99):
        module.zero_grad(set_to_none=True)
        total(module(step_for(row, *both(), progress=progress))).backward()
        assert [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None] == [], f"at {progress}"


@pytest.mark.parametrize("settings", of_kinds(SETTLED), ids=str)
def test_a_perfect_student_has_nothing_to_learn_from_its_teacher(settings):
    row, module = built(settings, STUDENT, STUDENT)
    teacher = taps(2)
    student = {k: v.clone().requires_grad_() for k, v in teacher.items()}
    for name, (term, _) in module(step_for(row, student, teacher)).items():
        assert abs(term.item()) < 1e-6, name
        grads = torch.autograd.grad(term, list(student.values()), retain_graph=True, allow_unused=True)
        assert all(g.abs().max() < 1e-6 for g in grads if g is not None), name


@pytest.mark.parametrize("settings", of_kinds(POINTWISE), ids=str)
def test_shuffling_the_pixels_of_everything_alike_changes_no_term(settings):
    row, module = built(settings)
    size = (4, 6)  # labels and all maps on one grid: nothing is interpolated, so pixels may trade places
    order = torch.randperm(24, generator=torch.Generator().manual_seed(5))
    found = []
    for shuffled in (False, True):
        student = {k: torch.randn(B, w, *size, generator=_gen(1)) for k, w in STUDENT.items()}
        teacher = {k: torch.randn(B, w, *size, generator=_gen(2)) for k, w in TEACHER.items()}
        y = labels()[:, : 8 * size[0] : 8, : 8 * size[1] : 8]
        if shuffled:
            student, teacher = ({k: v.flatten(2)[:, :, order].view_as(v) for k, v in net.items()} for net in (student, teacher))
            y = y.flatten(1)[:, order].view_as(y)
        found.append({name: term.item() for name, (term, _) in module(step_for(row, student, teacher, y)).items()})
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize("settings", [s for s in VARIED if s["kind"] not in DRAWS or s.get("mask") == 0], ids=str)
def test_the_order_of_the_images_in_a_batch_changes_no_term(settings):
    row, module = built(settings)
    student, teacher = both(b=3)
    y, order = labels(b=3), [2, 0, 1]
    with torch.no_grad():
        one = copy.deepcopy(module)(step_for(row, student, teacher, y))
        two = module(step_for(row, {k: v[order] for k, v in student.items()}, {k: v[order] for k, v in teacher.items()}, y[order]))
    assert {n: float(t) for n, (t, _) in one.items()} == pytest.approx({n: float(t) for n, (t, _) in two.items()}, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("settings", [s for s in VARIED if s["kind"] in UNDER_LABELS or s == {"kind": "pixel"}], ids=str)
def test_what_lies_under_an_ignored_label_changes_no_term(settings):
    row, module = built(settings)
    size, found = (16, 24), []  # labels and all maps on one grid
    y = labels()[:, ::8, ::8]
    for changed in (False, True):
        nets = []
        for seed, widths in ((1, STUDENT), (2, TEACHER)):
            maps = {k: torch.randn(B, w, *size, generator=_gen(seed)) for k, w in widths.items()}
            nets.append({k: v.where((y != 255)[:, None], 3.0 - v) if changed else v for k, v in maps.items()})
        for progress in (0.0, 0.5):
            found.append({name: term.item() for name, (term, _) in module(step_for(row, *nets, y, progress)).items()})
    assert (y == 255).any() and found[:2] == [pytest.approx(terms, rel=1e-5) for terms in found[2:]]


def _gen(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("settings", VARIED, ids=str)
def test_a_batch_without_any_label_gives_finite_terms(settings):
    row, module = built(settings)
    student, teacher = both()
    loss = total(module(step_for(row, student, teacher, torch.full((B, 128, 192), 255, dtype=torch.uint8))))
    loss.backward()
    assert loss.isfinite() and all(v.grad is None or v.grad.isfinite().all() for v in student.values())
    if row.role == "task":
        assert loss.item() == 0


@pytest.mark.parametrize("settings", VARIED, ids=str)
@pytest.mark.parametrize("size, b", [((1, 1), B), ((1, 1), 1), ((3, 5), B)], ids=["one pixel", "one pixel of one image", "odd"])
def test_the_smallest_maps_and_a_single_class_give_finite_terms(settings, size, b):
    row, module = built(settings)
    student, teacher = both(size, b)
    y = torch.full((b, 4 * size[0], 4 * size[1]), 1, dtype=torch.uint8)
    loss = total(module(step_for(row, student, teacher, y)))
    loss.backward()
    assert loss.isfinite() and all(v.grad is None or v.grad.isfinite().all() for v in student.values())


@pytest.mark.parametrize("settings", VARIED, ids=str)
def test_a_teacher_on_another_grid_is_accepted(settings):
    row, module = built(settings)
    for teacher_size in ((64, 96), (16, 24)):
        terms = module(step_for(row, *both(teacher_size=teacher_size)))
        assert all(term.isfinite() and term.requires_grad for term, _ in terms.values())


@pytest.mark.parametrize("settings", VARIED, ids=str)
def test_half_precision_taps_give_the_same_terms_to_half_precision(settings):
    row, module = built(settings)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        student, teacher = ({k: v.detach().to(dtype) for k, v in net.items()} for net in both())
        found.append(copy.deepcopy(module)(step_for(row, student, teacher)))
    full, half = found
    for name, (term, _) in half.items():
        assert term.dtype == torch.float32 and term.item() == pytest.approx(full[name][0].item(), rel=0.03, abs=1e-4), name


@pytest.mark.parametrize("settings", VARIED, ids=str)
def test_what_a_method_remembers_is_in_its_state(settings):
    """Two steps, saved, a third; and the third again from what was saved in a module built anew: the same bits."""
    row, module = built(settings)
    optimizer = torch.optim.SGD(params, lr=0.1) if (params := [p for p in module.parameters() if p.requires_grad]) else None
    ends = []
    for number in (0, 1, 2, 2):
        if number == 2 and not ends:
            saved = {k: v.clone() for k, v in module.state_dict().items()}
        elif number == 2:
            row, module = built(settings, seed=99)
            module.load_state_dict(saved)
            optimizer = None
        torch.manual_seed(number)
        student, teacher = taps(10 + number), taps(20 + number, TEACHER)
        student = {k: v.requires_grad_() for k, v in student.items()}
        loss = total(module(step_for(row, student, teacher, labels(number), progress=number / 3)))
        if number == 2:
            ends.append([loss.item(), *(v.grad for v in _grads(loss, student))])
        elif optimizer:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert ends[0][0] == ends[1][0] and all(torch.equal(a, b) for a, b in zip(ends[0][1:], ends[1][1:], strict=True))


def _grads(loss, student):
    loss.backward()
    return [v for v in student.values() if v.grad is not None]


def learned(shares: bool, job) -> str:
    """One step of every row, on all images or on this process's share of them: its loss, and the gradients of its weights."""
    found = {}
    for settings in VARIED:
        if settings["kind"] in GATHERS or (shares and (settings["kind"] in OVER_THE_BATCH or settings["kind"] in DRAWS)):
            continue
        row, module = built(settings)
        student, teacher = both((8, 12), b=4)
        y = labels(size=(32, 48), b=4)
        y[y == 255] = 0  # means over labelled pixels are means of the halves' means only where these have as many
        world, rank = (torch.distributed.get_world_size(), torch.distributed.get_rank()) if torch.distributed.is_initialized() else (1, 0)
        part = slice(rank * 4 // world, (rank + 1) * 4 // world) if shares else slice(None)
        wrap = torch.nn.parallel.DistributedDataParallel if world > 1 and any(p.requires_grad for p in module.parameters()) else lambda m: m
        torch.manual_seed(0)
        ran = wrap(module)
        loss = total(ran(step_for(row, *({k: v[part] for k, v in net.items()} for net in (student, teacher)), y[part])))
        loss.backward()
        sizes = [loss.detach(), *(p.grad.norm() for p in module.parameters() if p.requires_grad)]
        sizes += [b.double().norm() for n, b in module.named_buffers() if b.is_floating_point() and not shares]
        sums = torch.stack([s.double() for s in sizes])
        if world > 1:
            torch.distributed.all_reduce(sums)
        found[str(settings)] = (sums / world).tolist()
    return json.dumps(found)


@pytest.mark.parametrize("shares", [False, True], ids=["each with all images", "each with its half"])
def test_two_processes_learn_what_one_does(tmp_path, monkeypatch, shares):
    torch.set_num_threads(1)
    monkeypatch.setattr(group, "START", "fork")
    alone = json.loads(learned(shares, None))
    together = json.loads(group.together("tests.stages.test_kd:learned", (shares,), 2, Job(tmp_path)))
    assert together.keys() == alone.keys()
    for case, values in alone.items():
        assert together[case] == pytest.approx(values, rel=2e-4, abs=1e-7), case


class Asked(TorchDispatchMode):
    """The operations for which the host would wait for a GPU."""

    WAIT = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1])
        if by_mask or name in self.WAIT:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", VARIED, ids=str)
def test_no_method_makes_the_host_wait_for_the_device(settings):
    row, module = built(settings)
    step = step_for(row, *both())
    with Asked() as asked:
        total(module(step)).backward()
    assert asked.found == []
    with Asked() as asked:
        torch.ones(3)[torch.ones(3) > 0].sum().item()
    assert asked.found == ["index", "_local_scalar_dense"]  # it does look


def test_exactly_one_role_and_a_default_task_loss():
    assert {row.role for row in TABLE.rows().values()} == {"task", "loss"}
    assert "ce" in TABLE.rows(role="task")


@pytest.mark.parametrize(
    ("when", "factors"),
    [
        ({}, [1, 1, 1, 1, 1]),
        ({"start": 0.5}, [0, 0, 1, 1, 1]),
        ({"end": 0.5}, [1, 1, 0, 0, 0]),
        ({"start": 0.25, "rise": 0.5}, [0, 0, 0.5, 1, 1]),
        ({"fall": 1.0}, [1, 0.75, 0.5, 0.25, 0.01]),
        ({"rise": 0.5, "fall": 0.5}, [0, 0.5, 1, 0.5, 0.02]),
    ],
)
def test_a_loss_comes_and_goes_with_the_training(when, factors):
    found = [When.model_validate(when).factor(progress) for progress in (0.0, 0.25, 0.5, 0.75, 0.99)]
    assert found == pytest.approx(factors)


def test_a_schedule_that_falls_before_it_has_risen_is_refused():
    with pytest.raises(ValueError, match=r"start 0.5 \+ rise 0.4 must not lie after end 1.0 - fall 0.2"):
        When(start=0.5, rise=0.4, fall=0.2)


def test_a_loss_that_is_off_keeps_its_name_and_counts_nothing():
    row = row_of({"kind": "pixel", "weight": 2.0, "when": {"start": 0.5}})
    terms = Terms(row_of({"kind": "ce"}), [row], pair(), 0)
    found = [terms(Step(*both(), labels(), maps=terms.maps, progress=p))[0] for p in (0.4, 0.6)]
    assert list(found[0]) == list(found[1]) == ["ce", "aux", "pixel"]
    assert found[0]["pixel"].item() == 0 and found[1]["pixel"].item() > 0


@pytest.mark.parametrize("settings", VARIED, ids=str)
def test_losses_are_computed_in_float32_whatever_the_networks_are_in(settings):
    """By Terms, for all methods: none of them has to."""
    row, found = row_of(settings), []
    task, losses = (row, []) if row.role == "task" else (row_of({"kind": "ce"}), [row])
    for enabled in (False, True):
        terms = Terms(task, losses, pair(), 0)  # anew: some remember
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append({name: term.item() for name, term in terms(Step(*both(), labels(), maps=terms.maps, progress=0.5))[0].items()})
    assert found[0] == found[1]


# The values of each row.


def log_softmax(v, axis):
    v = v - v.max(axis, keepdims=True)
    return v - np.log(np.exp(v).sum(axis, keepdims=True))


def same_size(row, temperature=None):
    """Student logits, teacher logits (float64 numpy) and labels on one grid, and the row's module's terms for them."""
    student, teacher = ({"logits": torch.randn(B, C, 7, 9, generator=_gen(s)) * 2} for s in (1, 2))
    y = torch.randint(0, C, (B, 7, 9), generator=_gen(3), dtype=torch.uint8)
    y[0, 2:4] = 255
    terms = row.build(Pair({"logits": C}, {"logits": C}, C))(step_for(row, student, teacher, y))
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
    terms = Terms(row_of({"kind": "ce"}), [row_of({"kind": "pixel", "temperature": 2.0})], Pair({"logits": C}, {"logits": C}, C), 0)
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
    terms = Terms(row_of({"kind": "ce"}), rows, Pair({"logits": C}, {"logits": C}, C), 0)
    found, task = terms(Step({"logits": taps(1)["logits"]}, taps(2), labels(), maps=terms.maps))
    assert list(found) == ["ce", "pixel", "cwd", "pixel_2"] and task == {"ce"}


def test_the_losses_draw_their_weights_from_the_seed_alone_and_on_the_host(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", asked.append)
    weight = Terms(row_of({"kind": "ce"}), [row_of({"kind": "fitnet"})], pair(), 11).methods[1].projector.weight
    assert weight.flatten()[:3].tolist() == pytest.approx([-0.2865562, -0.0109793, 0.3965410], abs=1e-7) and not asked


def test_building_the_losses_leaves_the_random_generator_as_it_was():
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    Terms(row_of({"kind": "ce"}), [row_of({"kind": n}) for n in TABLE.rows(role="loss")], pair(), 11)
    assert torch.equal(torch.rand(3), expected)


class Opened(dict):
    """Taps that note which of them were asked for."""

    def __init__(self, taps):
        super().__init__(taps)
        self.asked = set()

    def __getitem__(self, tap):
        self.asked.add(tap)
        return super().__getitem__(tap)


@pytest.mark.parametrize("settings", VARIED, ids=str)
def test_a_method_reads_the_taps_it_names_beyond_those_it_can_do_without(settings):
    row, module = built(settings)
    student, teacher = (Opened(net) for net in both())
    step = step_for(row, student, None)
    step.teacher = teacher
    module(step)
    assert [net.asked - {"logits", "aux"} for net in (student, teacher)] == [row.reads(), row.reads() if row.needs_teacher else set()]


@pytest.mark.parametrize(
    "settings, net, said",
    [
        ({"kind": "mgd"}, "student", "mgd needs c4 of the student, which has logits, head, c1, c2, c3: take a method that reads"),
        ({"kind": "heteroakd"}, "teacher", "heteroakd needs c4 of the teacher, which has logits, head, c1, c2, c3: take"),
    ],
)
def test_a_network_without_a_tap_that_a_method_reads_is_refused_before_the_first_step(settings, net, said):
    nets = {"student": TEACHER, "teacher": TEACHER}
    nets[net] = {tap: width for tap, width in TEACHER.items() if tap not in ("c4", "aux")}
    with pytest.raises(BadRecipe, match=said):
        Terms(row_of({"kind": "ce"}), [row_of(settings), row_of({"kind": "cwd"})], Pair(nets["student"], nets["teacher"], C), 0)
