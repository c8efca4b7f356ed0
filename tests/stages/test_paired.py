"""What a candidate loses on the same images: figures against counts made by hand, and how often a verdict is right on simulated images.

The simulations have fixed seeds. Their bounds are what a binomial count exceeds once in ten thousand tries at the stated rate.
"""

import math

import numpy as np
import pytest

from pipeline.errors import BadData
from stages.measure import bootstrap, mismatch, paired
from stages.measure.fingerprint import Fingerprint, differing
from stages.measure.miou import counts, miou
from stages.measure.sure import Counted, margin
from tests.stages.simulated import at_most, images
from tests.stages.small_evidence import measured, verdict

DRAWS = 300  # sets of images drawn from a simulated population
NAMES = [f"name {c}" for c in range(19)]


def maps(random, n=6, classes=4, size=(7, 9), differ=0.1):
    """Labels, class maps of a reference that errs on 30 %, and of a candidate that differs from it on `differ` of the pixels."""
    label = random.integers(0, classes, (n, *size), dtype=np.uint8)
    one = np.where(random.random(label.shape) < 0.3, random.integers(0, classes, label.shape, dtype=np.uint8), label)
    other = np.where(random.random(label.shape) < differ, random.integers(0, classes, label.shape, dtype=np.uint8), one)
    label[random.random(label.shape) < 0.1] = 255
    return label, one, other


def held(pair, drop):
    """The rule that may lose so many points."""
    return margin(Counted(pair[1], pair[0]), "at_least", -drop)


def counted(predicted, label, classes=4):
    return np.stack([counts(p, t, classes) for p, t in zip(predicted, label, strict=True)])


def test_the_drop_is_the_difference_of_two_mious_and_its_error_that_of_leaving_images_out():
    """The jackknife knows no formula for the influence of an image, and agrees with it where there are many."""
    label, one, other = maps(np.random.default_rng(0), n=200)
    reference, candidate = counted(one, label), counted(other, label)
    found = paired.drop(reference, candidate)

    def by_hand(kept):
        return miou(reference[kept].sum(axis=0))[0] - miou(candidate[kept].sum(axis=0))[0]

    assert found.points == pytest.approx(by_hand(np.arange(200)), abs=1e-12)
    without = np.array([by_hand(np.arange(200) != i) for i in range(200)])
    jackknife = math.sqrt(199 / 200 * ((without - without.mean()) ** 2).sum())
    assert found.se == pytest.approx(jackknife, rel=0.02)
    judged = held((reference, candidate), 5.0)
    assert judged.points == pytest.approx(5 - found.points) and judged.se == pytest.approx(found.se)
    assert judged.edge == pytest.approx(-found.points - 1.6449 * found.se, rel=1e-4)
    assert judged.detectable == pytest.approx(2 * 1.6449 * found.se, rel=1e-4)


def test_a_class_that_only_one_model_has_seen_counts_in_its_mean_alone():
    reference = np.array([[[8, 0, 2], [0, 2, 0], [0, 0, 0]], [[9, 0, 1], [0, 1, 0], [0, 0, 0]]])
    candidate = np.array([[[8, 0, 2], [0, 0, 0], [0, 2, 0]], [[9, 0, 1], [0, 0, 0], [0, 1, 0]]])
    assert paired.drop(reference, candidate).points == 0.0
    both = np.array([[[8, 0, 2], [0, 1, 0], [0, 1, 0]], [[9, 0, 1], [0, 0, 0], [0, 1, 0]]])
    assert paired.drop(reference, both).points == pytest.approx(85 / 2 - 85 / 3)


def test_one_image_has_no_error_and_equal_models_have_none_to_speak_of():
    label, one, _ = maps(np.random.default_rng(1))
    alone = counted(one, label)
    assert paired.drop(alone[:1], alone[:1]) == (0.0, None) and not held((alone[:1], alone[:1]), 50.0).sure
    assert paired.drop(alone, alone) == (0.0, 0.0)


