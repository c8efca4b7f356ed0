"""Lays out what differs between two runs as a page: what was changed first, then what came of it, then the pictures that show it."""

import json
from typing import Any

from . import charts
from .document import _moment, opening
from .facts import colour
from .markup import Safe, el, json_block
from .sections import changed
from .sections.classes import chip
from .sections.gate import mark
from .style import CSS
from .words import NONE, clean, ms, name, plain, points, signed

WITHIN = 0.3  # points; classes that moved less, and not beyond chance, are folded
BEFORE, AFTER = "baseline", "engine"  # roles of the style sheet: grey for the first run, orange for the second
MORE_CSS = """
.change td,.change th{overflow-wrap:anywhere}.change td.n{white-space:nowrap}
ul.changes{margin:0 0 14px;padding-left:20px;max-width:none;overflow-wrap:anywhere}
.class.moved{grid-template-columns:minmax(92px,26%) 1fr 78px 64px}
.five{grid-template-columns:repeat(5,1fr)}.spreads{margin-top:14px}
@media(max-width:700px){.five{grid-template-columns:1fr 1fr}.class.moved{grid-template-columns:minmax(76px,26%) 1fr 66px 62px;gap:8px}}
"""


def html(facts: dict[str, Any], uris: list[list[str]]) -> str:
    """The whole file. `uris` holds the data: URI of every tile of every scene."""
    title = " and ".join(name(run["run"]) for run in facts["runs"])
    head = opening(title, CSS + MORE_CSS)
    parts = [_top(facts), _causes(facts), _stages(facts), _accuracy(facts), _classes(facts), _scenes(facts, uris)]
    parts += [_times(facts), _listed("Size", facts["sizes"]), _listed("Hops", facts["hops"]), _verdicts(facts), _rest(facts)]
    return "<!doctype html>\n" + el("html", head, el("body", el("main", parts), json_block(plain(facts))), lang="en") + "\n"


def _top(facts: dict) -> Safe:
    one, two = facts["runs"]
    sub = [
        el("div", name(run["run"]), ": ", clean(run["outcome"]), f", started {_moment(clean(run['started']))}", class_="soft")
        for run in (one, two)
    ]
    return el(
        "header", el("div", "Stillhouse", class_="brand"), el("h1", f"{name(one['run'])} → {name(two['run'])}"), sub, _sentence(facts)
    )


def _sentence(facts: dict) -> Safe:
    found = facts["accuracy"]
    row = next((row for row in found["models"] if row["name"] == found["of"]), None) if found else None
    if row and row["change"] is not None:
        sure = {True: ", beyond chance", False: ", within chance", None: ""}[row["beyond"]]
        text = f"{row['name']}: {points(row['before'])} → {points(row['after'])} mIoU ({_moved(row)}{sure})"
    else:
        text = "No accuracy can be compared: " + (clean("; ".join(facts["notes"])) or "both have the same measurement.")
    state = "unjudged" if not row or not row["beyond"] else "passed" if row["change"] > 0 else "failed"
    return el("p", text, class_=f"verdict is-{state}")


def _causes(facts: dict) -> Safe:
    cells = [
        el("tr", el("th", el("code", clean(path, 200)), scope="row"), el("td", _value(a)), el("td", _value(b)))
        for path, a, b in facts["recipe"]
    ]
    head = el("thead", el("tr", el("th", "Field"), [el("th", name(run["run"])) for run in facts["runs"]]))
    table = el("div", el("table", head, el("tbody", cells), class_="change"), class_="wide") if cells else None
    return el(
        "section",
        el("h2", "What was changed"),
        el("h3", "Recipe"),
        table or el("p", "The same.", class_="say"),
        [(el("br"), el("h3", title), _list(facts[key])) for title, key in (("Data", "data"), ("Code, packages, machine", "code"))],
    )


def _stages(facts: dict) -> Safe:
    same = (
        f"The same artifact in both: {', '.join(map(name, facts['same']))}." if facts["same"] else "No stage has the same artifact in both."
    )
    return el("section", el("h2", "Stages"), _list(facts["stages"]), el("p", same, class_="say"))


