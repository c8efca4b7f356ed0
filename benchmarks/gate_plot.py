"""Draws how likely a gate passes and fails by how much slower its candidate is: curves from resampled rounds, points from whole gates."""

from typing import NamedTuple

WIDTH, HEIGHT = 330, 190  # of a panel's inside
LEFT, TOP, GAP = 56, 46, 64
MOST = 0.1  # the right end of the axis: 10 % more work
COLOURS = {"pass": "#0072b2", "fail": "#d55e00"}  # Okabe & Ito (2008): told apart without seeing red and green
STROKES = {"pass": "none", "fail": "6 4"}
TICKS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1)


class Curve(NamedTuple):
    channel: str
    load: int
    verdict: str
    slower: list[float]
    share: list[float]


class Point(NamedTuple):
    channel: str
    load: int
    verdict: str
    slower: float
    share: float
    low: float
    high: float


def svg(curves: list[Curve], points: list[Point]) -> str:
    """A panel for every channel and load that was measured."""
    panels = sorted({(one.load, one.channel) for one in (*curves, *points)}, key=lambda one: (one[0], one[1] != "wall"))
    loads = sorted({load for load, _ in panels})
    drawn = []
    for load, channel in panels:
        across = [one for one_load, one in panels if one_load == load].index(channel)
        x, y = LEFT + across * (WIDTH + GAP), TOP + loads.index(load) * (HEIGHT + GAP)
        inside = [_frame(_title(channel, load))]
        inside += [_curve(one) for one in curves if (one.load, one.channel) == (load, channel)]
        inside += [_point(one) for one in points if (one.load, one.channel) == (load, channel) and one.slower <= MOST]
        drawn.append(f'<g transform="translate({x} {y})">{"".join(inside)}</g>')
    width, height = LEFT + 2 * WIDTH + GAP + 16, TOP + len(loads) * (HEIGHT + GAP) + 4
    key = "".join(
        f'<line x1="{LEFT + 90 * k}" x2="{LEFT + 90 * k + 26}" y1="12" y2="12" stroke="{colour}" stroke-width="2" '
        f'stroke-dasharray="{STROKES[word]}"/><text x="{LEFT + 90 * k + 32}" y="16">{word}</text>'
        for k, (word, colour) in enumerate(COLOURS.items())
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="white"/>', key, *drawn, "</svg>"]) + "\n"


def _title(channel: str, load: int) -> str:
    others = {0: "nothing else runs", 1: "1 other process computing"}.get(load, f"{load} other processes computing")
    return f"{'by the clock' if channel == 'wall' else 'processor time'}, {others}"


def _frame(title: str) -> str:
    parts = [f'<text y="-8" font-weight="bold">{title}</text>']
    for share in (0.0, 0.5, 1.0):
        parts.append(f'<line x1="0" x2="{WIDTH}" y1="{_y(share)}" y2="{_y(share)}" stroke="#ccc"/>')
        parts.append(f'<text x="-8" y="{_y(share) + 4}" text-anchor="end">{share:.0%}</text>')
    parts += [f'<text x="{_x(tick)}" y="{HEIGHT + 18}" text-anchor="middle">{tick:.0%}</text>' for tick in TICKS]
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT + 36}" text-anchor="middle">more work than the baseline</text>')
    return "".join(parts)


def _curve(one: Curve) -> str:
    at = " ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in zip(one.slower, one.share, strict=True))
    return (
        f'<polyline points="{at}" fill="none" stroke="{COLOURS[one.verdict]}" stroke-width="2" stroke-dasharray="{STROKES[one.verdict]}"/>'
    )


def _point(one: Point) -> str:
    x, colour = _x(one.slower) + (-3 if one.verdict == "pass" else 3), COLOURS[one.verdict]
    bar = f'<line x1="{x}" x2="{x}" y1="{_y(one.low):.1f}" y2="{_y(one.high):.1f}" stroke="{colour}" stroke-width="1.5"/>'
    return f'{bar}<circle cx="{x}" cy="{_y(one.share):.1f}" r="4" fill="white" stroke="{colour}" stroke-width="2"/>'


def _x(slower: float) -> float:
    return WIDTH * slower / MOST


def _y(share: float) -> float:
    return HEIGHT * (1 - share)
