"""The pictures that explain a verdict: what a model that lost saw before and sees now, on the images that cost most, zoomed to the loss."""

from typing import Any

from PIL import Image, ImageChops

from pipeline.artifact import Artifact
from stages.rules import MISMATCHES

from .difference import UNJUDGED, difference, focused, kinds, of_class, pixels, where, window
from .pictures import as_data, fitted, open_map, open_picture, within
from .words import clean, name, number

OF_REFERENCE = ("agreement", *MISMATCHES)  # metrics that name no other model, and are held against the reference
ACCURACY = ("miou", "iou", "boundary_f", *OF_REFERENCE)
PER_RULE, MOST = 3, 6  # images
BUDGET = 700_000  # bytes of all data: URIs together
WIDTHS = (420, 320, 240, 160)


def collect(artifacts: dict[str, Artifact], told: dict) -> tuple[list[dict], list[list[str]]]:
    """For every rule to be explained what the page says, and for each of its images the data: URIs of its tiles, in one list."""
    found, loaded, drawn = [], [], set()
    for k in explained(told["rules"]):
        rule = told["rules"][k]
        entry = {"rule": k, "class": class_of(rule), "problem": None, "points": None, "classes": {}, "images": [], "again": False}
        artifact = _measurement(rule, artifacts, told)
        change, entry["problem"] = _change(rule, artifact, told)
        if change is not None:
            entry |= _lost(change, entry["class"])
            for image in _ordered(change, entry["class"], rule)[:PER_RULE]:
                which = _class(image, entry["class"])
                if (change["of"], change["against"], image["index"], which) in drawn:
                    entry["again"] = True
                    continue
                if len(loaded) < MOST and (picture := _picture(artifact, change, image, which, told)):
                    drawn.add((change["of"], change["against"], image["index"], which))
                    entry["images"].append(picture["facts"])
                    loaded.append(picture)
            if not entry["images"] and not entry["again"]:
                entry["problem"] = "the images that cost most were stored, but cannot be read"
        found.append(entry)
    return found, within(loaded, WIDTHS, BUDGET, _uris)


def explained(rules: list[dict]) -> list[int]:
    """Places of the rules on accuracy that are broken, then undecided; and of the passed one that lost most since the release."""
    asked = [k for k, rule in enumerate(rules) if str(rule["metric"]).split(".")[0] in ACCURACY]
    open_ = sorted((k for k in asked if rules[k]["passed"] is not True), key=lambda k: rules[k]["passed"] is None)
    passed = [k for k in asked if rules[k]["passed"] is True and rules[k]["against"] == "released"]
    below = [k for k in passed if None not in (pair := (rules[k]["value_of"], rules[k]["value_against"])) and pair[0] < pair[1]]
    return open_ + sorted(below, key=lambda k: rules[k]["value_of"] - rules[k]["value_against"])[:1]


def class_of(rule: dict) -> str | None:
    return name(rule["metric"].removeprefix("iou.")) if str(rule["metric"]).startswith("iou.") else None


def _measurement(rule: dict, artifacts: dict[str, Artifact], told: dict) -> Artifact | None:
    """The one that the rule's gate judged."""
    gate = next((s for s in told["stages"] if s["name"] == rule["gate"]), None)
    names = (gate or {}).get("inputs", {}).get("measured") or [told["measured"]["stage"] if told["measured"] else None]
    return next((a for a in artifacts.values() if a.kind == "Measurement" and name(a.name) == names[0]), None)


def _change(rule: dict, artifact: Artifact | None, told: dict) -> tuple[dict | None, str | None]:
    """The pair of models that the rule is about, as the measurement has it; or why there are no pictures, and what to do."""
    try:
        measurement = artifact.json("measurement.json") if artifact else {}
        listed, reference = measurement["changes"], measurement["reference"]
        assert isinstance(listed, list)
    except (OSError, ValueError, KeyError, TypeError, AssertionError, RecursionError):
        return None, "this measurement was made before pictures of what changed were kept: run the recipe again"
    against = rule["against"] or (name(reference) if rule["metric"] in OF_REFERENCE else None)
    if against is None:
        return None, "a limit on a figure alone names no other model; a rule with `against` shows what changed"
    for one in listed:
        if isinstance(one, dict) and (name(one.get("of", "")), name(one.get("against", ""))) == (rule["of"], against):
            if one.get("problem"):
                return None, clean(one["problem"], 600)
            change = one | {"classes": _points(one.get("classes")), "images": _images(one.get("images"))}
            return (change, None) if change["images"] else (None, "no class of any image lost anything that could be shown")
    stage = name(artifact.name)
    if against == "released" and [rule["of"], against] not in _raced(told, stage):
        return None, f"{stage} did not run the released {rule['of']}: add [{rule['of']}, released] to its pairs"
    return None, f"{rule['of']} lost nothing against {against} that a picture could show, or the two were not compared (`pictures: 0`)"


def _raced(told: dict, stage: str) -> list:
    settings = told["recipe"].get("stages", {})
    settings = settings.get(stage) if isinstance(settings, dict) else None
    pairs = settings.get("pairs") if isinstance(settings, dict) else None
    return pairs if isinstance(pairs, list) else []


