"""Pictures where two runs disagree: those that both measurements kept, side by side, with what became worse and better."""

from typing import Any

import numpy as np

from stages.page import pictures as shown
from stages.page.difference import difference, drawn, shares
from stages.page.facts import colour
from stages.page.words import name

from .measured import Measured

PICTURES = 6
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
    scenes = [scene for key in shared if (scene := _scene(key, model, (one, kept[0][key]), (two, kept[1][key])))]
    told = f"{one.run} kept {len(kept[0])} pictures, {two.run} {len(kept[1])}"
    if not scenes:
        notes.append(f"{told}, and none is of the same image and label: no class maps are shown")
        return [], []
    if len(scenes) < max(map(len, kept)):
        notes.append(f"{told}; the {len(scenes)} of images that both kept are shown")
    scenes.sort(key=lambda scene: -scene["disagree"])
    facts = [{key: scene[key] for key in ("name", "disagree", "shares", "titles")} for scene in scenes[:PICTURES]]
    return facts, _within_budget(scenes[:PICTURES], one)


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
        photo = shown._open(side.artifact, f"image_{k}.png", told)
        opened.append((photo, *(shown._map(side.artifact, f"{what}_{k}.png", told) for what in ("label", f"map_{model}"))))
    (photo, label, before), (other, same, after) = opened
    if None in (photo, label, before, other, same, after):
        return None
    if photo.tobytes() != other.tobytes() or label.tobytes() != same.tobytes() or not label.size == before.size == after.size:
        return None
    codes = difference(*(np.asarray(image) for image in (before, after, label)))
    shared = shares(codes)
    titles = ["Image", "Label", f"{name(model)}, {sides[0][0].run}", f"{name(model)}, {sides[1][0].run}", "What became worse and better"]
    scene = {"name": name(key), "disagree": sum(shared.values()), "shares": shared, "titles": titles}
    return scene | {"photo": photo.convert("RGB"), "maps": (label, before, after), "codes": codes}


def _within_budget(scenes: list[dict], side: Measured) -> list[list[str]]:
    colours = side.told.get("colours") if isinstance(side.told.get("colours"), list) else []
    palette = shown._palette([{"colour": colour(c)} for c in colours])
    for width in WIDTHS:
        uris = [_tiles(scene, palette, width) for scene in scenes]
        if sum(len(uri) for row in uris for uri in row) <= BUDGET:
            break
    return uris


def _tiles(scene: dict, palette: list[int], width: int) -> list[str]:
    tiles = [{"photo": scene["photo"]}, *({"map": image, "palette": palette} for image in scene["maps"])]
    return [*(shown._uri(tile, width) for tile in tiles), shown._data("PNG", drawn(scene["codes"], scene["photo"], width), optimize=True)]
