"""Things that stand in the scenes: trees, buildings, a lighthouse, boats, a bottle.

Each is a flat board or wall whose coverage and shading are closed forms of position, so a round
thing can turn under an orbiting camera although no mesh exists.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch

from training.paint import RGB, TAU, Canvas, chance, mix, step


def waves(
    rng: random.Random, length: float, count: int = 3, peaks: float = 0.0
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A random height profile in about 0..1; `peaks` mixes sharp ridges into the sines."""
    terms = [
        (TAU / (length * rng.uniform(0.8, 1.25)) * 2.17**i, rng.uniform(0, TAU), 0.48**i)
        for i in range(count)
    ]
    total = sum(weight for _, _, weight in terms)

    def profile(x: torch.Tensor) -> torch.Tensor:
        height = torch.full_like(x, 0.5 + peaks / 2)
        for k, phase, weight in terms:
            wave = (x * k).add_(phase).sin_()
            height.add_(wave, alpha=(1 - peaks) * weight / total / 2)
            if peaks:  # ridges: one less twice the rectified sine
                height.sub_(wave.abs_(), alpha=peaks * weight / total)
        return height

    return profile


def conifers(
    canvas: Canvas, z: float, size: float, gap: float, colour: RGB, foot: RGB,
    clear: float = 0.0, density: float = 0.8, salt: float = 0.0,
) -> None:  # fmt: skip
    """A row of fir trees at depth z; none within `clear` of the middle."""
    patch = canvas.wall(z, size)
    if patch is None:
        return
    cell = torch.floor(patch.x / gap)
    grow = 0.55 + 0.45 * chance(cell, salt)
    middle = (cell + 0.5 + 0.2 * (chance(cell, salt + 2.3) - 0.5)) * gap
    half = 0.4 * gap * grow
    grow = grow * size * ((middle.abs() > clear) & (chance(cell, salt + 5.1) < density))
    rise = patch.y / grow.clamp(min=1e-3)
    edge = half * (1 - rise) - (patch.x - middle).abs()
    alpha = step(edge, patch.pixel * 1.3) * (grow > 0)
    canvas.blend(patch, alpha, colour, foot, (1 - rise).clamp(0, 1))


def blocks(
    canvas: Canvas, z: float, low: float, high: float, gap: float, colours: tuple[RGB, RGB],
    lamp: RGB, salt: float, glow: float,
) -> None:  # fmt: skip
    """A wall of flat buildings at depth z with soft windows; `glow` is how many are lit."""
    patch = canvas.wall(z, high)
    if patch is None:
        return
    cell = torch.floor(patch.x / gap)
    height = low + (high - low) * chance(cell, salt) ** 1.5
    half = gap * (0.36 + 0.12 * chance(cell, salt + 1.7))
    across = patch.x - (cell + 0.5) * gap
    alpha = step(half - across.abs(), patch.pixel) * step(height - patch.y, patch.pixel)
    share = 0.25 + 0.5 * chance(cell, salt + 3.1) + 0.3 * (across > half * 0.3)
    canvas.blend(patch, alpha, *colours, share.clamp(0, 1))
    _windows(canvas, patch, across, cell, alpha, (gap / 3.2, gap / 2.4), lamp, salt, glow)


def _windows(canvas, patch, across, cell, alpha, pitch, lamp: RGB, salt: float, glow: float):
    """Large soft rectangles on a grid; a few blink slowly."""
    column, row = across / pitch[0], patch.y / pitch[1]
    i, j = torch.floor(column), torch.floor(row)
    pane = step(0.30 - (column - i - 0.5).abs(), 0.28) * step(0.27 - (row - j - 0.5).abs(), 0.28)
    dice = chance(i * 3.0 + j * 7.0 + cell * 11.0, salt + 9.0)
    on = ((dice < glow) * (0.55 + 1.2 * dice)).clamp(max=1)
    blink = 0.8 + 0.2 * (canvas.time * 1.3 + dice * 40).sin()
    canvas.blend(patch, alpha * pane * on * blink, lamp)


