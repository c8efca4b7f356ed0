"""The values of pixel, and of ce, against formulas in float64: for few classes and many, on odd grids, enlarged by either rule."""

import pytest
from torch.nn.functional import interpolate

from stages.kd._step import Step
from tests.stages.kd_cases import row_of
from tests.stages.kd_double import GRIDS, agree, labels, maps, module_for, resized

CLASSES = [2, 5, 11, 19, 21, 150]


def step(row, student, teacher, y, **rules):
    return Step(student, teacher, y, maps=row.maps(), **rules)


def kl(teacher, student):
    """(B, h, w), of probabilities."""
    return (teacher * (teacher / student).log()).sum(1)


def enlarged(logits, y, align):
    return interpolate(logits, y.shape[-2:], mode="bilinear", align_corners=align)


WAYS = [("one grid", (False, False), 4.0), ("a finer teacher", (True, True), 1.0), ("a coarser teacher", (False, True), 2.0)]


@pytest.mark.parametrize(("grids", "aligns", "temperature"), WAYS)
@pytest.mark.parametrize("classes", CLASSES)
def test_at_labels_it_is_the_mean_kl_over_labelled_pixels_and_ce_beside_it_that_of_the_label(classes, grids, aligns, temperature):
    row = row_of({"kind": "pixel", "temperature": temperature})
    student, teacher = (2 * maps(seed, classes, size) for seed, size in zip((1, 2), GRIDS[grids], strict=True))
    student.requires_grad_()
    y = labels(classes, (17, 23))
    one = step(row, {"logits": student}, {"logits": teacher}, y, align_corners=aligns[0], teacher_align_corners=aligns[1])
    (found, weight), (ce, _) = row.build(None)(one)["pixel"], module_for({"kind": "ce"}, ({"logits": classes}, {}), classes)(one)["ce"]
    x, u = (enlarged(logits, y, align) for logits, align in zip((student, teacher), aligns, strict=True))
    labelled = y != 255
    truth = temperature**2 * kl(*((v / temperature).softmax(1) for v in (u, x)))[labelled].mean()
    assert weight == 1.0
    agree(found, truth, [student])
    probability = x.softmax(1).movedim(1, -1)[labelled].gather(1, y[labelled].long()[:, None])
    agree(ce, -probability.log().mean(), [student])


@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("classes", CLASSES)
def test_at_logits_it_is_the_mean_kl_over_all_cells_of_the_teachers_grid(classes, grids):
    row = row_of({"kind": "pixel", "at": "logits", "temperature": 2.0})
    student, teacher = maps(1, classes, grids[0]).requires_grad_(), maps(2, classes, grids[1])
    found, _ = row.build(None)(step(row, {"logits": student}, {"logits": teacher}, labels(classes, (17, 23))))["pixel"]
    agree(found, 4 * kl(*((v / 2).softmax(1) for v in (teacher, resized(student, teacher)))).mean(), [student])


@pytest.mark.parametrize("classes", CLASSES)
def test_the_auxiliary_head_has_a_mean_of_its_own(classes):
    student = {"logits": maps(1, classes, (5, 7)), "aux": maps(4, classes, (3, 4)).requires_grad_()}
    y = labels(classes, (17, 23))
    module = module_for({"kind": "ce"}, ({"logits": classes, "aux": classes}, {}), classes)
    term, weight = module(Step(student, None, y, align_corners=True))["aux"]
    x, labelled = enlarged(student["aux"], y, True), y != 255
    probability = x.softmax(1).movedim(1, -1)[labelled].gather(1, y[labelled].long()[:, None])
    assert weight == 0.4
    agree(term, -probability.log().mean(), [student["aux"]])
