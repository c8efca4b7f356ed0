"""Shows the models that took turns: the figure of every round beside what was allowed, and builds of one file beside each other."""

from .. import charts
from ..markup import Safe, el

SAYS = {"wall": "By the clock", "processor": "Processor time"}


def raced(facts: dict) -> Safe | None:
    """None where no two models took turns."""
    if not facts["pairs"]:
        return None
    say = (
        "Each point is a round: both models in fresh processes, taking turns; above 0 the first one took longer. What slows the machine "
        "slows both. The band is where the difference lies with 95 % confidence; a verdict is looked for at the dotted lines."
    )
    return el("section", el("h2", "In turns"), el("p", say, class_="say"), [_pair(one) for one in facts["pairs"]])


def _pair(pair: dict) -> Safe:
    title = el("h3", f"{pair['candidate']} against {pair['baseline']}")
    if pair["problem"]:
        return el("div", title, el("p", f"Not measured: {pair['problem']}", class_="badge"), class_="scene")
    why = "; ".join(pair["reasons"]) or "no reason was noted"
    busy = None if pair["valid"] else el("p", f"Times by the clock are inconclusive: {why}.", class_="badge")
    cards = [_card(pair, word, channel) for word, channel in pair["channels"].items() if channel]
    cards += [_builds(pair, word) for word in pair["channels"] if any(build[word] for build in pair["builds"])]
    unbuilt = (
        el("p", f"Another build may tell otherwise, and there is none: {pair['not_rebuilt']}", class_="sub")
        if pair["not_rebuilt"]
        else None
    )
    unread = None if cards else el("p", "Its rounds could not be read.", class_="say")
    return el("div", title, busy, el("div", cards, class_="charts pairs"), unread, unbuilt, class_="scene")


def _card(pair: dict, word: str, channel: dict) -> Safe:
    marks = [
        {"y": change, "hollow": str(k) in pair["disturbed"], "title": _round(k, change, pair["disturbed"].get(str(k)))}
        for k, change in enumerate(channel["changes"], 1)
    ]
    disturbed = len(pair["disturbed"])
    legend = [el("span", charts.point(hollow=False), "a round")]
    legend += [el("span", charts.point(hollow=True), f"disturbed ({disturbed})")] if disturbed else []
    if pair["tolerance"]:
        legend += [
            el("span", charts.dash("limit"), f"{_percent(pair['tolerance'])} allowed"),
            el("span", charts.dash("half"), "half of it"),
        ]
    chart = charts.rounds(marks, channel, _lines(pair), pair["looks"], "round", "longer, %")
    return el("div", el("h3", f"{SAYS[word]}: {_found(channel)}"), el("p", legend, class_="legend"), chart, class_="card")


def _builds(pair: dict, word: str) -> Safe:
    shown = [("measured first", pair["channels"][word])] + [(f"build {k}", build[word]) for k, build in enumerate(pair["builds"], 1)]
    rows = [one | {"label": f"{label}: {_signed(one['change'])}", "title": f"{label}: {_found(one)}"} for label, one in shown if one]
    sub = el("span", "The same files, built again with the same settings. The one in the middle of the new builds decides.", class_="sub")
    return el("div", el("h3", f"{SAYS[word]}, by build"), charts.intervals(rows, _lines(pair), "longer, %"), sub, class_="card")


def _lines(pair: dict) -> list[tuple[float, str]]:
    """(where, class) of what is allowed."""
    return [(pair["tolerance"], "limit"), (pair["tolerance"] / 2, "half")] if pair["tolerance"] else []


def _found(channel: dict) -> str:
    word = "longer" if channel["change"] > 0 else "shorter"
    between = "" if channel["low"] is None else f" ({_signed(channel['low'])} to {_signed(channel['high'])})"
    return f"{_percent(abs(channel['change']))} {word}{between}"


def _round(k: int, change: float, why: str | None) -> str:
    return f"round {k}: {_signed(change)}" + (f"; {why}" if why else "")


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _signed(share: float) -> str:
    return f"{'−' if share < 0 else '+'}{abs(100 * share):.2f} %"