def test_counts_of_other_images_or_other_labels_are_refused():
    label, one, other = maps(np.random.default_rng(2))
    reference = counted(one, label)
    with pytest.raises(BadData, match="same images"):
        paired.drop(reference, reference[:4])
    changed = label.copy()
    changed[3] = (changed[3] + 1) % 4
    with pytest.raises(BadData, match="labels of 1 of 6 images differ, the first is number 3"):
        paired.drop(reference, counted(other, changed))


@pytest.mark.parametrize("classes, differ", [(2, 0.02), (4, 0.1), (4, 1.0), (8, 0.02)])
def test_no_labels_whatever_can_cost_more_than_the_certificate_says(classes, differ):
    random, closest = np.random.default_rng(classes), 0.0
    for _ in range(100):
        label, one, other = maps(random, 3, classes, (3, 4), differ)
        reference = counted(one, label, classes)
        k = sum(paired.touched(a, b, t, classes) for a, b, t in zip(one, other, label, strict=True))
        loss, bound = paired.drop(reference, counted(other, label, classes)).points, paired.most_lost(k, reference)
        assert loss <= bound + 1e-9
        closest = max(closest, loss / bound if bound else 0.0)
    assert closest > 0.4  # nor is it a bound that says nothing


def test_the_certificate_is_reached_where_every_differing_pixel_was_right():
    label = np.zeros((1, 2, 5), np.uint8)
    label[0, 1] = 1
    other = label.copy()
    other[0, 0, 0] = 2
    reference, candidate = counted(label, label, 3), counted(other, label, 3)
    k = paired.touched(label[0], other[0], label[0], 3)
    assert k.tolist() == [1, 0, 1]
    assert paired.most_lost(k, reference) == pytest.approx(100 - (80 + 100 + 0) / 3)
    assert paired.drop(reference, candidate).points == pytest.approx(100 - (80 + 100 + 0) / 3)
    assert paired.most_lost(0 * k, reference) == 0.0


def test_ignored_pixels_differ_for_nobody():
    one, other, label = np.zeros((2, 2), np.uint8), np.array([[0, 1], [1, 0]], np.uint8), np.array([[1, 1], [255, 1]], np.uint8)
    assert paired.touched(one, other, label, 3).tolist() == [1, 1, 0]


def test_holm_rejects_step_by_step():
    assert paired.holm([0.01, 0.04, 0.03, 0.005], 0.05) == [True, False, False, True]
    assert paired.holm([0.04, 0.01], 0.05) == [True, True]
    assert paired.holm([0.026, 0.026], 0.05) == [False, False] and paired.holm([], 0.05) == []


@pytest.mark.parametrize("strict", [True, None])
def test_floors_are_held_against_the_iou_or_where_strict_against_its_lower_bound(tmp_path, strict):
    label, one, _ = maps(np.random.default_rng(3), n=40)
    table = counted(one, label)
    iou = miou(table.sum(axis=0))[1]
    floors = {"a": iou[0] - 0.1, "b": iou[1] + 0.1, "c": iou[2] - 20}
    rules = [{"metric": f"iou.{name}", "against": None, "at_least": floor, "sure": strict} for name, floor in floors.items()]
    found = verdict(rules, measured(tmp_path / "a", {"engine": table}, names=list("abcd")))
    assert [rule["passed"] for rule in found["rules"]] == ([None, None, True] if strict else [True, False, True])
    assert iou[0] - 6 < found["rules"][0]["confidence"]["at_least"]["edge"] < iou[0] - 0.2


