"""Draws the page's charts as SVG. Colours come from classes in the style sheet (s-ROLE, t-0 ...), so that they follow light and dark."""

import math
from dataclasses import dataclass
from typing import Any

from .markup import Safe, el
from .words import tick

WIDTH, HEIGHT = 400, 270  # of a chart, in its own units; about the pixels it gets on a screen
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 40
LINE = 15  # height of a label


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` drawn between the places `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        if self.log:
            return self.start + math.log(value / self.low) / math.log(self.high / self.low) * (self.end - self.start)
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if not self.log:
            return nice_ticks(self.low, self.high)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for steps in ((1, 2, 5), (1, 3), (1,)):
            ticks = [v for d in decades for s in steps if self.low <= (v := round(s * 10.0**d, 12)) <= self.high]
            if len(ticks) <= 7:
                break
        return ticks


def scatter(points: list[dict], x_label: str, y_label: str) -> Safe:
    """Labelled points {"x", "y", "role", "label", "title"}; x grows by factors when its range is wide."""
    xs, ys = [p["x"] for p in points], [p["y"] for p in points]
    x = _across(xs, log=_far_apart(xs, 8), room=0.12)
    y = _up(ys, room=0.15, least=1)
    places = [(x.at(p["x"]), y.at(p["y"])) for p in points]
    marks = [el("g", el("title", p["title"]), _mark(p["role"], *place)) for p, place in zip(points, places, strict=True)]
    return _svg(f"{y_label} against {x_label}", _frame(x, y, x_label, y_label), _labels(points, places), marks)


def lines(series: list[dict], x_label: str, y_label: str, from_zero: bool = False) -> Safe:
    """Curves {"points": [(x, y)], "class", "title"}; a curve of one point is drawn as a dot."""
    xs = [x for s in series for x, _ in s["points"]]
    ys = [y for s in series for _, y in s["points"]]
    x = Axis(*_apart(min(0, *xs), max(0, *xs)), LEFT, WIDTH - RIGHT)
    y = _up([*ys, 0] if from_zero else ys, room=0.0 if from_zero else 0.06)
    return _svg(f"{y_label} against {x_label}", _frame(x, y, x_label, y_label), [_curve(s, x, y) for s in series])


def spread(rows: list[dict], x_label: str) -> Safe:
    """Latency per row {"label", "role", "p50", "p90", "p99", "title"}: a mark at p50, a tick at p90, a line that ends at p99."""
    values = [r[p] for r in rows for p in ("p50", "p90", "p99") if r[p] is not None]
    log = _far_apart(values, 12)
    x = _across(values, log, room=0.08, start=10) if log else Axis(*_apart(0, max(values) * 1.04), 10, WIDTH - RIGHT)
    foot = TOP + 36 * len(rows)
    grid = [el("line", class_="grid", x1=x.at(v), x2=x.at(v), y1=4, y2=foot) for v in x.ticks()]
    numbers = [_word(tick(v), x.at(v), foot + 14, "middle", "tick") for v in x.ticks()]
    drawn = [_spread_row(row, x, TOP + 36 * i) for i, row in enumerate(rows)]
    return _svg(x_label, grid, numbers, _word(x_label, WIDTH / 2, foot + 32, "middle", "axis"), drawn, height=foot + 40)


