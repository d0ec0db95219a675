"""Snow in a forest: laden firs at many depths, a cabin with warm windows, flakes that drift down."""

from __future__ import annotations

import random

import torch

from training.paint import RGB, TAU, Canvas, Patch, chance, mix, ridge, sky, step
from training.props import waves
from training.roadside import LAMP, house, plain

CABIN = 16.0  # depth of the cabin
SNOW: RGB = (0.97, 0.98, 1.0)
BLUE: RGB = (0.60, 0.71, 0.92)  # of snow in shadow


def _white(canvas: Canvas, shadow: float, depth: float, reach: float = 300.0) -> RGB:
    """Snow, `shadow` of the way to its blue shade: it takes colour from the haze and from the sun or moon."""
    light = canvas.light
    white = canvas.lit(mix(SNOW, BLUE, shadow), depth, reach)
    white = mix(
        mix(white, light.haze, 0.15), mix(light.sun, (1.0, 1.0, 1.0), 0.5), 0.55 * light.glow * (1 - shadow)
    )
    return mix(white, light.zenith, 0.34 * shadow)  # shade sees the sky alone


def winter(canvas: Canvas, rng: random.Random) -> None:
    """Hills and rows of firs under snow, a clearing with a cabin, firs near by, falling snow."""
    lit = canvas.lit
    sky(canvas, rng)
    land = plain(canvas)
    _snowfield(canvas, land, rng)
    for z, top in ((230.0, rng.uniform(38, 60)), (130.0, rng.uniform(14, 22))):
        shape = waves(rng, z * 0.9, 3, 0.35 if z > 200 else 0.0)
        pair = lit(mix(SNOW, BLUE, 0.4), z, 320), lit(mix(BLUE, (0.2, 0.3, 0.4), 0.35), z, 260)

        def shade(x, y, height, shape=shape, top=top, z=z) -> torch.Tensor:
            return 0.40 + 4.0 * (height / top - 0.15 - 0.85 * shape(x - 0.04 * z)) + 0.2 * (1 - y / top)

        ridge(canvas, z, top, lambda x, s=shape, t=top: t * (0.15 + 0.85 * s(x)), *pair, shade)
    green = mix((0.10, 0.27, 0.22), (0.16, 0.34, 0.20), rng.random())
    for z, size, gap, clear in ((75.0, 9.0, 5.5, 0.0), (44.0, 8.5, 5.2, 2.0), (25.0, 7.5, 5.0, 5.5)):
        firs(canvas, z, size, gap, green, rng.random() * 9, clear, 0.85)
    canvas.focus()
    _cabin(canvas, land, rng)
    firs(canvas, 12.5, 6.0, 4.6, green, rng.random() * 9, 5.5, 0.6)
    firs(canvas, 8.0, 5.2, 4.4, green, rng.random() * 9, 5.0, 0.5)
    _drift(canvas, rng)
    for z, size in ((11.0, 0.095), (6.0, 0.060), (3.2, 0.036)):
        _flakes(canvas, rng, z, size)


def _snowfield(canvas: Canvas, land: Patch | None, rng: random.Random) -> None:
    """White ground with broad soft shadows as of trees, blue as the sky that lights them."""
    a, b, skew = waves(rng, 7.0, 2), waves(rng, 9.0, 2), rng.uniform(-0.6, 0.6)
    if land is None:
        return
    x, z = land.x, land.y
    lie = a(x + skew * z) + b(z * 0.8) - 1
    share = step(lie - 0.05, 0.35 + 0.02 * land.pixel) * torch.exp(z * (-1 / 60)).clamp(max=1) * 0.8
    canvas.blend(land, torch.ones_like(x), _white(canvas, 0.0, 12), _white(canvas, 1.0, 12), share)
    far = 1 - torch.exp((z - 20).clamp(min=0) * (-1 / 150))
    canvas.blend(land, far, canvas.light.haze)


def _drift(canvas: Canvas, rng: random.Random) -> None:
    """Heaped snow close to the camera; its foot melts into the ground."""
    shape, patch = waves(rng, 5.0, 2), canvas.wall(5.6, 0.9)
    if patch is None:
        return
    height = 0.25 + 0.55 * shape(patch.x)
    alpha = step(height - patch.y, patch.pixel * 1.2) * (patch.y * 5).clamp(0, 1)
    share = ((height - patch.y) * 1.6).clamp(0, 1)
    canvas.blend(patch, alpha, _white(canvas, 0.0, 1), _white(canvas, 1.0, 1), share)