def _points(value: Any) -> dict[str, float]:
    """Points lost by class, largest first."""
    found = {name(k): number(v) for k, v in value.items()} if isinstance(value, dict) else {}
    return dict(sorted(((k, v) for k, v in found.items() if v is not None and v > 0), key=lambda item: -item[1])[:256])


def _images(value: Any) -> list[dict]:
    good = [one for one in value if isinstance(one, dict) and type(one.get("index")) is int] if isinstance(value, list) else []
    return [
        {"index": one["index"], "name": name(one.get("name", "")), "miou": number(one.get("miou")), "classes": _points(one.get("classes"))}
        | {"as_accepted": one.get("as_accepted") is not False}
        for one in good[:64]
    ]


def _lost(change: dict, class_: str | None) -> dict:
    """Points that were lost in all, and what the other classes lost."""
    return {"points": change["classes"].get(class_) if class_ else number(change.get("miou")), "classes": change["classes"]}


def _ordered(change: dict, class_: str | None, rule: dict) -> list[dict]:
    """The images that cost the rule's figure most; as the verdict names them, where it does."""
    named = [one["image"] for one in rule["worst"]]
    cost = [image for image in change["images"] if class_ is None or class_ in image["classes"]] or change["images"]

    def order(image: dict) -> tuple:
        points = image["classes"].get(class_, 0.0) if class_ else image["miou"] or 0.0
        return (named.index(image["index"]) if image["index"] in named else len(named), -points)

    return sorted(cost, key=order)


def _class(image: dict, class_: str | None) -> str | None:
    """The class that the picture is about: the rule's, or the one that the image cost most."""
    return class_ if class_ in image["classes"] else next(iter(image["classes"]), class_)


def _picture(artifact: Artifact, change: dict, image: dict, class_: str | None, told: dict) -> dict | None:
    i, of, against = image["index"], change["of"], change["against"]
    before = f"changed_released_{of}_{i}.png" if against == "released" else f"changed_map_{against}_{i}.png"
    photo = open_picture(artifact, f"changed_image_{i}.png", told)
    maps = [open_map(artifact, file, told) for file in (f"changed_label_{i}.png", before, f"changed_map_{of}_{i}.png")]
    if photo is None or None in maps or len({photo.size, *(one.size for one in maps)}) > 1:
        return None
    names = [one["name"] for one in told["classes"]]
    number_ = names.index(class_) if class_ in names else None
    masks = kinds(*maps)
    focus = focused(number_, maps, masks)
    place = window(focus)
    became = _became(number_, maps, focus, names)
    facts = {key: image[key] for key in ("name", "index", "miou", "as_accepted")} | {
        "class": class_,
        "points": image["classes"].get(class_),
    }
    facts |= {kind: pixels(mask) for kind, mask in masks.items()} | {"window": list(place), "size": list(photo.size), "became": became}
    picture = {"photo": photo.convert("RGB"), "maps": maps, "masks": masks, "window": place}
    picture["palette"] = _palette(told["classes"], {class_, became and became["from"], became and became["to"]})
    whole = [] if place == (0, 0, *photo.size) else [{"what": "where", "title": "Where in the image"}]
    titles = {
        "image": "Image",
        "label": "Label",
        "before": f"Before: {f'released {of}' if against == 'released' else against}",
        "after": f"After: {of}",
        "difference": "What changed",
    }
    picture["facts"] = facts | {"tiles": whole + [{"what": what, "title": title} for what, title in titles.items()]}
    return picture


def _became(number_: int | None, maps: list[Image.Image], focus: Image.Image, names: list[str]) -> dict | None:
    """The most frequent of what happened there: {"from": class, "to": class, "pixels"}."""
    label, _, after = maps
    if number_ is None:
        return None
    found = []
    for one, other, flipped in ((label, after, False), (after, label, True)):
        counts = other.histogram(ImageChops.darker(of_class(one, number_), focus))[: len(names)]
        if any(counts):
            pair = (names[number_], names[counts.index(max(counts))])
            found.append({"from": pair[flipped], "to": pair[not flipped], "pixels": max(counts)})
    return max(found, key=lambda one: one["pixels"], default=None)


def _palette(classes: list[dict], strong: set) -> list[int]:
    """The colours of the classes, all but a few of them faded."""
    colours = [c["colour"] if c["name"] in strong else [190 + v // 6 for v in c["colour"]] for c in classes][:256]
    return [v for colour in colours + [list(UNJUDGED)] * (256 - len(colours)) for v in colour]


def _uris(picture: dict, width: int) -> list[str]:
    """One data: URI per tile, in the order of facts["tiles"]."""
    place, found = picture["window"], []
    for tile in picture["facts"]["tiles"]:
        if tile["what"] == "where":
            found.append(as_data("JPEG", where(picture, width), quality=80))
        elif tile["what"] == "image":
            found.append(as_data("JPEG", fitted(picture["photo"].crop(place), width, Image.Resampling.LANCZOS), quality=88))
        elif tile["what"] == "difference":
            found.append(as_data("PNG", difference(picture, width), optimize=True))
        else:
            kept = picture["maps"][("label", "before", "after").index(tile["what"])].crop(place)
            small = fitted(kept, width, Image.Resampling.NEAREST)
            small = Image.frombytes("P", small.size, small.tobytes())
            small.putpalette(picture["palette"])
            found.append(as_data("PNG", small, optimize=True))
    return found