def rounds(marks: list[dict], band: dict, across: list[tuple[float, str]], looks: list[int], x_label: str, y_label: str) -> Safe:
    """Points {"y", "hollow", "title"} side by side; "low", "change" and "high" of `band` behind them; lines `across` at (y, class) and at
    `looks`. All y are fractions, shown as percent."""
    shown = [m["y"] for m in marks] + [0.0] + [v for v, _ in across] + [v for v in (band["low"], band["high"]) if v is not None]
    x, y = Axis(0, len(marks) + 1, LEFT, WIDTH - RIGHT), _up([100 * v for v in shown], room=0.06)
    drawn = [el("line", class_="look", x1=x.at(k + 0.5), x2=x.at(k + 0.5), y1=TOP, y2=HEIGHT - BOTTOM) for k in looks]
    if None not in (band["low"], band["high"]):
        top, foot = y.at(100 * band["high"]), y.at(100 * band["low"])
        drawn.append(el("rect", class_="band", x=LEFT, y=top, width=WIDTH - RIGHT - LEFT, height=max(foot - top, 1.0)))
    levels = [(band["change"], "centre"), (0.0, "base"), *across]
    drawn += [el("line", class_=word, x1=LEFT, x2=WIDTH - RIGHT, y1=y.at(100 * v), y2=y.at(100 * v)) for v, word in levels]
    places = [(m, x.at(k), y.at(100 * m["y"])) for k, m in enumerate(marks, 1)]
    drawn += [el("g", el("title", m["title"]), el("circle", class_=_dot(m["hollow"]), cx=a, cy=b, r=3.2)) for m, a, b in places]
    return _svg(f"{y_label} by {x_label}", _frame(x, y, x_label, y_label), drawn)


def intervals(rows: list[dict], across: list[tuple[float, str]], x_label: str) -> Safe:
    """A line from "low" to "high" with a point at "change" per row {"label", "title"}; fractions, shown as percent."""
    values = [100 * v for row in rows for v in (row["low"], row["change"], row["high"]) if v is not None]
    limits = [100 * v for v, _ in across]
    x = Axis(*_apart(min(0, *values, *limits), max(0, *values, *limits) * 1.04), 10, WIDTH - RIGHT)
    foot = TOP + 36 * len(rows)
    grid = [el("line", class_="grid", x1=x.at(v), x2=x.at(v), y1=4, y2=foot) for v in x.ticks()]
    grid += [el("line", class_=word, x1=x.at(100 * v), x2=x.at(100 * v), y1=4, y2=foot) for v, word in ((0.0, "base"), *across)]
    numbers = [_word(tick(v), x.at(v), foot + 14, "middle", "tick") for v in x.ticks()]
    drawn = [_interval(row, x, TOP + 36 * i) for i, row in enumerate(rows)]
    return _svg(x_label, grid, numbers, _word(x_label, WIDTH / 2, foot + 32, "middle", "axis"), drawn, height=foot + 40)


def bars(values: list[tuple[str, float | None, str]]) -> Safe:
    """Thin bars, one under the other, of (role, points 0-100 or None, title)."""
    height = 5 * len(values) - 1
    drawn = [
        el("rect", el("title", title), class_=f"s-{role}", width=max(0.0, min(100.0, float(value))), height=4, y=5 * i)
        for i, (role, value, title) in enumerate(values)
        if value is not None
    ]
    shape = {"viewBox": f"0 0 100 {height}", "preserveAspectRatio": "none", "height": height}
    track = el("rect", class_="track", width=100, height=height)
    return el("svg", track, drawn, class_="bars", role="img", aria_label="; ".join(title for _, _, title in values), **shape)


def swatch(role: str) -> Safe:
    """The mark of a role, for legends and tables."""
    return el("svg", _mark(role, 8, 8), class_="swatch", viewBox="0 0 16 16", width=14, height=14, aria_hidden="true")


def dash(class_: str) -> Safe:
    """A piece of a curve, for legends."""
    stroke = el("path", class_=f"curve {class_}", d="M1 7h18")
    return el("svg", stroke, class_="swatch", viewBox="0 0 20 14", width=20, height=14, aria_hidden="true")