def test_a_floor_of_a_flawless_class_is_kept_and_one_image_has_no_lower_bound(tmp_path):
    flawless = np.tile([[9, 0, 0], [0, 0, 0]], (5, 1, 1))
    rules = [{"metric": f"iou.{name}", "against": None, "at_least": 99.0, "sure": True} for name in "ab"]
    found = verdict(rules, measured(tmp_path / "a", {"engine": flawless}, names=["a", "b"]))["rules"]
    assert [rule["passed"] for rule in found] == [True, False] and "was not measured" in found[1]["text"]  # never seen
    [alone] = verdict(rules[:1], measured(tmp_path / "b", {"engine": flawless[:1]}, names=["a", "b"]))["rules"]
    assert alone["passed"] is None and "one image tells no error" in alone["text"] and alone["confidence"]["at_least"]["edge"] is None


def swapped():
    """Of 200 images, an eighth of the pixels of class 7 taken for class 0."""
    random, pair = np.random.default_rng(5), images(200, 0.002, 0.0, seed=5)
    damaged = pair.candidate.copy()
    lost = random.binomial(damaged[:, 7, 0], 0.15)
    damaged[:, 7, 0] -= lost
    damaged[:, 7, 2] += lost
    damaged[:, 0, 1] += lost
    return pair, damaged


def test_a_class_that_was_swapped_is_named_and_the_others_are_not(tmp_path):
    pair, damaged = swapped()
    rules = [{"metric": f"iou.{name}", "at_least": -2.0} for name in NAMES]
    rules.append({"metric": "miou", "at_least": -5.0})
    found = verdict(rules, measured(tmp_path / "a", {"student": pair.reference, "engine": damaged}, names=NAMES))
    assert [rule["metric"] for rule in found["rules"] if not rule["passed"]] == ["iou.name 7"] and found["passed"] is False
    lost = found["rules"][7]
    assert "at least -2 was asked" in lost["text"] and lost["value"] < -3 * lost["confidence"]["at_least"]["se"]
    assert lost["confidence"]["at_least"]["interval"][1] < -2
    assert verdict(rules, measured(tmp_path / "b", {"student": pair.reference, "engine": pair.candidate}, names=NAMES))["passed"] is True


def test_a_class_in_few_images_is_judged_by_its_figure_and_called_low_evidence(tmp_path):
    reference = np.zeros((30, 2, 3), int)
    reference[:, 0, 0] = 100
    reference[:9, 1, 0] = 50
    candidate = reference.copy()
    candidate[0, 1] = [30, 0, 20]
    rule = {"metric": "iou.b", "at_least": -2.0}

    def judged(folder, repeated):
        tables = {name: np.tile(table, (repeated, 1, 1)) for name, table in (("student", reference), ("engine", candidate))}
        return verdict([rule], measured(tmp_path / folder, tables, names=["a", "b"]))["rules"][0]

    few = judged("a", 1)
    assert (
        few["passed"] is False and few["value"] == pytest.approx(-4.44, abs=0.01) and "low evidence: only 9 images hold it" in few["text"]
    )
    reference = np.concatenate([reference, np.tile(reference[-1:], (90, 1, 1))])  # 120 images, of which
    candidate = np.concatenate([candidate, np.tile(candidate[-1:], (90, 1, 1))])
    assert judged("b", 1)["passed"] is False
    reference[9, 1, 0] = candidate[9, 1, 0] = 50  # ten hold it: one bad one among them is not significant
    assert judged("c", 1)["passed"] is None


def test_low_power_is_said_with_the_smallest_drop_that_would_be_found(tmp_path):
    def judged(folder, pair, drop):
        artifact = measured(tmp_path / folder, {"student": pair.reference, "engine": pair.candidate}, names=NAMES)
        return verdict([{"metric": "miou", "at_least": -drop}], artifact)["rules"][0]

    few, many = images(60, 0.01, 0.1, seed=6), images(400, 0.01, 0.1, seed=6)
    found = judged("a", few, 2.0)
    assert found["passed"] is True and found["low_power"]
    assert f"low power: 60 images find a drop of {held(few, 2.0).detectable:.2g} points" in found["text"]
    assert not judged("b", many, 2.0)["low_power"]
    assert judged("c", many, 0.9 * held(many, 2.0).detectable)["low_power"]


