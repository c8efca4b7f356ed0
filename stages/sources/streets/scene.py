"""What stands in a scene and where, in metres, so that the same scene can be drawn at any resolution.

The camera looks along z (forward), x is to the right, y up, the ground is y = 0. Everything is put onto a Canvas from far to near.
"""

import math

from stages.sources.streets.canvas import IGNORED, Camera, Canvas, Dice, Ground, Light

# Paint is shared by houses, cars, clothes, fences and posters: a colour by itself says little about what it is on.
PAINT = (
    (0.55, 0.53, 0.50), (0.72, 0.70, 0.66), (0.38, 0.38, 0.40), (0.20, 0.20, 0.22), (0.86, 0.85, 0.82), (0.58, 0.27, 0.20),
    (0.70, 0.36, 0.24), (0.66, 0.55, 0.40), (0.80, 0.70, 0.52), (0.44, 0.34, 0.28), (0.30, 0.40, 0.55), (0.22, 0.30, 0.46),
    (0.55, 0.62, 0.68), (0.34, 0.44, 0.32), (0.46, 0.52, 0.36), (0.62, 0.16, 0.14), (0.78, 0.60, 0.22), (0.30, 0.24, 0.34),
)  # fmt: skip
SIGNAL = ((0.75, 0.10, 0.10), (0.12, 0.25, 0.65), (0.90, 0.90, 0.88), (0.90, 0.72, 0.10), (0.10, 0.45, 0.25))
LEAVES = ((0.20, 0.32, 0.14), (0.28, 0.38, 0.16), (0.16, 0.26, 0.14), (0.42, 0.40, 0.16), (0.48, 0.34, 0.16))
GLASS = (0.16, 0.19, 0.22)
FAR = 90.0  # metres; beyond it stands only the skyline


def build(canvas: Canvas, dice: Dice) -> None:
    """Everything above the ground, from far to near."""
    skyline(canvas, dice)
    for side in (-1, 1):
        row_of_houses(canvas, dice, side)
    things = [*street_furniture(canvas, dice), *traffic(canvas, dice), *people(canvas, dice)]
    for z, place in sorted(things, key=lambda thing: -thing[0]):
        place(z)
    if dice.chance(0.25):
        bonnet(canvas, dice)


def weather(dice: Dice) -> Light:
    """Clear, overcast or dusk; where the sun stands; how thick the air is."""
    mood = dice.pick(("clear", "clear", "clear", "overcast", "overcast", "dusk"))
    sun = dice.pick((-1, 1))
    haze = dice.between(120, 600) if dice.chance(0.75) else dice.between(35, 90)
    if mood == "clear":
        sky = (dice.mix((0.30, 0.48, 0.75), (0.50, 0.62, 0.78)), dice.mix((0.72, 0.80, 0.88), (0.85, 0.86, 0.84)))
        return Light(dice.between(0.85, 1.15), sun, dice.between(0.35, 0.65), dice.between(0.3, 1.6), *sky, dice.between(0, 0.22), haze)
    if mood == "overcast":
        grey = dice.between(0.45, 0.85)
        sky = ((grey * 0.95, grey * 0.98, grey), (grey * 1.05, grey * 1.05, grey * 1.03))
        return Light(dice.between(0.7, 1.0), sun, 0.0, 1.0, *sky, dice.between(0.03, 0.12), haze)
    sky = (dice.mix((0.16, 0.18, 0.30), (0.28, 0.26, 0.36)), dice.mix((0.62, 0.42, 0.32), (0.46, 0.42, 0.46)))
    return Light(dice.between(0.42, 0.65), sun, dice.between(0, 0.2), 2.0, *sky, dice.between(0.03, 0.2), haze, dusk=True)


def camera(dice: Dice) -> Camera:
    return Camera(
        focal=dice.between(0.95, 1.35), height=dice.between(1.25, 2.1), horizon=dice.between(0.36, 0.52), yaw=dice.between(-0.3, 0.3)
    )


