"""A big sky: cumulus in layers that drift at different speeds over rolling hills."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch

from training.paint import LIGHTS, RGB, TAU, Canvas, chance, mix, ridge, sky, step
from training.props import waves

Height = Callable[[torch.Tensor], torch.Tensor]
PUFFS = 9  # round heads of one cloud
MILL = 60.0  # z of the windmill: the distance of the rig's subject
# Sunny side and underside of a cloud.
CLOUDS: dict[str, tuple[RGB, RGB]] = {
    "noon": ((1.0, 1.0, 1.0), (0.64, 0.75, 0.90)),
    "golden hour": ((1.0, 0.86, 0.60), (0.74, 0.40, 0.44)),
    "dusk": ((0.80, 0.52, 0.66), (0.27, 0.20, 0.44)),
    "night": ((0.36, 0.43, 0.60), (0.07, 0.10, 0.22)),
    "overcast": ((0.88, 0.89, 0.90), (0.52, 0.54, 0.57)),
}


def clouds(canvas: Canvas, rng: random.Random) -> None:
    """Fair-weather heaps far and near, hills below, and on one of them a windmill."""
    name = next((name for name, light in LIGHTS.items() if light is canvas.light), "overcast")
    azimuth = rng.uniform(-0.5, 0.5)
    sky(canvas, rng, azimuth)
    wind, sun = rng.choice((-1, 1)) * rng.uniform(0.8, 1.25), math.copysign(1.0, azimuth)
    towering = rng.uniform(0.85, 1.25)
    for z, base, size, count, speed in (
        (620.0, 44.0, 60.0, 12, 5.5),
        (400.0, 70.0, 62.0, 8, 5.5),
        (230.0, 66.0, 50.0, 5, 5.0),
    ):
        _cumulus(
            canvas,
            rng,
            (z, base * rng.uniform(0.9, 1.1), size * towering),
            count,
            speed * wind,
            sun,
            *CLOUDS[name],
        )
    green = mix((0.34, 0.52, 0.20), (0.52, 0.54, 0.24), rng.random())
    _hills(canvas, rng, green, (300.0, 165.0, 100.0))
    canvas.focus()
    _hills(canvas, rng, green, (MILL, 34.0, 19.0))


def _cumulus(
    canvas: Canvas, rng: random.Random, layer: tuple[float, float, float], count: int, wind: float,
    sun: float, pale: RGB, dark: RGB,
) -> None:  # fmt: skip
    """Clouds of one layer (depth, height of the flat base, half width) on their way past."""
    z, base, size = layer
    haze = 1 - math.exp(-z / 1300)
    dark, pale = mix(dark, canvas.light.horizon, haze), mix(pale, canvas.light.horizon, haze * 0.6)
    span = 3.7 * z  # they leave and come back beyond what any camera sees
    time = canvas.time[:, 0, 0].cpu()
    for k in range(count):
        grow = rng.choice((0.5, 0.7, 0.85, 1.0)) * rng.uniform(0.9, 1.1)
        start, lift = (k + rng.uniform(-0.3, 0.3)) * span / count, (1 - grow) * rng.uniform(-0.45, 0.45)
        x = torch.remainder(start + wind * time, span) - span / 2
        _cloud(canvas, rng, (x, z), base + lift * size, grow * size, sun, pale, dark)


def _cloud(
    canvas: Canvas, rng: random.Random, at: tuple[torch.Tensor, float], base: float, size: float,
    sun: float, pale: RGB, dark: RGB,
) -> None:  # fmt: skip
    """A heap of soft balls on a flat base, each lit from above and from the sun's side."""
    balls = []
    for k in range(PUFFS):
        s = 2 * (k + 0.5) / PUFFS - 1  # place along the base, -1 to 1
        dome = 1 - s * s
        radius = 0.17 + 0.16 * dome + 0.24 * rng.random()
        middle = 0.78 * s + rng.uniform(-0.12, 0.12), radius * 0.15 + dome * 0.62 * rng.random()
        balls.append((*middle, radius, rng.uniform(0, TAU)))
    patch = canvas.panel(*at, size * 1.4, base - 0.1 * size, base + size * 1.35)
    if patch is None:
        return
    x, y = patch.x / size, (patch.y - base) / size
    edge = 0.10 + patch.pixel / size
    cover, lit = torch.zeros_like(x), torch.zeros_like(x)
    for right, up, radius, phase in balls:
        swell = radius * (1 + 0.06 * (canvas.time * 0.35 + phase).sin())
        dx, dy = x - right, y - up
        ball = step(swell - torch.sqrt(dx**2 + dy**2), edge)
        tone = (0.42 / radius) * dy + (0.20 * sun / radius) * dx + 0.56
        lit = lit.lerp_(tone, ball)
        cover = torch.maximum(cover, ball)
    lit = (lit * (0.45 + 0.9 * y.clamp(0, 0.7))).clamp(0, 1)
    canvas.blend(patch, cover * step(y, 0.14), dark, pale, lit)


