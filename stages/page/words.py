"""How figures and foreign texts are written on the page, so that a number reads the same everywhere."""

import math
import re
from typing import Any

ANSI = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)")
NONE = "–"


def clean(value: Any, limit: int = 400) -> str:
    """Printable text of at most `limit` characters: no terminal escapes, no control or direction marks."""
    text = ANSI.sub("", str(value)[: 8 * limit])
    text = "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text).strip()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def name(value: Any) -> str:
    """A name of a class, a stage, a recipe, a sample."""
    return clean(value, 64) or "(no name)"


def number(value: Any) -> float | int | None:
    """A finite number that can be drawn, or None for everything else."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 1e15
    return value if good else None


def plain(value: Any, depth: int = 0) -> Any:
    """Any value as clean JSON: texts printable, numbers finite, nesting at most 12 deep."""
    if depth > 12:
        return "…"
    if isinstance(value, dict):
        return {clean(k): plain(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v, depth + 1) for v in value]
    if value is None or isinstance(value, bool):
        return value
    return number(value) if isinstance(value, int | float) else clean(value, 2000)


def points(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"


def signed(value: float | None) -> str:
    """A difference in points, with a true minus sign."""
    if value is None:
        return NONE
    text = f"{abs(value):.1f}"
    return "±0.0" if text == "0.0" else ("+" if value > 0 else "−") + text


def percent(share: float | None) -> str:
    """Rounded down, so that only what is whole reads as 100 %."""
    if share is None:
        return NONE
    return "100 %" if share == 1 else f"{math.floor(share * 10000 + 1e-6) / 100:.2f} %"


def ms(value: float | None) -> str:
    """Milliseconds: 0.42, 4.1, 12.0, 132."""
    return NONE if value is None else f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def megabytes(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f} MB" if value < 10 else f"{value:,.1f} MB"


def count(value: float | None) -> str:
    """Parameters: 812, 148 k, 3.7 M."""
    if value is None:
        return NONE
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return f"{value:.0f}"


def times(ratio: float) -> str:
    """A ratio as people say it: 1.8, 23."""
    return f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def tick(value: float) -> str:
    """A label of an axis: 0.05, 2.5, 40, 20k."""
    if abs(value) >= 10000:
        return f"{value / 1000:g}k"
    return f"{value:.10g}"


def settings(row: Any) -> str:
    """A row of an open table in two or three words: segformer b5, openvino bf16. Where argmax runs is told with what ran."""
    if not isinstance(row, dict):
        return ""
    rest = [v for k, v in row.items() if k not in ("kind", "argmax") and isinstance(v, str) and len(v) <= 40]
    return clean(" ".join([str(row.get("kind", "")), *rest]), 64)
