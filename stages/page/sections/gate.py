"""Shows what each gate says: every rule with its figure and limit, the broken ones first, and the pictures that explain them."""

from stages.rules import UNITS

from ..charts import Axis
from ..markup import Safe, el
from ..words import NONE, points
from . import changed
from .classes import chip

SIGNS = {True: ("✓ pass", "yes"), None: ("? undecided", "unsure"), False: ("✗ fail", "no")}
SAID = {True: "passed", None: "undecided", False: "failed"}
WIDE, HIGH = 150, 34  # of a drawing


def rules(facts: dict, uris: list[list[str]]) -> Safe:
    """`uris` has one list of data: URIs per image of facts["changes"], in their order."""
    if not facts["rules"]:
        return el("section", el("h2", "Gate"), el("p", "No rule was judged in this run.", class_="say"))
    gates = list(dict.fromkeys(rule["gate"] for rule in facts["rules"]))
    return el("section", el("h2", "Gate"), [_gate(facts, one, len(gates) > 1) for one in gates], _pictures(facts, uris))


def most_lost(facts: dict) -> Safe | None:
    """The classes of the first broken rule, for the top of the page."""
    broken = [change for change in facts["changes"] if facts["rules"][change["rule"]]["passed"] is False]
    said = next((text for change in broken if (text := _lost(change))), None)
    return el("span", said, class_="sub") if said else None


def _gate(facts: dict, gate: str, named: bool) -> Safe:
    judged = [rule for rule in facts["rules"] if rule["gate"] == gate]
    outcomes = [rule["passed"] for rule in judged]
    outcome = False if False in outcomes else None if None in outcomes else True
    count = {word: sum(one is key for one in outcomes) for key, word in ((False, "broken"), (None, "undecided")) if key in outcomes}
    left = f", {' and '.join(f'{n} {word}' for word, n in count.items())}" if count else ""
    say = f"{outcomes.count(True)} of {len(judged)} rules hold{left}. What was not measured is broken; what cannot be told is undecided."
    ordered = sorted(judged, key=lambda rule: (True, None, False).index(rule["passed"]), reverse=True)
    head = el("thead", el("tr", [el("th", word) for word in ("Outcome", "Rule", "Figure", "Asked", "Figure, its interval, and the limit")]))
    table = el("div", el("table", head, el("tbody", [_rule(rule) for rule in ordered]), class_="gate"), class_="wide")
    return el("div", el("h3", f"{gate}: {SAID[outcome]}") if named else None, el("p", say, class_="say"), table)


def _rule(rule: dict) -> Safe:
    ratio = bool(rule["limits"]) and rule["limits"][0]["kind"].endswith("_ratio")
    return el(
        "tr",
        el("td", mark(rule["passed"])),
        el("td", el("b", _titled(rule)), el("span", rule["text"], class_="sub")),
        el("td", _figure(rule, ratio), class_="n key"),
        el("td", [el("span", _limit(one), class_="line") for one in rule["limits"]] or rule["limit"] or NONE, class_="soft"),
        el("td", _drawn(rule)),
    )


def mark(passed: bool | None) -> Safe:
    word, colour = SIGNS[passed]
    return el("span", word, class_=f"mark-word {colour}")


def _titled(rule: dict) -> str:
    """miou of engine against released"""
    against = f" against {rule['against']}" if rule["against"] else ""
    return f"{rule['metric']} of {rule['of']}{against}" if rule["metric"] else "a rule"


def _figure(rule: dict, ratio: bool) -> str:
    if rule["value"] is None:
        return NONE
    if ratio:
        return f"× {rule['value']:.4g}"
    digits = f"{abs(rule['value']):.2f}" if _unit(rule) == "points" else f"{abs(rule['value']):.4g}"
    sign = "−" if rule["value"] < 0 else "+" if rule["against"] and rule["value"] > 0 else ""
    return f"{sign}{digits} {_unit(rule)}".strip()


def _unit(rule: dict) -> str:
    return UNITS.get(str(rule["metric"]).split(".")[0], "ms")


def _limit(limit: dict) -> str:
    bound = f"{limit['bound']:g}".replace("-", "−")
    return f"{limit['kind'].removesuffix('_ratio').replace('_', ' ')} {'× ' if limit['kind'].endswith('_ratio') else ''}{bound}"


def _drawn(rule: dict) -> Safe | None:
    """The figure as a dot, its interval as a bar, the limit as a line; the side that is not allowed is shaded."""
    if rule["value"] is None or not rule["limits"]:
        return None
    limit, value = rule["limits"][0], rule["value"]
    least, (low, high) = limit["kind"].startswith("at_least"), rule["interval"] or (value, value)
    ends = sorted((low, high, value, limit["bound"]))
    room = 0.15 * (ends[-1] - ends[0]) or abs(value) / 10 or 1.0
    x = Axis(ends[0] - room, ends[-1] + room, 2, WIDE - 2)
    edge, middle = x.at(limit["bound"]), HIGH / 2
    side = {"x": 2.0, "width": max(0.0, edge - 2)} if least else {"x": edge, "width": max(0.0, WIDE - 2 - edge)}
    within = f", between {low:.4g} and {high:.4g}" if rule["interval"] else ""
    return el(
        "svg",
        el("rect", class_="refused", y=3, height=HIGH - 6, **side),
        el("line", class_="bound", x1=edge, x2=edge, y1=1, y2=HIGH - 1),
        el("line", class_="reach", x1=x.at(low), x2=x.at(high), y1=middle, y2=middle),
        [el("line", class_="reach", x1=x.at(v), x2=x.at(v), y1=middle - 5, y2=middle + 5) for v in (low, high) if low < high],
        el("circle", class_="dot", cx=x.at(value), cy=middle, r=4.5),
        class_=f"drawn o-{SIGNS[rule['passed']][1]}",
        viewBox=f"0 0 {WIDE} {HIGH}",
        role="img",
        aria_label=f"{value:.4g}{within}; {_limit(limit)} was asked",
    )