def ground(dice: Dice) -> Ground:
    """The road and what lies beside it. Road and pavement are nearly the same grey: only their places tell them apart."""
    grey = dice.between(0.26, 0.48)
    other = grey + dice.between(-0.06, 0.10)
    return Ground(
        left=-dice.between(4.6, 8.5),
        right=dice.between(2.2, 5.2),
        pavements=(dice.between(1.4, 4.0), dice.between(1.4, 4.0)),
        bend=dice.between(-0.0022, 0.0022),
        road=dice.tinted(grey, 0.03),
        pavement=dice.tinted(other, 0.05),
        beyond=tuple(dice.pick(("grass", "grass", "paved")) for _ in range(2)),
        grass=dice.mix((0.24, 0.34, 0.15), (0.42, 0.40, 0.22)),
        patch=(dice.between(-3, 1), dice.between(3, 14), dice.between(0.6, 2.0), dice.between(1.5, 7.0)) if dice.chance(0.6) else None,
        dash=dice.pick((2.0, 3.0, 6.0)),
        worn=dice.between(0.15, 0.75),
        edges=dice.chance(0.5),
        crossing=dice.between(6, 22) if dice.chance(0.35) else None,
        slab=dice.between(0.5, 1.5),
        phase=dice.between(0, 12),
    )


def skyline(canvas: Canvas, dice: Dice) -> None:
    """Far houses and trees on the horizon, in blocks across the whole view."""
    x = -4.0 * FAR
    while x < 4.0 * FAR:
        wide = dice.between(8, 40)
        if dice.chance(0.5):
            part = canvas.part("building", dice.paint(PAINT), z=FAR * 1.5, windows=(dice.between(2, 4), 3.2, 0.0))
            canvas.box(part, x, x + wide, 0, dice.between(4, 26), FAR * 1.5)
        else:
            part = canvas.part("vegetation", dice.paint(LEAVES), z=FAR * 1.4, grain=(1.5, 0.5))
            canvas.disc(part, x + wide / 2, 2, FAR * 1.4, wide * 0.7, dice.between(3, 10))
        x += wide * dice.between(0.6, 1.3)


def row_of_houses(canvas: Canvas, dice: Dice, side: int) -> None:
    """Houses, gaps and fences along one side, drawn from the far end towards the camera."""
    setback = canvas.ground.edge(side) + side * dice.pick((0.0, 0.2, 2.0, 5.0))
    z = FAR
    while z > -4:
        long = dice.between(7, 20)
        near = z - long
        x = setback + canvas.ground.bend * max(z - long / 2, 0) ** 2
        if dice.chance(0.66):
            house(canvas, dice, side, x, near, z)
        elif dice.chance(0.8):
            fence(canvas, dice, side, x, near, z)
        z = near - (dice.between(1, 9) if dice.chance(0.45) else 0.0)


def house(canvas: Canvas, dice: Dice, side: int, x: float, near: float, far: float) -> None:
    colour, high = dice.paint(PAINT), dice.between(3.5, 9) if dice.chance(0.5) else dice.between(8, 20)
    windows = (dice.between(1.4, 3.6), dice.between(2.6, 3.6), dice.between(0, 1))
    depth = side * dice.between(7, 14)
    front = canvas.part("building", colour, z=max(near, 0.6), windows=windows, grain=(dice.between(4, 25), 0.15), face="front")
    flank = canvas.part("building", colour, x=x, windows=windows, grain=(dice.between(4, 25), 0.15), face="left" if side < 0 else "right")
    if near > 1:
        canvas.box(front, x, x + depth, 0, high, near)
        if dice.chance(0.4):  # a pitched roof
            roof = canvas.part("building", dice.paint(PAINT, 0.6), z=near, grain=(12, 0.3))
            canvas.polygon(roof, [(x, high, near), (x + depth, high, near), (x + depth / 2, high + abs(depth) * 0.4, near)])
    canvas.wall(flank, x, near, far, 0, high)
    canvas.shadow_of_wall(x, near, far, high)
    if dice.chance(0.5):  # the ground floor in another colour: shops
        shop = canvas.part("building", dice.paint(PAINT, 0.8), x=x, windows=(dice.between(2, 4), 3.0, 0.5), face="shop")
        canvas.wall(shop, x, near, far, 0, 3.0)
    for _ in range(dice.count(0, 3)):  # posters and shop signs: a sign's colours, and yet a house
        at, low, long = dice.between(near, far), dice.between(1.0, 4.5), dice.between(0.6, 2.5)
        poster = canvas.part("building", dice.paint(SIGNAL), x=x, grain=(9, 0.5))
        canvas.wall(poster, x, at, min(at + long, far), low, low + dice.between(0.5, 1.4))
    if dice.chance(0.3):  # a door
        at = dice.between(near, far)
        canvas.wall(canvas.part("building", dice.paint(PAINT, 0.6), x=x), x, at, min(at + 1.1, far), 0, 2.1)


