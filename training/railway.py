"""A steam train crossing a valley on a viaduct or an embankment."""

from __future__ import annotations

import random

import torch

from training.paint import RGB, TAU, Canvas, Patch, mix, ridge, sky, step
from training.props import conifers, waves
from training.roadside import (
    LAMP,
    box,
    fields,
    heading,
    house,
    plain,
    poles,
    trees,
)

LINE = 36.0  # depth of the track
COACH = 6.9  # from one coach to the next
ENGINE = 9.2  # length of locomotive and tender
LIVERY: tuple[tuple[RGB, RGB], ...] = (  # of the coaches: below and above the waist
    ((0.62, 0.12, 0.12), (0.95, 0.88, 0.72)), ((0.12, 0.34, 0.26), (0.95, 0.90, 0.76)),
    ((0.14, 0.28, 0.56), (0.94, 0.94, 0.92)), ((0.48, 0.24, 0.12), (0.95, 0.80, 0.46)),
)  # fmt: skip


def train(canvas: Canvas, rng: random.Random) -> None:
    """Mountains, a valley with a river, the line across it with a train, and firs near the camera."""
    lit = canvas.lit
    bridge = rng.random() < 0.6
    deck = rng.uniform(5.4, 6.4) if bridge else rng.uniform(3.0, 3.8)
    sky(canvas, rng)
    land = plain(canvas)
    _valley(canvas, land, rng)
    for z, top, low in (
        (270.0, rng.uniform(58, 82), 0.2),
        (170.0, rng.uniform(24, 34), 0.3),
        (110.0, 12.0, 0.2),
    ):
        shape = waves(rng, z * rng.uniform(0.8, 1.2), 3, 0.6 if z > 200 else 0.1)
        tint = mix((0.20, 0.36, 0.26), (0.36, 0.38, 0.50), min(1.0, z / 260))
        pair = lit(tint, z, 190), lit(mix(tint, (0.08, 0.10, 0.14), 0.45), z, 210)

        def shade(x, y, height, shape=shape, top=top, z=z) -> torch.Tensor:
            return 0.45 + 4.0 * (height / top - 0.2 - 0.8 * shape(x - 0.04 * z)) + 0.2 * (1 - y / top)

        ridge(canvas, z, top, lambda x, s=shape, t=top, w=low: t * (w + (1 - w) * s(x)), *pair, shade)
    leaf = rng.choice(((0.22, 0.44, 0.18), (0.30, 0.48, 0.18), (0.72, 0.44, 0.14)))
    pair = lit(leaf, 70, 160), lit(mix(leaf, (0.03, 0.08, 0.06), 0.6), 70, 160)
    trees(canvas, 78.0, 7.5, 8.0, pair, lit((0.25, 0.2, 0.15), 70), rng.random() * 9, 0.65, 0.45)
    house(canvas, rng.uniform(-26, 26), 66.0, 4.6, lit((0.93, 0.89, 0.80), 50), lit((0.58, 0.26, 0.20), 50))
    canvas.focus()
    _line(canvas, rng, bridge, deck)
    _engineer(canvas, rng, deck)
    _near(canvas, rng, leaf)


def _valley(canvas: Canvas, land: Patch | None, rng: random.Random) -> None:
    """Meadows, with a river that winds towards the camera and mirrors the low sky."""
    green = mix((0.30, 0.52, 0.20), (0.50, 0.60, 0.24), rng.random())
    hay = mix(green, (0.88, 0.76, 0.34), rng.uniform(0.2, 0.7))
    place, bend, phase = rng.uniform(-14, 14), rng.uniform(5, 9), rng.uniform(0, TAU)
    if land is None:
        return
    canvas.blend(land, torch.ones_like(land.x), canvas.lit(green, 120, 170))
    fields(canvas, land, ((105.0, 64.0, green, hay), (58.0, 38.0, mix(green, hay, 0.6), green)), 0.4)
    middle = place + bend * (land.y * 0.075 + phase).sin()
    width = 3.2 + 0.05 * land.y
    water = step(width - (land.x - middle).abs(), 0.2 + 0.006 * land.turn) * step(100 - land.y, land.pixel)
    gleam = (land.y * 1.0 + 2.0 * (land.x * 0.35).sin() + canvas.time * 1.8).sin()
    gleam = 0.5 + 0.5 * gleam / (1 + land.pixel**2)  # no glitter where ripples are finer than pixels
    bank = step(width + 0.9 - (land.x - middle).abs(), 0.3) * step(100 - land.y, land.pixel)
    canvas.blend(land, bank * 0.6, canvas.lit((0.62, 0.56, 0.38), 40))
    light = canvas.light
    canvas.blend(
        land, water, mix(light.middle, light.zenith, 0.25), mix(light.middle, light.horizon, 0.7), gleam * 0.7
    )


