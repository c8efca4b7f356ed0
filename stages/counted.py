"""Rules on accuracy, judged by counts per image: what other images of the kind would say, which class lost, and on which images.

Closed-form errors and Holm's correction decide, and the interval of the bootstrap is told beside them: 2,000 resamples cannot resolve the
chances that many classes at once are held to (0.05 / 19 is five of them), and a verdict must not hang on a seed. Pixels that differ are
counted, not estimated: the figure decides, unless `sure: true` asks for other images, too.
"""

import math
from typing import TYPE_CHECKING, Any

from pipeline.errors import BadData
from stages.evidence import Evidence, Unknown
from stages.rules import Rule, holds, short

if TYPE_CHECKING:
    import numpy as np

MOST_WORST = 3  # images and classes that an entry names
Outcome = tuple[bool | None, list[str], dict[str, Any]]  # what there is to say about it, and further fields of the entry


def by_images(rule: Rule, counted: Any, evidence: Evidence, kept: bool, lost: bool) -> Outcome:
    """mIoU or the IoU of a class. `kept`: what the figures alone say; `lost`: whether the loss is no chance."""
    from stages.measure.paired import FEW_IMAGES

    images, found = len(counted.of), margins(rule, counted, evidence)
    weighed = rule.sure is True or (rule.sure is None and images >= FEW_IMAGES)
    sure = all(one.sure for one in found.values())
    if rule.family == "iou" and weighed and not kept:
        passed = False if lost or any(one.chance is None for one in found.values()) else None
    elif rule.family == "iou":
        passed = None if kept and rule.sure and not sure else kept
    else:
        passed = None if kept and weighed and not sure else kept
    numbers = {limit: {"edge": told(one.edge), "se": one.se, "certain": one.certain} for limit, one in found.items()}
    if rule.family == "iou" and images > 1:
        for limit, ends in intervals(rule, evidence).items():
            numbers[limit]["interval"] = ends
    low = [one for limit, one in found.items() if not one.certified and (images < FEW_IMAGES or not visible(rule, limit, one))]
    spent = has_nothing_to_lose(rule, evidence)
    entry = {"images": images, "low_power": bool(low) or spent, "confidence": numbers}
    entry |= worst(rule, counted, evidence) if rule.against else {}
    why = [told_of(numbers, found, rule, images)]
    if passed is None and not kept:
        why.append(f"may be chance on {images} images: more of them decide, or `sure: false`")
    elif passed is None:
        why.append(f"{images} images are too few to promise it: more of them decide, or `sure: false`")
    if spent and passed:
        why.append(f"low power: {rule.against} has no more than that to lose, so nothing could break this rule")
    elif low and rule.against and passed:
        most = max(one.detectable for one in low)
        finds = 0 < most < math.inf
        known = f"find a drop of {most:.2g} points, not a smaller one" if finds else "do not tell how small a drop they would find"
        why.append(f"low power: {images} images {known}")
    if any(one.chance is None for one in found.values()) and rule.family == "iou":
        why.append(f"low evidence: only {holding(counted, evidence.class_number(rule))} images hold it")
    if passed is not True:
        why.append(culprits(entry))
    return passed, [text for text in why if text], entry


def by_pixels(rule: Rule, counted: "np.ndarray") -> Outcome:
    """The share of pixels whose class differs from the reference's. counted: int64 (N, 2), labelled pixels and those that differ."""
    import numpy as np

    from stages.measure.paired import Z95, error, known_or_worst

    pixels, differ = (int(n) for n in counted.sum(axis=0))
    share, images = 100 * differ / pixels, len(counted)
    se = error(images * (100 * counted[:, 1] - share * counted[:, 0]) / pixels)
    edges = {name: share - (1 if name == "at_least" else -1) * Z95 * known_or_worst(se) for name in rule.limits()}
    kept, sure = (
        all(holds(name, found[name], limit) for name, limit in rule.limits().items()) for found in (dict.fromkeys(edges, share), edges)
    )
    why = [f"{differ} of {pixels} labelled pixels, in {np.count_nonzero(counted[:, 1])} of {images} images"]
    entry = {"images": images, "pixels": pixels, "differ": differ}
    entry["confidence"] = {name: {"edge": told(edge), "se": se} for name, edge in edges.items()}
    if rule.sure and kept and not sure:
        bounds = ", ".join(short(edge) for edge in edges.values() if math.isfinite(edge)) or "unknown"
        return None, [*why, f"95 % bound {bounds}: too few images to promise it; more of them decide, or `sure: false`"], entry
    return kept, why, entry


