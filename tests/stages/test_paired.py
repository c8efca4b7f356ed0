"""What a candidate loses on the same images: figures against counts made by hand, and how often a verdict is right on simulated images.

The simulations have fixed seeds. Their bounds are what a binomial count exceeds once in ten thousand tries at the stated rate.
"""

import math

import numpy as np
import pytest

from pipeline.errors import BadData
from stages.measure import bootstrap, fingerprint, mismatch, paired
from stages.measure.miou import counts, miou
from tests.stages.simulated import at_most, images

DRAWS = 300  # sets of images drawn from a simulated population


def maps(random, n=6, classes=4, size=(7, 9), differ=0.1):
    """Labels, class maps of a reference that errs on 30 %, and of a candidate that differs from it on `differ` of the pixels."""
    label = random.integers(0, classes, (n, *size), dtype=np.uint8)
    one = np.where(random.random(label.shape) < 0.3, random.integers(0, classes, label.shape, dtype=np.uint8), label)
    other = np.where(random.random(label.shape) < differ, random.integers(0, classes, label.shape, dtype=np.uint8), one)
    label[random.random(label.shape) < 0.1] = 255
    return label, one, other


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
    assert found.high == pytest.approx(found.points + 1.6449 * found.se, rel=1e-4)
    assert found.detectable == pytest.approx(2 * 1.6449 * found.se, rel=1e-4)


def test_a_class_that_only_one_model_has_seen_counts_in_its_mean_alone():
    reference = np.array([[[8, 0, 2], [0, 2, 0], [0, 0, 0]], [[9, 0, 1], [0, 1, 0], [0, 0, 0]]])
    candidate = np.array([[[8, 0, 2], [0, 0, 0], [0, 2, 0]], [[9, 0, 1], [0, 0, 0], [0, 1, 0]]])
    assert paired.drop(reference, candidate).points == 0.0
    both = np.array([[[8, 0, 2], [0, 1, 0], [0, 1, 0]], [[9, 0, 1], [0, 0, 0], [0, 1, 0]]])
    assert paired.drop(reference, both).points == pytest.approx(85 / 2 - 85 / 3)
    assert [c is None for c in paired.class_drops(reference, candidate)] == [False, True, True]


def test_one_image_has_no_error_and_equal_models_have_none_to_speak_of():
    label, one, _ = maps(np.random.default_rng(1))
    alone = counted(one, label)
    assert paired.drop(alone[:1], alone[:1]) == (0.0, None) and paired.drop(alone[:1], alone[:1]).high == math.inf
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


def test_floors_are_held_against_the_iou_or_where_strict_against_its_lower_bound():
    label, one, _ = maps(np.random.default_rng(3), n=40)
    table = counted(one, label)
    iou = miou(table.sum(axis=0))[1]
    assert paired.below_floor(table, {0: iou[0] - 0.1, 1: iou[1] + 0.1}) == {1: pytest.approx(iou[1])}
    strict = paired.below_floor(table, {0: iou[0] - 0.1, 2: iou[2] - 20}, strict=True)
    assert list(strict) == [0] and iou[0] - 6 < strict[0] < iou[0] - 0.2
    assert math.isnan(paired.below_floor(np.zeros((2, 4, 3), int), {3: 0.0})[3])
    flawless = np.tile([[9, 0, 0]], (5, 1, 1))
    assert paired.below_floor(flawless, {0: 99.0}, strict=True) == {}
    assert paired.below_floor(flawless[:1], {0: 99.0}, strict=True) == {0: -math.inf}  # one image has no lower bound


def test_the_share_kept_is_what_mlperf_asks_for():
    label, one, other = maps(np.random.default_rng(4), n=40)
    reference, candidate = counted(one, label), counted(other, label)
    assert paired.share_kept(reference, candidate) == pytest.approx(miou(candidate.sum(axis=0))[0] / miou(reference.sum(axis=0))[0])
    judged = paired.judge(reference, candidate, tolerance=50, share=0.999)
    assert not judged.passed and "of the reference's mIoU is kept, 99.90% was asked" in judged.text


def test_a_class_that_was_swapped_is_named_and_the_others_are_not():
    random = np.random.default_rng(5)
    pair = images(200, 0.002, 0.0, seed=5)
    damaged = pair.candidate.copy()
    lost = random.binomial(damaged[:, 7, 0], 0.15)
    damaged[:, 7, 0] -= lost
    damaged[:, 7, 2] += lost
    damaged[:, 0, 1] += lost
    names = [f"name {c}" for c in range(19)]
    judged = paired.judge(pair.reference, damaged, tolerance=5.0, names=names)
    assert [c for c, found in enumerate(judged.classes) if found.lost] == [7]
    assert not judged.passed and judged.text.startswith("name 7 lost") and "2 was allowed" in judged.text
    assert judged.classes[7].points > 3 * judged.classes[7].se and judged.classes[7].p < 1e-6
    assert paired.judge(pair.reference, pair.candidate, tolerance=5.0).passed