def test_a_certificate_passes_without_statistics():
    one = images(1, 0.001, 0.0, seed=7)
    assert not held(one, 0.2).sure and not held(one, 5.0).sure
    judged = margin(Counted(one.candidate, one.reference, np.full(19, 1)), "at_least", -5.0)
    assert judged.sure and judged.certified and judged.se is None


# Simulated images: three models that lose 0, 0.39 and 0.78 points on a population of 10,000.


@pytest.fixture(scope="module")
def populations():
    return {
        name: images(10000, *damage, seed=70) for name, damage in (("none", (0.01, 0.0)), ("half", (0.01, 0.1)), ("too much", (0.02, 0.1)))
    }


def passes(population, number, tolerance, seed):
    random = np.random.default_rng(seed)
    return sum(held(population.some(number, random), tolerance).sure for _ in range(DRAWS))


def test_the_populations_are_what_they_are_called(populations):
    for name, drop in (("none", 0.0), ("half", 0.386), ("too much", 0.778)):
        assert populations[name].true_drop() == pytest.approx(drop, abs=0.003)


@pytest.mark.parametrize("number, half_passes", [(100, 0.9), (200, 0.99), (500, 1.0)])
def test_half_a_point_of_tolerance_tells_harmless_from_harmful(populations, number, half_passes):
    assert passes(populations["none"], number, 0.5, 1) == DRAWS
    assert passes(populations["half"], number, 0.5, 2) >= DRAWS - at_most(DRAWS, 1 - half_passes)
    assert passes(populations["too much"], number, 0.5, 3) == 0


@pytest.mark.parametrize("number", [100, 200, 500])
def test_a_loss_of_just_the_tolerance_passes_in_five_of_a_hundred(populations, number):
    found = passes(populations["too much"], number, populations["too much"].true_drop(), 4)
    assert 2 <= found <= at_most(DRAWS, 0.075)  # nominally 0.05; at 100 images the error is a little small, as every such formula


@pytest.mark.parametrize("clump", [1, 200])
@pytest.mark.parametrize("number", [100, 200, 500])
def test_the_interval_holds_the_true_drop(number, clump):
    """Damage comes in clumps: pixels are not independent, images are."""
    population, random = images(10000, 0.01, 0.1, clump=clump, seed=71), np.random.default_rng(8)
    true, missed = population.true_drop(), 0
    for _ in range(DRAWS):
        found = held(population.some(number, random), 0.0)
        missed += abs(-found.points - true) > 1.96 * found.se
    assert DRAWS - at_most(DRAWS, 1 - 0.03) <= missed <= at_most(DRAWS, 0.085)


def test_two_separate_mious_tell_nothing_of_the_sort(populations):
    """Were the images too much alike, the tests above would show nothing."""
    pair = populations["none"].some(500, np.random.default_rng(9))
    spread = paired.error(paired.mean_seen(paired.influence(pair.reference).image))
    assert 0.4 < spread < 1.5 and paired.drop(*pair).se < spread / 20


def test_no_class_is_called_lost_where_only_ties_fell_the_other_way(populations, tmp_path):
    random, wrong = np.random.default_rng(10), 0
    rules = [{"metric": f"iou.{name}", "at_least": -2.0} for name in NAMES]
    for k in range(30):
        drawn = populations["none"].some(200, random)
        found = verdict(rules, measured(tmp_path / str(k), {"student": drawn.reference, "engine": drawn.candidate}, names=NAMES))
        wrong += found["passed"] is False
    assert wrong <= at_most(30, 0.01)


# The image bootstrap.


def drops(iou):
    """(..., 2, C) of a reference and a candidate -> (..., 1 + C) what mIoU and every class lost."""
    means = paired.mean_seen(iou)
    return np.concatenate([means[..., :1] - means[..., 1:], iou[..., 0, :] - iou[..., 1, :]], axis=-1)