def classes_that_lost(rules: list[Rule], evidence: Evidence) -> frozenset[Rule]:
    """Of all rules on classes together: those that lost more than chance can explain, at 5 % for all of them (Holm)."""
    asked_for = [rule for rule in rules if rule.family == "iou" and rule.sure is not False]
    if not asked_for:
        return frozenset()
    from stages.measure.paired import CLASS_LEVEL, holm

    found = []
    for rule in asked_for:
        try:
            evidence.other_figure(rule)  # raises where the two cannot be compared
            counted = evidence.counted(rule) if evidence.figure(rule) is not None else None
            known = margins(rule, counted, evidence) if counted is not None else {}
        except (Unknown, BadData):
            continue
        least = min(known.values(), key=lambda one: one.points, default=None)
        if least is not None and least.chance is not None:
            found.append((rule, least))
    significant = holm([least.chance for _, least in found], CLASS_LEVEL)
    return frozenset(
        rule for (rule, least), is_lost in zip(found, significant, strict=True) if is_lost and (least.shown or not rule.against)
    )


def margins(rule: Rule, counted: Any, evidence: Evidence) -> dict[str, Any]:
    from stages.measure.sure import margin

    number = evidence.class_number(rule) if rule.family == "iou" else None
    return {limit: margin(counted, limit, bound, number) for limit, bound in rule.limits().items()}


def visible(rule: Rule, limit: str, found: Any) -> bool:
    """Whether a loss as large as is allowed would be found. A figure alone has no allowance."""
    if rule.against is None:
        return True
    return found.detectable <= (abs(rule.limits()[limit]) if not limit.endswith("_ratio") else math.inf)


def has_nothing_to_lose(rule: Rule, evidence: Evidence) -> bool:
    """Whether the other model is so bad that even 0 keeps the limit, e.g. on a class that it never finds."""
    return rule.against is not None and rule.at_least is not None and evidence.other_figure(rule) + rule.at_least <= 0


def holding(counted: Any, number: int) -> int:
    """Images whose labels hold the class."""
    return int((counted.of[:, number, 0] + counted.of[:, number, 2] > 0).sum())


def intervals(rule: Rule, evidence: Evidence) -> dict[str, list[float] | None]:
    """By limit: both ends of the 95 % interval of the figure that is held against it; None for a class that one of the two never saw."""
    found, number = evidence.resampled(rule), evidence.class_number(rule)
    classes, ends = len(evidence.measurement["classes"]), {}
    for limit in rule.limits():
        k = number + (classes if limit.endswith("_ratio") else 0)
        low, high = float(found.low[k]), float(found.high[k])
        ends[limit] = [low, high] if math.isfinite(low) and math.isfinite(high) else None
    return ends


def worst(rule: Rule, counted: Any, evidence: Evidence) -> dict[str, Any]:
    """The images, and for mIoU the classes, that add most to the loss; points of (of - against), those of all images sum up to it."""
    from stages.measure.paired import mean_seen
    from stages.measure.sure import influence, parts

    of_classes = parts(counted.of, counted.against)
    sign = -1 if all(limit.startswith("at_most") for limit in rule.limits()) else 1  # where a limit is from above, more is worse
    each = sign * (mean_seen(of_classes) if rule.family == "miou" else of_classes[:, evidence.class_number(rule)])
    chosen = [int(i) for i in each.argsort(kind="stable")[:MOST_WORST] if each[i] < 0]
    found = {"worst": [{"image": i, "name": evidence.name(i), "points": float(sign * each[i])} for i in chosen]}
    if rule.family == "miou":
        classes = evidence.measurement["classes"]
        change = sign * (influence(counted.of).iou - influence(counted.against).iou)
        order = [int(c) for c in change.argsort(kind="stable")[:MOST_WORST] if change[c] < 0]  # nan goes last
        found["worst_classes"] = {classes[c]: float(sign * change[c]) for c in order}
    return found


def culprits(entry: dict[str, Any]) -> str:
    """Where a loss comes from, in words."""
    classes = [f"{name} ({short(points, '+')})" for name, points in entry.get("worst_classes", {}).items()]
    images = [f"{one['name']} ({short(one['points'], '+')})" for one in entry.get("worst", [])]
    named = [f"{where} {', '.join(names)}" for where, names in (("by", classes), ("in", images)) if names]
    return f"most lost {', '.join(named)}" if named else ""


def told_of(numbers: dict[str, dict], found: dict[str, Any], rule: Rule, images: int) -> str:
    """What the images say of the limits beyond the figure itself."""
    if all(one.certified for one in found.values()):
        return f"kept for certain on these {images} images, whatever their labels"
    said = []
    for limit, one in found.items():
        ratio, kept = limit.endswith("_ratio"), numbers[limit]
        of, figure = ("of the ratio ", "{:.4f}".format) if ratio else ("", short)
        if one.certified:
            continue
        if kept["edge"] is None:
            return "one image tells no error"
        if ends := kept.get("interval"):
            said.append(f"95 % interval {of}{figure(ends[0])} to {figure(ends[1])}")
        if rule.family == "miou" or rule.sure:
            said.append(f"95 % bound {of}{figure(kept['edge'])}")
    return f"{', '.join(dict.fromkeys(said))} ({images} images)" if said else ""


def told(value: float) -> float | None:
    """JSON knows no infinity."""
    return value if math.isfinite(value) else None
