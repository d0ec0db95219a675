"""One green country in five weathers: clear, fog, rain, storm and snowfall.

A house with a tree beside it stands in the middle distance, hills fade behind it and flowers, puddles
or snow lie before it. What falls is drawn on upright planes at several depths, so that it shows parallax too.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

import torch

from training.homestead import (
    PETALS,
    Country,
    birds,
    clouds,
    cumulus,
    everywhere,
    fence,
    field,
    flowers,
    grey,
    grove,
    hills,
    homestead,
    land,
    mist,
    pace,
)
from training.paint import TAU, Canvas, Patch, chance, mix, ripples, sky, step

LIGHTS_BY_WEATHER = ("noon", "dusk", "night")  # under closed clouds there is no golden hour to see


def _curtain(canvas: Canvas, z: float) -> Patch:
    """The plane that stays z ahead of where the camera stands: rain is as dense wherever one drives."""
    depth = torch.full((canvas.frames,), z)
    full = slice(0, canvas.view.size[0]), slice(0, canvas.view.size[1])
    return canvas._cut(
        *full, (torch.zeros_like(depth), torch.ones_like(depth)), depth, -canvas.view.pose["x"]
    )


def _streaks(canvas: Canvas, rng: random.Random, z: float, slant: float, strength: float) -> None:
    """Rain on the plane at depth z: long drops, each column of them with its own time of falling."""
    salt = rng.random() * 9
    patch = _curtain(canvas, z)
    gap, period = 0.10 * z, 0.62 * z + 0.6
    x = patch.x + slant * patch.y
    cell = torch.floor(x / gap)
    fall = patch.y + pace(canvas) * (3.4 + 0.34 * z) + chance(cell, salt) * 97.0
    row = torch.floor(fall / period)
    along = fall / period - row
    dice = chance(cell + row * 7.3, salt + 2.0)
    across = (x / gap - cell - 0.5 - 0.5 * (dice - 0.5)).abs() * gap
    # Pointed above and blunt below, as a drop drawn out by the time of exposure.
    drop = step(0.016 + 0.9 * patch.pixel - across, patch.pixel * 1.4)
    drop = drop * (along * 8).clamp(max=1) * ((0.62 - along) * 3).clamp(0, 1) * (dice < 0.7)
    pale = mix(canvas.light.horizon, (0.85, 0.9, 1.0), 0.35)
    canvas.blend(patch, drop * strength, pale)


def _flakes(canvas: Canvas, rng: random.Random, z: float, wind: float, strength: float) -> None:
    """Snow on the plane at depth z: round flakes that sway as they sink."""
    salt, phase = rng.random() * 9, rng.uniform(0, TAU)
    patch = _curtain(canvas, z)
    time, gap = pace(canvas), 0.10 * z + 0.24
    y = patch.y + time * (0.55 + 0.055 * z)
    x = patch.x - time * wind * (0.6 + 0.06 * z) + 0.16 * (y * 1.1 + phase).sin()
    column, row = torch.floor(x / gap), torch.floor(y / gap)
    dice = chance(column + row * 5.7, salt)
    other = torch.frac(dice * 37.0)  # as good as a second draw, and cheap
    du, dv = x / gap - column - 0.5 - 0.5 * (dice - 0.5), y / gap - row - 0.5 - 0.5 * (other - 0.5)
    size = (0.08 + 0.08 * dice) * (1.25 if z < 6 else 1.0 if z < 20 else 0.8) * (other < 0.72)
    alpha = step(size - (du**2 + dv**2).sqrt(), patch.pixel / gap * 1.5) * (size > 0)
    flake = mix(canvas.lit((1.0, 1.0, 1.0)), (1, 1, 1), 0.35)
    canvas.blend(patch, alpha * strength, flake)


def _rings(canvas: Canvas, rng: random.Random, wet: torch.Tensor) -> None:
    """Rings that spread on the puddles wherever a drop has fallen."""
    salt, gap, ground = rng.random() * 9, 1.5, land(canvas)
    x, z = ground.x / gap, ground.y / gap
    i, j = torch.floor(x), torch.floor(z)
    clock = pace(canvas) * 0.8 + chance(i + j * 5.3, salt) * 7
    turn = torch.floor(clock)
    age = clock - turn
    shift = 0.4 * (chance(i * 2.0 + j + turn * 3.7, salt + 3) - 0.5)
    away = ((x - i - 0.5 - shift) ** 2 + (z - j - 0.5 + shift) ** 2).sqrt()
    ring = torch.exp(-(((away - 0.06 - age * 0.28) / 0.07) ** 2)) * (1 - age)
    fade = torch.exp(-((ground.pixel / 15) ** 2))
    canvas.blend(ground, ring * wet * fade * 0.75, mix(canvas.light.horizon, (1, 1, 1), 0.25))


def _puddles(canvas: Canvas, rng: random.Random) -> torch.Tensor:
    """1 where water stands on the ground, in the rows of `land`."""
    ground, p = land(canvas), [rng.uniform(0, TAU) for _ in range(3)]
    x, z = ground.x, ground.y
    pools = (x * 0.5 + p[0] + (z * 0.4).sin()).sin() + (z * 0.62 + p[1] + 0.8 * (x * 0.33 + p[2]).sin()).sin()
    return step(pools - 0.1, 0.18 + 0.012 * ground.pixel)


def _flash(canvas: Canvas, rng: random.Random) -> torch.Tensor:
    """[F, 1, 1]: one or two soft flashes of lightning, each a double beat; none in time-lapse."""
    total = torch.zeros_like(canvas.time)
    for at in (rng.uniform(0.7, 2.0), rng.uniform(3.0, 4.4)):
        force = rng.uniform(0.7, 1.0)
        for delay, share in ((0.0, 0.75), (0.34, 1.0)):
            total = total + force * share * torch.exp(-(((canvas.time - at - delay) / 0.13) ** 2))
    return total.clamp(max=1) * (canvas.style != "timelapse")


def _bolt(canvas: Canvas, rng: random.Random, flash: torch.Tensor) -> None:
    """A zigzag from the clouds to the hills, as bright as the flash."""
    x, a, b = rng.uniform(-70, 70), rng.uniform(0, TAU), rng.uniform(0, TAU)
    patch = canvas.board(x, 240.0, 40, 20, 150)
    if patch is None:
        return
    zig = torch.asin((patch.y * 0.13 + a).sin()) * 5 + torch.asin((patch.y * 0.31 + b).sin()) * 2
    away = (patch.x - zig).abs()
    low = step(patch.y - 22, patch.pixel)
    canvas.glow(patch, torch.exp(-((away / 9) ** 2)) * flash * 0.5 * low, (0.75, 0.78, 1.0))
    canvas.glow(patch, step(1.5 - away, 1.5) * flash * low, (1.0, 1.0, 1.0))


def meadow(canvas: Canvas, rng: random.Random) -> None:
    """Clear weather: green hills, flowers, a farmhouse, white clouds and birds."""
    roof = rng.choice(((0.70, 0.26, 0.18), (0.45, 0.30, 0.26), (0.34, 0.40, 0.52)))
    green = mix((0.38, 0.62, 0.20), (0.52, 0.66, 0.22), rng.random())
    country = Country(green, mix((0.16, 0.42, 0.16), (0.30, 0.48, 0.14), rng.random()), roof, 130.0, 0.03,
                      canvas.light.lamps)  # fmt: skip
    sky(canvas, rng)
    cumulus(canvas, rng)
    hills(canvas, rng, country)
    field(canvas, rng, country, rng.choice(PETALS), 0.75)
    canvas.focus()
    birds(canvas, rng)
    homestead(canvas, rng, country, rng.uniform(5.5, 7.0))
    for z, gap in ((14.0, 1.5), (10.5, 1.35), (8.0, 1.2)):
        flowers(canvas, rng, z, gap, country.wind)


def fog(canvas: Canvas, rng: random.Random) -> None:
    """The country in drifting fog: every layer paler than the one before it."""
    lamps = canvas.light.lamps
    canvas.light = grey(canvas.light, 1.0, 0.94, 0.92)
    light = canvas.light
    canvas.light = replace(light, haze=mix(light.horizon, light.middle, 0.45))
    haze = canvas.light.haze
    canvas.img[:] = torch.tensor(haze, device=canvas.view.device)[:, None, None, None]
    country = Country((0.34, 0.46, 0.28), (0.14, 0.26, 0.18), (0.42, 0.26, 0.22), 34.0, 0.02, lamps)
    hills(canvas, rng, country)
    field(canvas, rng, country, mix(country.grass, (0.9, 0.85, 0.6), 0.5), 0.9)
    grove(canvas, 34.0, 8.0, 6.0, canvas.lit(country.wood, 34, 30), canvas.lit((0.08, 0.15, 0.12), 34, 30),
           rng.random() * 9, country.wind)  # fmt: skip
    mist(canvas, rng, 30.0, 4.5, country)
    canvas.focus()
    homestead(canvas, rng, country, rng.uniform(5.5, 7.0))
    mist(canvas, rng, 17.0, 2.6, country)
    fence(canvas, rng, 9.5)
    mist(canvas, rng, 8.0, 1.2, country)


def rain(canvas: Canvas, rng: random.Random) -> None:
    """Dark wet country: streaks at several depths, puddles that mirror it, rings on the puddles."""
    lamps = canvas.light.lamps
    canvas.light = grey(canvas.light, 0.95, 0.66, 0.66)
    light = canvas.light
    ripples(canvas, rng, 0.35)
    clouds(canvas, rng, mix(light.zenith, light.middle, 0.5), mix(light.middle, light.horizon, 0.4), 0.10)
    country = Country((0.26, 0.44, 0.24), (0.12, 0.30, 0.18), (0.46, 0.22, 0.18), 85.0, 0.05, lamps)
    hills(canvas, rng, country)
    wet = _puddles(canvas, rng)
    field(canvas, rng, country, mix(country.grass, (0, 0, 0), 0.4), 0.9, 0.94 - 0.72 * wet)
    _streaks(canvas, rng, 24.0, 0.10, 0.4)
    canvas.focus()
    homestead(canvas, rng, country, rng.uniform(5.5, 7.0))
    _rings(canvas, rng, wet)
    fence(canvas, rng, 11.0)
    for z, strength in ((10.0, 0.5), (5.0, 0.55)):
        _streaks(canvas, rng, z, 0.10, strength)


def storm(canvas: Canvas, rng: random.Random) -> None:
    """Black clouds racing over bent trees, rain driven sideways, and lightning once or twice."""
    canvas.light = grey(canvas.light, 0.9, 0.60, 0.60)
    light, slant = canvas.light, rng.choice((-1, 1)) * rng.uniform(0.45, 0.6)
    clouds(canvas, rng, mix(light.zenith, (0, 0, 0), 0.45), light.horizon, 0.55)
    country = Country(
        (0.28, 0.42, 0.24), (0.12, 0.26, 0.16), (0.36, 0.20, 0.18), 100.0, math.copysign(0.2, slant), True
    )
    flash = _flash(canvas, rng)
    full = everywhere(canvas, canvas.view.dx)
    canvas.glow(full, flash * 0.45, (0.72, 0.76, 1.0))
    _bolt(canvas, rng, flash)
    hills(canvas, rng, country)
    field(canvas, rng, country, mix(country.grass, (0, 0, 0), 0.5), 0.8)
    _streaks(canvas, rng, 24.0, slant, 0.4)
    canvas.focus()
    homestead(canvas, rng, country, rng.uniform(6.0, 7.5))
    fence(canvas, rng, 10.0)
    for z, strength in ((10.0, 0.5), (5.0, 0.55)):
        _streaks(canvas, rng, z, slant, strength)
    canvas.glow(full, flash * 0.22, (0.80, 0.84, 1.0))


def snowfall(canvas: Canvas, rng: random.Random) -> None:
    """White country under a white sky, flakes large and small drifting with the wind."""
    lamps, wind = canvas.light.lamps, rng.choice((-1, 1)) * rng.uniform(0.5, 1.0)
    canvas.light = grey(canvas.light, 0.95, 0.97, 1.12)
    light = canvas.light
    clouds(canvas, rng, mix(light.middle, light.zenith, 0.3), light.horizon, 0.08)
    country = Country((0.93, 0.95, 1.0), (0.70, 0.77, 0.84), (0.88, 0.91, 0.98), 90.0, 0.02, lamps)
    hills(canvas, rng, country)
    field(canvas, rng, country, (0.78, 0.84, 0.94), 0.8)
    _flakes(canvas, rng, 28.0, wind, 0.85)
    canvas.focus()
    homestead(canvas, rng, country, rng.uniform(5.5, 7.0))
    fence(canvas, rng, 10.5, (1.0, 1.0, 1.0))
    for z in (13.0, 7.0, 3.8):
        _flakes(canvas, rng, z, wind, 0.95)