def tower(
    canvas: Canvas, x: float, z: float, wide: float, high: float, turn: float,
    colours: tuple[RGB, RGB], lamp: RGB, salt: float, glow: float,
) -> None:  # fmt: skip
    """A square skyscraper whose two visible faces follow from where the camera stands."""
    patch = canvas.board(x, z, wide * 0.75, 0.0, high)
    if patch is None:
        return
    # The nearest of the four corners is the edge between the faces; its neighbours are the sides.
    angle = torch.remainder(patch.turn - turn, math.pi / 2) - math.pi / 4
    radius = wide * math.sqrt(0.5)
    middle = radius * angle.sin()
    left, right = -radius * angle.cos(), radius * angle.cos()
    alpha = step(patch.x - left, patch.pixel) * step(right - patch.x, patch.pixel)
    alpha = alpha * step(high - patch.y, patch.pixel)
    face = step(patch.x - middle, patch.pixel)
    canvas.blend(patch, alpha, *colours, (face + 0.15 * (1 - patch.y / high)).clamp(0, 1))
    start = torch.where(patch.x > middle, middle, left)
    end = torch.where(patch.x > middle, right, middle)
    across = (patch.x - start) / (end - start).clamp(min=0.15 * wide) * wide
    pitch = wide / 3, wide / 2.3
    _windows(canvas, patch, across, (face > 0.5).float(), alpha, pitch, lamp, salt, glow)


def round_body(
    canvas: Canvas, x: float, z: float, low: float, high: float, radius, colours: tuple[RGB, RGB],
    sun: float | torch.Tensor, bands=None, shine: float = 0.0,
) -> None:  # fmt: skip
    """A body of revolution: radius(y) in world units, lit from azimuth `sun`.

    bands(y, angle) gives (share, colour) of a pattern that is fixed to the body.
    """
    patch = canvas.board(x, z, float(radius(torch.linspace(low, high, 40)).max()), low, high)
    if patch is None:
        return
    half = radius(patch.y)
    across = (patch.x / half.clamp(min=1e-3)).clamp(-1, 1)
    bend = torch.asin(across)
    steep = (radius(patch.y + patch.pixel) - radius(patch.y - patch.pixel)) / patch.pixel / 2
    width = patch.pixel * (1 + steep.clamp(-4, 4) ** 2).sqrt()
    alpha = step(half - patch.x.abs(), width) * step(high - patch.y, patch.pixel)
    alpha = alpha * step(patch.y - low, patch.pixel)
    # Azimuth of the surface normal in the world: straight at the camera in the middle.
    normal = patch.turn + math.pi - bend
    facing = (normal - sun).cos()
    dark = (0.5 - 0.55 * facing).clamp(0, 1)
    canvas.blend(patch, alpha, *colours, dark)
    if bands is not None:
        share, paint = bands(patch.y, normal, patch.pixel)
        canvas.blend(patch, alpha * share, paint, mix(paint, colours[1], 0.7), dark)
    if shine:
        spot = torch.exp(((bend - 0.5 * (patch.turn + math.pi - sun).sin()) * 5) ** 2 * -1)
        canvas.glow(patch, alpha * spot * shine, canvas.light.sun)


def mound(
    canvas: Canvas, x: float, z: float, half: float, high: float, a: RGB, b: RGB,
    rng: random.Random,
) -> None:  # fmt: skip
    """A rocky islet, the same from all sides but for bumps that turn with the camera."""
    # Drawn even when off screen, or what follows would differ from frame to frame.
    p, q = rng.uniform(0, TAU), rng.uniform(0, TAU)
    patch = canvas.board(x, z, half, 0.0, high * 1.3)
    if patch is None:
        return
    s = patch.x / half
    bump = (s * 7 + p - patch.turn * 3).sin() * 0.10 + (s * 15 + q - patch.turn * 6).sin() * 0.06
    height = high * ((1 - s * s).clamp(min=0) ** 0.7 * (1 + bump))
    facet = 0.5 + 0.5 * (s * 9 + q + patch.y / high * 2.5 - patch.turn * 4).sin()
    share = 0.6 * facet + 0.4 * (1 - patch.y / high)
    alpha = step(height - patch.y, patch.pixel) * step(0.98 - s.abs(), 0.04)
    canvas.blend(patch, alpha, a, b, share.clamp(0, 1))
    surf = 0.09 * high * (1.2 + (canvas.time * 1.6 + s * 4).sin())
    foam = step(surf - patch.y.abs(), surf) * step(0.95 - s.abs(), 0.1) * 0.75
    canvas.blend(patch, foam, canvas.lit((0.95, 0.97, 1.0)))


def beam(canvas: Canvas, x: float, y: float, z: float, turn: float) -> None:
    """The two opposite beams of a lighthouse lamp, sweeping round once in about nine seconds."""
    patch = canvas.board(x, z, 60.0, 0.0, y + 12)
    if patch is None:
        return
    swing = (turn + canvas.time * 0.7 - patch.turn).sin()
    du, dv = patch.x, patch.y - y
    # One beam goes to either side of the axis; both shorten as they turn towards the camera.
    along = du.abs()
    fade = (1 - along / (swing.abs() * 26).clamp(min=1.0)).clamp(0, 1)
    strength = torch.exp((dv / (0.35 + along * 0.09)) ** 2 * -1) * fade * 0.75
    canvas.glow(patch, strength, (1.0, 0.93, 0.70))


