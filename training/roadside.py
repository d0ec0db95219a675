"""Country to travel through: the ground as a patch, fields, round trees, poles, long grass, a house."""

from __future__ import annotations

import random
from collections.abc import Iterable

import torch

from training.paint import RGB, TAU, Canvas, Patch, chance, mix, step

LAMP: RGB = (1.0, 0.80, 0.45)
Band = tuple[float, float, RGB, RGB]  # far end, width of a strip, the two crops


def heading(canvas: Canvas) -> float:
    """-1 or 1: the side that a trucking or tracking camera moves to; 0 for any other camera."""
    x = canvas.view.pose["x"]
    way = float(x[-1] - x[0])
    if canvas.frames == 1:  # the last frame alone, or a clip of one frame, which is the start of its way
        way = float(x[0]) if float(canvas.time.max()) > 0 else -float(x[0])
    return float((way > 0) - (way < 0))


def box(s: torch.Tensor, y: torch.Tensor, left: float, right: float, low: float, high: float) -> torch.Tensor:
    """Distance to the nearest side, positive inside."""
    return torch.minimum(torch.minimum(s - left, right - s), torch.minimum(y - low, high - y))


def plain(canvas: Canvas) -> Patch | None:
    """The plane y = 0 as a patch whose y is the depth z and whose pixel is a pixel's footprint in z."""
    view, pose = canvas.view, canvas.view.pose
    horizon = view.size[0] / 2 + pose["focal"] * pose["pitch"].tan()
    first = max(0, int(horizon.min()) - 1)
    if first >= view.size[0]:
        return None
    rows = slice(first, view.size[0])
    down, focal = -view.dy[:, rows], view.per_frame(pose["focal"])
    t = canvas.eye / down.clamp(min=1e-3)
    x = view.dx[:, rows] * t + view.per_frame(pose["x"])
    z = view.dz[:, rows] * t + view.per_frame(pose["z"])
    return Patch(rows, slice(0, view.size[1]), x, z, t * t / (canvas.eye * focal), step(down, 1 / focal), t)


def fields(
    canvas: Canvas, land: Patch | None, bands: Iterable[Band], skew: float, reach: float = 170.0
) -> None:
    """Bands (far end, width, colour, other colour) from far to near: strips of two crops in turn."""
    for far, wide, a, b in bands:
        if land is None:
            continue
        alpha = step(far - land.y, land.pixel)
        # A pixel is much narrower than it is deep, so the sides of a strip may be crisp.
        across = ((land.x + skew * land.y) * (TAU / wide)).sin() * (wide / 6)
        share = step(across, 0.3 + 0.004 * land.turn)
        canvas.blend(land, alpha, canvas.lit(a, far * 0.55, reach), canvas.lit(b, far * 0.55, reach), share)


def strip(canvas: Canvas, land: Patch | None, near: float, far: float, a: RGB) -> None:
    """A band of ground between two depths, the same all the way along."""
    if land is None:
        return
    canvas.blend(land, step(land.y - near, land.pixel) * step(far - land.y, land.pixel), a)


def trees(
    canvas: Canvas, z: float, size: float, gap: float, colours: tuple[RGB, RGB], bark: RGB,
    salt: float, density: float = 0.7, slim: float = 0.36, clear: float = 0.0,
) -> None:  # fmt: skip
    """A row of trees with round heads `slim` heights wide, swaying a little; none within `clear` of x = 0."""
    patch = canvas.wall(z, size * 1.06)
    if patch is None:
        return
    cell = torch.floor(patch.x / gap)
    there = (chance(cell, salt + 5.1) < density) & (((cell + 0.5) * gap).abs() > clear)
    high = size * (0.62 + 0.38 * chance(cell, salt)) * there
    rise = patch.y / high.clamp(min=1e-3)
    # Heads stay inside their cells, or they would be cut off at a straight line.
    half = torch.minimum(high * slim, torch.full_like(high, 0.46 * gap))
    free = (0.48 * gap - half).clamp(min=0)
    across = patch.x - (cell + 0.5) * gap - (chance(cell, salt + 2.3) * 2 - 1) * free
    across = across - 0.012 * size * rise * (canvas.time * 1.1 + cell * 2.1).sin()
    u, v = across / half.clamp(min=1e-3), (rise - 0.62) / 0.37
    lump = (u * 5.3 + v * 2.2 + cell).sin() * (v * 5.7 - u * 1.9 + cell * 1.7).sin()
    crown = (0.93 - (u * u + v * v).sqrt() + 0.07 * lump) * half
    stem = torch.minimum(0.035 * high - across.abs(), (0.5 - rise) * high)
    canvas.blend(patch, step(stem, patch.pixel) * there, bark)
    share = (0.45 + 0.32 * u - 0.34 * v - 0.16 * lump).clamp(0, 1)
    canvas.blend(patch, step(crown, patch.pixel * 1.4) * there, *colours, share)


