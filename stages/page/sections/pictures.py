"""Shows what the networks see: image, label, class maps, and where two networks differ, with the colour of every class."""

from ..markup import Safe, el
from ..words import percent
from .classes import chip

FEW = 40  # classes whose colours are shown unfolded


def scenes(facts: dict, uris: list[list[str]]) -> Safe | None:
    """`uris` has one data: URI per tile."""
    told = facts["pictures"]
    if not told:
        return None
    say = (
        "Every network on the same images. Black in a label is ignored: it counts for nothing. "
        "In the last maps, red marks every pixel where two class maps differ."
    )
    each = [_scene(picture, row) for picture, row in zip(told, uris, strict=True)]
    return el("section", el("h2", "Pictures"), el("p", say, class_="say"), _legend(facts["classes"]), each)


def _scene(picture: dict, uris: list[str]) -> Safe:
    agreement = picture["agreement"]
    beside = None if agreement is None else el("span", f" · reference and last candidate agree on {percent(agreement)} of pixels")
    tiles = [_tile(tile, uri, picture["name"]) for tile, uri in zip(picture["tiles"], uris, strict=True)]
    return el("div", el("h3", picture["name"], beside), el("div", tiles, class_="shots"), class_="scene card")


def _tile(tile: dict, uri: str, sample: str) -> Safe:
    words = tile["title"] if tile["share"] is None else f"{tile['title']}: {_share(tile['share'])}"
    kind = None if tile["what"] == "image" or "-" in tile["what"] else "map"
    return el("figure", el("img", src=uri, alt=f"{tile['title']} of {sample}", class_=kind), el("figcaption", words))


def _share(share: float) -> str:
    if share == 0:
        return "nowhere"
    return "under 0.01 % of pixels" if share < 0.0001 else f"{100 * share:.2f} % of pixels"


def _legend(classes: list[dict]) -> Safe:
    chips = el("p", [el("span", chip(c["colour"]), c["name"]) for c in classes], el("span", chip([0, 0, 0]), "ignored"), class_="legend")
    return chips if len(classes) <= FEW else el("details", el("summary", f"Colours of the {len(classes)} classes"), chips)
