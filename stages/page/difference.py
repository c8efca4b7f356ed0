"""What became of every pixel between two class maps, where the loss is, and how both are drawn."""

import math

from PIL import Image, ImageChops, ImageDraw

from .pictures import MARK

ZOOMS = {1 / 5: 0.9, 1 / 3: 0.75, 1 / 2: 0.6, 2 / 3: 0.6}  # side of the window -> the share of what matters that it must hold
CELLS = 48  # the window moves by this part of a side
KINDS = {  # what happened to a pixel that changed: two colours of its pattern, so that colour alone never carries the meaning
    "worse": (MARK, MARK),
    "better": ((0, 92, 175), (255, 255, 255)),
    "other": ((240, 178, 0), (60, 44, 0)),
}
PATTERNS = {"worse": lambda x, y: True, "better": lambda x, y: (x + y) % 6 < 3, "other": lambda x, y: x % 6 > 2 or y % 6 > 2}
GREYS = 16
UNJUDGED = (128, 128, 128)


def kinds(label: Image.Image, before: Image.Image, after: Image.Image) -> dict[str, Image.Image]:
    """255 where a judged pixel got worse, got better, or changed and is wrong as before; 0 elsewhere. All are class maps of mode L."""
    judged = label.point([255] * 255 + [0])
    was, is_ = (ImageChops.darker(same(one, label), judged) for one in (before, after))
    wrong = ImageChops.darker(judged, ImageChops.invert(ImageChops.lighter(was, is_)))
    return {
        "worse": ImageChops.darker(was, ImageChops.invert(is_)),
        "better": ImageChops.darker(is_, ImageChops.invert(was)),
        "other": ImageChops.darker(wrong, ImageChops.invert(same(before, after))),
    }


def focused(number_: int | None, maps: list[Image.Image], masks: dict[str, Image.Image]) -> Image.Image:
    """The pixels that cost the class: its own that were lost, and those of others that are now taken for it."""
    if number_ is not None:
        label, before, after = (of_class(one, number_) for one in maps)
        taken = ImageChops.darker(ImageChops.darker(after, ImageChops.invert(before)), ImageChops.invert(label))
        changed = ImageChops.lighter(masks["worse"], masks["other"])
        mine = ImageChops.lighter(ImageChops.darker(label, masks["worse"]), ImageChops.darker(taken, changed))
        if pixels(mine):
            return mine
    return masks["worse"] if pixels(masks["worse"]) else ImageChops.lighter(masks["better"], masks["other"])


def window(focus: Image.Image) -> tuple[int, int, int, int]:
    """left, top, right, bottom of the smallest of a few windows that holds most of it; the whole image where it is everywhere."""
    across, down = min(CELLS, focus.width), min(CELLS, focus.height)
    cells = focus.convert("F").resize((across, down), Image.Resampling.BOX)
    values = list(cells.get_flattened_data() if hasattr(cells, "get_flattened_data") else cells.getdata())
    sums = [[0.0] * (across + 1)]
    for y in range(down):  # sums[y][x]: everything above and left of the cell
        row = [0.0]
        for x in range(across):
            row.append(row[-1] + values[y * across + x])
        sums.append([above + here for above, here in zip(sums[-1], row, strict=True)])
    for zoom, enough in ZOOMS.items():
        wide, high = math.ceil(across * zoom), math.ceil(down * zoom)
        inside = {
            (x, y): sums[y + high][x + wide] - sums[y][x + wide] - sums[y + high][x] + sums[y][x]
            for y in range(down - high + 1)
            for x in range(across - wide + 1)
        }
        most = max(inside.values())
        if most >= enough * sums[-1][-1] > 0:
            x, y = _middle([place for place, held in inside.items() if held >= most * (1 - 1e-9)])
            left, top = x * focus.width // across, y * focus.height // down
            return left, top, left + -(-wide * focus.width // across), top + -(-high * focus.height // down)
    return 0, 0, focus.width, focus.height


def where(picture: dict, width: int) -> Image.Image:
    """The whole image with a frame around the window."""
    photo = picture["photo"]
    small = photo.resize((width, max(1, round(photo.height * width / photo.width))), Image.Resampling.LANCZOS)
    left, top, right, bottom = (value * width / photo.width for value in picture["window"])
    for grown, colour in ((2, (0, 0, 0)), (1, (255, 255, 255)), (0, (255, 255, 255)), (-1, (0, 0, 0))):
        ImageDraw.Draw(small).rectangle((left - grown, top - grown, right + grown, bottom + grown), outline=colour)
    return small


def difference(picture: dict, width: int) -> Image.Image:
    """The window, pale and grey, with every kind of change in its colour and pattern; shrinking hides no pixel that got worse."""
    place = picture["window"]
    wide, high = place[2] - place[0], place[3] - place[1]
    factor = max(1, width // wide)
    size = (wide * factor, high * factor) if wide <= width else (width, max(1, round(high * width / wide)))
    drawn = picture["photo"].convert("L").crop(place).resize(size).point([v * GREYS // 256 for v in range(256)])
    ignored = picture["maps"][0].crop(place).resize(size, Image.Resampling.NEAREST).point([0] * 255 + [255])
    drawn.paste(GREYS, mask=ignored)
    colours = [(165 + 5 * v,) * 3 for v in range(GREYS)] + [UNJUDGED]
    for kind in ("other", "better", "worse"):
        mask = picture["masks"][kind].crop(place)
        how = Image.Resampling.NEAREST if wide <= width else Image.Resampling.BOX
        drawn.paste(_pattern(kind, size, len(colours)), mask=mask.resize(size, how).point([0] + [255] * 255))
        colours += KINDS[kind]
    drawn = Image.frombytes("P", size, drawn.tobytes())
    drawn.putpalette([v for colour in colours for v in colour])
    return drawn


def same(one: Image.Image, other: Image.Image) -> Image.Image:
    return ImageChops.difference(one, other).point([255] + [0] * 255)


def of_class(image: Image.Image, number_: int) -> Image.Image:
    return image.point([255 if v == number_ else 0 for v in range(256)])


def pixels(mask: Image.Image) -> int:
    return mask.histogram()[255]


def _middle(places: list[tuple[int, int]]) -> tuple[int, int]:
    """Of windows that hold as much: the one in their middle, so that what is shown has its surroundings."""
    x, y = (sum(values) / len(places) for values in zip(*places, strict=True))
    return min(places, key=lambda place: (abs(place[0] - x) + abs(place[1] - y), place))


def _pattern(kind: str, size: tuple[int, int], first: int) -> Image.Image:
    """Numbers of its two colours, `first` and the next, over and over."""
    tile = Image.frombytes("L", (6, 6), bytes(first + (not PATTERNS[kind](x, y)) for y in range(6) for x in range(6)))
    row = Image.new("L", (size[0], 6))
    for x in range(0, size[0], 6):
        row.paste(tile, (x, 0))
    whole = Image.new("L", size)
    for y in range(0, size[1], 6):
        whole.paste(row, (0, y))
    return whole