def _line(canvas: Canvas, rng: random.Random, bridge: bool, deck: float) -> None:
    """The viaduct (two rows of arches, so that it has thickness) or a grassy bank, and its poles."""
    stone = rng.choice(((0.66, 0.60, 0.52), (0.60, 0.42, 0.34), (0.56, 0.57, 0.60)))
    shift = rng.uniform(0, 7)
    pale, dark = canvas.lit(stone, 25), canvas.lit(mix(stone, (0.05, 0.05, 0.08), 0.55), 25)
    if bridge:
        _arches(canvas, LINE + 3.2, deck, shift, dark, mix(dark, (0, 0, 0), 0.25))
        poles(canvas, LINE + 2.6, 14.0, deck + 5.2, canvas.lit((0.28, 0.22, 0.18), 25), shift)
        _arches(canvas, LINE - 0.4, deck, shift, pale, mix(pale, dark, 0.75))
        return
    poles(canvas, LINE + 2.6, 14.0, deck + 5.2, canvas.lit((0.28, 0.22, 0.18), 25), shift)
    rough = waves(rng, 9.0, 2)
    grass = mix((0.40, 0.56, 0.22), stone, 0.25)
    ridge(canvas, LINE - 0.4, deck, lambda x: x * 0 + deck, canvas.lit(grass, 25),
          canvas.lit(mix(grass, (0.05, 0.1, 0.05), 0.55), 25),
          lambda x, y, height: 0.9 * (1 - y / deck) + 0.4 * (rough(x) - 0.5))  # fmt: skip


def _arches(canvas: Canvas, z: float, deck: float, shift: float, a: RGB, b: RGB) -> None:
    patch = canvas.wall(z, deck + 0.6)
    if patch is None:
        return
    gap, half = 7.4, 2.75
    spring = deck - half - 0.9
    across = (torch.frac((patch.x + shift) / gap + 1e3) - 0.5) * gap
    opening = half - (across**2 + (patch.y - spring).clamp(min=0) ** 2).sqrt()
    alpha = step(deck + 0.25 - patch.y, patch.pixel) * step(-opening, patch.pixel)
    share = (0.25 + 0.6 * (1 - patch.y / deck) + 0.25 * step(across, 0.6)).clamp(0, 1)
    canvas.blend(patch, alpha, a, b, share)
    ledge = step(0.22 - (patch.y - deck - 0.05).abs(), patch.pixel)
    canvas.blend(patch, ledge, mix(a, canvas.lit((1.0, 0.98, 0.94), 25), 0.4))
    ring = step(0.22 - (opening + 0.24).abs(), patch.pixel) * step(patch.y - spring, 0.4)
    canvas.blend(patch, ring * 0.6, mix(a, b, 0.9))


def _engineer(canvas: Canvas, rng: random.Random, deck: float) -> None:
    """Choose the train and its way: with a camera that tracks it, against one that only passes by."""
    livery = rng.choice(LIVERY)
    engine = rng.choice(((0.10, 0.11, 0.13), (0.12, 0.32, 0.22), (0.55, 0.12, 0.12), (0.12, 0.24, 0.44)))
    count, pace = rng.choice((3, 4)), rng.uniform(4.2, 5.6)
    front, start = rng.choice((-1.0, 1.0)), rng.uniform(-1.5, 1.5)
    move = heading(canvas)
    if move:
        front = move if canvas.follow is not None else -move
    place = canvas.view.per_frame(canvas.subject_x(front * pace, start))
    nose = (ENGINE + count * COACH) / 2
    patch = canvas.wall(LINE, deck + 4.3)
    if patch is None:
        return
    # From here on s runs backwards from the nose and y up from the rails.
    s, y = nose - (patch.x - place) * front, patch.y - deck
    _smoke(canvas, place, front, nose, deck)
    _coaches(canvas, patch, s, y, count, livery)
    _locomotive(canvas, patch, s, y, engine, place * front)
    if canvas.light.lamps:
        ahead = -s - 0.1
        cone = torch.exp(((y - 1.9) / (0.2 + 0.16 * ahead.clamp(min=0))) ** 2 * -1) * step(ahead, 0.4)
        canvas.glow(patch, cone * torch.exp(ahead.clamp(min=0) / -5) * 0.75, (1.0, 0.93, 0.72))
        canvas.glow(patch, torch.exp(((s - 0.2) ** 2 + (y - 1.9) ** 2) * -1.6) * 0.8, LAMP)


