"""Green country with a house and a tree: what the five weathers of training.weather have in common."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from training.paint import RGB, TAU, Canvas, Light, Patch, chance, mix, ridge, step
from training.props import waves

FAR = 20.0  # distance to the house: the subject of every camera
HASTE = 9.0  # by which time-lapse is faster; what falls keeps its own pace
LAMP: RGB = (1.0, 0.78, 0.40)
PETALS: tuple[RGB, ...] = (
    (0.95, 0.22, 0.18), (0.98, 0.82, 0.20), (0.97, 0.95, 0.93), (0.70, 0.36, 0.80), (0.98, 0.52, 0.66),
)  # fmt: skip


@dataclass(frozen=True)
class Country:
    """Colours and air of the land in one weather."""

    grass: RGB
    wood: RGB  # leaves
    roof: RGB
    reach: float  # how far one sees, in units
    wind: float  # how far trees lean
    lamps: bool  # whether windows shine


def grey(light: Light, grey: float, dim: float, ambient: float) -> Light:
    """The light under closed clouds: less colour and less of it, without sun or moon."""

    def pale(colour: RGB, share: float, scale: float) -> RGB:
        mean = sum(colour) / 3
        return tuple(min(1.0, c * scale) for c in mix(colour, (mean, mean, mean * 1.03), share))  # type: ignore[return-value]

    if light.dark:  # what little light a night has left must still show the country
        dim, ambient = dim**0.4, ambient**0.4
    # By day the sky loses its blue altogether; dusk and night keep half of what tells them apart.
    share = grey if max(light.ambient) > 0.9 else grey * 0.35
    return replace(
        light, zenith=pale(light.zenith, share, dim), middle=pale(light.middle, share, dim),
        horizon=pale(light.horizon, share, dim), haze=pale(light.haze, share, dim),
        cloud=pale(light.cloud, share, dim), ambient=pale(light.ambient, share, ambient),
        saturation=light.saturation * 0.75, glow=0.0, disc=0.0,
    )  # fmt: skip


def pace(canvas: Canvas) -> torch.Tensor:
    """Seconds for what falls or flickers, which time-lapse would turn into noise."""
    return canvas.time / HASTE if canvas.style == "timelapse" else canvas.time


def everywhere(canvas: Canvas, x: torch.Tensor) -> Patch:
    return Patch(slice(None), slice(None), x, x, x, 1.0, canvas.eye)


def clouds(canvas: Canvas, rng: random.Random, dark: RGB, pale: RGB, speed: float) -> None:
    """A closed sky of lumps on a plane overhead that drift towards the camera; mirrored when the floor is wet."""
    view, light = canvas.view, canvas.light
    rise = view.dy * torch.rsqrt(view.dx**2 + view.dz**2)
    if canvas.ripple is not None:
        rise = torch.where(rise < 0, -rise + canvas.ripple * 0.05, rise)
    rise = rise.clamp(min=0)
    near = 1 / (rise + 0.16)
    drift = canvas.time * speed
    x, z = view.dx * near + drift * 0.8, view.dz * near + drift * 0.4
    p = [rng.uniform(0, TAU) for _ in range(4)]
    warp = (x * 0.9 + z * 0.5 + p[0]).sin()
    lumps = (x * 1.5 + 1.3 * warp + p[1]).sin() + 0.7 * (z * 1.9 - x * 0.8 + 1.1 * warp + p[2]).sin()
    lumps += 0.4 * (x * 3.3 + z * 2.4 + 1.6 * warp + p[3]).sin()
    share = (lumps * 0.3 + 0.5).clamp_(0, 1)
    full = everywhere(canvas, rise)
    for c in range(3):
        canvas.img[c] = share * (pale[c] - dark[c]) + dark[c]
    veil = torch.exp(rise * -6)
    canvas.blend(full, veil * 0.9, light.horizon)


def land(canvas: Canvas) -> Patch:
    """The ground y = 0 in the rows below the horizon: x and (as y) z of the ground, `pixel` the way to it."""
    view = canvas.view
    horizon = view.size[0] / 2 + view.pose["focal"] * view.pose["pitch"].tan()
    rows = slice(int(horizon.min().clamp(0, view.size[0] - 1)), view.size[0])
    t = canvas.eye / (-view.dy[:, rows]).clamp(min=2e-3)
    x = view.dx[:, rows] * t + view.per_frame(view.pose["x"])
    z = view.dz[:, rows] * t + view.per_frame(view.pose["z"])
    return Patch(
        rows, slice(None), x, z, t, step(-view.dy[:, rows], 1 / view.per_frame(view.pose["focal"])), t
    )


def field(
    canvas: Canvas, rng: random.Random, country: Country, spots: RGB, density: float,
    keep: torch.Tensor | float = 1.0,
) -> None:  # fmt: skip
    """Meadow to the foot of the hills: two greens, drifts of flowers and a path to the house; `keep` is coverage."""
    p = [rng.uniform(0, TAU) for _ in range(3)]
    bend, side = rng.uniform(1.5, 3.0), rng.choice((-1, 1))
    ground, lit = land(canvas), canvas.lit
    x, z = ground.x, ground.y
    patches = ((x * 0.21 + 1.2 * (z * 0.11 + p[0]).sin()).sin() * 0.8 + 0.5).clamp(0, 1)
    deep = mix(country.grass, (0.05, 0.16, 0.08), 0.45 * (1 - min(country.grass)))
    footprint = ground.pixel**2 / (canvas.eye * canvas.view.per_frame(canvas.view.pose["focal"]))
    keep = step(85.0 - z, footprint) * keep
    canvas.blend(ground, keep, lit(country.grass), lit(deep), patches)
    near = torch.exp(z * (-1 / 26)).clamp(max=1) * keep
    drifts = (x * 0.55 + 1.4 * (z * 0.3 + p[1]).sin()).sin() + (z * 0.75 + (x * 0.4 + p[2]).sin()).sin()
    canvas.blend(ground, step(drifts - density, 0.45) * near * 0.9, lit(spots))
    path = 0.55 + 0.02 * z - (x - side * bend * (z * 0.16).sin() * (1 - z / FAR)).abs()
    path = step(path, 0.30) * (z < FAR) * near
    canvas.blend(ground, path, lit(mix(country.grass, (0.80, 0.68, 0.52), 0.75)))
    air = 1 - torch.exp(z.clamp(min=0) * (-0.4 / country.reach))
    canvas.blend(ground, air * keep, canvas.light.haze)


def hills(canvas: Canvas, rng: random.Random, country: Country) -> None:
    """Three lines of hills, each with its own slope of light, and a wood along the nearest."""
    lit, reach = canvas.lit, country.reach
    blue = mix(country.grass, (0.30, 0.42, 0.50), 0.55)
    if canvas.ripple is None:  # seen from above, there is land between the hills too
        ground = land(canvas)
        canvas.blend(ground, torch.ones_like(ground.x), lit(country.grass, 150, reach * 2))
    for z, top, tone in ((260.0, rng.uniform(34, 52), blue), (150.0, rng.uniform(15, 24), country.grass),
                         (85.0, rng.uniform(5.5, 8.5), mix(country.grass, country.wood, 0.4))):  # fmt: skip
        shape, skew = waves(rng, z * 1.0, 2), rng.choice((-1, 1)) * rng.uniform(0.02, 0.05)

        def profile(
            x: torch.Tensor, shape: Callable[..., torch.Tensor] = shape, top: float = top
        ) -> torch.Tensor:
            return top * (0.25 + 0.75 * shape(x))

        def shade(
            x: torch.Tensor, y: torch.Tensor, height: torch.Tensor, shape: Callable[..., torch.Tensor] = shape,
            skew: float = skew, z: float = z, top: float = top,
        ) -> torch.Tensor:  # fmt: skip
            slope = height / top - 0.25 - 0.75 * shape(x + skew * z)
            return 0.40 + slope * 3 + 0.25 * (1 - y / top)

        dark = mix(tone, (0.03, 0.10, 0.08), 0.5)
        ridge(canvas, z, top, profile, lit(tone, z, reach * 2.2), lit(dark, z, reach * 2.2), shade)
        mist(canvas, rng, z, top * 0.9, country)
    leaf = lit(country.wood, 60, reach * 2)
    grove(canvas, 62.0, 7.0, 5.2, leaf, lit(mix(country.wood, (0.02, 0.06, 0.05), 0.5), 60, reach * 2),
           rng.random() * 9, country.wind)  # fmt: skip
    mist(canvas, rng, 60.0, 6.0, country)


def mist(canvas: Canvas, rng: random.Random, z: float, top: float, country: Country) -> None:
    """A bank of drifting fog before the plane at depth z; only where one does not see far."""
    p, q = rng.uniform(0, TAU), rng.uniform(0, TAU)
    if country.reach > 60:
        return
    patch = canvas.wall(z - 2, top * 1.6)
    if patch is None:
        return
    k = TAU / (z * 0.55 + 6)
    x = patch.x + canvas.time * (0.03 * z + 0.5)
    lump = 0.5 + 0.3 * (x * k + p + (patch.y * (3 / top) + q).sin()).sin() + 0.25 * (x * k * 2.3 + q).sin()
    fade = (1 - patch.y / (top * (0.7 + 0.8 * lump))).clamp(0, 1)
    canvas.blend(patch, (fade * 1.5).clamp(max=1) * lump.clamp(0, 0.9), canvas.light.haze)


def grove(
    canvas: Canvas, z: float, gap: float, size: float, a: RGB, b: RGB, salt: float, wind: float
) -> None:
    """A row of round trees at depth z that lean with the wind; gaps where none grows."""
    patch = canvas.wall(z, size * 1.1)
    if patch is None:
        return
    sway = wind * (0.6 + 0.5 * (pace(canvas) * 1.9 + patch.x * 0.15).sin()) * patch.y**2 / size
    x = patch.x - sway
    cell = torch.floor(x / gap)
    grow = (0.6 + 0.4 * chance(cell, salt)) * (chance(cell, salt + 3.3) < 0.72)
    across = (x - (cell + 0.5 + 0.2 * (chance(cell, salt + 1.1) - 0.5)) * gap) / (0.42 * gap)
    rise = (patch.y / size - 0.55 * grow) / (0.45 * grow + 1e-3)
    crown = (1 - across**2 / (grow + 1e-3) ** 2 - rise**2) * 0.4 * grow
    stem = torch.minimum(0.07 - across.abs(), 0.5 * grow - patch.y / size)
    body = torch.maximum(crown, stem)
    share = (0.5 - 0.4 * rise + 0.25 * across).clamp(0, 1)
    canvas.blend(patch, step(body, patch.pixel / size * 1.5) * (grow > 0), a, b, share)


def house(canvas: Canvas, rng: random.Random, country: Country, x: float) -> None:
    """A cottage with a hipped roof: two walls and two roof faces as seen from where the camera stands."""
    wide, high = rng.uniform(4.2, 5.4), rng.uniform(2.3, 2.8)
    roof, turn, phase = rng.uniform(1.8, 2.6), rng.uniform(0.25, 0.6), rng.uniform(0, TAU)
    wall = rng.choice(((0.95, 0.92, 0.84), (0.80, 0.24, 0.18), (0.93, 0.80, 0.52), (0.62, 0.70, 0.76)))
    patch = canvas.board(x, FAR, wide * 0.85, 0.0, high + roof)
    if patch is None:
        return
    angle = torch.remainder(patch.turn - turn, math.pi / 2) - math.pi / 4
    radius = wide * math.sqrt(0.5)
    up = ((patch.y - high) / roof).clamp(min=0)
    shrink = (1 - up) * (1 + 0.14 * (patch.y > high))
    middle, half = radius * angle.sin() * shrink, radius * angle.cos() * shrink
    alpha = step(half - patch.x.abs(), patch.pixel) * step(high + roof - patch.y, patch.pixel)
    face = step(patch.x - middle, patch.pixel)
    tiles = step(patch.y - high, patch.pixel)

    def lit(colour: RGB) -> RGB:
        return canvas.lit(colour, FAR, country.reach * 1.6)

    canvas.blend(patch, alpha, lit(wall), lit(mix(wall, (0.10, 0.10, 0.18), 0.5)), face)
    panes(canvas, patch, alpha * (1 - tiles), middle, half, high, country.lamps)
    slate = country.roof
    canvas.blend(patch, alpha * tiles, lit(slate), lit(mix(slate, (0.06, 0.05, 0.10), 0.45)), face)
    smoke(canvas, x + 0.8, high + roof, phase, country.wind)


def panes(
    canvas: Canvas, patch: Patch, alpha: torch.Tensor, middle: torch.Tensor, half: torch.Tensor,
    high: float, lamps: bool,
) -> None:  # fmt: skip
    """Two windows on each of the two walls; lit when it is dark."""
    start, end = torch.where(patch.x > middle, middle, -half), torch.where(patch.x > middle, half, middle)
    along = (patch.x - start) / (end - start).clamp(min=0.4)
    column = (along * 2 - torch.floor(along * 2) - 0.5).abs()
    pane = step(0.24 - column, 0.12) * step(0.55 - (patch.y - 0.5 * high).abs(), 0.12)
    colour = LAMP if lamps else canvas.lit((0.24, 0.34, 0.46))
    canvas.blend(patch, alpha * pane, colour)
    if lamps:
        glow = (1 - patch.x**2 / 12 - (patch.y - 1.2) ** 2 / 8).clamp(min=0) ** 2
        canvas.glow(patch, glow * 0.25, LAMP)


def smoke(canvas: Canvas, x: float, y: float, phase: float, wind: float) -> None:
    """Five puffs that rise from the chimney, grow and thin out."""
    view, time = canvas.view, pace(canvas)[:, 0, 0].cpu()
    for index in range(5):
        age = torch.remainder(time * 0.22 + phase + index / 5, 1.0)
        at = x + age * (0.9 + 9 * wind) + 0.15 * (age * 9 + index).sin()
        u, v, depth = view.project(at[:, None], (y - 0.2 + 2.6 * age)[:, None], torch.tensor(FAR))
        size = (0.25 + 0.65 * age) * view.pose["focal"] / depth[:, 0].clamp(min=1)
        fade = 0.5 * (1 - age) * (age * 8).clamp(max=1)
        canvas.dot(u[:, 0], v[:, 0], size, fade, canvas.lit((0.9, 0.9, 0.92)))


def tree(canvas: Canvas, rng: random.Random, country: Country, x: float, z: float, size: float) -> None:
    """A broad tree: a crown of five balls in space, so that it turns as the camera goes round it."""
    balls = [(0.0, 0.0, 0.70, 0.27)]
    for index in range(4):
        angle = index * TAU / 4 + rng.uniform(-0.4, 0.4)
        balls.append((0.24 * math.cos(angle), 0.24 * math.sin(angle), rng.uniform(0.46, 0.62), 0.21))
    phase = rng.uniform(0, TAU)
    patch = canvas.board(x, z, size * (0.55 + 0.8 * abs(country.wind)), 0.0, size)
    if patch is None:
        return
    time = pace(canvas)
    gust = 0.55 + 0.45 * (time * 2.1 + phase).sin() * (0.7 + 0.3 * (time * 0.8).sin())
    lean = country.wind * (gust + 0.2) + 0.012 * (time * 1.3 + phase).sin()
    px, py = patch.x / size, patch.y / size
    px = px - lean * py**2
    pixel = patch.pixel / size * 1.4
    stem = torch.minimum(0.045 * (1.3 - py) + 0.03 * torch.exp(py * -12) - px.abs(), 0.6 - py)
    bark = (0.34, 0.24, 0.17)
    air = z, country.reach * 1.6
    shadow = canvas.lit(mix(bark, (0, 0, 0), 0.5), *air)
    canvas.blend(patch, step(stem, pixel), canvas.lit(bark, *air), shadow, (px * 9 + 0.5).clamp(0, 1))
    cos, sin = patch.turn.cos(), patch.turn.sin()
    crown, shade = torch.full_like(px, -1.0), torch.zeros_like(px)
    for bx, bz, by, radius in balls:
        du, dv = px - (bx * cos - bz * sin), py - by
        inside = radius - (du**2 + dv**2).sqrt()
        ball = (0.5 + (0.6 * du - 0.8 * dv) / radius * 0.55).clamp(0, 1)
        shade = torch.where(inside > crown, ball, shade)
        crown = torch.maximum(crown, inside)
    dark = mix(country.wood, (0.02, 0.07, 0.07), 0.6)
    canvas.blend(patch, step(crown, pixel), canvas.lit(country.wood, *air), canvas.lit(dark, *air), shade)


def flowers(canvas: Canvas, rng: random.Random, z: float, gap: float, wind: float) -> None:
    """A row of large flowers at depth z, each nodding on its stem."""
    salt, first, other = rng.random() * 9, rng.choice(PETALS), rng.choice(PETALS)
    patch = canvas.wall(z, 1.25)
    if patch is None:
        return
    x = patch.x - (0.05 + wind) * patch.y * (pace(canvas) * 1.7 + patch.x * 0.8).sin()
    cell = torch.floor(x / gap)
    across = x - (cell + 0.5 + 0.5 * (chance(cell, salt) - 0.5)) * gap
    high = (0.35 + 0.6 * chance(cell, salt + 2)) * (chance(cell, salt + 4) < 0.75)
    leaf = step(0.05 * (1.4 - patch.y / (high + 0.1)) - across.abs() * 0.7, patch.pixel)
    leaf = leaf * step(high - patch.y, patch.pixel)
    canvas.blend(patch, leaf, canvas.lit((0.16, 0.42, 0.14)))
    away = (across**2 + (patch.y - high) ** 2).sqrt()
    size = 0.14 + 0.08 * chance(cell, salt + 6)
    bloom = step(size - away, patch.pixel * 1.3) * (high > 0)
    canvas.blend(patch, bloom, canvas.lit(first), canvas.lit(other), (chance(cell, salt + 8) < 0.4).float())
    heart = step(size * 0.4 - away, patch.pixel * 1.3) * (high > 0)
    canvas.blend(patch, heart, canvas.lit((0.98, 0.72, 0.15)))


def fence(canvas: Canvas, rng: random.Random, z: float, cap: RGB | None = None) -> None:
    """Posts with two rails at depth z; with a colour for what lies on them, such as snow."""
    shift, wood = rng.random(), rng.choice(((0.46, 0.34, 0.24), (0.82, 0.80, 0.76), (0.36, 0.30, 0.28)))
    patch = canvas.wall(z, 1.3)
    if patch is None:
        return
    along = patch.x / 1.7 + shift
    across = (along - torch.floor(along) - 0.5).abs() * 1.7
    post = torch.minimum(0.085 - across, 1.1 - patch.y)
    rails = torch.maximum(0.055 - (patch.y - 0.45).abs(), 0.055 - (patch.y - 0.82).abs())
    alpha = step(torch.maximum(post, rails), patch.pixel * 1.2)
    canvas.blend(
        patch, alpha, canvas.lit(mix(wood, (0, 0, 0), 0.35)), canvas.lit(wood), (across > 0.03).float()
    )
    if cap is not None:
        snow = torch.maximum(
            torch.minimum(0.11 - across, 0.09 - (patch.y - 1.12).abs()), 0.05 - (patch.y - 0.9).abs()
        )
        canvas.blend(patch, step(snow, patch.pixel * 1.2), canvas.lit(cap))


def cumulus(canvas: Canvas, rng: random.Random) -> None:
    """Heaped clouds with flat bases that sail along above the hills."""
    pale, dark = mix(canvas.light.cloud, (1, 1, 1), 0.15), mix(canvas.light.cloud, canvas.light.middle, 0.65)
    drift = 3.5 * canvas.time[:, 0, 0].cpu()
    for _ in range(5):
        x, y, size = rng.uniform(-190, 190), rng.uniform(75, 135), rng.uniform(40, 66)
        parts = [(rng.uniform(-0.1, 0.1), 0.16, 0.2), (-0.26, 0.06, rng.uniform(0.10, 0.16)),
                 (rng.uniform(0.2, 0.28), 0.08, rng.uniform(0.12, 0.17)), (0.40, 0.02, 0.09),
                 (-0.42, 0.02, 0.08)]  # fmt: skip
        flip = rng.choice((-1, 1))
        # Leaves on the right and comes back on the left, far outside the picture.
        at = torch.remainder(x + drift + 240, 480) - 240
        patch = canvas.board(at, 300.0, size * 0.6, y - size * 0.1, y + size * 0.5)
        if patch is None:
            continue
        px, py = patch.x / size * flip, (patch.y - y) / size
        body = torch.full_like(px, -1.0)
        for cx, cy, radius in parts:
            body = torch.maximum(body, radius - ((px - cx) ** 2 + (py - cy) ** 2).sqrt())
        alpha = step(torch.minimum(body, py + 0.02), 0.05)
        canvas.blend(patch, alpha * 0.92, pale, dark, (0.75 - py * 3).clamp(0, 1))


def birds(canvas: Canvas, rng: random.Random) -> None:
    """A few birds that cross the sky, beating their wings."""
    time, way = pace(canvas)[:, 0, 0].cpu(), rng.choice((-1, 1))
    x, y, z = rng.uniform(-9, 5) * way, rng.uniform(10, 13), rng.uniform(34, 44)
    for index in range(rng.randint(3, 5)):
        side, lift, phase = -2.6 * index + rng.uniform(-0.5, 0.5), rng.uniform(-1.6, 1.6), rng.uniform(0, TAU)
        patch = canvas.board((x + way * (side + 2.6 * time)), z + index, 1.5, y + lift - 1, y + lift + 1.4)
        if patch is None:
            continue
        beat = 0.35 + 0.55 * (pace(canvas) * 5.5 + phase).sin()
        reach = patch.x.abs()
        line = (patch.y - y - lift - beat * reach * (1.25 - 0.5 * reach)).abs()
        alpha = step(0.17 * (1.35 - reach) - line, patch.pixel * 1.2)
        canvas.blend(patch, alpha, canvas.lit((0.16, 0.16, 0.22)))


def homestead(canvas: Canvas, rng: random.Random, country: Country, size: float) -> None:
    """The subject: a house, a tree on one side of it and a smaller one behind on the other."""
    side = rng.choice((-1, 1))
    tree(canvas, rng, country, -side * rng.uniform(4.5, 6.0), FAR + 4.0, size * 0.75)
    house(canvas, rng, country, side * rng.uniform(-0.4, 0.6))
    tree(canvas, rng, country, side * rng.uniform(4.6, 5.6), FAR - 1.0, size)