def test_a_class_in_few_images_is_judged_by_its_figure_and_called_low_evidence():
    reference = np.zeros((30, 2, 3), int)
    reference[:, 0, 0] = 100
    reference[:9, 1, 0] = 50
    candidate = reference.copy()
    candidate[0, 1] = [30, 0, 20]
    judged = paired.judge(reference, candidate, tolerance=50.0)
    assert judged.classes[1].images == 9 and judged.classes[1].p is None and judged.classes[1].lost
    assert "class 1 lost 4.44 points in 9 images (low evidence)" in judged.text
    reference[9, 1, 0] = candidate[9, 1, 0] = 50  # ten images: one bad one among them is not significant
    assert not paired.class_drops(reference, candidate)[1].lost


def test_a_verdict_says_what_was_found_and_what_was_allowed():
    judged = paired.judge(*images(300, 0.01, 0.1, seed=8), tolerance=0.5, share=0.98)
    points, high = judged.drop.points, judged.drop.high
    assert judged.passed and not judged.low_power
    kept = judged.text.partition("; 0.5 was allowed; ")[2]
    assert judged.text.startswith(
        f"mIoU drops by +{points:.3f} points on 300 images, below {high:.3f} with 95 % confidence; 0.5 was allowed"
    )
    assert kept.startswith("99.") and kept.endswith("% of the reference's mIoU is kept, 98.00% was asked")
    tight = paired.judge(*images(300, 0.01, 0.1, seed=8), tolerance=0.3)
    assert not tight.passed and tight.text.endswith("; 0.3 was allowed")


def test_low_power_is_said_with_the_smallest_drop_that_would_be_found():
    pair = images(60, 0.01, 0.1, seed=6)
    judged = paired.judge(*pair, tolerance=2.0)
    assert judged.passed and judged.low_power
    assert f"low power: 60 images find a drop of {judged.drop.detectable:.2g} points" in judged.text
    many = images(400, 0.01, 0.1, seed=6)
    assert not paired.judge(*many, tolerance=2.0).low_power
    assert paired.judge(*many, tolerance=0.9 * paired.drop(*many).detectable).low_power


def test_a_certificate_passes_without_statistics():
    few = np.full(19, 1)
    assert not paired.judge(*images(1, 0.001, 0.0, seed=7), tolerance=0.2).passed
    judged = paired.judge(*images(1, 0.001, 0.0, seed=7), tolerance=5.0, touched=few, class_limit=50)
    assert judged.passed and judged.certificate < 5.0 and "whatever their labels" in judged.text and judged.low_power


# Simulated images: three models that lose 0, 0.39 and 0.78 points on a population of 10,000.


@pytest.fixture(scope="module")
def populations():
    return {
        name: images(10000, *damage, seed=70) for name, damage in (("none", (0.01, 0.0)), ("half", (0.01, 0.1)), ("too much", (0.02, 0.1)))
    }


def passes(population, number, tolerance, seed):
    random = np.random.default_rng(seed)
    return sum(paired.drop(*population.some(number, random)).high <= tolerance for _ in range(DRAWS))


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
        found = paired.drop(*population.some(number, random))
        missed += abs(found.points - true) > 1.96 * found.se
    assert DRAWS - at_most(DRAWS, 1 - 0.03) <= missed <= at_most(DRAWS, 0.085)


def test_two_separate_mious_tell_nothing_of_the_sort(populations):
    """Were the images too much alike, the tests above would show nothing."""
    pair = populations["none"].some(500, np.random.default_rng(9))
    spread = paired.error(paired.mean_seen(paired.influence(pair.reference).image))
    assert 0.4 < spread < 1.5 and paired.drop(*pair).se < spread / 20


def test_no_class_is_called_lost_where_only_ties_fell_the_other_way(populations):
    random = np.random.default_rng(10)
    wrong = sum(any(c and c.lost for c in paired.class_drops(*populations["none"].some(200, random))) for _ in range(100))
    assert wrong <= at_most(100, 0.01)


# The image bootstrap.


def test_every_resample_counts_images_as_often_as_they_were_drawn():
    label, one, other = maps(np.random.default_rng(11), n=12)
    reference, candidate = counted(one, label), counted(other, label)
    found = bootstrap.bootstrap(reference, candidate, resamples=40, seed=3)
    times = np.random.Generator(np.random.PCG64(3)).multinomial(12, np.full(12, 1 / 12), 40)

    def by_hand(weights):
        sums = [np.tensordot(weights, table, 1) for table in (reference, candidate)]
        means, ious = zip(*(miou(table) for table in sums), strict=True)
        return [means[0] - means[1], *(a - b for a, b in zip(*ious, strict=True))]

    assert found.drop == pytest.approx(by_hand(np.ones(12, int)))
    assert found.se == pytest.approx(np.std([by_hand(w) for w in times], axis=0, ddof=1))
    again = bootstrap.bootstrap(reference, candidate, resamples=40, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))