def _coaches(
    canvas: Canvas, patch: Patch, s: torch.Tensor, y: torch.Tensor, count: int, livery: tuple[RGB, RGB]
) -> None:
    """Coaches behind the engine, with a round roof, two colours and five windows each."""
    edge, back = patch.pixel, s - ENGINE
    cell = torch.floor(back / COACH)
    here = ((cell >= 0) & (cell < count)).float()
    along = back - (cell + 0.5) * COACH
    low, high = canvas.lit(livery[0], 12), canvas.lit(livery[1], 12)
    iron = canvas.lit((0.16, 0.16, 0.18), 10)
    frame = box(along, y, -3.35, 3.35, 0.42, 0.75)
    pair = 0.46 - (((along.abs() - 2.1).abs() - 0.62) ** 2 + (y - 0.46) ** 2).sqrt()
    canvas.blend(patch, step(torch.maximum(frame, pair), edge) * here, iron)
    canvas.blend(patch, step(box(s, y, ENGINE - 0.4, ENGINE + count * COACH - 0.5, 0.6, 0.8), edge), iron)
    roof = torch.minimum(box(along, y, -3.3, 3.3, 2.4, 3.4), 3.4 - 0.02 * along**2 - y)
    canvas.blend(patch, step(roof, edge) * here, canvas.lit((0.42, 0.42, 0.45), 10))
    side = box(along, y, -3.25, 3.25, 0.75, 2.95)
    canvas.blend(patch, step(side, edge) * here, low, high, step(y - 1.62, edge))
    pitch = 1.26
    pane = (torch.frac(along / pitch + 100.5) - 0.5).abs() * pitch
    glass = torch.minimum(torch.minimum(0.43 - pane, 0.42 - (y - 2.22).abs()), 3.1 - along.abs())
    dim = mix(canvas.light.middle, (0.07, 0.09, 0.13), 0.65)
    canvas.blend(patch, step(glass, edge) * here, LAMP if canvas.light.lamps else dim)
    if canvas.light.lamps:
        halo = torch.exp((y - 2.2) ** 2 * -1.1) * step(3.1 - along.abs(), 1.0) * here
        canvas.glow(patch, halo * 0.32, LAMP)


def _locomotive(
    canvas: Canvas, patch: Patch, s: torch.Tensor, y: torch.Tensor, paint: RGB, run: torch.Tensor
) -> None:
    """Boiler, chimney, dome, cab, tender and driving wheels whose rod goes round."""
    edge, coat = patch.pixel, canvas.lit(paint, 10)
    dark = mix(coat, (0.01, 0.01, 0.03), 0.6)
    black, brass = canvas.lit((0.10, 0.10, 0.12), 10), canvas.lit((0.92, 0.70, 0.28), 8)
    red = canvas.lit((0.70, 0.16, 0.13), 8)
    tender = torch.maximum(box(s, y, 6.55, 8.75, 0.7, 2.3), box(s, y, 6.8, 8.4, 2.2, 2.55))
    canvas.blend(patch, step(tender, edge), coat, dark, (1.2 - 0.5 * y).clamp(0, 1))
    stack = torch.minimum(
        box(s, y, 0.75, 1.95, 2.6, 4.05), 0.3 + 0.10 * (y - 2.8).clamp(min=0) - (s - 1.35).abs()
    )
    dome = 0.46 - ((s - 3.0) ** 2 + ((y - 2.85) * 0.8) ** 2).sqrt()
    canvas.blend(patch, step(stack, edge), black)
    canvas.blend(patch, step(dome, edge), brass)
    boiler = torch.minimum(box(s, y, 0.35, 4.7, 1.05, 2.95), 1.05 + 2.6 * (s - 0.1) - (y - 2.0).abs())
    canvas.blend(patch, step(boiler, edge), coat, dark, ((y - 2.5).abs() * 1.1 - 0.1).clamp(0, 1))
    canvas.blend(patch, step(box(s, y, 0.3, 1.0, 1.0, 3.0), edge), black)
    for band in (2.2, 3.7):
        canvas.blend(patch, step(torch.minimum(boiler, 0.09 - (s - band).abs()), edge), brass)
    cab = torch.maximum(box(s, y, 4.55, 6.3, 0.9, 3.3), box(s, y, 4.3, 6.6, 3.2, 3.5))
    canvas.blend(patch, step(cab, edge), coat, dark, (1.1 - 0.4 * y).clamp(0, 1))
    window = LAMP if canvas.light.lamps else mix(canvas.light.middle, (0.06, 0.08, 0.12), 0.6)
    canvas.blend(patch, step(box(s, y, 4.95, 5.9, 2.2, 3.0), edge), window)
    canvas.blend(patch, step(box(s, y, 0.1, 8.9, 0.78, 1.12), edge), red)
    plough = torch.minimum(torch.minimum(s + 0.35, 0.5 - s), torch.minimum(y - 0.15, s + 0.9 - y))
    canvas.blend(patch, step(plough, edge), red)
    for hub, radius in ((1.3, 0.45), (2.55, 0.72), (4.0, 0.72), (5.45, 0.72), (7.1, 0.48), (8.2, 0.48)):
        ring = ((s - hub) ** 2 + (y - radius) ** 2).sqrt()
        canvas.blend(patch, step(radius - ring, edge), black, red, step(radius - 0.22 - ring, edge) * 0.75)
    turn = run / 0.72  # the rod is pinned off the hubs, so it goes round without turning
    bar = box(s - 0.34 * turn.cos(), y + 0.34 * turn.sin(), 2.4, 5.6, 0.6, 0.86)
    canvas.blend(patch, step(bar, edge), canvas.lit((0.86, 0.86, 0.88), 6))
    lamp = (1.0, 0.96, 0.80) if canvas.light.lamps else brass
    canvas.blend(patch, step(0.26 - ((s - 0.2) ** 2 + (y - 1.95) ** 2).sqrt(), edge), lamp)