def fence(canvas: Canvas, dice: Dice, side: int, x: float, near: float, far: float) -> None:
    high = dice.between(0.8, 2.0)
    if dice.chance(0.3):
        hedge = canvas.part("vegetation", dice.paint(LEAVES), x=x, grain=(14, 0.6))
        canvas.wall(hedge, x, near, far, 0, high)
    else:
        bars = dice.between(0.12, 0.35) if dice.chance(0.6) else dice.between(0.9, 2.5)
        colour = dice.paint(PAINT) if dice.chance(0.7) else dice.paint(LEAVES)
        canvas.wall(canvas.part("fence", colour, x=x, bars=bars, grain=(10, 0.25)), x, near, far, 0, high)
    canvas.shadow_of_wall(x, near, far, high)


def street_furniture(canvas: Canvas, dice: Dice) -> list:
    """Lamp posts, signs, bollards and trees, as (distance, how to place it)."""
    things = []
    for side in (-1, 1):
        kerb = canvas.ground.kerb(side)
        if dice.chance(0.8):
            z, gap = dice.between(4, 16), dice.between(14, 26)
            style = dice.paint(PAINT, 0.7), dice.between(4.5, 8), dice.between(0.5, 2.0)
            while z < FAR * 0.5:
                things.append((z, lambda z, s=side, k=kerb, style=style: lamp(canvas, s, k + s * 0.5, z, *style)))
                z += gap
        for _ in range(dice.count(1, 3)):
            x = kerb + side * dice.between(0.3, 1.2)
            things.append((dice.near(4.5, 28), lambda z, x=x: sign(canvas, dice, x, z)))
        if dice.chance(0.3):
            z = dice.between(3, 10)
            for i in range(dice.count(3, 7)):
                things.append((z + 1.8 * i, lambda z, x=kerb + side * 0.35: bollard(canvas, dice, x, z)))
        for _ in range(dice.count(0, 3) if dice.chance(0.75) else 0):
            x = kerb + side * dice.between(0.8, 9)
            things.append((dice.between(6, 55), lambda z, x=x: tree(canvas, dice, x, z)))
    return things


def lamp(canvas: Canvas, side: int, x: float, z: float, colour: tuple, high: float, arm: float) -> None:
    x += canvas.ground.bend * z * z
    post = canvas.part("pole", colour, z=z, grain=(20, 0.1))
    canvas.post(post, x, z, 0.10, 0, high)
    canvas.polygon(post, [(x, high, z), (x - side * arm, high + 0.15, z), (x - side * arm, high + 0.28, z), (x, high + 0.13, z)])
    lit = canvas.light.dusk
    head = canvas.part("pole", (1.0, 0.9, 0.7) if lit else colour, z=z, glows=lit)
    canvas.box(head, x - side * arm - 0.3, x - side * arm + 0.3, high + 0.08, high + 0.3, z)
    canvas.shadow_of_post(x, z, 0.1, high)


def bollard(canvas: Canvas, dice: Dice, x: float, z: float) -> None:
    x += canvas.ground.bend * z * z
    canvas.post(canvas.part("pole", dice.paint(PAINT, 0.8), z=z), x, z, 0.10, 0, 0.9)
    canvas.shadow_of_post(x, z, 0.14, 0.9)


