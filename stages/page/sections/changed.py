"""What the colours and patterns of a picture of changes mean; stages/page/difference.py draws them."""

from ..markup import Safe, el
from .classes import chip

KINDS = {"worse": "right before, wrong now", "better": "wrong before, right now", "other": "changed, wrong both times"}


def key() -> list[Safe]:
    return [*(el("span", swatch(kind), words) for kind, words in KINDS.items()), el("span", chip([128, 128, 128]), "ignored")]


def swatch(kind: str) -> Safe:
    """The pattern as it is in the pictures, a little larger."""
    marks = {
        "worse": [],
        "better": [el("path", class_="stripes", d="M-2 6l8 -8M-2 14l16 -16M6 14l8 -8")],
        "other": [el("rect", class_="dots", x=x, y=y, width=4, height=4) for x in (1, 7) for y in (1, 7)],
    }[kind]
    return el(
        "svg", el("rect", class_=f"kind-{kind}", width=12, height=12), marks, class_="swatch", viewBox="0 0 12 12", width=14, height=14
    )
