"""A car on a country road: fields, trees and poles slide past at their own speeds."""

from __future__ import annotations

import random

import torch

from training.paint import RGB, Canvas, Patch, mix, ridge, sky, step
from training.props import waves
from training.roadside import (
    LAMP,
    fields,
    heading,
    house,
    meadow_edge,
    plain,
    poles,
    strip,
    trees,
)

LANE = 16.0  # depth of the car
PAINT: tuple[RGB, ...] = (
    (0.86, 0.16, 0.13), (0.95, 0.74, 0.18), (0.13, 0.46, 0.76), (0.94, 0.93, 0.90),
    (0.16, 0.58, 0.50), (0.93, 0.45, 0.16), (0.55, 0.78, 0.86),
)  # fmt: skip
CROPS: tuple[RGB, ...] = (
    (0.34, 0.54, 0.18), (0.92, 0.76, 0.30), (0.52, 0.66, 0.24), (0.62, 0.46, 0.28),
    (0.94, 0.84, 0.22), (0.58, 0.46, 0.74),
)  # fmt: skip


def road(canvas: Canvas, rng: random.Random) -> None:
    """Hills, fields, a road from side to side with a car on it, and long grass by the verge."""
    lit = canvas.lit
    sky(canvas, rng)
    land = plain(canvas)
    _fields(canvas, land, rng)
    for z, top in ((260.0, rng.uniform(30, 52)), (150.0, rng.uniform(11, 19))):
        shape = waves(rng, z * 0.9, 3, rng.choice((0.0, 0.4)))
        blue = mix((0.26, 0.40, 0.36), (0.34, 0.36, 0.46), rng.random())
        far, near = lit(blue, z, 200), lit(mix(blue, (0.1, 0.14, 0.1), 0.4), z, 220)
        ridge(canvas, z, top, lambda x, s=shape, t=top: t * (0.15 + 0.85 * s(x)), near, far)
    leaf = rng.choice(((0.24, 0.46, 0.16), (0.34, 0.50, 0.16), (0.74, 0.46, 0.14), (0.16, 0.40, 0.24)))
    _woods(canvas, rng, leaf)
    canvas.focus()
    _lane(canvas, land)
    _drive(canvas, land, rng)
    _verge(canvas, rng, leaf)


def _fields(canvas: Canvas, land: Patch | None, rng: random.Random) -> None:
    green, skew = CROPS[0], rng.uniform(-0.5, 0.5)
    bands = []
    for far, wide in ((1e6, 150.0), (120.0, 90.0), (62.0, 46.0), (36.0, 1e4)):
        a, b = rng.sample(CROPS, 2)
        share = 0.7 if far < 50 else 0.25
        bands.append((far, wide, mix(a, green, share), mix(b, green, share)))
    # The band that runs to the horizon is hazy by hand: its far end says nothing of its depth.
    if land is not None:
        hazy = canvas.lit(bands[0][2], 170.0)
        canvas.blend(land, torch.ones_like(land.x), hazy)
    fields(canvas, land, bands[1:], skew)


def _woods(canvas: Canvas, rng: random.Random, leaf: RGB) -> None:
    """Rows of trees behind the road, a house among them, poles along the far side."""
    lit = canvas.lit
    dark = mix(leaf, (0.04, 0.08, 0.06), 0.6)
    bark = (0.26, 0.19, 0.14)
    side, spot = rng.choice((-1, 1)), rng.uniform(6, 16)
    roof = rng.choice(((0.62, 0.24, 0.18), (0.40, 0.28, 0.24), (0.32, 0.36, 0.44)))
    for z, size, gap, density, slim in (
        (120.0, 9.0, 9.0, 0.75, 0.5), (62.0, 8.0, 10.0, 0.5, 0.40), (36.0, 7.5, 11.0, 0.38, 0.36),
    ):  # fmt: skip
        salt, tall = rng.random() * 9, rng.random() < 0.3
        pair = lit(leaf, z, 160), lit(dark, z, 160)
        trees(canvas, z, size * (1.25 if tall else 1), gap, pair, lit(bark, z), salt, density,
              0.16 if tall else slim)  # fmt: skip
        if z > 50 and z < 70:
            house(canvas, side * spot, z - 6, 5.0, lit((0.94, 0.90, 0.82), 40), lit(roof, 40))
    poles(canvas, 22.0, 13.0, 5.6, lit((0.30, 0.23, 0.18), 12), rng.random())