def sailboat(
    canvas: Canvas, x: float | torch.Tensor, z: float, size: float, sail: RGB, hull: RGB, phase: float
) -> None:
    """Two triangular sails over a dark hull, rocking a little; x may be [F] of a boat under way."""
    patch = canvas.board(x, z, size * 0.6, 0.0, size * 1.1)
    if patch is None:
        return
    sway = (canvas.time * 1.1 + phase).sin() * 0.05
    px, py = (patch.x - patch.y * sway) / size, patch.y / size
    edge = patch.pixel / size * 1.2
    main = torch.minimum(0.02 - px, px + 0.42 * (1.02 - py))
    jib = torch.minimum(px - 0.05, 0.36 * (0.82 - py) - (px - 0.05))
    cloth = torch.maximum(main, jib)
    alpha = step(torch.minimum(cloth, py - 0.16), edge)
    canvas.blend(patch, alpha, sail, mix(sail, hull, 0.45), (px > 0.03).float())
    body = torch.minimum(0.40 + 0.5 * py - px.abs(), 0.13 - py)
    canvas.blend(patch, step(body, edge), hull)


def ferry(
    canvas: Canvas,
    x: float | torch.Tensor,
    z: float,
    size: float,
    hull: RGB,
    cabin: RGB,
    pane: RGB,
    phase: float,
) -> None:
    """A river boat: a hull with a stripe, a long cabin with large windows, a funnel; x may be [F]."""
    patch = canvas.board(x, z, size * 0.6, 0.0, size * 0.42)
    if patch is None:
        return
    heave = 0.006 * (canvas.time * 1.2 + phase).sin()
    px, py = patch.x / size, patch.y / size - heave
    edge = patch.pixel / size * 1.2
    funnel = torch.minimum(0.045 - (px + 0.12).abs(), 0.37 - py)
    canvas.blend(patch, step(funnel, edge), hull)
    house = torch.minimum(torch.minimum(0.33 - (px + 0.04).abs(), py - 0.08), 0.27 - py)
    canvas.blend(patch, step(house, edge), cabin, mix(cabin, hull, 0.4), (px * 1.5 + 0.3).clamp(0, 1))
    column = (px + 0.04) / 0.11
    column = (column - torch.floor(column) - 0.5).abs() * 0.11
    window = torch.minimum(torch.minimum(0.034 - column, 0.042 - (py - 0.19).abs()), 0.30 - (px + 0.04).abs())
    canvas.blend(patch, step(window, edge), pane)
    body = torch.minimum(0.42 + 0.7 * py - px.abs(), 0.11 - py)
    canvas.blend(patch, step(body, edge), hull, mix(hull, cabin, 0.7), step(py - 0.085, edge))


def trunks(
    canvas: Canvas, z: float, gap: float, wide: float, top: float, a: RGB, b: RGB, salt: float
) -> None:
    """Tall stems at depth z, wider at the foot, lit from one side."""
    patch = canvas.wall(z, top)
    if patch is None:
        return
    cell = torch.floor(patch.x / gap)
    dice = chance(cell, salt)
    other = torch.frac(dice * 37.0)  # as good as a second draw, and cheap
    middle = (cell + 0.5 + 0.45 * (dice - 0.5)) * gap
    lean = (other - 0.5) * 0.08
    half = wide * (1.4 - 0.8 * other) * (1 + 0.5 * torch.exp(patch.y * -1.6))
    across = patch.x - middle - lean * patch.y
    alpha = step(half - across.abs(), patch.pixel)
    canvas.blend(patch, alpha, a, b, (0.5 + 0.6 * across / half).clamp(0, 1))


def crowns(
    canvas: Canvas, z: float, gap: float, base: float, top: float, a: RGB, b: RGB, salt: float
) -> None:
    """Round heads of foliage that close into a scalloped canopy above height `base`."""
    patch = canvas.wall(z, top, base - 0.55 * gap)
    if patch is None:
        return
    cell = torch.floor(patch.x / gap)
    across = (patch.x / gap - cell - 0.5) * 2
    hang = base + gap * (0.22 * (chance(cell, salt) - 0.5) - 0.30 * (1 - across * across))
    sway = 0.05 * gap * (canvas.time * 0.9 + cell).sin()
    lump = 0.5 + 0.5 * (patch.x * (4.2 / gap) + patch.y * (3.1 / gap) + salt).sin()
    alpha = step(patch.y - hang - sway, patch.pixel * 1.5)
    canvas.blend(patch, alpha, a, b, (0.55 * lump + 0.35 * (patch.y - hang) / gap).clamp(0, 1))