def sign(canvas: Canvas, dice: Dice, x: float, z: float) -> None:
    """A plate on a post; every third shows its grey back."""
    x += canvas.ground.bend * z * z
    high, r = dice.between(2.1, 3.2), dice.between(0.36, 0.62)
    canvas.post(canvas.part("pole", dice.tinted(dice.between(0.3, 0.6), 0.02), z=z), x, z, 0.06, 0, high)
    back, shape = dice.chance(0.3), dice.count(0, 2)
    colour, inner = dice.paint(SIGNAL), dice.paint(SIGNAL)
    if back:
        colour = inner = dice.tinted(dice.between(0.35, 0.6), 0.02)
    for scale, tone in ((1.0, colour), (0.6, inner)):
        plate = canvas.part("sign", tone, z=z, grain=(20, 0.08))
        if shape == 0:
            canvas.disc(plate, x, high, z, r * scale, r * scale)
        elif shape == 1:
            s = r * scale
            canvas.polygon(plate, [(x - s, high - 0.8 * s, z), (x + s, high - 0.8 * s, z), (x, high + 0.9 * s, z)])
        else:
            canvas.box(plate, x - r * scale, x + r * scale, high - r * scale, high + r * scale, z)
    canvas.shadow_of_post(x, z, 0.1, high)


def tree(canvas: Canvas, dice: Dice, x: float, z: float) -> None:
    """A trunk as thin and dull as a pole: the crown above it tells them apart."""
    x += canvas.ground.bend * z * z
    crown, r = dice.between(3.2, 6), dice.between(1.2, 2.8)
    trunk = canvas.part("vegetation", dice.mix((0.30, 0.24, 0.18), (0.42, 0.40, 0.36)), z=z, grain=(12, 0.35))
    canvas.post(trunk, x, z, dice.between(0.08, 0.22), 0, crown)
    colour = dice.paint(LEAVES)
    for _ in range(7):
        a, d = dice.between(0, 2 * math.pi), dice.between(0.2, 0.75) * r
        tone = tuple(c * dice.between(0.8, 1.2) for c in colour)
        leaves = canvas.part("vegetation", tone, z=z, grain=(dice.between(5, 11), 0.65))
        canvas.disc(leaves, x + d * math.cos(a), crown + 0.4 * r + 0.8 * d * math.sin(a), z, 0.62 * r, 0.52 * r)
    canvas.shadow_of_post(x, z, 1.2 * r, crown + r)


def traffic(canvas: Canvas, dice: Dice) -> list:
    """Cars ahead, coming, parked and crossing; bicycles beside them."""
    ground, things = canvas.ground, []
    for side in (-1, 1):
        if dice.chance(0.6):  # parked along the kerb
            z, x = dice.between(1, 12), ground.kerb(side) - side * 1.1
            for _ in range(dice.count(1, 5)):
                if dice.chance(0.75):
                    things.append((z, lambda z, x=x: car(canvas, dice, x, z)))
                z += dice.between(5.2, 7.5)
    for _ in range(dice.count(0, 2)):
        x = dice.pick((0.2, 0.6 * ground.left, 0.45 * ground.left)) + dice.between(-0.4, 0.4)
        things.append((dice.near(6, 45), lambda z, x=x: car(canvas, dice, x, z)))
    if dice.chance(0.2):
        x = dice.between(-9, 8)
        things.append((dice.between(9, 24), lambda z, x=x: crossing_car(canvas, dice, x, z)))
    for _ in range(dice.count(0, 2) if dice.chance(0.85) else 3):
        side = dice.pick((-1, 1))
        x = ground.kerb(side) + side * dice.between(-1.4, 1.6)
        things.append((dice.near(4, 12), lambda z, x=x: bicycle(canvas, dice, x, z)))
    return things


