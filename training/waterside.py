"""Worlds on reflecting water: a lake, a lighthouse, the open sea, a city skyline."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch

from training.paint import RGB, TAU, Canvas, mix, ridge, ripples, sky, step, tint_water
from training.props import beam, blocks, conifers, ferry, mound, round_body, sailboat, tower, waves

LAMP: RGB = (1.0, 0.80, 0.45)
WINDOW: RGB = (1.0, 0.76, 0.38)  # of a lit room at night
FACADES: tuple[RGB, ...] = (
    (0.42, 0.52, 0.66), (0.62, 0.56, 0.50), (0.36, 0.40, 0.48), (0.70, 0.66, 0.62), (0.34, 0.50, 0.54),
)  # fmt: skip


def _open_water(canvas: Canvas, rng: random.Random, height: float, deep: RGB) -> None:
    ripples(canvas, rng, height)
    sky(canvas, rng)
    tint_water(canvas, deep)


def lake(canvas: Canvas, rng: random.Random) -> None:
    """Peaks and wooded hills round a calm lake, with an islet in the middle distance."""
    lit = canvas.lit
    _open_water(canvas, rng, 0.55, (0.05, 0.28, 0.36))
    rock = mix((0.36, 0.38, 0.50), (0.44, 0.36, 0.34), rng.random())
    for z, top in ((230.0, rng.uniform(70, 95)), (150.0, rng.uniform(30, 48))):
        _mountain(canvas, z, top, waves(rng, z * rng.uniform(1.2, 1.8), 3, 0.8), rock, z > 200)
    hill = waves(rng, 90, 2)
    green = mix((0.16, 0.36, 0.22), (0.22, 0.30, 0.12), rng.random())
    ridge(canvas, 95, 13, lambda x: 3 + 9 * hill(x), lit(green, 95), lit(mix(green, (0, 0, 0), 0.4), 95))
    dark = [mix(green, (0, 0, 0), share) for share in (0.35, 0.15, 0.45, 0.75, 0.6)]
    wood = lit(dark[0], 80), lit(dark[1], 80)
    conifers(canvas, 80, 8.5, 4.2, *wood, density=0.9, salt=rng.random() * 9)
    canvas.focus()
    x = rng.uniform(-3, 3)
    stone = lit((0.42, 0.40, 0.36), 20), lit((0.20, 0.22, 0.20), 20)
    mound(canvas, x, 30, rng.uniform(4, 6), 1.3, *stone, rng)
    for _ in range(rng.randint(2, 4)):
        across, depth, size = rng.uniform(-2.6, 2.6), rng.uniform(-0.8, 0.8), rng.uniform(3.2, 5.6)
        _fir(canvas, x + across, 30 + depth, size, lit(dark[2], 12), lit(green, 12))
    _boat(canvas, rng, 25.0, rng.uniform(2.6, 3.2), rng.choice((-1, 1)) * rng.uniform(0.5, 0.8))
    bank = lit(dark[3], 6), lit(dark[4], 6)
    conifers(canvas, 17, 5.2, 2.3, *bank, clear=9.5, density=0.5, salt=rng.random() * 9)


def _boat(canvas: Canvas, rng: random.Random, z: float, size: float, speed: float) -> None:
    """The sailing boat that a tracking camera follows; it crosses the picture under any other."""
    sail = rng.choice(((0.98, 0.97, 0.94), (0.90, 0.26, 0.18), (0.97, 0.76, 0.30)))
    x, phase = canvas.subject_x(speed, rng.uniform(-1.2, 1.2)), rng.uniform(0, TAU)
    cloth = mix(canvas.lit(sail, z), sail, 0.15)
    sailboat(canvas, x, z, size, cloth, canvas.lit((0.20, 0.12, 0.10), z), phase)
    if canvas.light.lamps:
        _lamp(canvas, x, 0.32 * size, z, 0.09 * size, 0.8)


def _mountain(
    canvas: Canvas,
    z: float,
    top: float,
    shape: Callable[[torch.Tensor], torch.Tensor],
    rock: RGB,
    snowy: bool,
) -> None:
    """A lit and shaded ridge of rock at depth z, with white caps above a wavy snow line if it is snowy."""
    patch = canvas.wall(z, top)
    if patch is None:
        return
    lit, profile = canvas.lit, shape(patch.x)
    inside = step(top * (0.15 + 0.85 * profile) - patch.y, patch.pixel * 1.2)
    share = (0.70 + (profile - shape(patch.x - 0.04 * z)) * 5.0 - patch.y * (0.25 / top)).clamp_(0, 1)
    canvas.blend(patch, inside, lit(rock, z, 190), lit(mix(rock, (0, 0, 0), 0.45), z, 190), share)
    if snowy:
        edge = patch.y - 0.50 * top - 0.07 * top * (patch.x * (TAU / 34)).sin()
        pale, dim = lit((0.97, 0.98, 1.0), z, 600), lit((0.45, 0.50, 0.66), z, 300)
        canvas.blend(patch, inside * step(edge, patch.pixel * 4), pale, dim, share * 0.55)


def _fir(canvas: Canvas, x: float, z: float, size: float, dark: RGB, pale: RGB) -> None:
    def radius(y: torch.Tensor) -> torch.Tensor:
        rise = (y - 0.8) / size
        return (size * 0.24 * (1 - rise) * (1.1 - 0.35 * torch.frac(rise.clamp(min=0) * 3))).clamp(min=0)

    round_body(canvas, x, z, 0.8, size + 0.8, radius, (pale, dark), 2.2)


def lighthouse(canvas: Canvas, rng: random.Random) -> None:
    """A banded tower on a rock in the surf, with a coast behind it."""
    lit = canvas.lit
    night = canvas.light.lamps
    _open_water(canvas, rng, 0.85, (0.04, 0.26, 0.40))
    for z, top in ((260.0, rng.uniform(22, 34)), (140.0, rng.uniform(8, 15))):
        shape, slope = waves(rng, z * 0.9, 3, 0.3), rng.choice((-1, 1)) / z
        earth = mix((0.34, 0.40, 0.38), (0.40, 0.36, 0.34), rng.random())
        ridge(
            canvas,
            z,
            top * 1.3,
            lambda x, s=shape, t=top, k=slope: t * (1.5 * s(x) - 0.35 + 0.35 * (x * k).clamp(-1, 1)),
            lit(earth, z, 170),
            lit(mix(earth, (0.1, 0.1, 0.1), 0.4), z, 170),
        )
    high, z = rng.uniform(8.5, 10.5), 30.0
    rock = mix((0.42, 0.38, 0.36), (0.34, 0.36, 0.40), rng.random())
    pale, dark = lit(rock, 10), lit(mix(rock, (0, 0, 0), 0.6), 10)
    mound(canvas, rng.choice((-1, 1)) * rng.uniform(9, 13), 42, rng.uniform(4, 6), 1.6, pale, dark, rng)
    canvas.focus()
    turn = rng.uniform(0, TAU)
    mound(canvas, 0, z, rng.uniform(7.5, 9.5), rng.uniform(2.6, 3.4), pale, dark, rng)
    paint = rng.choice(((0.80, 0.13, 0.12), (0.80, 0.13, 0.12), (0.12, 0.25, 0.52), (0.12, 0.12, 0.14)))
    count = rng.choice((4, 5, 6))
    base, top = 1.9, 1.9 + high

    def radius(y: torch.Tensor) -> torch.Tensor:
        return 1.45 - 0.62 * (y - base) / high

    def bands(y: torch.Tensor, normal: torch.Tensor, pixel: torch.Tensor):
        return step(((y - base) * (TAU / 2 / high * count)).sin() * (high / count / 3.1), pixel), lit(
            paint, 5
        )

    lift = 0.10 if night else 0.0
    white = mix(lit((1.0, 0.97, 0.93)), (1, 1, 1), lift + 0.06)
    round_body(canvas, 0, z, base, top, radius, (white, mix(white, lit((0.2, 0.22, 0.3)), 0.7)), 2.2, bands)
    iron = lit(mix(paint, (0.05, 0.05, 0.06), 0.6), 5)
    round_body(canvas, 0, z, top, top + 0.35, lambda y: y * 0 + 1.25, (iron, iron), 2.2)
    glass = (1.0, 0.93, 0.65) if night else mix(LAMP, lit((0.8, 0.9, 1.0)), 0.5)
    round_body(
        canvas, 0, z, top + 0.35, top + 1.35, lambda y: y * 0 + 0.7, (glass, mix(glass, iron, 0.3)), 2.2
    )
    round_body(
        canvas,
        0,
        z,
        top + 1.35,
        top + 2.3,
        lambda y: 0.95 * (1 - (y - top - 1.35) / 0.95) + 0.02,
        (lit(paint, 5), iron),
        2.2,
    )
    if night or canvas.light.disc:
        if night:
            beam(canvas, 0, top + 0.85, z, turn)
        _lamp(canvas, 0, top + 0.85, z, 1.7 if night else 0.8, 0.95 if night else 0.5)


def _lamp(
    canvas: Canvas, x: float | torch.Tensor, y: float, z: float, radius: float, strength: float
) -> None:
    """A glowing lamp; x is a number or [F]."""
    x = torch.as_tensor(x).expand(canvas.frames)[:, None]
    u, v, depth = canvas.view.project(x, torch.tensor(y), torch.tensor(z))
    size = radius * canvas.view.pose["focal"] / depth[:, 0].clamp(min=1)
    canvas.dot(u[:, 0], v[:, 0], size, strength, (1.0, 0.90, 0.62))


def sea(canvas: Canvas, rng: random.Random) -> None:
    """Open water with far islands, a few rocks and sailing boats."""
    lit = canvas.lit
    _open_water(canvas, rng, 1.0, mix((0.02, 0.24, 0.42), (0.03, 0.36, 0.42), rng.random()))
    for z, top in ((300.0, rng.uniform(24, 40)), (190.0, rng.uniform(10, 18))):
        shape = waves(rng, z * 0.8, 3, 0.25)
        ridge(
            canvas,
            z,
            top,
            lambda x, s=shape, t=top: t * (1.9 * s(x) - 0.85),
            lit((0.30, 0.36, 0.40), z, 200),
            lit((0.24, 0.28, 0.30), z, 200),
        )
    canvas.focus()
    boats = [
        (rng.uniform(-0.5, 0.5), rng.uniform(22, 48), rng.uniform(0, TAU)) for _ in range(rng.randint(1, 3))
    ]
    things = [(z, side * z, phase, "boat") for side, z, phase in boats]
    things += [(z, rng.uniform(-0.75, 0.75) * z, 0.0, "rock") for z in (34.0, 24.0, 15.0, 15.0)]
    things += [(28.0, 0.0, 0.0, "subject")]
    cloths = ((0.98, 0.97, 0.94), (0.98, 0.97, 0.94), (0.86, 0.25, 0.18), (0.95, 0.75, 0.30))
    for z, x, phase, kind in sorted(things, reverse=True):
        if kind == "subject":
            _boat(canvas, rng, z, rng.uniform(5.6, 6.8), rng.choice((-1, 1)) * rng.uniform(0.9, 1.4))
        elif kind == "boat":
            sail, size = rng.choice(cloths), rng.uniform(4.0, 5.4)
            sailboat(canvas, x, z, size, mix(lit(sail, z), sail, 0.15), lit((0.20, 0.12, 0.10), z), phase)
        else:
            half, high = rng.uniform(1.2, 2.6), rng.uniform(0.6, 1.3)
            mound(canvas, x, z, half, high, lit((0.36, 0.34, 0.34), z), lit((0.14, 0.14, 0.17), z), rng)


def city(canvas: Canvas, rng: random.Random) -> None:
    """A skyline across the water: two hazy rows, towers with two faces, a quay with lamps, boats."""
    lit, lamps = canvas.lit, canvas.light.lamps
    sunset = canvas.light.disc > 0 and not lamps
    _open_water(canvas, rng, 0.6, (0.05, 0.18, 0.28))
    glow = 0.68 if lamps else 0.40 if sunset else 0.75
    glass = WINDOW if lamps else LAMP if sunset else lit((0.75, 0.85, 0.95), 60)
    dim = 0.12 if lamps else 0.1 if sunset else 0.5  # how much of its wall a pane shows
    wall = mix((0.50, 0.56, 0.66), (0.62, 0.54, 0.48), rng.random())
    for z, high, gap in ((190.0, rng.uniform(48, 66), 15.0), (120.0, rng.uniform(22, 34), 10.0)):
        pair = lit(wall, z, 170), lit(mix(wall, (0.1, 0.1, 0.15), 0.5), z, 170)
        pane = mix(glass, pair[0], 0.25 if lamps else 0.45)
        blocks(canvas, z, high * 0.25, high, gap, pair, pane, rng.random() * 9, glow)
    canvas.focus()
    towers = [(rng.uniform(-0.62, 0.62), rng.uniform(56, 90)) for _ in range(9)]
    towers += [(rng.uniform(-0.06, 0.06), 70.0)]
    for index, (side, z) in sorted(enumerate(towers), key=lambda item: -item[1][1]):
        tint = rng.choice(FACADES)
        pair = lit(tint, z, 260), lit(mix(tint, (0.08, 0.09, 0.16), 0.55), z, 260)
        high = rng.uniform(30, 37) if index == 9 else rng.uniform(10, 25)
        size = rng.uniform(6, 9), high, rng.uniform(0, 1.5)
        tower(canvas, side * z, z, *size, pair, mix(glass, pair[0], dim), rng.random() * 9, glow)
    _quay(canvas, rng)
    _fleet(canvas, rng)


def _quay(canvas: Canvas, rng: random.Random) -> None:
    """The edge of the town: a wall, trees and street lamps with their light on the water."""
    lit = canvas.lit
    quay, dark = lit((0.40, 0.38, 0.36), 30), lit((0.20, 0.20, 0.22), 30)
    ridge(canvas, 50, 1.0, lambda x: x * 0 + 1.0, quay, dark)
    leaves = lit((0.16, 0.34, 0.18), 30), lit((0.10, 0.22, 0.14), 30)
    conifers(canvas, 49, 3.4, 4.4, *leaves, density=0.6, salt=rng.random() * 9)
    places = [index * 10.0 + rng.uniform(-2, 2) for index in range(-6, 7)]
    if not (canvas.light.lamps or canvas.light.disc):
        return
    for x in places:
        _lamp(canvas, x, 2.6, 48, 1.3, 0.85)
        for depth, share in ((1.6, 0.30), (3.2, 0.22), (4.8, 0.14)):  # a broken streak on the water
            _lamp(canvas, x, -depth, 48, 0.9, share)


def _fleet(canvas: Canvas, rng: random.Random) -> None:
    """A ferry under way, which a tracking camera follows, and two small sailing boats."""
    lit, lamps = canvas.lit, canvas.light.lamps
    hull = rng.choice(((0.14, 0.22, 0.42), (0.70, 0.16, 0.14), (0.14, 0.36, 0.34)))
    size, way, phase = rng.uniform(9.5, 12), rng.choice((-1, 1)) * rng.uniform(1.6, 2.4), rng.uniform(0, TAU)
    course = canvas.subject_x(way, rng.uniform(-2, 2))
    pane = WINDOW if lamps else lit((0.30, 0.42, 0.55), 20)
    ferry(canvas, course, 40.0, size, lit(hull, 20), lit((0.95, 0.93, 0.88), 20), pane, phase)
    for side in (-1, 1):
        x, z, size = side * rng.uniform(6, 12), rng.uniform(19, 26), rng.uniform(2.6, 3.4)
        sail, wood = lit((0.96, 0.95, 0.92), 10), lit((0.24, 0.12, 0.12), 10)
        sailboat(canvas, x, z, size, sail, wood, rng.uniform(0, TAU))
