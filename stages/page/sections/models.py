"""Puts the networks side by side: the table of figures, and accuracy against size and time in one picture."""

from .. import charts
from ..markup import Safe, el
from ..words import NONE, count, megabytes, ms, percent, points, signed

PERCENTILES = ("p50", "p90", "p99")


def table(facts: dict) -> Safe:
    """Teacher, baseline, student, ONNX and engines, one row each."""
    rows = facts["table"]
    if not rows:
        return el("section", el("h2", "Side by side"), el("p", "No network was made or measured in this run.", class_="say"))
    timed = any(row["image_ms"] or row["engine_ms"] for row in rows)
    measured = facts["measured"] is not None
    body = el("table", _head(facts, measured, timed), el("tbody", [_row(row, measured, timed) for row in rows]), class_="models")
    head = [el("h2", "Side by side"), el("p", _about(facts), class_="say"), _busy(facts) if timed else None]
    return el("section", head, el("div", body, class_="wide"), _boundaries(timed))


def trade(facts: dict) -> Safe | None:
    """Accuracy against size, accuracy against time, and how much the time varies."""
    rows = [row for row in facts["table"] if row["measured"] and row["miou"] is not None]
    sized = [_point(row, row["size_mb"], megabytes(row["size_mb"])) for row in rows if row["size_mb"]]
    timed = [_point(row, row["image_ms"]["p50"], f"{ms(row['image_ms']['p50'])} ms") for row in rows if row["image_ms"]]
    cards = []
    if len(sized) > 1:
        cards.append(_card("Accuracy against size", charts.scatter(sized, "size, MB", "mIoU")))
    if len(timed) > 1:
        cards.append(_card("Accuracy against time", charts.scatter(timed, "image to class map, median, ms", "mIoU")))
    spreads = _spreads(facts["table"])
    if spreads:
        cards.append(_card("How long an answer takes", charts.spread(spreads, "ms: mark at p50, ticks at p90 and p99")))
    if not cards:
        return None
    say = "Higher is more accurate, further left is smaller or faster: a good exchange keeps its height while it moves left."
    return el("section", el("h2", "Gain and cost"), el("p", say, class_="say"), el("div", cards, class_="charts"))


def _about(facts: dict) -> str:
    measured = facts["measured"]
    if not measured:
        return "No measurement was made; these are the figures that training itself noted at its last step, on the validation split."
    size = f" at {measured['size'][0]} × {measured['size'][1]} pixels (height × width)" if measured["size"] else ""
    return (
        f"All on the same {measured['images']} images of the split {measured['split']}{size}. "
        "mIoU, in points of 100, is the overlap of prediction and label, averaged over the classes."
    )


def _busy(facts: dict) -> Safe | None:
    conditions = facts["measured"] and facts["measured"]["conditions"]
    if not conditions or conditions["valid"]:
        return None
    why = "; ".join(conditions["reasons"]) or "no reason was noted"
    return el("p", f"Times by the clock are inconclusive: {why}. Processor times can be compared all the same.", class_="badge")


def _boundaries(timed: bool) -> Safe | None:
    if not timed:
        return None
    say = (
        "Image to class map: from a decoded 8-bit image in memory to its class map, with resizing and copies, as a caller waits for it. "
        "Engine alone: the network by itself, its input already in place. "
        "p50 is the median, below it where it lies with 95 % confidence; 1 answer in 10 takes longer than p90, 1 in 100 longer than p99; "
        "small figures there: no higher than this with the same confidence. Processor time counts all threads together."
    )
    return el("p", say, class_="sub")


def _head(facts: dict, measured: bool, timed: bool) -> Safe:
    two = {"rowspan": 2} if timed else {}
    names = ["mIoU"]
    if measured:
        names += ["to teacher", "to student", f"agrees with {facts['measured']['reference']}", "parameters", "size"]
    first = [el("th", "Network", class_="corner", **two), [el("th", n, class_="n", **two) for n in names]]
    if not timed:
        return el("thead", el("tr", first))
    groups = [el("th", t, class_="group", colspan=3) for t in ("image to class map, ms", "engine alone, ms")]
    second = [el("th", p, class_="n first" if p == "p50" else "n") for _ in groups for p in PERCENTILES]
    return el("thead", el("tr", first, groups), el("tr", second))


def _row(row: dict, measured: bool, timed: bool) -> Safe:
    ran = ", ".join(f"argmax: {text}" if key == "argmax" else text for key, text in row["ran"].items())
    used = f"processor time {ms(row['image_cpu_ms']['p50'])} ms an image" if row["image_cpu_ms"] else None
    why = f"INT8 {row['kept']['why']}" if row["kept"] else None
    what = [el("span", text, class_="sub") for text in (row["what"], f"ran: {ran}" if ran else None, used, why) if text]
    named = None if row["title"].lower().endswith(row["stage"].lower()) else el("span", row["stage"], class_="sub")
    compared = [
        el("td", signed(row["to_teacher"]) if row["role"] != "teacher" else NONE, class_="n"),
        el("td", signed(row["to_student"]) if row["role"] != "student" else NONE, class_="n"),
        el("td", "reference" if row["reference"] else percent(row["agreement"]), class_="n"),
        el("td", count(row["parameters"]), class_="n"),
        el("td", megabytes(row["size_mb"]), class_="n"),
    ]
    cells = [el("td", points(row["miou"]), class_="n key"), *(compared if measured else [])]
    if timed:
        cells += [_latency(row[b], p) for b in ("image_ms", "engine_ms") for p in PERCENTILES]
    return el("tr", el("th", charts.swatch(row["role"]), row["title"], named, what, scope="row"), cells)


def _latency(found: dict | None, percentile: str) -> Safe:
    found = found or {}
    low, high, most = (found.get(f"{percentile}_{end}") for end in ("low", "high", "most"))
    bound = f"{ms(low)} to {ms(high)}" if None not in (low, high) else f"≤ {ms(most)}" if most is not None else None
    text = [ms(found.get(percentile)), el("span", bound, class_="sub") if bound else None]
    return el("td", text, class_="n first key" if percentile == "p50" else "n")


def _point(row: dict, x: float, says: str) -> dict:
    label = row["title"] if len(row["title"]) <= 22 else row["title"][:21] + "…"
    return {"x": x, "y": row["miou"], "role": row["role"], "label": label, "title": f"{row['title']}: {points(row['miou'])} mIoU, {says}"}


def _spreads(rows: list[dict]) -> list[dict]:
    found = []
    for row in rows:
        for boundary, says in (("image_ms", "image to class map"), ("engine_ms", "engine alone")):
            if row[boundary]:
                values = {p: row[boundary].get(p) for p in PERCENTILES}
                told = ", ".join(f"{p} {ms(v)}" for p, v in values.items())
                text = f"{row['title'][:20]}, {says}: {ms(values['p50'])} ms"
                found.append({"label": text, "role": row["role"], "title": f"{row['title']}, {says}, ms: {told}"} | values)
    return found


def _card(title: str, chart: Safe) -> Safe:
    return el("div", el("h3", title), chart, class_="card")