def firs(
    canvas: Canvas, z: float, size: float, gap: float, green: RGB, salt: float, clear: float, density: float
) -> None:
    """A row of firs in tiers, snow on the upper side of each; none within `clear` of the middle."""
    patch = canvas.wall(z, size)
    if patch is None:
        return
    lit, cell, tiers = canvas.lit, torch.floor(patch.x / gap), 4.0
    dice = chance(cell, salt)
    middle = (cell + 0.5 + 0.24 * (chance(cell, salt + 2.3) - 0.5)) * gap
    there = (middle.abs() > clear) & (torch.frac(dice * 17.3) < density)
    high = size * (0.62 + 0.38 * dice) * there
    rise = patch.y / high.clamp(min=1e-3)
    tier = torch.floor(rise * tiers)
    part = rise * tiers - tier
    across = patch.x - middle
    half = 0.42 * gap * (0.75 + 0.25 * dice)
    taper = 1.03 - (tier + 1.3 * part) / tiers
    edge = half * taper - across.abs()
    alpha = step(edge, patch.pixel * 1.4) * there
    tilt = across / half
    # Snow ends in a scalloped line above the dark lower side of every tier.
    line = 0.34 + 0.13 * (tilt * 9 + cell + tier * 2.0).sin() - 0.25 * tilt.abs()
    dark = step(line - part, 0.22 + patch.pixel * tiers / high.clamp(min=1e-3))
    snow = _white(canvas, 0.12, z, 150)
    canvas.blend(patch, alpha, snow, lit(green, z, 110), dark)
    canvas.blend(patch, alpha * (0.35 + 1.1 * tilt).clamp(0, 0.6), lit(mix(BLUE, green, 0.45), z, 130))


def _cabin(canvas: Canvas, land: Patch | None, rng: random.Random) -> None:
    """A wooden house under a thick white roof, light from its windows on the snow, smoke from its chimney."""
    lit, size = canvas.lit, rng.uniform(3.3, 4.0)
    x, phase = rng.uniform(-2.2, 2.2), rng.uniform(0, TAU)
    wood = rng.choice(((0.52, 0.30, 0.18), (0.62, 0.22, 0.16), (0.40, 0.28, 0.22)))
    if land is not None and canvas.light.lamps:
        pool = torch.exp((((land.x - x) / (0.85 * size)) ** 2 + ((land.y - CABIN + 1.6) / 1.8) ** 2) * -1)
        canvas.glow(land, pool * 0.45 * (land.y < CABIN), LAMP)
    _smoke(canvas, x + 0.45 * size, 1.12 * size, phase)
    house(canvas, x, CABIN, size, lit(wood, 6), _white(canvas, 0.15, 6))
    foot = waves(rng, 2.4, 2)
    ridge(canvas, CABIN - 0.6, 0.9,
          lambda s: 0.75 * torch.exp(((s - x) / (0.85 * size)) ** 4 * -1) * (0.25 + 0.5 * foot(s)) - 0.06,
          _white(canvas, 0.0, 6), _white(canvas, 0.7, 6))  # fmt: skip


def _smoke(canvas: Canvas, x: float, base: float, phase: float) -> None:
    """A column of puffs that rises, widens, leans and fades."""
    patch = canvas.wall(CABIN + 0.2, base + 5.0)
    if patch is None:
        return
    rise = patch.y - base
    up = rise.clamp(min=0)
    lean = 0.16 * up + 0.14 * up.sqrt() * (up * 1.5 - canvas.time * 1.3 + phase).sin()
    lump = 1 + 0.28 * (up * 4.2 - canvas.time * 3.2 + phase).sin()
    wide = (0.16 + 0.22 * up.sqrt()) * lump
    puff = step(wide - (patch.x - x - lean).abs(), 0.25 + 0.1 * up) * step(rise, 0.3)
    canvas.blend(patch, puff * (0.75 - up / 6).clamp(0, 1), canvas.lit((0.86, 0.87, 0.90), 8))


def _flakes(canvas: Canvas, rng: random.Random, z: float, size: float) -> None:
    """Flakes on an upright plane, one to a cell, falling and swaying."""
    salt, gap, fall = rng.random() * 9, size * rng.uniform(13, 18), rng.uniform(0.75, 1.05)
    patch = canvas.wall(z, 60.0)
    if patch is None:
        return
    y = patch.y + fall * canvas.time
    x = patch.x + 0.3 * (canvas.time * 0.8 + y * 0.9).sin() + 0.2 * canvas.time
    column, row = torch.floor(x / gap), torch.floor(y / gap)
    dice = chance(column * 3.0 + row * 7.0, salt)
    other = torch.frac(dice * 17.3)
    u = x - (column + 0.25 + 0.5 * dice) * gap
    v = y - (row + 0.25 + 0.5 * other) * gap
    flake = size * (0.6 + 0.4 * other) - (u * u + v * v).sqrt()
    canvas.blend(
        patch, step(flake, patch.pixel * 1.5) * (dice < 0.7) * 0.9, mix(canvas.lit(SNOW, 1), SNOW, 0.35)
    )