def _lane(canvas: Canvas, land: Patch | None) -> None:
    """Verge, asphalt, edge lines and a dashed middle line."""
    lit = canvas.lit
    dust, tar, white = lit((0.66, 0.60, 0.46), 10), lit((0.34, 0.35, 0.38), 10), lit((0.96, 0.95, 0.90), 8)
    strip(canvas, land, LANE - 3.0, LANE + 4.6, dust)
    strip(canvas, land, LANE - 2.2, LANE + 3.9, tar)
    strip(canvas, land, LANE + 3.2, LANE + 3.65, white)
    strip(canvas, land, LANE - 2.0, LANE - 1.6, white)
    if land is not None:
        dash = step((land.x * 1.1).sin() * 1.2 + 0.3, 0.25)
        middle = step(land.y - LANE - 1.1, land.pixel) * step(LANE + 1.55 - land.y, land.pixel)
        canvas.blend(land, middle * dash, white)


def _drive(canvas: Canvas, land: Patch | None, rng: random.Random) -> None:
    """Choose the car and its way: with a camera that tracks it, against one that only passes by."""
    paint, kind = rng.choice(PAINT), rng.choice(("hatch", "saloon", "estate"))
    load, pace = rng.choice(("none", "cases", "board")), rng.uniform(2.4, 3.2)
    front, start = rng.choice((-1.0, 1.0)), rng.uniform(-1.2, 1.2)
    move = heading(canvas)
    if move:
        front = move if canvas.follow is not None else -move
    place = canvas.view.per_frame(canvas.subject_x(front * pace, start))
    night = canvas.light.lamps
    if land is not None:
        ahead, deep = (land.x - place) * front, land.y - LANE
        shade = torch.exp(((ahead / 2.6) ** 6 + ((deep + 0.2) / 0.95) ** 4) * -1)
        canvas.blend(land, shade * 0.6, (0.02, 0.02, 0.04))
        if night:
            pool = torch.exp((((ahead - 6.2) / 2.8) ** 2 + (deep / 1.5) ** 2) * -1)
            canvas.glow(land, pool * 0.55, (1.0, 0.90, 0.66))
    car(canvas, LANE, place, front, paint, kind, load)


def _box(s: torch.Tensor, y: torch.Tensor, low: float, high: float, half: float, bend: float) -> torch.Tensor:
    """Signed distance (positive inside) to a box round its corners."""
    u, v = s.abs() - half + bend, (y - (low + high) / 2).abs() - (high - low) / 2 + bend
    outside = (u.clamp(min=0) ** 2 + v.clamp(min=0) ** 2).sqrt()
    return bend - outside - torch.maximum(u, v).clamp(max=0)


def car(
    canvas: Canvas, z: float, place: torch.Tensor, front: float, paint: RGB, kind: str, load: str
) -> None:
    """A small car seen from the side; `front` is where it heads, `place` [F, 1, 1] its middle."""
    patch = canvas.wall(z, 3.0)
    if patch is None:
        return
    s, edge = (patch.x - place) * front, patch.pixel
    y = patch.y - 0.025 * (place * 1.9).sin()  # it bobs on its springs
    tail = {"hatch": -1.9, "saloon": -1.35, "estate": -2.35}[kind]
    coat = canvas.lit(paint, 4)
    dark = mix(coat, (0.02, 0.02, 0.05), 0.55)
    cabin = torch.minimum(1.78 - y, y - 0.8)
    cabin = torch.minimum(cabin, (1.35 - s - 0.85 * (y - 1.0)) * 0.8)
    cabin = torch.minimum(cabin, (s - tail - (0.9 if kind == "saloon" else 0.35) * (y - 1.0)) * 0.85)
    body = torch.maximum(_box(s, y, 0.34, 1.14, 2.5, 0.3), cabin)
    _luggage(canvas, patch, s, y, load)
    canvas.blend(patch, step(body, edge), coat, dark, (1.15 - 0.95 * y).clamp(0, 1))
    glass = torch.minimum(cabin - 0.13, y - 1.1)
    glass = torch.minimum(glass, (s + 0.25).abs() - 0.09)
    pane = mix(canvas.light.middle, (0.06, 0.09, 0.14), 0.6)
    canvas.blend(patch, step(glass, edge), pane, mix(pane, canvas.light.horizon, 0.5), (y - 1.0).clamp(0, 1))
    for hub in (-1.5, 1.55):
        ring = ((s - hub) ** 2 + (patch.y - 0.43) ** 2).sqrt()
        canvas.blend(patch, step(0.53 - ring, edge), mix(dark, (0, 0, 0), 0.6))
        canvas.blend(patch, step(0.43 - ring, edge), (0.03, 0.03, 0.04))
        canvas.blend(patch, step(0.22 - ring, edge), canvas.lit((0.82, 0.83, 0.86), 4))
    _lights(canvas, patch, s, y)


