"""Pictures where two runs disagree: those that both measurements kept, side by side, with what became worse and better."""

from typing import Any

from PIL import Image

from stages.page.difference import UNJUDGED, difference, kinds, pixels
from stages.page.facts import colour
from stages.page.pictures import as_data, fitted, open_map, open_picture, within
from stages.page.words import name

from .measured import Measured

PICTURES, LISTED = 6, 64  # that are shown; that are looked at
IGNORED = 255  # of labels
BUDGET = 2_400_000  # bytes of all data: URIs together; wider pictures are tried first
WIDTHS = (480, 320, 200)


def collect(one: Measured, two: Measured, model: str | None, notes: list[str]) -> tuple[list[dict], list[list[str]]]:
    """What the page says about each picture, the most disagreement first; and beside it the data: URI of each of its tiles."""
    kept = [_kept(side) for side in (one, two)]
    shared = [key for key in kept[0] if key in kept[1]]
    if model is None or not any(kept):
        return [], []
    if one.classes != two.classes:
        notes.append("the class tables differ, so the class maps mean different things: no pictures are compared")
        return [], []
    seen = (_scene(key, model, (one, kept[0][key]), (two, kept[1][key])) for key in shared[:LISTED])
    scenes, found = [], 0
    for scene in filter(None, seen):  # opened one after the other: all of them at once may be gigabytes
        scenes, found = sorted([*scenes, scene], key=lambda scene: -scene["disagree"])[:PICTURES], found + 1
    told = f"{one.run} kept {len(kept[0])} pictures, {two.run} {len(kept[1])}"
    if not scenes:
        notes.append(f"{told}, and none is of the same image and label: no class maps are shown")
        return [], []
    if found < max(map(len, kept)):
        notes.append(f"{told}; the {found} of images that both kept are shown")
    facts = [{key: scene[key] for key in ("name", "disagree", "shares", "titles")} for scene in scenes]
    colours = one.told.get("colours") if isinstance(one.told.get("colours"), list) else []
    return facts, within(scenes, WIDTHS, BUDGET, lambda scene, width: _tiles(scene, colours, width))


def _kept(side: Measured) -> dict[str, int]:
    """Name of an image -> the number of its files."""
    listed = side.told.get("pictures")
    entries = listed if isinstance(listed, list) else []
    return {str(entry.get("name")): k for k, entry in enumerate(entries) if isinstance(entry, dict)}


def _scene(key: str, model: str, *sides: tuple[Measured, int]) -> dict[str, Any] | None:
    """The same image and label in both, with both class maps; None where they are not the same, or cannot be read."""
    opened = []
    for side, k in sides:
        told = {"notes": []}  # what is missing here is counted by the caller
        photo = open_picture(side.artifact, f"image_{k}.png", told)
        opened.append((photo, *(open_map(side.artifact, f"{what}_{k}.png", told) for what in ("label", f"map_{model}"))))
    (photo, label, before), (other, same, after) = opened
    if None in (photo, label, before, other, same, after):
        return None
    if photo.tobytes() != other.tobytes() or label.tobytes() != same.tobytes() or not label.size == before.size == after.size:
        return None
    masks = kinds(label, before, after)
    judged = max(1, sum(label.histogram()[:IGNORED]))
    shares = {kind: pixels(mask) / judged for kind, mask in masks.items()}
    titles = ["Image", "Label", f"{name(model)}, {sides[0][0].run}", f"{name(model)}, {sides[1][0].run}", "What became worse and better"]
    scene = {"name": name(key), "disagree": sum(shares.values()), "shares": shares, "titles": titles}
    return scene | {"photo": photo.convert("RGB"), "maps": (label, before, after), "masks": masks, "window": (0, 0, *photo.size)}


def _tiles(scene: dict, colours: list, width: int) -> list[str]:
    """One data: URI for each of its titles."""
    found = [as_data("JPEG", fitted(scene["photo"], width, Image.Resampling.LANCZOS), quality=85)]
    for kept in scene["maps"]:
        small = fitted(kept, width, Image.Resampling.NEAREST)
        small = Image.frombytes("P", small.size, small.tobytes())
        small.putpalette([value for one in colours[:256] for value in colour(one)] + [*UNJUDGED] * (256 - len(colours)))
        found.append(as_data("PNG", small, optimize=True))
    return [*found, as_data("PNG", difference(scene, width), optimize=True)]
