"""Shows which classes became worse or better: the intersection over union of every class, network by network."""

from .. import charts
from ..markup import Safe, el
from ..roles import low
from ..words import points, signed

ROLES = ("teacher", "baseline", "student", "model", "engine")


def bars(facts: dict) -> Safe | None:
    """Thin bars per class in the order of the data set, and every figure once more as a table."""
    rows = _compared(facts)
    if not rows or not facts["classes"]:
        return None
    last, first = rows[-1], rows[0]
    against = f" and how far it is from the {low(first['title'])}" if len(rows) > 1 else ""
    say = f"Intersection over union per class, 0 to 100, in the data set's order. The figures: {low(last['title'])}{against}."
    legend = el("p", [el("span", charts.swatch(row["role"]), row["title"]) for row in rows], class_="legend")
    each = [_class(i, c, rows) for i, c in enumerate(facts["classes"])]
    return el(
        "section", el("h2", "Class by class"), el("p", say, class_="say"), legend, el("div", each, class_="classes card"), _all(facts, rows)
    )


def chip(colour: list[int]) -> Safe:
    red, green, blue = colour
    return el("i", class_="chip", style=f"background:rgb({red},{green},{blue})")


def _compared(facts: dict) -> list[dict]:
    """The rows that speak for their role; the ONNX stands in where there is no engine."""
    by_stage = {row["stage"]: row for row in facts["table"] if row["iou"]}
    lead = {role: by_stage[stage] for role, stage in facts["lead"].items() if stage in by_stage}
    lead["engine"] = lead.get("engine") or lead.get("onnx")
    return [lead[role] for role in ROLES if lead.get(role)]


def _class(i: int, about: dict, rows: list[dict]) -> Safe:
    values = [_value(row, i) for row in rows]
    drawn = charts.bars([(row["role"], v, f"{row['title']} {points(v)}") for row, v in zip(rows, values, strict=True)])
    change = None if len(rows) < 2 or None in (values[0], values[-1]) else values[-1] - values[0]
    return el(
        "div",
        el("span", chip(about["colour"]), about["name"], class_="who"),
        drawn,
        el("span", points(values[-1]), class_="n"),
        el("span", signed(change) if len(rows) > 1 else "", class_="n soft"),
        class_="class",
    )


def _all(facts: dict, rows: list[dict]) -> Safe:
    split = facts["measured"]["split"] if facts["measured"] else "train"
    head = el("tr", el("th", "Class"), [el("th", row["title"], class_="n") for row in rows], el("th", f"pixels of {split}", class_="n"))
    body = [
        el(
            "tr",
            el("th", chip(c["colour"]), c["name"], scope="row"),
            [el("td", points(_value(row, i)), class_="n") for row in rows],
            el("td", _share(c["share"]), class_="n"),
        )
        for i, c in enumerate(facts["classes"])
    ]
    inner = el("div", el("table", el("thead", head), el("tbody", body)), class_="wide")
    return el("details", el("summary", "All figures, and how common each class is"), inner)


def _value(row: dict, i: int) -> float | None:
    return row["iou"][i] if i < len(row["iou"]) else None


def _share(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f} %"