def _smoke(canvas: Canvas, place: torch.Tensor, front: float, nose: float, deck: float) -> None:
    """A plume of round puffs that leave the chimney in turn, grow, rise and fade."""
    patch = canvas.wall(LINE + 0.3, deck + 11.0)
    if patch is None:
        return
    back = nose - 1.35 - (patch.x - place) * front
    y = patch.y - deck - 4.0
    pitch, speed = 1.75, 4.6  # from puff to puff, and how fast they fall behind
    drift = back - speed * canvas.time
    gone = back.clamp(min=0)
    cover = torch.zeros_like(back)
    for shift in (0.0, 0.5):
        cell = torch.floor(drift / pitch + shift)
        middle = (cell - shift + 0.5) * pitch - drift
        age = (middle + back).clamp(min=0)
        radius = 0.42 + 0.34 * age.sqrt() + 0.10 * (cell * 2.4).sin()
        rise = 0.25 + 1.15 * age.sqrt() + 0.22 * (cell * 1.7 + shift * 9).sin()
        puff = step(radius - (middle**2 + (y - rise) ** 2).sqrt(), 0.35 + 0.05 * age)
        cover = torch.maximum(cover, puff * (1.05 - age / 17).clamp(0, 0.92) * (middle + back > 0))
    grey = canvas.lit((0.93, 0.92, 0.92), 12)
    dark = mix(grey, canvas.lit((0.42, 0.42, 0.48), 12), 0.7)
    canvas.blend(patch, cover, grey, dark, (0.75 - 0.32 * (y - 0.8 * gone.sqrt())).clamp(0, 1))


def _near(canvas: Canvas, rng: random.Random, leaf: RGB) -> None:
    """Bushes below the line and a few firs close to the camera, low enough to leave the train free."""
    lit = canvas.lit
    pair = lit(leaf, 12), lit(mix(leaf, (0.03, 0.07, 0.05), 0.65), 12)
    trees(canvas, 27.0, 3.4, 5.0, pair, pair[1], rng.random() * 9, 0.55, 0.55)
    fir = mix((0.12, 0.30, 0.20), leaf, 0.2)
    for z, size, gap, clear in ((19.0, 5.6, 5.0, 4.0), (12.0, 6.2, 7.0, 6.0)):
        dark = mix(fir, (0, 0, 0), 0.25 if z > 15 else 0.5)
        conifers(
            canvas,
            z,
            size,
            gap,
            lit(dark, 4),
            lit(mix(dark, (0, 0, 0), 0.4), 4),
            clear,
            0.5,
            rng.random() * 9,
        )