def _accuracy(facts: dict) -> Safe | None:
    found = facts["accuracy"]
    if not found:
        return None
    if found["differs"]:
        say = f"Not measured on the same images, so nothing is paired; what differs: {'; '.join(found['differs'])}."
    elif not any(row["margin"] is not None for row in found["models"]):
        say = "Without intervals: the counts of one of the runs cannot be paired image by image."
    else:
        say = (
            f"Paired on the same {found['images'][0]} images; intervals hold with 95 % confidence for other images of the kind. "
            "Another seed of training moves a network, too: two runs cannot tell how much."
        )
    rows = [
        el(
            "tr",
            el("th", row["name"], scope="row"),
            [el("td", points(row[key]), class_="n") for key in ("before", "after")],
            el("td", _moved(row), class_="n key"),
            el("td", _sure(row)),
        )
        for row in found["models"]
    ]
    names = [
        el("th", "Network"),
        *(el("th", name(run["run"]), class_="n") for run in facts["runs"]),
        el("th", "change", class_="n"),
        el("th"),
    ]
    only = [f"Measured in one run only: {', '.join(names)}." for names in found["only"] if names]
    table = el("div", el("table", el("thead", el("tr", names)), el("tbody", rows)), class_="wide")
    return el("section", el("h2", "Accuracy"), el("p", say, class_="say"), table, [el("p", text, class_="sub") for text in only])


def _classes(facts: dict) -> Safe | None:
    found = facts["accuracy"]
    if not found or not found["classes"]:
        return None
    runs = [name(run["run"]) for run in facts["runs"]]
    say = (
        f"Intersection over union of {found['of']}, largest change first. Figures: {runs[1]}, and the change; "
        "* beyond chance over all classes together, ? in fewer than ten images."
    )
    legend = el("p", [el("span", charts.swatch(role), run) for role, run in zip((BEFORE, AFTER), runs, strict=True)], class_="legend")
    told = [row for row in found["classes"] if not folded(row)]
    rest = [row for row in found["classes"] if folded(row)]
    shown = [el("div", [_class(row, runs) for row in some], class_="classes card") if some else None for some in (told, rest)]
    if told and rest:
        shown[1] = el("details", el("summary", f"{len(rest)} within {WITHIN} points"), shown[1])
    return el("section", el("h2", "Class by class"), el("p", say, class_="say"), legend, shown)


def folded(row: dict) -> bool:
    """Whether a class moved so little that it can be left out at first."""
    return row["change"] is not None and abs(row["change"]) <= WITHIN and not row["beyond"]


def _class(row: dict, runs: list[str]) -> Safe:
    values = [
        (role, row[key], f"{run} {points(row[key])}") for role, key, run in zip((BEFORE, AFTER), ("before", "after"), runs, strict=True)
    ]
    sign = " *" if row["beyond"] else " ?" if row["images"] is not None and row["images"] < 10 else ""
    about = None if row["margin"] is None else f"± {points(row['margin'])} in {row['images']} images"
    return el(
        "div",
        el("span", chip(colour(row["colour"])), row["name"], class_="who"),
        charts.bars(values),
        el("span", points(row["after"]), class_="n"),
        el("span", signed(row["change"]), sign, class_="n soft", title=about),
        class_="class moved",
    )


def _scenes(facts: dict, uris: list[list[str]]) -> Safe | None:
    if not facts["scenes"]:
        return None
    say = "Images whose maps both runs kept, the most disagreement first. The last picture of each shows what became worse and better."
    classes = [el("span", chip(colour(row["colour"])), row["name"]) for row in facts["accuracy"]["classes"][:40]]
    each = []
    for scene, row in zip(facts["scenes"], uris, strict=True):
        told = scene["shares"]
        words = f" · {_share(told['worse'])} worse, {_share(told['better'])} better, {_share(told['other'])} changed and wrong both times"
        tiles = [
            el("figure", el("img", src=uri, alt=f"{title} of {scene['name']}", class_="map" if k else None), el("figcaption", title))
            for k, (title, uri) in enumerate(zip(scene["titles"], row, strict=True))
        ]
        each.append(el("div", el("h3", scene["name"], el("span", words)), el("div", tiles, class_="shots five"), class_="scene card"))
    return el(
        "section",
        el("h2", "Pictures"),
        el("p", say, class_="say"),
        el("p", changed.key(), class_="legend"),
        el("p", classes, class_="legend"),
        each,
    )