def _hills(canvas: Canvas, rng: random.Random, green: RGB, depths: tuple[float, ...]) -> None:
    """Rolling meadows of several tints with round trees; the windmill stands on the one at MILL."""
    for z in depths:
        tall, foot = 2.0 + z * 0.055, -4.5 + z * 0.02
        shape = waves(rng, 14 + z * 1.1, 2)
        tint = mix(green, rng.choice(((0.66, 0.58, 0.26), (0.24, 0.42, 0.24), (0.40, 0.50, 0.20))), 0.45)
        pale, dark = canvas.lit(tint, z, 240), canvas.lit(mix(tint, (0.03, 0.10, 0.10), 0.55), z, 240)
        salt, mill = rng.random() * 9, (rng.uniform(-7, 7), rng.uniform(8.5, 10.5), rng.random())
        profile = _profile(shape, foot, tall)
        stripe = TAU / (0.09 * z + 1.5)
        if z == MILL:
            _windmill(canvas, mill, profile)

        def shade(
            x: torch.Tensor, y: torch.Tensor, height: torch.Tensor, k: float = stripe, t: float = tall
        ) -> torch.Tensor:
            rows = ((x + 0.5 * (height - y)) * k * 0.5 + (height - y) * k * 0.35).sin()
            return 0.12 + 0.75 * (height - y) / t + 0.10 * rows

        if z != MILL and z < 200:
            _trees(canvas, z, profile, foot + tall, salt)
        ridge(canvas, z, foot + tall, profile, pale, dark, shade)


def _profile(shape: Height, foot: float, tall: float) -> Height:
    return lambda x: foot + tall * shape(x)


def _trees(canvas: Canvas, z: float, profile: Height, top: float, salt: float) -> None:
    """Round trees and bushes, standing on the crest of a hill at depth z."""
    patch = canvas.wall(z, top + 4.5)
    if patch is None:
        return
    gap = 7.0 + 0.05 * z
    cell = torch.floor(patch.x / gap)
    middle = (cell + 0.5 + 0.5 * (chance(cell, salt) - 0.5)) * gap
    size = (1.1 + 0.9 * chance(cell, salt + 1.7)) * (chance(cell, salt + 4.1) < 0.45)
    if z < MILL:  # none before the windmill
        size = size * (middle.abs() > 0.13 * z)
    y = patch.y - profile(middle)
    crown = size - torch.hypot(patch.x - middle, (y - 1.7 * size) * 0.85)
    stem = torch.minimum(0.22 * size - (patch.x - middle).abs(), 1.5 * size - y)
    alpha = step(torch.maximum(crown, stem), patch.pixel * 1.3) * (size > 0)
    leaf = (0.22, 0.43, 0.17)
    share = (0.95 - 0.28 * y / size.clamp(min=0.1)).clamp(0, 1)
    canvas.blend(patch, alpha, canvas.lit(leaf, z, 240), canvas.lit(mix(leaf, (0, 0, 0), 0.5), z, 240), share)


def _windmill(canvas: Canvas, mill: tuple[float, float, float], profile: Height) -> None:
    """A white tower with a red cap whose four sails turn in the wind."""
    x, high, phase = mill
    ground = float(profile(torch.tensor([x]))) - 0.4
    patch = canvas.panel(x, MILL - 0.5, high, ground - 1, ground + high * 1.75)
    if patch is None:
        return
    px, py = patch.x / high, (patch.y - ground) / high
    edge = patch.pixel / high * 1.2
    wall = torch.minimum(0.21 - 0.09 * py - px.abs(), torch.minimum(0.86 - py, py))
    white, shadow = canvas.lit((0.97, 0.94, 0.88), 20), canvas.lit((0.50, 0.50, 0.58), 20)
    canvas.blend(patch, step(wall, edge), white, shadow, (0.5 + px * 3.2).clamp(0, 1))
    cap = torch.minimum(0.17 - torch.hypot(px, (py - 0.85) * 0.8), py - 0.84)
    roof = canvas.lit((0.74, 0.22, 0.16), 20)
    canvas.blend(patch, step(cap, edge), roof, mix(roof, (0, 0, 0), 0.4), (0.5 + px * 3).clamp(0, 1))
    door = torch.minimum(0.055 - px.abs(), 0.20 - py)
    window = torch.minimum(0.04 - px.abs(), 0.055 - (py - 0.52).abs())
    lamp = (1.0, 0.80, 0.42) if canvas.light.lamps else canvas.lit((0.26, 0.20, 0.20), 20)
    canvas.blend(patch, step(torch.maximum(door, window), edge) * (py > 0), lamp)
    # A quarter turn at a time: fold every sail onto the first.
    qx, qy = px, py - 0.90
    angle = torch.atan2(qy, qx) - canvas.time * 0.8 - phase
    folded = torch.remainder(angle + TAU / 8, TAU / 4) - TAU / 8
    away = torch.hypot(qx, qy)
    along, aside = away * folded.cos(), away * folded.sin()
    spar = torch.minimum(0.022 - aside.abs(), 0.66 - along)
    cloth = torch.minimum(0.06 - (aside - 0.075).abs(), torch.minimum(0.64 - along, along - 0.16))
    canvas.blend(patch, step(cloth, edge), canvas.lit((0.98, 0.95, 0.88), 12))
    canvas.blend(patch, step(torch.maximum(spar, 0.045 - away), edge), canvas.lit((0.34, 0.22, 0.16), 12))