def test_the_closed_form_error_is_that_of_the_bootstrap():
    for number, clump in ((100, 1), (200, 200), (500, 1)):
        pair = images(number, 0.01, 0.1, clump=clump, seed=number)
        found = bootstrap.bootstrap(*pair, resamples=1000)
        assert paired.drop(*pair).se == pytest.approx(found.se[0], rel=0.12)
        errors = np.array([c.se for c in paired.class_drops(*pair)])
        often = np.array([c.images >= 50 for c in paired.class_drops(*pair)])
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
    found = bootstrap.bootstrap(reference, candidate)
    assert np.isnan(found.low[3]) and np.isnan(found.drop[3])
    assert found.drop[2] == pytest.approx(30) and found.low[2] == 0 and found.high[2] == pytest.approx(60)
    assert (found.low[1], found.high[1], found.se[1]) == (0, 0, 0)


def test_the_interval_of_a_rare_class_holds_its_true_drop_nine_times_in_ten(populations):
    population, random, rare = populations["too much"], np.random.default_rng(13), 12
    iou = [miou(table.sum(axis=0))[1][rare] for table in population]
    missed = 0
    for _ in range(150):
        found = bootstrap.bootstrap(*population.some(100, random), resamples=300)
        missed += not found.low[1 + rare] <= iou[0] - iou[1] <= found.high[1 + rare]
    assert missed <= at_most(150, 0.10)


# Pixels that differ, and what may be compared at all.


def test_ties_that_fell_the_other_way_are_told_from_damage():
    logits = np.zeros((3, 2, 4))
    logits[0] = [[5, 5, 5, 5], [5, 5, 5, 5]]
    logits[1] = [[1, 4.99, 1, 1], [1, 1, 4.999, 1]]
    gap = mismatch.top_two_gap(logits)
    assert gap[0, 0] == 4 and gap[0, 1] == pytest.approx(0.01)
    reference, label = np.zeros((2, 4), np.uint8), np.ones((2, 4), np.uint8)
    label[1, 3] = 255
    candidate = np.array([[0, 1, 0, 0], [0, 0, 1, 1]], np.uint8)
    ties = mismatch.mismatches(reference, candidate, label, gap, 0.1)
    assert ties.tolist() == [7, 2, 0]
    candidate[0, 0] = 2
    damage = mismatch.mismatches(reference, candidate, label, gap, 0.1)
    assert damage.tolist() == [7, 3, 1]
    assert mismatch.judge_mismatch(ties, 0.3).passed and not mismatch.judge_mismatch(ties, 0.2).passed
    judged = mismatch.judge_mismatch(ties + damage, 0.5)
    assert not judged.passed and (judged.share, judged.decided) == (5 / 14, 1 / 14)
    assert judged.text.startswith("5 of 14 pixels differ (0.36; 0.5 was allowed), 1 of them where the reference was sure (0.071; 0 was")
    assert mismatch.judge_mismatch(ties + damage, 0.5, decided_limit=0.1).passed


def test_a_fingerprint_changes_with_anything_that_makes_figures_incomparable():
    random = np.random.default_rng(14)
    pairs = [(random.integers(0, 255, (4, 6, 3), dtype=np.uint8), random.integers(0, 3, (4, 6), dtype=np.uint8)) for _ in range(3)]
    names = ["road", "car", "sky"]
    one = fingerprint.fingerprint(pairs, names)
    assert fingerprint.fingerprint(iter(pairs), names) == one
    fingerprint.require_same(one, dict(one))
    image, label = pairs[0][0].copy(), pairs[1][1].copy()
    image[0, 0, 0] ^= 1
    label[0, 0] ^= 1
    for words, other in (
        ("the number of images", fingerprint.fingerprint(pairs[:2], names)),
        ("the images, or how they were brought to their size", fingerprint.fingerprint([(image, pairs[0][1]), *pairs[1:]], names)),
        ("the images", fingerprint.fingerprint(pairs[::-1], names)),
        ("the images", fingerprint.fingerprint([(i.reshape(6, 4, 3), l.reshape(6, 4)) for i, l in pairs], names)),
        ("differs: the labels", fingerprint.fingerprint([pairs[0], (pairs[1][0], label), pairs[2]], names)),
        (r"the ignored label \(255 and 0\)", fingerprint.fingerprint(pairs, names, ignore=0)),
        (r"the classes or their order \(3 names and 3 names\)", fingerprint.fingerprint(pairs, names[::-1])),
    ):
        with pytest.raises(BadData, match=words):
            fingerprint.require_same(one, other)