def car(canvas: Canvas, dice: Dice, x: float, z: float) -> None:
    """A body along the street: the end we see, and the flank on the side of the camera's axis."""
    x += canvas.ground.bend * z * z
    van = dice.chance(0.2)
    wide, long, high = dice.between(1.65, 1.9), dice.between(3.8, 4.8), dice.between(1.9, 2.4) if van else dice.between(1.35, 1.6)
    belt = 0.58 * high
    paint = dice.paint(PAINT, dice.between(0.7, 1.1))
    coming = dice.chance(0.4)
    canvas.stain(
        [(x - wide / 2 - 0.15, z - 0.2), (x + wide / 2 + 0.15, z - 0.2), (x + wide / 2 + 0.15, z + long), (x - wide / 2 - 0.15, z + long)]
    )
    canvas.shadow_of_post(x, z + long / 2, wide, high)
    inner = x - math.copysign(wide / 2, x)  # the flank turned to the camera
    if abs(x) > wide / 2 and z > 0.8:
        hood, roof = (0.0, 0.12) if van else (0.26, 0.18)
        flank = canvas.part("car", paint, x=inner, face="left" if x < 0 else "right", grain=(3, 0.06))
        outline = [
            (0, 0.3),
            (0, belt),
            (hood * 0.6, belt * 1.05),
            (roof + hood * 0.55, high),
            (1 - roof * 0.6, high),
            (1, belt * 1.05),
            (1, 0.3),
        ]
        canvas.polygon(flank, [(inner, y, z + s * long) for s, y in outline])
        glass = canvas.part("car", GLASS, x=inner)
        pane = [(hood * 0.8 + 0.08, belt), (roof + hood * 0.6, high * 0.95), (1 - roof * 0.75, high * 0.95), (0.94, belt)]
        canvas.polygon(glass, [(inner, y, z + s * long) for s, y in pane])
        wheel = canvas.part("car", (0.07, 0.07, 0.07), x=inner)
        for s in (0.18, 0.80):
            rim = [(inner, 0.33 + 0.33 * math.sin(t), z + s * long + 0.33 * math.cos(t)) for t in (i * math.pi / 5 for i in range(10))]
            canvas.polygon(wheel, rim)
    if z > 0.8:
        face(canvas, dice, x, z, wide, high, belt, paint, coming)


def face(canvas: Canvas, dice: Dice, x: float, z: float, wide: float, high: float, belt: float, paint: tuple, coming: bool) -> None:
    """The end of a car that we look at, with glass, lights, plate and tyres."""
    h = wide / 2
    body = canvas.part("car", paint, z=z, face="front", grain=(3, 0.06))
    tyre = canvas.part("car", (0.06, 0.06, 0.06), z=z)
    for s in (-1, 1):
        canvas.box(tyre, x + s * h * 0.95, x + s * h * 0.68, 0, 0.4, z)
    roof = h * 0.74
    canvas.polygon(body, [(x - h, 0.28, z), (x - h, belt, z), (x - roof, high, z), (x + roof, high, z), (x + h, belt, z), (x + h, 0.28, z)])
    canvas.polygon(
        canvas.part("car", GLASS, z=z),
        [
            (x - h * 0.86, belt * 1.04, z),
            (x - roof * 0.9, high * 0.94, z),
            (x + roof * 0.9, high * 0.94, z),
            (x + h * 0.86, belt * 1.04, z),
        ],
    )
    on = canvas.light.dusk or dice.chance(0.3)
    tone = (1.0, 0.97, 0.85) if coming else (0.9, 0.1, 0.08) if on else (0.45, 0.08, 0.07)
    lamps = canvas.part("car", tone, z=z, glows=on)
    for s in (-1, 1):
        canvas.box(lamps, x + s * h * 0.95, x + s * h * 0.68, belt * 0.72, belt * 0.95, z)
    canvas.box(canvas.part("car", (0.8, 0.8, 0.75), z=z), x - 0.26, x + 0.26, 0.42, 0.54, z)


def crossing_car(canvas: Canvas, dice: Dice, x: float, z: float) -> None:
    long, high, paint = dice.between(3.8, 4.8), dice.between(1.35, 1.6), dice.paint(PAINT)
    canvas.stain([(x - long / 2, z - 0.3), (x + long / 2, z - 0.3), (x + long / 2, z + 1.6), (x - long / 2, z + 1.6)])
    body, glass, tyre = (
        canvas.part("car", paint, z=z, grain=(3, 0.06)),
        canvas.part("car", GLASS, z=z),
        canvas.part("car", (0.06, 0.06, 0.06), z=z),
    )
    outline = ((-0.5, 0.3), (-0.5, 0.8), (-0.28, 0.88), (-0.16, high), (0.22, high), (0.42, 0.9), (0.5, 0.8), (0.5, 0.3))
    canvas.polygon(body, [(x + s * long, y, z) for s, y in outline])
    canvas.polygon(glass, [(x + s * long, y, z) for s, y in ((-0.22, 0.9), (-0.13, high * 0.95), (0.2, high * 0.95), (0.34, 0.9))])
    for s in (-0.3, 0.31):
        canvas.disc(tyre, x + s * long, 0.32, z, 0.32, 0.32)