def test_every_resample_counts_images_as_often_as_they_were_drawn():
    label, one, other = maps(np.random.default_rng(11), n=12)
    reference, candidate = counted(one, label), counted(other, label)
    found = bootstrap.bootstrap([reference, candidate], drops, resamples=40, seed=3)
    times = np.random.Generator(np.random.PCG64(3)).multinomial(12, np.full(12, 1 / 12), 40)

    def by_hand(weights):
        sums = [np.tensordot(weights, table, 1) for table in (reference, candidate)]
        means, ious = zip(*(miou(table) for table in sums), strict=True)
        return [means[0] - means[1], *(a - b for a, b in zip(*ious, strict=True))]

    assert found.figure == pytest.approx(by_hand(np.ones(12, int)))
    assert found.se == pytest.approx(np.std([by_hand(w) for w in times], axis=0, ddof=1))
    again = bootstrap.bootstrap([reference, candidate], drops, resamples=40, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))


def test_the_closed_form_error_is_that_of_the_bootstrap():
    for number, clump in ((100, 1), (200, 200), (500, 1)):
        pair = images(number, 0.01, 0.1, clump=clump, seed=number)
        found = bootstrap.bootstrap(pair, drops, resamples=1000)
        assert paired.drop(*pair).se == pytest.approx(found.se[0], rel=0.12)
        errors = np.array([margin(Counted(pair.candidate, pair.reference), "at_least", 0.0, c).se for c in range(19)])
        often = (pair.reference[..., 0] + pair.reference[..., 2] > 0).sum(axis=0) >= 50
        assert errors[often] == pytest.approx(found.se[1:][often], rel=0.15)


def test_intervals_are_moved_by_bias_and_skew_as_efron_says():
    """Against the formula taken one figure at a time, with quantiles of the resamples themselves."""
    from statistics import NormalDist

    normal, random = NormalDist(), np.random.default_rng(12)
    drawn, without, found = random.gamma(2, 1, (999, 3)), -random.gamma(1, 1, (30, 3)), np.array([1.5, 2.0, 3.0])
    low, high = bootstrap.bca(found, drawn, without, 0.9)
    for k in range(3):
        bias = normal.inv_cdf(float((drawn[:, k] < found[k]).mean()))
        lean = without[:, k].mean() - without[:, k]
        skew = (lean**3).sum() / (6 * (lean**2).sum() ** 1.5)
        assert abs(skew) > 0.01
        for end, z in ((low[k], -1.6449), (high[k], 1.6449)):
            share = normal.cdf(bias + (bias + z) / (1 - skew * (bias + z)))
            assert end == pytest.approx(np.sort(drawn[:, k])[int(share * 999)])


def test_a_class_in_few_images_and_one_never_seen_have_intervals_or_none():
    reference = np.zeros((20, 3, 3), int)
    reference[:, 0, 0], reference[:2, 1, 0] = 50, 10
    candidate = reference.copy()
    candidate[0, 1] = [4, 0, 6]
    found = bootstrap.bootstrap([reference, candidate], drops)
    assert np.isnan(found.low[3]) and np.isnan(found.figure[3])
    assert found.figure[2] == pytest.approx(30) and found.low[2] == 0 and found.high[2] == pytest.approx(60)
    assert (found.low[1], found.high[1], found.se[1]) == (0, 0, 0)


def test_the_interval_of_a_rare_class_holds_its_true_drop_nine_times_in_ten(populations):
    population, random, rare = populations["too much"], np.random.default_rng(13), 12
    iou = [miou(table.sum(axis=0))[1][rare] for table in population]
    missed = 0
    for _ in range(150):
        found = bootstrap.bootstrap(population.some(100, random), drops, resamples=300)
        missed += not found.low[1 + rare] <= iou[0] - iou[1] <= found.high[1 + rare]
    assert missed <= at_most(150, 0.10)


# Pixels that differ, and what may be compared at all.