def _luggage(canvas: Canvas, patch: Patch, s: torch.Tensor, y: torch.Tensor, load: str) -> None:
    """What a holiday car carries on its roof."""
    if load == "cases":
        for middle, half, high, tint in (
            (-0.55, 0.5, 2.35, (0.56, 0.34, 0.18)),
            (0.3, 0.32, 2.2, (0.2, 0.42, 0.4)),
        ):
            case = _box(s - middle, y, 1.7, high, half, 0.1)
            canvas.blend(patch, step(case, patch.pixel), canvas.lit(tint, 4))
    elif load == "board":
        plank = 0.15 * (1 - ((s + 0.4) / 2.1) ** 2).clamp(min=0).sqrt() - (y - 1.98).abs()
        canvas.blend(patch, step(plank, patch.pixel) * (plank > -0.3), canvas.lit((0.98, 0.92, 0.72), 4))
        rack = torch.minimum(((s + 0.3).abs() - 0.6).abs() * -1 + 0.06, 1.98 - y)
        canvas.blend(patch, step(rack, patch.pixel) * (y > 1.7), (0.05, 0.05, 0.06))


def _lights(canvas: Canvas, patch: Patch, s: torch.Tensor, y: torch.Tensor) -> None:
    on = canvas.light.lamps
    head = 0.17 - ((s - 2.34) ** 2 + (y - 0.86) ** 2).sqrt()
    rear = _box(s + 2.38, y, 0.74, 1.02, 0.12, 0.05)
    canvas.blend(
        patch, step(head, patch.pixel), (1.0, 0.96, 0.8) if on else canvas.lit((0.96, 0.96, 0.92), 3)
    )
    canvas.blend(
        patch, step(rear, patch.pixel), (0.95, 0.10, 0.08) if on else canvas.lit((0.75, 0.10, 0.08), 3)
    )
    if not on:
        return
    ahead = s - 2.35
    cone = torch.exp(((y - 0.8 + 0.03 * ahead) / (0.16 + 0.13 * ahead.clamp(min=0))) ** 2 * -1)
    canvas.glow(
        patch, cone * step(ahead, 0.3) * torch.exp(ahead.clamp(min=0) / -3.4) * 0.8, (1.0, 0.92, 0.68)
    )
    canvas.glow(patch, torch.exp(((s - 2.4) ** 2 + (y - 0.86) ** 2) * -5) * 0.8, LAMP)
    canvas.glow(patch, torch.exp(((s + 2.5) ** 2 + (y - 0.88) ** 2) * -5) * 0.7, (1.0, 0.12, 0.08))


def _verge(canvas: Canvas, rng: random.Random, leaf: RGB) -> None:
    """What passes between the camera and the road: now and then a tree, and long grass with flowers."""
    lit, near = canvas.lit, rng.random() < 0.45
    salt = rng.random() * 9
    if near:
        pair = lit(mix(leaf, (0, 0, 0), 0.15), 3), lit(mix(leaf, (0.02, 0.05, 0.04), 0.7), 3)
        trees(canvas, 10.5, 6.6, 15.0, pair, lit((0.34, 0.26, 0.20), 3), salt, 0.4, 0.34, 3.0)
    flower = rng.choice(((0.92, 0.18, 0.12), (0.98, 0.84, 0.20), (0.96, 0.95, 0.94), (0.62, 0.40, 0.84)))
    for z, high, shade in ((8.6, 0.95, 0.15), (6.4, 1.1, 0.45)):
        grass = mix((0.46, 0.60, 0.20), (0, 0, 0), shade)
        pair = lit(grass, 2), lit(mix(grass, (0.02, 0.06, 0.03), 0.6), 2)
        meadow_edge(canvas, z, high, pair, lit(flower, 1), rng)
