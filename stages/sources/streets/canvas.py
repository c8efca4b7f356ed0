"""Turns a scene in metres into pixels: polygons write part numbers, then all pixels are shaded at once.

A part is one surface of one colour. Every pixel knows its part, from it its depth, and from that its place in the world, so that
texture, windows, shadows and haze follow the perspective at any resolution.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from stages.sources.streets import CLASSES

IGNORED = "ignored"
NUMBER = {name: i for i, name in enumerate(CLASSES)} | {IGNORED: 255}
NEAR = 0.6  # metres: nothing is drawn closer to the camera
TILE = 512  # side of the noise tiles, a power of two
SKY, GROUND = 0, 1  # the parts that are there before anything is drawn
LIT = {"front": 0.0, "left": 1.0, "right": -1.0, "shop": 0.0}  # which way a face looks: +1 is to the right


class Dice:
    """Random numbers of one scene from a counter-based generator: (seed, split, index) name the stream, nothing is shared."""

    def __init__(self, seed: int, split: str, index: int, stream: int = 0):
        place = int.from_bytes(split.encode()[:4].ljust(4, b"\0"), "big")
        key = np.array([seed << 32 | place, index << 8 | stream], dtype=np.uint64)
        self.uniform = np.random.Generator(np.random.Philox(key=key)).random

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.uniform())

    def near(self, low: float, high: float) -> float:
        """Small values more often than large ones."""
        return low + (high - low) * float(self.uniform()) ** 1.6

    def chance(self, p: float) -> bool:
        return float(self.uniform()) < p

    def count(self, low: int, high: int) -> int:
        return low + int(float(self.uniform()) * (high - low + 1))

    def pick(self, options: tuple):
        return options[int(float(self.uniform()) * len(options))]

    def mix(self, a: tuple, b: tuple) -> tuple:
        t = float(self.uniform())
        return tuple(x + (y - x) * t for x, y in zip(a, b, strict=True))

    def tinted(self, grey: float, by: float) -> tuple:
        return tuple(grey + self.between(-by, by) for _ in range(3))

    def paint(self, palette: tuple, scale: float = 1.0) -> tuple:
        bright = scale * self.between(0.75, 1.2)
        return tuple(min(1.0, max(0.02, c * bright + self.between(-0.04, 0.04))) for c in self.pick(palette))


@dataclass(frozen=True)
class Camera:
    focal: float  # in image heights
    height: float  # metres above the ground
    horizon: float  # in image heights from the top
    yaw: float  # shift of the vanishing point, in image heights


@dataclass(frozen=True)
class Light:
    level: float  # of the whole scene; 1 is a bright day
    sun: int  # -1: from the left, 1: from the right
    shadow: float  # how much light a shadow takes; 0: none
    reach: float  # metres a shadow falls sideways per metre of height
    zenith: tuple
    skyline: tuple
    clouds: float
    haze: float  # metres until 63 % of a colour is lost
    dusk: bool = False


@dataclass(frozen=True)
class Ground:
    """The ground across the street at z = 0, in metres from the camera: left kerb < 0 < right kerb."""

    left: float
    right: float
    pavements: tuple[float, float]
    bend: float  # x shift of the street per z^2
    road: tuple
    pavement: tuple
    beyond: tuple[str, str]
    grass: tuple
    patch: tuple | None  # x, z, width, length of repaired asphalt in the pavement's colour
    dash: float
    worn: float  # how much of the paint is left
    edges: bool
    crossing: float | None
    slab: float
    phase: float

    def kerb(self, side: int) -> float:
        return self.left if side < 0 else self.right

    def edge(self, side: int) -> float:
        return self.left - self.pavements[0] if side < 0 else self.right + self.pavements[1]


class Canvas:
    """Part numbers, shadows on the ground, and what the parts look like. Points are (x, y, z) in metres."""

    def __init__(self, camera: Camera, light: Light, ground: Ground, size: tuple[int, int], fine: int):
        self.camera, self.light, self.ground = camera, light, ground
        self.high, self.wide, self.fine = size[0] * fine, size[1] * fine, fine
        self.centre = size[1] / size[0] / 2 + camera.yaw
        self.map = Image.new("I", (self.wide, self.high), SKY)
        self.pen = ImageDraw.Draw(self.map)
        self.shadows = Image.new("L", (self.wide, self.high), 0)
        self.shadow_pen = ImageDraw.Draw(self.shadows)
        self.parts: list[tuple] = []
        self.part("sky", light.skyline, z=1e4)
        self.part("road", ground.road, z=1e4)
        self.pen.rectangle((0, camera.horizon * self.high, self.wide, self.high), GROUND)

    def part(self, kind, colour, *, z=0.0, x=0.0, grain=(8.0, 0.1), windows=(0.0, 0.0, 0.0), bars=0.0, face="front", glows=False) -> int:
        """A new surface: at distance `z`, or in the plane `x` along the street. Returns its number."""
        light = self.light
        turned = 1.0 + 0.45 * light.shadow * (LIT[face] * light.sun if x else -0.3)
        low = 0.0 if face == "shop" else 0.25
        row = (NUMBER[kind], *colour, z, x, *grain, turned, *windows, bars, float(glows), low)
        self.parts.append(row)
        return len(self.parts) - 1

    def point(self, x: float, y: float, z: float) -> tuple[float, float]:
        z = max(z, NEAR)
        scale = self.camera.focal / z
        return (self.centre + x * scale) * self.high, (self.camera.horizon + (self.camera.height - y) * scale) * self.high

    def polygon(self, part: int, points: list) -> None:
        self.pen.polygon([self.point(*p) for p in points], fill=part)

    def box(self, part: int, x0: float, x1: float, y0: float, y1: float, z: float) -> None:
        (a, b), (c, d) = self.point(x0, y0, z), self.point(x1, y1, z)
        self.pen.rectangle((min(a, c), min(b, d), max(a, c), max(b, d)), fill=part)

    def wall(self, part: int, x: float, near: float, far: float, low: float, high: float) -> None:
        if far > NEAR:
            self.polygon(part, [(x, low, near), (x, high, near), (x, high, far), (x, low, far)])

    def post(self, part: int, x: float, z: float, r: float, low: float, high: float) -> None:
        """Upright and never thinner than one pixel of the finished picture."""
        (u, bottom), (_, top) = self.point(x, low, z), self.point(x, high, z)
        half = max(r * self.camera.focal / max(z, NEAR) * self.high, self.fine / 2)
        left = round(u - half)
        self.pen.rectangle((left, top, left + max(round(2 * half), self.fine) - 1, bottom), fill=part)

    def stroke(self, part: int, a: tuple, b: tuple, thick: float) -> None:
        self.pen.line((self.point(*a), self.point(*b)), fill=part, width=self.pixels(thick, a[2]))

    def disc(self, part: int, x: float, y: float, z: float, rx: float, ry: float) -> None:
        (a, b), (c, d) = self.point(x - rx, y + ry, z), self.point(x + rx, y - ry, z)
        self.pen.ellipse((a, b, c, d), fill=part)

    def ring(self, part: int, x: float, y: float, z: float, rx: float, ry: float, thick: float) -> None:
        (a, b), (c, d) = self.point(x - rx, y + ry, z), self.point(x + rx, y - ry, z)
        self.pen.ellipse((a, b, c, d), outline=part, width=self.pixels(thick, z))

    def pixels(self, metres: float, z: float) -> int:
        return max(round(metres * self.camera.focal / max(z, NEAR) * self.high), self.fine)

    def overlay(self, part: int, top: float) -> None:
        """A hump along the lower edge of the picture, from `top` (in image heights) downwards."""
        self.pen.ellipse((-0.1 * self.wide, top * self.high, 1.1 * self.wide, (2.2 - top) * self.high), fill=part)

    def stain(self, corners: list) -> None:
        """Darkness on the ground right under something, whatever the weather."""
        self.shadow_pen.polygon([self.point(x, 0, z) for x, z in corners], fill=140)

    def shadow_of_post(self, x: float, z: float, wide: float, high: float) -> None:
        if self.light.shadow:
            dx, h = -self.light.sun * self.light.reach * high, wide / 2
            corners = ((x, z - h), (x, z + h), (x + dx, z + h + 0.3 * abs(dx)), (x + dx, z - h + 0.3 * abs(dx)))
            self.shadow_pen.polygon([self.point(a, 0, b) for a, b in corners], fill=255)

    def shadow_of_wall(self, x: float, near: float, far: float, high: float) -> None:
        if self.light.shadow and far > NEAR:
            dx = -self.light.sun * self.light.reach * high
            corners = ((x, near), (x, far), (x + dx, far + 0.3 * abs(dx)), (x + dx, near + 0.3 * abs(dx)))
            self.shadow_pen.polygon([self.point(a, 0, b) for a, b in corners], fill=255)

    def shade(self) -> tuple[np.ndarray, np.ndarray]:
        """The finished picture without sensor noise, float32 (H, W, 3) in 0..1, and the labels, uint8 (H, W)."""
        parts = np.asarray(self.map)
        table = np.array(self.parts, np.float32)
        kind, rgb = table[:, 0].astype(np.uint8), table[:, 1:4]
        label, colour = kind[parts], rgb[parts]
        light, camera = self.light, self.camera
        v = ((np.arange(self.high, dtype=np.float32) + 0.5) / self.high)[:, None]
        u = ((np.arange(self.wide, dtype=np.float32) + 0.5) / self.high)[None, :]
        x, y, z, across = self.world(parts, table, u, v)
        top = int(camera.horizon * self.high)
        on_ground = parts == GROUND
        self.paint_ground(label, colour, on_ground, x, z, top)
        # texture: (a, b) are the surface's own two coordinates in metres
        a = np.where(across, z, x)
        b = np.where(on_ground, z, y)
        scale, depth = table[:, 6][parts], table[:, 7][parts]
        grain = tile(0.9)[(b * scale).astype(np.int32) & (TILE - 1), (a * scale).astype(np.int32) & (TILE - 1)]
        bright = table[:, 8][parts] * (1.0 + depth * grain)
        self.paint_windows(parts, table, colour, a, y)
        bars = table[:, 12][parts]
        at = np.nonzero(bars)
        bright[at] *= np.where((a[at] / bars[at]) % 1.0 < 0.3, 0.55, 1.0)
        shadow = np.asarray(self.shadows, np.float32) / 255 * on_ground
        bright *= 1.0 - shadow * max(light.shadow, 0.3)
        glows = table[:, 13][parts] > 0
        colour *= (np.where(glows, 1.2, bright * light.level))[..., None]
        air = np.where(glows, 1.0, np.exp(-z / light.haze))[..., None]
        colour = colour * air + np.asarray(light.skyline, np.float32) * min(light.level * 1.1, 1.0) * (1.0 - air)
        self.paint_sky(parts, colour, u, v)
        half = self.fine // 2
        return shrink(colour, self.fine), label[half :: self.fine, half :: self.fine].copy()

    def world(self, parts: np.ndarray, table: np.ndarray, u: np.ndarray, v: np.ndarray) -> tuple:
        """Where each pixel lies, in metres: x, y, z, and whether its surface runs along the street."""
        camera = self.camera
        plane = table[:, 5][parts]
        across = plane != 0
        down = np.maximum(v - camera.horizon, 1e-4)
        aside = u - self.centre
        aside = np.where(np.abs(aside) < 1e-3, np.float32(1e-3), aside)
        z = np.where(parts == GROUND, camera.focal * camera.height / down, table[:, 4][parts])
        z = np.where(across, np.abs(camera.focal * plane / aside), z)
        z = np.clip(z, NEAR, 1e4).astype(np.float32)
        x = (u - self.centre) * z / camera.focal
        y = camera.height - (v - camera.horizon) * z / camera.focal
        return x.astype(np.float32), y.astype(np.float32), z, across

    def paint_ground(self, label: np.ndarray, colour: np.ndarray, on_ground: np.ndarray, x: np.ndarray, z: np.ndarray, top: int) -> None:
        """Road, kerb, pavement and verge, and the paint on the road, by their place across the street."""
        g = self.ground
        at = np.nonzero(on_ground[top:])
        at = (at[0] + top, at[1])
        z = z[at]
        x = x[at] - g.bend * z * z
        kind = np.full(x.shape, NUMBER["road"], np.uint8)
        paint = np.broadcast_to(np.asarray(g.road, np.float32), (*x.shape, 3)).copy()
        if g.patch:
            px, pz, wide, long = g.patch
            paint[(np.abs(x - px) < wide) & (np.abs(z - pz - long / 2) < long / 2)] = g.pavement
        marked = self.markings(x, z)
        kind[marked] = NUMBER["marking"]
        paint[marked] = paint[marked] * (1 - g.worn) + np.float32(0.85) * g.worn
        paved = (x < g.left) | (x > g.right)
        joint = ((x / g.slab) % 1.0 < 0.06) | ((z / g.slab) % 1.0 < 0.06)
        kind[paved] = NUMBER["pavement"]
        paint[paved] = np.asarray(g.pavement, np.float32) * np.where(joint[paved] & (z[paved] < 14), 0.82, 1.0)[:, None]
        kerb = ((x < g.left) & (x > g.left - 0.18)) | ((x > g.right) & (x < g.right + 0.18))
        paint[kerb] *= 1.18
        for side, beyond in zip((-1, 1), g.beyond, strict=True):
            if beyond == "grass":
                out = (x - g.edge(side)) * side > 0
                kind[out] = NUMBER["vegetation"]
                paint[out] = g.grass
        label[at], colour[at] = kind, paint

    def markings(self, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Where paint lies on the road; (x, z) are metres across and along the street."""
        g = self.ground
        middle = (g.left + g.right) / 2 - 0.2
        dashes = (np.abs(x - middle) < 0.09) & ((z + g.phase) % (2 * g.dash) < g.dash)
        if g.edges:
            dashes |= (np.abs(x - g.left - 0.35) < 0.07) | (np.abs(x - g.right + 0.35) < 0.07)
        if g.crossing:
            zebra = (z > g.crossing) & (z < g.crossing + 3.0)
            dashes = np.where(zebra, (x % 1.1) < 0.55, dashes)
            dashes |= (np.abs(z - g.crossing + 1.2) < 0.16) & (x > middle)
        return dashes & (x > g.left) & (x < g.right)

    def paint_windows(self, parts: np.ndarray, table: np.ndarray, colour: np.ndarray, a: np.ndarray, y: np.ndarray) -> None:
        at = np.nonzero(table[:, 9][parts])
        part = parts[at]
        pitch, storey, shift, low = (table[:, column][part] for column in (9, 10, 11, 14))
        column, row = a[at] / pitch + shift, y[at] / storey
        cell = np.floor(column).astype(np.int32) * 37 + np.floor(row).astype(np.int32) * 101 + part * 17
        luck = tile(0.0)[cell & (TILE - 1), (cell >> 3) & (TILE - 1)]
        column, row = column % 1.0, row % 1.0
        hole = (column > 0.25) & (column < 0.75) & (row > low + 0.05) & (row < 0.8) & (luck > -1.1)
        glass = np.where(luck[:, None] > 0.4, np.asarray(self.light.zenith, np.float32) * 0.6, np.float32((0.13, 0.15, 0.18)))
        if self.light.dusk:
            glass = np.where(luck[:, None] > 0.8, np.float32((1.5, 1.2, 0.7)), glass)
        colour[at] = np.where(hole[:, None], glass, colour[at])

    def paint_sky(self, parts: np.ndarray, colour: np.ndarray, u: np.ndarray, v: np.ndarray) -> None:
        at = np.nonzero(parts == SKY)
        light = self.light
        up = np.clip(v[at[0], 0] / self.camera.horizon, 0, 1)[:, None]
        sky = np.asarray(light.zenith, np.float32) * (1 - up) + np.asarray(light.skyline, np.float32) * up
        drift = (v[at[0], 0] * 400).astype(np.int32) & (TILE - 1), ((u[0, at[1]] + self.camera.yaw) * 180).astype(np.int32) & (TILE - 1)
        clouds = np.maximum(tile(1.4)[drift] + 0.3, 0)[:, None] * light.clouds
        colour[at] = sky * (1 - clouds) + np.float32(0.92) * clouds


def shrink(colour: np.ndarray, fine: int) -> np.ndarray:
    """The mean over fine x fine samples of a pixel."""
    if fine == 1:
        return colour
    h, w = colour.shape[0] // fine, colour.shape[1] // fine
    return colour.reshape(h, fine, w, fine, 3).mean(axis=(1, 3), dtype=np.float32)


@cache
def tile(roughness: float) -> np.ndarray:
    """Periodic noise (TILE, TILE), mean 0, deviation 1, cut at 2: a spectrum of 1 / frequency^roughness, the same in every world."""
    white = np.random.Generator(np.random.Philox(key=int(roughness * 10) + 1)).random((TILE, TILE)) - 0.5
    fy, fx = np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None, :]
    spectrum = np.fft.rfft2(white) / np.maximum(np.hypot(fx, fy), 1 / TILE) ** roughness
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, s=(TILE, TILE))
    return np.clip(noise / noise.std(), -2, 2).astype(np.float32)
