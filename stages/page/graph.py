"""Draws which stage came out of which: boxes in columns from left to right, with the arrows that no longer path implies."""

from .markup import Safe, el

BOX, TALL = (112, 40), 58  # width and height of a box, distance from row to row
WIDE = 140  # distance from column to column


def lineage(stages: list[dict]) -> Safe:
    """`stages` in the recipe's order, each {"name", "kind", "state", "kept", "inputs"}."""
    before = _direct(_before(stages))
    column = _columns(before)
    row = _rows(before, column)
    place = {name: (column[name] * WIDE + 4, row[name] * TALL + 4) for name in column}
    arrows = [_arrow(place[a], place[b]) for b, sources in before.items() for a in sources]
    boxes = [_box(stage, *place[stage["name"]]) for stage in stages if stage["name"] in place]
    width = max(column.values(), default=0) * WIDE + BOX[0] + 8
    height = max(row.values(), default=0) * TALL + BOX[1] + 8
    shape = {"viewBox": f"0 0 {width} {height}", "width": width, "height": height}
    return el("svg", arrows, boxes, class_="graph", role="img", aria_label="Which stage came out of which", **shape)


def _before(stages: list[dict]) -> dict[str, list[str]]:
    """Stage -> the earlier stages that it takes."""
    before: dict[str, list[str]] = {}
    for stage in stages:
        names = [n for taken in stage["inputs"].values() for n in taken]
        before[stage["name"]] = [n for n in dict.fromkeys(names) if n in before]
    return before


def _direct(before: dict[str, list[str]]) -> dict[str, list[str]]:
    """The same without arrows that a longer path implies: data reaches the student through its teacher."""
    reach: dict[str, set[str]] = {}
    for name, sources in before.items():
        reach[name] = set(sources).union(*(reach[s] for s in sources))
    return {name: [s for s in sources if not any(s in reach[o] for o in sources)] for name, sources in before.items()}


def _columns(before: dict[str, list[str]]) -> dict[str, int]:
    column: dict[str, int] = {}
    for name, sources in before.items():
        column[name] = max((column[s] + 1 for s in sources), default=0)
    return column


def _rows(before: dict[str, list[str]], column: dict[str, int]) -> dict[str, int]:
    """A row per stage, kept free as far as its longest arrow runs, so that arrows cross no box."""
    last = {n: max([column[n]] + [column[b] - 1 for b, s in before.items() if n in s]) for n in column}
    taken: dict[int, int] = {}  # row -> first free column
    row = {}
    for name in sorted(column, key=lambda n: (column[n], last[n], list(column).index(n))):
        wanted = sorted(row[s] for s in before[name]) + list(range(len(column)))
        row[name] = next(r for r in wanted if taken.get(r, 0) <= column[name])
        taken[row[name]] = last[name] + 1
    return row


def _arrow(start: tuple[int, int], end: tuple[int, int]) -> Safe:
    """Straight along the row of its start, then a bend just before its end."""
    x0, y0 = start[0] + BOX[0], start[1] + BOX[1] // 2
    x1, y1 = end[0], end[1] + BOX[1] // 2
    gap = WIDE - BOX[0]
    bend = x1 - gap
    line = f"M{x0} {y0}H{bend}C{bend + gap // 2} {y0} {bend + gap // 2} {y1} {x1} {y1}"
    return el("path", class_="arrow", d=f"{line}M{x1 - 5} {y1 - 4}L{x1} {y1}L{x1 - 5} {y1 + 4}")


def _box(stage: dict, x: int, y: int) -> Safe:
    short = stage["name"] if len(stage["name"]) <= 14 else stage["name"][:13] + "…"
    state = "kept" if stage["state"] == "done" and stage["kept"] else stage["state"]
    known = state if state in ("done", "kept", "failed", "stopped") else "missing"
    word = {"done": " · made", "missing": ""}.get(known, f" · {known}")
    return el(
        "g",
        el("title", f"{stage['name']} ({stage['kind']}): {'not reached' if known == 'missing' else word[3:]}"),
        el("rect", class_=f"box is-{known}", x=x, y=y, width=BOX[0], height=BOX[1], rx=6),
        el("text", short, x=x + 9, y=y + 17, class_="boxname"),
        el("text", f"{stage['kind'][:9]}{word}", x=x + 9, y=y + 32, class_="boxkind"),
    )