def test_ties_that_fell_the_other_way_are_told_from_damage():
    logits = np.zeros((1, 3, 2, 4), np.float32)
    logits[:, 0] = 5
    logits[:, 1] = [[1, 4.99, 1, 1], [1, 1, 4.999, 4.8]]
    clear = mismatch.clear(logits, (2, 4), align_corners=False)[0]
    assert clear.tolist() == [[True, False, True, True], [True, True, False, True]]
    reference, label = np.zeros((2, 4), np.uint8), np.ones((2, 4), np.uint8)
    label[1, 3] = 255
    candidate = np.array([[0, 1, 0, 0], [0, 0, 1, 1]], np.uint8)
    assert mismatch.mismatches(reference, candidate, label, clear).tolist() == [7, 2, 0]
    candidate[0, 0] = 2
    assert mismatch.mismatches(reference, candidate, label, clear).tolist() == [7, 3, 1]
    assert mismatch.mismatches(reference, candidate, label, None).tolist() == [7, 3]
    assert mismatch.percents(np.array([[7, 3, 1], [3, 0, 0]])) == {"mismatch": 30.0, "clear_mismatch": 10.0}
    assert mismatch.percents(np.array([[7, 3], [3, 0]])) == {"mismatch": 30.0, "clear_mismatch": None}
    assert mismatch.percents(np.array([[0, 0, 0]])) == {"mismatch": None, "clear_mismatch": None}


@pytest.mark.parametrize("corners", [True, False])
def test_a_choice_is_clear_where_the_enlarged_logits_of_all_classes_at_once_say_so(corners):
    import torch
    import torch.nn.functional as F

    logits = 0.3 * torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    best, second = F.interpolate(logits, (10, 13), mode="bilinear", align_corners=corners).topk(2, dim=1).values.unbind(1)
    found = mismatch.clear(logits, (10, 13), corners)
    assert 0.3 < found.mean() < 0.9 and (found == (best - second > 0.1).numpy()).all()
    assert (mismatch.clear(logits.numpy(), (10, 13), corners) == found).all() and mismatch.clear(logits[:, :1], (10, 13), corners).all()


def print_of(pairs, names, **more):
    found = Fingerprint(names, **more)
    for pair in pairs:
        found.add(*pair)
    return found.told()


def test_a_fingerprint_changes_with_anything_that_makes_figures_incomparable():
    random = np.random.default_rng(14)
    pairs = [(random.integers(0, 255, (4, 6, 3), dtype=np.uint8), random.integers(0, 3, (4, 6), dtype=np.uint8)) for _ in range(3)]
    names = ["road", "car", "sky"]
    one = print_of(pairs, names)
    assert differing(one, print_of(pairs, names)) == []
    assert (
        one["image_digest"] == "19b9bcd7fa3d287b69da1b27f6441f5afa3ce31ba907c670358a6e3c52dfc6d0"
        and one["label_digest"] == "61948f9a74621305b096451417ab3bc18134b028ed40b765bca4eda46157da97"
    )  # baselines hold them
    image, label = pairs[0][0].copy(), pairs[1][1].copy()
    image[0, 0, 0] ^= 1
    label[0, 0] ^= 1
    for words, other in (
        ("the number of images", print_of(pairs[:2], names)),
        ("the images, or how they were brought to their size", print_of([(image, pairs[0][1]), *pairs[1:]], names)),
        ("the images", print_of(pairs[::-1], names)),
        ("the images", print_of([(i.reshape(6, 4, 3), l.reshape(6, 4)) for i, l in pairs], names)),
        ("the labels", print_of([pairs[0], (pairs[1][0], label), pairs[2]], names)),
        ("the ignored label (255 and 0)", print_of(pairs, names, ignore=0)),
        ("the classes or their order (3 names and 3 names)", print_of(pairs, names[::-1])),
    ):
        assert differing(one, other)[0].startswith(words)