def point(hollow: bool) -> Safe:
    """A round, for legends."""
    shape = {"viewBox": "0 0 16 16", "width": 14, "height": 14, "aria_hidden": "true"}
    return el("svg", el("circle", class_=_dot(hollow), cx=8, cy=8, r=4), class_="swatch", **shape)


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers within [low, high], at most `most` of them."""
    size = 10 ** math.floor(math.log10((high - low) / most))
    step = size * next(m for m in (1, 2, 5, 10, 20, 50) if (high - low) / (m * size) <= most - 1)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _across(values: list[float], log: bool, room: float, start: float = LEFT) -> Axis:
    low, high = min(values), max(values)
    if log:
        factor = (high / low) ** room
        return Axis(low / factor, high * factor, start, WIDTH - RIGHT, True)
    margin = max((high - low) * room, abs(high) * 0.1, 1e-9)
    return Axis(max(0.0, low - margin) if low >= 0 else low - margin, high + margin, start, WIDTH - RIGHT)


def _far_apart(values: list[float], factor: float) -> bool:
    """Whether an axis by factors shows these values better than an even one."""
    low, high = min(values), max(values)
    return low > 1e-9 and factor < high / low < 1e9


def _up(values: list[float], room: float, least: float = 0.0) -> Axis:
    low, high = min(values), max(values)
    margin = max((high - low) * room, least)
    return Axis(*_apart(low - margin, high + margin), HEIGHT - BOTTOM, TOP)


def _apart(low: float, high: float) -> tuple[float, float]:
    """The same range, or a little one around a single value."""
    if high - low > 1e-9 * max(abs(low), abs(high), 1e-9):
        return low, high
    return low - (abs(low) / 2 or 1), high + (abs(high) / 2 or 1)


def _svg(label: str, *children: Any, height: float = HEIGHT) -> Safe:
    return el("svg", *children, class_="chart", viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=label)


def _frame(x: Axis, y: Axis, x_label: str, y_label: str) -> list[Safe]:
    """Grid, ticks and the names of both axes."""
    floor = HEIGHT - BOTTOM
    across = [el("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y.at(v), y2=y.at(v)) for v in y.ticks()]
    base = el("line", class_="base", x1=LEFT, x2=WIDTH - RIGHT, y1=floor, y2=floor)
    notches = [el("line", class_="base", x1=x.at(v), x2=x.at(v), y1=floor, y2=floor + 4) for v in x.ticks()]
    below = [_word(tick(v), x.at(v), floor + 16, "middle", "tick") for v in x.ticks()]
    beside = [_word(tick(v), LEFT - 6, y.at(v) + 4, "end", "tick") for v in y.ticks()]
    middle = (TOP + floor) / 2
    turned = el("text", y_label, class_="axis", transform=f"translate(11 {middle:g}) rotate(-90)", text_anchor="middle")
    return [*across, base, *notches, *below, *beside, _word(x_label, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "middle", "axis"), turned]


def _word(text: str, x: float, y: float, anchor: str, class_: str) -> Safe:
    return el("text", text, x=float(x), y=float(y), text_anchor=anchor, class_=class_)


def _labels(points: list[dict], places: list[tuple[float, float]]) -> list[Safe]:
    """A label beside each point: the first spot that covers no other label and no other point. Points that touch share one label."""
    groups = _touching(places)
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in places]
    drawn = []
    for group in sorted(groups, key=lambda g: places[g[0]][0]):
        x, y = places[group[0]]
        text = ", ".join(points[i]["label"] for i in group)
        others = [box for i, box in enumerate(taken) if i not in group]
        spots = _spots(x, y, len(text))
        spot = next((s for s in spots if _free(s["box"], others)), spots[0])
        taken.append(spot["box"])
        if spot["leader"]:
            drawn.append(el("path", class_="leader", d=f"M{x:.1f} {y:.1f}L{spot['x']:.1f} {spot['y'] - 4:.1f}"))
        drawn.append(_word(text, spot["x"], spot["y"], spot["anchor"], "label"))
    return drawn


def _touching(places: list[tuple[float, float]]) -> list[list[int]]:
    """Indices of points whose marks lie on one another."""
    groups: list[list[int]] = []
    for i, (x, y) in enumerate(places):
        near = next((g for g in groups if abs(places[g[0]][0] - x) < 9 and abs(places[g[0]][1] - y) < 9), None)
        if near is None:
            groups.append([i])
        else:
            near.append(i)
    return groups


def _spots(x: float, y: float, letters: int) -> list[dict]:
    """Where a label may stand, the best first: right, left, above, below, then further off with a line to its point."""
    wide = 6.8 * letters
    near = [(x + 10, y + 4, "start"), (x - 10, y + 4, "end"), (x, y - 11, "middle"), (x, y + 19, "middle")]
    far = [(x + side * 26, y + 4 + up * LINE, "start" if side > 0 else "end") for up in (-1, 1, -2, 2, -3, 3) for side in (1, -1)]
    start = {"start": 0.0, "end": -wide, "middle": -wide / 2}
    return [
        {"x": a, "y": b, "anchor": anchor, "leader": i >= len(near), "box": (a + start[anchor], b - 11, a + start[anchor] + wide, b + 3)}
        for i, (a, b, anchor) in enumerate(near + far)
    ]


def _free(box: tuple[float, ...], taken: list[tuple[float, ...]]) -> bool:
    """Inside the frame and clear of all other boxes (left, top, right, bottom)."""
    inside = box[0] >= LEFT + 2 and box[2] <= WIDTH and box[1] >= 0 and box[3] <= HEIGHT - BOTTOM
    return inside and not any(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in taken)


def _curve(series: dict, x: Axis, y: Axis) -> Safe:
    places = [(x.at(a), y.at(b)) for a, b in series["points"]]
    title = el("title", series["title"])
    if len(places) == 1:
        return el("circle", title, class_=f"dot {series['class']}", cx=places[0][0], cy=places[0][1], r=3)
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
    return el("path", title, class_=f"curve {series['class']}", d=path)


def _spread_row(row: dict, x: Axis, top: float) -> Safe:
    middle = top + 20
    reach = [x.at(row[p]) for p in ("p50", "p90", "p99") if row[p] is not None]
    line = el("line", class_=f"reach s-{row['role']}", x1=reach[0], x2=reach[-1], y1=middle, y2=middle)
    notch = [el("line", class_=f"reach s-{row['role']}", x1=v, x2=v, y1=middle - 4, y2=middle + 4) for v in reach[1:]]
    return el(
        "g",
        el("title", row["title"]),
        _word(row["label"], 10, top + 8, "start", "label"),
        line,
        notch,
        _mark(row["role"], reach[0], middle),
    )


def _interval(row: dict, x: Axis, top: float) -> Safe:
    low, high = (row["change"] if row[end] is None else row[end] for end in ("low", "high"))
    line = el("line", class_="reach s-model", x1=x.at(100 * low), x2=x.at(100 * high), y1=top + 20, y2=top + 20)
    point = el("circle", class_=_dot(False), cx=x.at(100 * row["change"]), cy=top + 20, r=4.5)
    return el("g", el("title", row["title"]), _word(row["label"], 10, top + 8, "start", "label over"), line, point)


def _dot(hollow: bool) -> str:
    return "dot s-model hollow" if hollow else "dot s-model"


def _mark(role: str, x: float, y: float) -> Safe:
    """Every role has a shape of its own, so that colour alone never carries the meaning."""
    if role in ("teacher", "model"):
        return el("rect", class_=f"mark s-{role}", x=x - 5.0, y=y - 5.0, width=10, height=10)
    if role == "baseline":
        return el("path", class_="mark s-baseline", d=f"M{x:.1f} {y - 6:.1f}l6 10.5h-12z")
    if role == "engine":
        return el("path", class_="mark s-engine", d=f"M{x:.1f} {y - 6.5:.1f}l6.5 6.5l-6.5 6.5l-6.5 -6.5z")
    if role == "onnx":
        return el("path", class_="mark s-onnx", d=f"M{x:.1f} {y + 6:.1f}l6 -10.5h-12z")
    return el("circle", class_=f"mark s-{role}", cx=float(x), cy=float(y), r=5.5)