def _times(facts: dict) -> Safe | None:
    found = facts["times"]
    if not found:
        return None
    warnings = [el("p", f"{text[:1].upper()}{text[1:]}.", class_="badge") for text in (found["warning"], *found["busy"]) if text]
    raced = [f"Paired in {name(run)}: {text}" for run, told in found["pairs"].items() for text in told]
    groups = [el("th", f"{p}, ms", class_="group", colspan=3) for p in ("p50", "p90", "p99")]
    runs = [name(run["run"]) for run in facts["runs"]]
    under = [el("th", text, class_="n first" if k == 0 else "n") for _ in groups for k, text in enumerate((*runs, ""))]
    head = el("thead", el("tr", el("th", "Network", rowspan=2), groups), el("tr", under))
    body = [el("tr", el("th", row["name"], el("span", row["says"], class_="sub"), scope="row"), _percentiles(row)) for row in found["rows"]]
    table = el("div", el("table", head, el("tbody", body)), class_="wide") if body else None
    say = (
        "Image: from a decoded image in memory to its class map, as a caller waits for it; alone: the network by itself, its input there; "
        "CPU: processor time of all threads together, which hardly changes when others keep the machine busy."
    )
    table = [table, el("p", say, class_="sub")] if table else None
    return el("section", el("h2", "Time"), warnings, table, _list(raced) if raced else None, _spreads(found, runs))


def _percentiles(row: dict) -> list[Safe]:
    cells = []
    for before, after in zip(row["before"], row["after"], strict=True):
        change = None if None in (before, after) else f"{100 * (after / before - 1):+.0f} %".replace("-", "−")
        cells += [el("td", ms(before), class_="n first"), el("td", ms(after), class_="n key"), el("td", change, class_="n soft")]
    return cells


def _spreads(found: dict, runs: list[str]) -> Safe | None:
    """One chart per network: both runs, from p50 to p99."""
    cards = []
    for row in (row for row in found["rows"] if row["boundary"] in ("image_ms", "engine_ms")):
        spread = []
        for role, key, run in zip((BEFORE, AFTER), ("before", "after"), runs, strict=True):
            values = dict(zip(("p50", "p90", "p99"), row[key], strict=True))
            spread.append({"label": f"{run[:24]}: {ms(values['p50'])} ms", "role": role, "title": run} | values)
        chart = charts.spread(spread, "ms: mark at p50, ticks at p90 and p99")
        cards.append(el("div", el("h3", f"{row['name']}, {row['says']}"), chart, class_="card"))
    return el("div", cards, class_="charts spreads") if cards else None


def _verdicts(facts: dict) -> Safe | None:
    if not facts["verdicts"]:
        return None
    rows = []
    for one in facts["verdicts"]:
        cells = [
            el("td", mark(side["passed"]), el("span", side["text"], class_="sub")) if side else el("td", "not asked")
            for side in _sides(one)
        ]
        rows.append(el("tr", el("th", one["rule"], el("span", one["gate"], class_="sub"), scope="row"), cells))
    head = el("thead", el("tr", el("th", "Rule"), [el("th", name(run["run"])) for run in facts["runs"]]))
    return el(
        "section", el("h2", "Verdict, rule by rule"), el("div", el("table", head, el("tbody", rows), class_="change gate"), class_="wide")
    )


def _sides(one: dict) -> tuple[dict | None, dict | None]:
    return one["before"], one["after"]


def _rest(facts: dict) -> list[Safe | None]:
    figures = [f"{path}: {_value(before)} → {_value(after)}" for path, before, after in facts["figures"]]
    notes = [f"{note}." for note in facts["notes"]]  # most begin with the name of a run or stage
    found = []
    if figures:
        found.append(el("section", el("h2", "Other figures"), _list(figures)))
    if notes:
        found.append(el("section", el("h2", "What could not be compared"), _list(notes)))
    return found


def _sure(row: dict) -> str:
    if row["change"] == 0:
        return "the same"
    return {True: "beyond chance", False: "within chance", None: NONE}[row["beyond"]]


def _listed(title: str, entries: list[dict]) -> Safe | None:
    return el("section", el("h2", title), _list([entry["text"] for entry in entries])) if entries else None


def _list(texts: list[str] | None) -> Safe:
    """None: there was nothing to compare."""
    if texts is None:
        return el("p", "Not compared.", class_="say")
    return el("ul", [el("li", clean(text, 600)) for text in texts], class_="changes") if texts else el("p", "The same.", class_="say")


def _value(value: Any) -> str:
    if isinstance(value, dict | list):
        return clean(json.dumps(value, ensure_ascii=False), 400)
    return NONE if value is None else f"{value:.6g}" if isinstance(value, float) else clean(value, 400)


def _moved(row: dict) -> str:
    margin = "" if row["margin"] is None else f" ± {row['margin']:.2f}"
    return NONE if row["change"] is None else f"{row['change']:+.2f}".replace("-", "−") + margin


def _share(share: float) -> str:
    return f"{100 * share:.1f} %"