def poles(canvas: Canvas, z: float, gap: float, high: float, colour: RGB, shift: float) -> None:
    """Telegraph poles with a crossbar, evenly spaced along x."""
    patch = canvas.wall(z, high)
    if patch is None:
        return
    across = (torch.frac(patch.x / gap + shift + 1e3) - 0.5) * gap
    post = torch.minimum(0.15 - across.abs(), high - patch.y)
    bar = torch.minimum(0.9 - across.abs(), 0.13 - (patch.y - 0.88 * high).abs())
    canvas.blend(patch, step(torch.maximum(post, bar), patch.pixel * 1.2), colour)


def meadow_edge(
    canvas: Canvas, z: float, high: float, grass: tuple[RGB, RGB], flower: RGB, rng: random.Random
) -> None:
    """Long grass near the camera, bending in the wind, with round flowers in it."""
    phase, salt, dense = rng.uniform(0, TAU), rng.random() * 9, rng.uniform(0.35, 0.7)
    patch = canvas.wall(z, high * 1.15)
    if patch is None:
        return
    bend = 0.10 * (patch.y / high) * (canvas.time * 1.6 + patch.x * 0.5).sin()
    x = patch.x + bend
    blades = (x * (TAU / 0.46) + phase).sin().abs() * 0.5 + (x * (TAU / 1.3) + phase * 2).sin() * 0.22
    top = high * (0.30 + 0.45 * (blades + 0.3 * (x * (TAU / 4.1)).sin()).clamp(-0.4, 1))
    canvas.blend(patch, step(top - patch.y, patch.pixel * 1.6), *grass, (1 - patch.y / high).clamp(0, 1))
    gap = 0.62
    cell = torch.floor(x / gap)
    side = x - (cell + 0.3 + 0.4 * chance(cell, salt)) * gap
    rise = patch.y - high * (0.55 + 0.42 * chance(cell, salt + 3.3))
    head = 0.085 + 0.05 * chance(cell, salt + 1.1) - (side**2 + rise**2).sqrt()
    on = chance(cell, salt + 6.2) < dense
    stem = torch.minimum(0.02 - side.abs(), -rise)
    canvas.blend(patch, step(stem, patch.pixel * 1.5) * on * 0.8, grass[1])
    shade = (side * 5 + 0.4).clamp(0, 1)
    canvas.blend(patch, step(head, patch.pixel) * on, flower, mix(flower, grass[1], 0.5), shade)


def house(canvas: Canvas, x: float, z: float, size: float, wall: RGB, roof: RGB) -> None:
    """A gabled house seen from its long side; its windows shine when lamps are on."""
    patch = canvas.wall(z, size * 1.1)
    if patch is None:
        return
    s, y = (patch.x - x) / size, patch.y / size
    edge = patch.pixel / size
    body = torch.minimum(0.9 - s.abs(), 0.55 - y)
    tiles = torch.minimum(torch.minimum(y - 0.52, 1.0 - y), 1.3 - s.abs() - 0.55 * y)
    stack = torch.minimum(0.09 - (s - 0.45).abs(), 1.1 - y)
    canvas.blend(patch, step(stack, edge), mix(roof, (0, 0, 0), 0.3))
    canvas.blend(patch, step(body, edge), wall, mix(wall, (0, 0, 0), 0.25), step(s, 1.2))
    canvas.blend(patch, step(tiles, edge), roof, mix(roof, (0, 0, 0), 0.3), (1.4 - 1.4 * y).clamp(0, 1))
    pane = torch.minimum(0.13 - (s.abs() - 0.5).abs(), 0.11 - (y - 0.3).abs())
    door = torch.minimum(0.12 - s.abs(), 0.38 - y)
    dark = mix(wall, (0.05, 0.07, 0.12), 0.7)
    canvas.blend(patch, step(door, edge), mix(dark, roof, 0.5))
    canvas.blend(patch, step(pane, edge), LAMP if canvas.light.lamps else dark)
    if canvas.light.lamps:
        halo = torch.exp(((s.abs() - 0.5) ** 2 * 7 + (y - 0.3) ** 2 * 9) * -1) * 0.4
        canvas.glow(patch, halo, LAMP)