def _pictures(facts: dict, uris: list[list[str]]) -> list[Safe]:
    left, found = list(uris), [_key()] if uris else []
    for change in facts["changes"]:
        mine, left = left[: len(change["images"])], left[len(change["images"]) :]
        found.append(None if change["problem"] else _explained(facts, change, mine))
    for problem in dict.fromkeys(change["problem"] for change in facts["changes"] if change["problem"]):
        about = [_titled(facts["rules"][change["rule"]]) for change in facts["changes"] if change["problem"] == problem]
        text = f"Reason: {problem}{'' if problem.endswith('.') else '.'}"
        found.append(el("div", el("h3", f"No pictures for {', '.join(about)}"), el("p", text, class_="say"), class_="why"))
    return found


def _explained(facts: dict, change: dict, uris: list[list[str]]) -> Safe:
    """What one rule lost, and where."""
    rule = facts["rules"][change["rule"]]
    end = "the largest loss that passed" if rule["passed"] else "where it was lost"
    head = el("h3", mark(rule["passed"]), f" {_titled(rule)}: {end}")
    cost = sum(image["points"] or 0 for image in change["images"]) if change["class"] else sum(i["miou"] or 0 for i in change["images"])
    what, whole, many = change["class"] or "mIoU", change["points"], len(change["images"])
    say = "" if change["class"] else _lost(change)
    say += f" {what} lost {points(whole)} points" if whole else ""
    if whole and 0 < cost <= whole * 1.005:
        say += f", {points(cost)} of them in {'this image' if many == 1 else f'these {many} images'}"
    say += "." if whole else ""
    if change["again"]:
        say += " Pictures of it that stand above are not repeated."
    if any(not image["as_accepted"] for image in change["images"]):
        say += " On this machine the released model gives slightly other maps than where it was accepted."
    shown = [_image(facts, image, row) for image, row in zip(change["images"], uris, strict=True)]
    return el("div", head, el("p", say.strip(), class_="say"), shown, class_="why")


def _lost(change: dict) -> str:
    first, *rest = [f"{name} {points(value)}" for name, value in list(change["classes"].items())[:4]] or [""]
    if not first:
        return ""
    then = f"; then {', '.join(rest)}" if rest else ""
    return f"Points of IoU lost by class, most first: {first}{then}."


def _image(facts: dict, image: dict, uris: list[str]) -> Safe:
    colours = {one["name"]: one["colour"] for one in facts["classes"]}
    lost = f"{image['class']} −{image['points']:.2f} points" if image["class"] and image["points"] else "no class lost by itself"
    head = el("h4", chip(colours[image["class"]]) if image["class"] in colours else None, el("b", lost), el("span", f" in {image['name']}"))
    became = image["became"]
    change = (
        [f"{_pixels(became['pixels'])} of ", _class(became["from"], colours), " are now taken for ", _class(became["to"], colours), ". "]
        if became
        else []
    )
    tiles = [_tile(tile, uri, image) for tile, uri in zip(image["tiles"], uris, strict=True)]
    wide = "shots six" if len(tiles) == 6 else "shots five"
    text = el("p", change, f"Whole image: {_counted(image)}.", class_="say")
    return el("div", head, text, el("div", tiles, class_=wide), class_="scene card")


def _counted(image: dict) -> str:
    return ", ".join(f"{_pixels(image[kind])} {words}" for kind, words in changed.KINDS.items())


def _pixels(many: int) -> str:
    return f"{many:,} pixel{'' if many == 1 else 's'}".replace(",", "\u202f")


def _class(name: str, colours: dict[str, list[int]]) -> Safe:
    return el("span", chip(colours.get(name, [128, 128, 128])), name, class_="line-in")


def _tile(tile: dict, uri: str, image: dict) -> Safe:
    """The alternative text says what a reader of the picture would see."""
    about = image["class"] or "the classes"
    words = {
        "where": f"{image['name']} as a whole, with a frame around what the other pictures show",
        "image": f"part of {image['name']}",
        "label": f"the label there, {about} in full colour",
        "before": f"the class map before, {about} in full colour",
        "after": f"the class map after, {about} in full colour",
        "difference": f"what changed; in the whole image {_counted(image)}",
    }[tile["what"]]
    kind = None if tile["what"] in ("where", "image") else "map"
    return el("figure", el("img", src=uri, alt=words, class_=kind), el("figcaption", tile["title"]))


def _key() -> Safe:
    """What the patterns mean."""
    note = el("span", "In the class maps, the class that was lost and what it is taken for keep their colour; all others are pale.")
    return el("p", changed.key(), note, class_="legend key-of")