def people(canvas: Canvas, dice: Dice) -> list:
    things = []
    for _ in range(dice.count(0, 4) if dice.chance(0.6) else dice.count(1, 7)):
        side = dice.pick((-1, 1))
        x = canvas.ground.kerb(side) + side * dice.between(-1.2, 3.0)
        things.append((dice.near(4, 19), lambda z, x=x: person(canvas, dice, x, z, 0.0)))
    return things


def person(canvas: Canvas, dice: Dice, x: float, z: float, seat: float) -> None:
    """Someone who walks, or, with a seat height, who rides."""
    x += canvas.ground.bend * z * z
    tall, stride = dice.between(1.5, 1.9), dice.between(0.05, 0.32)
    coat, legs = dice.paint(PAINT, dice.between(0.5, 1.1)), dice.paint(PAINT, dice.between(0.35, 0.8))
    skin = dice.mix((0.35, 0.22, 0.16), (0.85, 0.66, 0.54))
    hip, neck = seat or 0.48 * tall, (seat + 0.36 * tall) if seat else 0.84 * tall
    trousers, jacket = canvas.part("person", legs, z=z, grain=(14, 0.15)), canvas.part("person", coat, z=z, grain=(14, 0.15))
    for s in (-1, 1):
        foot = x + s * stride
        canvas.polygon(
            trousers,
            [(x + s * 0.02 - 0.1, hip, z), (x + s * 0.02 + 0.1, hip, z), (foot + 0.07, seat * 0.35, z), (foot - 0.07, seat * 0.35, z)],
        )
        arm = x + s * (0.24 + 0.4 * stride)
        canvas.polygon(
            jacket, [(x + s * 0.16, neck, z), (x + s * 0.25, neck - 0.05, z), (arm + 0.05, hip - 0.05, z), (arm - 0.05, hip - 0.05, z)]
        )
    canvas.polygon(jacket, [(x - 0.19, hip - 0.08, z), (x - 0.23, neck, z), (x + 0.23, neck, z), (x + 0.19, hip - 0.08, z)])
    canvas.disc(canvas.part("person", skin, z=z), x, neck + 0.13, z, 0.11, 0.14)
    canvas.disc(canvas.part("person", dice.mix((0.08, 0.06, 0.05), (0.5, 0.4, 0.25)), z=z), x, neck + 0.2, z, 0.115, 0.09)
    if not seat:
        canvas.shadow_of_post(x, z, 0.4, tall)


def bicycle(canvas: Canvas, dice: Dice, x: float, z: float) -> None:
    """Two rings and a frame, seen from the side or nearly from behind; half of them have a rider."""
    squeeze = dice.pick((1.0, 0.8, 0.45))  # how far it is turned towards the camera
    colour = dice.paint(PAINT, dice.between(0.5, 1.0))
    bend = canvas.ground.bend * z * z
    part = canvas.part("bicycle", colour, z=z)
    tyre = canvas.part("bicycle", (0.08, 0.08, 0.09), z=z)
    at = x + bend
    for s in (-1, 1):
        canvas.ring(tyre, at + s * 0.52 * squeeze, 0.34, z, 0.34 * squeeze, 0.34, 0.08)
    joints = {
        "rear": (-0.52, 0.34),
        "front": (0.52, 0.34),
        "pedal": (-0.05, 0.3),
        "seat": (-0.2, 0.88),
        "head": (0.36, 0.86),
        "bar": (0.42, 1.02),
    }
    for a, b in (
        ("rear", "pedal"),
        ("rear", "seat"),
        ("pedal", "seat"),
        ("pedal", "head"),
        ("seat", "head"),
        ("head", "front"),
        ("head", "bar"),
    ):
        ends = [(at + joints[j][0] * squeeze, joints[j][1], z) for j in (a, b)]
        canvas.stroke(part, *ends, 0.07)
    canvas.shadow_of_post(at, z, 0.9 * squeeze, 0.9)
    if dice.chance(0.45):
        person(canvas, dice, x - 0.12 * squeeze, z, 0.95)


def bonnet(canvas: Canvas, dice: Dice) -> None:
    """The front of the car that carries the camera: nobody's class, ignored."""
    part = canvas.part(IGNORED, dice.paint(PAINT, 0.5), z=1.0, grain=(3, 0.05))
    canvas.overlay(part, dice.between(0.90, 0.96))
