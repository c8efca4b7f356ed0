"""Shows where accuracy is lost between the trained network and the engine: every hop beside what it was made from."""

from ..markup import Safe, el
from ..words import NONE, percent, points, signed


def hops(facts: dict) -> Safe | None:
    """One row per hop with a bar of its mIoU; the hop that loses is marked."""
    told = facts["waterfall"]
    if not told or not told["hops"]:
        return None
    say = (
        "Every hop is compared with the one it was made from, on the same images, pixel by pixel: a loss shows where it happens. "
        "Boundary F, in points of 100: how many boundary pixels lie within 0.75 % of the image's diagonal of the label's."
    )
    names = ("mIoU", "", "change", "same class as before", "as the first", "boundary F", "change", "class that lost most")
    head = el("tr", el("th", "Hop"), [el("th", n, class_="n" if n else None) for n in names])
    body = el("tbody", [_row(one, max((h["miou"] or 0) for h in told["hops"])) for one in told["hops"]])
    table = el("div", el("table", el("thead", head), body, class_="hops"), class_="wide")
    outcome = el("p", f"{told['text']}.", class_="badge") if told["loses"] else el("p", f"{_begun(told['text'])}.", class_="say")
    return el("section", el("h2", "Hop by hop"), el("p", say, class_="say"), outcome, table)


def _row(one: dict, most: float) -> Safe:
    if one["from"] is None:
        about, changed = "as trained", [NONE] * 3
    else:
        about = f"from {one['from']}, {one['precision']}"
        changed = [_change(one), percent(one["agreement"]), percent(one["agreement_first"])]
    mark = {"loses": el("span", "✗ loses", class_="mark-word no"), "unclear": el("span", "? unclear", class_="mark-word unsure")}
    return el(
        "tr",
        el("th", one["name"], " ", mark.get(one["state"]), el("span", about, class_="sub"), scope="row"),
        el("td", points(one["miou"]), class_="n key"),
        el("td", _bar(one, most)),
        [el("td", text, class_="n") for text in changed],
        el("td", points(one["boundary_f"]), class_="n"),
        el("td", signed(one["boundary_change"]), class_="n"),
        el("td", f"{one['worst']['class']} {signed(one['worst']['change'])}" if one["worst"] else NONE, class_="n"),
    )


def _change(one: dict) -> str:
    error = one["standard_error"]
    return signed(one["change"]) + ("" if error is None or error < 0.05 else f" ± {points(1.645 * error)}")


def _bar(one: dict, most: float) -> Safe:
    wide = max(0.0, 100 * (one["miou"] or 0) / most) if most > 0 else 0.0
    colour = "bar-loses" if one["state"] == "loses" else "bar-hop"
    drawn = [el("rect", class_="track", width=100, height=9), el("rect", class_=colour, width=float(wide), height=9)]
    return el("svg", drawn, class_="bars hop", viewBox="0 0 100 9", preserveAspectRatio="none", aria_hidden="true")


def _begun(text: str) -> str:
    return text[:1].upper() + text[1:]
