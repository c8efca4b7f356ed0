"""Builds HTML and SVG so that nothing can be forgotten: every text and attribute is escaped, only `Safe` passes as it is."""

import json
from html import escape
from typing import Any

VOID = {"meta", "img", "br"}


class Safe(str):
    """Markup that was built here."""


def el(name: str, /, *children: Any, **attributes: Any) -> Safe:
    """One element. `class_` writes class, `text_anchor` writes text-anchor; an attribute that is None or False is left out."""
    head = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None and value is not False)
    return Safe(f"<{name}{head}>" if name in VOID else f"<{name}{head}>{join(*children)}</{name}>")


def join(*children: Any) -> Safe:
    """Elements and texts one after the other; lists are flattened, None is left out."""
    return Safe("".join(_text(child) for child in children))


def json_block(value: Any) -> Safe:
    """JSON that a browser stores and never runs. No character of it can end the element or start a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Safe(f'<script type="application/json" id="facts">{text}</script>')


def _text(child: Any) -> str:
    if child is None:
        return ""
    if isinstance(child, Safe):
        return child
    if isinstance(child, list | tuple):
        return join(*child)
    return escape(str(child))


def _attribute(key: str, value: Any) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    if isinstance(value, float):
        value = f"{value:.2f}".rstrip("0").rstrip(".")  # coordinates: a hundredth of a pixel is plenty
    return f' {name}="{escape(str(value))}"'
