"""Turns the pictures of a measurement into data: URIs: sample, label, class maps, and where two class maps differ."""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from pipeline.artifact import Artifact

from .roles import TITLES, low
from .words import clean, name, number

PICTURES = 6
BUDGET = 2_100_000  # bytes of all data: URIs together; wider pictures are tried first
WIDTHS = (480, 360, 240, 160)
MARK = (230, 0, 92)  # where two class maps differ
IGNORED = (0, 0, 0)
PIXELS = 64_000_000
PLAIN = re.compile(r"[A-Za-z0-9._-]{1,128}")


def collect(artifacts: dict[str, Artifact], told: dict, budget: int = BUDGET) -> tuple[list[dict], list[list[str]]]:
    """What the page says about each picture, and beside it the data: URI of each of its tiles."""
    artifact = next((a for a in artifacts.values() if told["measured"] and name(a.name) == told["measured"]["stage"]), None)
    if artifact is None:
        return [], []
    listed = _listed(artifact, told)
    shown, loaded = [], []
    for k, entry in enumerate(listed[:PICTURES]):
        tiles = _tiles(artifact, k, told)
        if tiles:
            facts = [{key: tile[key] for key in ("what", "title", "share")} for tile in tiles]
            shown.append({"name": name(entry.get("name", k)), "agreement": number(entry.get("agreement")), "tiles": facts})
            loaded.append(tiles)
    if len(listed) > len(shown):
        told["notes"].append(f"{len(listed) - len(shown)} of {len(listed)} pictures of {name(artifact.name)} are not shown here.")
    return shown, within(loaded, WIDTHS, budget, lambda tiles, width: [_uri(tile, width) for tile in tiles])


def _listed(artifact: Artifact, told: dict) -> list[dict]:
    try:
        return [p for p in artifact.json("measurement.json")["pictures"] if isinstance(p, dict)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        told["notes"].append(f"{name(artifact.name)} lists no pictures.")
        return []


def _tiles(artifact: Artifact, k: int, told: dict) -> list[dict]:
    """Image, label, teacher, baseline, student, engine, and the two maps of differences: those that can be read."""
    palette = _palette(told["classes"])
    photo = open_picture(artifact, f"image_{k}.png", told)
    maps = {role: open_map(artifact, f"map_{stage}_{k}.png", told) for role, stage in _players(told).items()}
    tiles = [{"what": "image", "title": "Image", "share": None, "photo": photo.convert("RGB")}] if photo else []
    label = open_map(artifact, f"label_{k}.png", told)
    titles = {"label": "Label", **TITLES}
    for role, found in {"label": label, **maps}.items():
        if found:
            tiles.append({"what": role, "title": titles[role], "share": None, "map": found, "palette": palette})
    last = "engine" if maps.get("engine") else "onnx"
    for one, other in (("student", "teacher"), (last, "student" if maps.get("student") else "model")):
        if maps.get(one) and maps.get(other) and maps[one].size == maps[other].size:
            mask, share = _difference(maps[one], maps[other])
            title = f"Where {low(titles[one])} and {low(titles[other])} differ"
            tiles.append({"what": f"{one}-{other}", "title": title, "share": share, "mask": mask, "under": photo})
    return tiles


def _players(told: dict) -> dict[str, str]:
    """Role -> stage, for the roles whose class maps are shown. The ONNX stands in where there is no engine."""
    lead = {role: told["lead"][role] for role in ("teacher", "baseline", "student", "model", "onnx", "engine") if role in told["lead"]}
    measured = {row["stage"] for row in told["table"] if row["measured"]}
    lead = {role: stage for role, stage in lead.items() if stage in measured}
    if "engine" in lead:
        lead.pop("onnx", None)
    return lead


def open_picture(artifact: Artifact, file: str, told: dict) -> Image.Image | None:
    """One PNG of the artifact, decoded, or None with a note."""
    try:
        if not PLAIN.fullmatch(file):
            raise ValueError("not the name of a file in an artifact")
        with Image.open(Path(artifact.file(file)), formats=["PNG"]) as image:
            if image.width * image.height > PIXELS:
                raise ValueError("too many pixels")
            image.load()
            return image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        told["notes"].append(f"The picture {clean(file, 80)} of {name(artifact.name)} is not there or cannot be read.")
        return None


def open_map(artifact: Artifact, file: str, told: dict) -> Image.Image | None:
    """A class map as class ids, whatever palette it was saved with."""
    image = open_picture(artifact, file, told)
    if image is None or image.mode not in ("P", "L"):
        return None
    return Image.frombytes("L", image.size, image.tobytes())


def _palette(classes: list[dict]) -> list[int]:
    colours = [c["colour"] for c in classes][:256]
    return [v for colour in colours + [list(IGNORED)] * (256 - len(colours)) for v in colour]


def _difference(one: Image.Image, other: Image.Image) -> tuple[Image.Image, float]:
    """255 where two class maps differ, and the share of such pixels."""
    mask = ImageChops.difference(one, other).point([0] + [255] * 255)
    return mask, round(1 - mask.histogram()[0] / (mask.width * mask.height), 6)


def within(pictures: list, widths: tuple[int, ...], budget: int, uris_of: Callable[[Any, int], list[str]]) -> list[list[str]]:
    """The same pictures as data: URIs, as wide as the page's size allows."""
    uris: list[list[str]] = []
    for width in widths if pictures else ():
        uris = [uris_of(picture, width) for picture in pictures]
        if sum(len(uri) for row in uris for uri in row) <= budget:
            break
    return uris


def _uri(tile: dict, width: int) -> str:
    if "photo" in tile:
        return as_data("JPEG", fitted(tile["photo"], width, Image.Resampling.LANCZOS), quality=85)
    if "map" in tile:
        small = fitted(tile["map"], width, Image.Resampling.NEAREST)
        coloured = Image.frombytes("P", small.size, small.tobytes())
        coloured.putpalette(tile["palette"])
        return as_data("PNG", coloured, optimize=True)
    return as_data("JPEG", _marked(tile, width), quality=85, subsampling=0)


def _marked(tile: dict, width: int) -> Image.Image:
    """The image, pale and grey, with the differing pixels on top; shrinking hides none of them."""
    mask = fitted(tile["mask"], width, Image.Resampling.BOX).point([0] + [255] * 255)
    under = tile["under"].convert("L").resize(mask.size) if tile["under"] else Image.new("L", mask.size, 255)
    pale = under.point([160 + v * 90 // 255 for v in range(256)]).convert("RGB")
    pale.paste(MARK, mask=mask)
    return pale


def fitted(image: Image.Image, width: int, how: Any) -> Image.Image:
    if image.width <= width:
        return image
    return image.resize((width, max(1, round(image.height * width / image.width))), how)


def as_data(format: str, image: Image.Image, **settings: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format, **settings)
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
