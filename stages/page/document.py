"""Lays the facts out as the page: what came of the run first, then how it was found, then every detail."""

import json
import re

from . import graph
from .markup import Safe, el, json_block
from .sections import classes, curves, gate, models, pairs, pictures, waterfall
from .style import CSS
from .words import NONE, duration

CSP = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def opening(title: str, css: str) -> Safe:
    """The head of a page that loads nothing, runs nothing and tells nobody where it was opened."""
    return el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=CSP),
        el("meta", name="viewport", content="width=device-width,initial-scale=1"),
        el("meta", name="referrer", content="no-referrer"),
        el("title", title),
        el("style", Safe(css)),
    )


def html(facts: dict, uris: list[list[str]], changed: list[list[str]]) -> str:
    """The whole file. `uris` and `changed` hold the data: URIs of the tiles of every picture: of the run, and of what explains it."""
    head = opening(f"{facts['run']['recipe']} · {facts['run']['run']}", CSS)
    judged, at_once = gate.rules(facts, changed), any(rule["passed"] is not True for rule in facts["rules"])
    parts = [
        _top(facts),
        judged if at_once else None,
        models.table(facts),
        models.trade(facts),
        pairs.raced(facts),
        waterfall.hops(facts),
        classes.bars(facts),
        curves.training(facts),
        pictures.scenes(facts, uris),
        None if at_once else judged,
        _lineage(facts),
        _details(facts),
    ]
    return "<!doctype html>\n" + el("html", head, el("body", el("main", parts), json_block(facts)), lang="en") + "\n"


def _top(facts: dict) -> Safe:
    run, verdict = facts["run"], facts["verdict"]
    when = [f"run {run['run']}", f"started {_moment(run['started'])}", f"took {duration(run['seconds'])}"]
    tiles = [_tile(**figure) for figure in facts["headline"]]
    return el(
        "header",
        el("div", "Stillhouse", class_="brand"),
        el("h1", run["recipe"]),
        el("div", " · ".join(w for w in when if w), class_="soft"),
        el("p", verdict["sentence"], gate.most_lost(facts), class_=f"verdict is-{verdict['state']}"),
        _badges(run),
        el("div", tiles, class_="tiles") if tiles else None,
    )


def _moment(iso: str) -> str:
    """2026-07-01T09:30:00Z as 2026-07-01 09:30 UTC; anything else as it is."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)[\d:.]*(Z|\+00:00)", iso)
    return f"{found[1]} {found[2]} UTC" if found else iso


def _badges(run: dict) -> list[Safe]:
    badges = []
    if run["rehearsal"]:
        badges.append("rehearsal: two steps and four images per stage; shows that every stage works, and its figures mean nothing")
    if run["profile"] == "cpu":
        badges.append("cpu profile: proves that the line runs; its figures are not the recipe's")
    elif run["profile"]:
        badges.append(f"profile {run['profile']}: settings of the recipe were replaced by those of this profile")
    return [el("p", text, class_="badge") for text in badges]


def _tile(value: str, unit: str, says: str) -> Safe:
    return el("div", el("b", value, el("span", f" {unit}") if unit else None), el("small", says), class_="tile")


def _lineage(facts: dict) -> Safe | None:
    if not facts["stages"]:
        return None
    head = el("tr", el("th", "Stage"), el("th", "State"), el("th", "Time to make", class_="n"), el("th", "Made of"), el("th", "Artifact"))
    return el(
        "section",
        el("h2", "Lineage"),
        el("p", "Every stage and what it took. The same settings and inputs are never computed twice: such stages are kept.", class_="say"),
        el("div", graph.lineage(facts["stages"]), class_="wide graphbox"),
        el("details", el("summary", "Stages as a table"), el("div", _stages(head, facts), class_="wide"), open=True),
    )


def _stages(head: Safe, facts: dict) -> Safe:
    return el("table", el("thead", head), el("tbody", [_stage(s) for s in facts["stages"]]), class_="stages")


def _stage(stage: dict) -> Safe:
    inputs = [el("span", f"{field}: {', '.join(names)}", class_="sub") for field, names in stage["inputs"].items() if names]
    artifact = [stage["makes"] or NONE, el("span", el("code", stage["id"][:12]), class_="sub", title=stage["id"]) if stage["id"] else None]
    state = (
        ("kept" if stage["kept"] else "made")
        if stage["state"] == "done"
        else "not reached"
        if stage["state"] == "missing"
        else stage["state"]
    )
    error = el("span", stage["error"], class_="sub error") if stage["error"] else None
    word = el("span", state, class_="no" if stage["state"] in ("failed", "stopped") else None)
    return el(
        "tr",
        el("th", stage["name"], el("span", stage["kind"], class_="sub"), scope="row"),
        el("td", word, error),
        el("td", duration(stage["seconds"] or None), class_="n"),
        el("td", inputs or NONE),
        el("td", artifact),
    )


def _details(facts: dict) -> Safe:
    notes = el("ul", [el("li", note) for note in facts["notes"]], class_="notes") if facts["notes"] else None
    measured_on = facts["measured"]["machine"] if facts["measured"] else {}
    several = len(facts["data"]) > 1
    about = {f"data set {d['stage']}" if several else "data set": _data(d) for d in facts["data"]}
    about |= {"exit code": facts["run"]["exit"]} | flat(facts["machine"])
    about |= {f"measured on: {k}": v for k, v in flat(measured_on).items() if about.get(k) != v}
    if target := facts["measured"] and facts["measured"]["target"]:
        about |= {f"measured on target {target['name']}: {k}": v for k, v in flat(target["machine"]).items()}
    conditions = facts["measured"] and facts["measured"]["conditions"]
    about |= {f"while times were measured: {k}": v for k, v in conditions["seen"].items()} if conditions else {}
    about |= {"while times were measured: not watched": conditions["not_watched"]} if conditions and conditions["not_watched"] else {}
    return el(
        "section",
        el("h2", "The run"),
        [el("h3", "What this page cannot show"), notes, el("br")] if notes else None,
        facts_list(about),
        el("details", el("summary", "Versions"), facts_list(flat(facts["versions"]))) if facts["versions"] else None,
        el(
            "details",
            el("summary", "The recipe with every default filled in"),
            el("pre", json.dumps(facts["recipe"], indent=2, ensure_ascii=False)),
        ),
        el("p", "Every figure of this page is in it a second time, as JSON: the element with the id facts.", class_="sub"),
    )


def facts_list(pairs: dict) -> Safe:
    return el("dl", [el("div", el("dt", k), el("dd", NONE if v is None else str(v))) for k, v in pairs.items()], class_="facts")


def _data(data: dict) -> str:
    size = " × ".join(str(v) for v in data["size"]) if data["size"] else "native size"
    splits = ", ".join(f"{k} {v}" for k, v in data["splits"].items())
    return f"{data['source']}, {data['classes']} classes, {size}, images: {splits}"


def flat(value: dict, before: str = "") -> dict:
    """{"cpu": {"cores": 2}} as {"cpu cores": 2}"""
    pairs: dict = {}
    for key, item in value.items():
        label = f"{before} {key}".strip().replace("_", " ")
        if isinstance(item, dict):
            pairs |= flat(item, label)
        else:
            pairs[label] = (", ".join(_word(v) for v in item) or "none") if isinstance(item, list) else item
    return pairs


def _word(item: object) -> str:
    return " ".join(str(v) for v in item.values()) if isinstance(item, dict) else str(item)
