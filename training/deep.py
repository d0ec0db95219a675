"""Under water: a sandy floor with rocks and seaweed, shafts of light, bubbles, fish and jellyfish."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch

from training.paint import LIGHTS, RGB, TAU, Canvas, Patch, ground, mix, ridge, step
from training.props import waves

REEF = 9.0  # z of the leading fish: the distance of the rig's subject
SURFACE = 11.0  # height of the water's surface above the sand


@dataclass(frozen=True)
class Water:
    """Colours of the sea at one time of day."""

    top: RGB  # towards the surface
    far: RGB  # level with the camera, and what everything fades into
    low: RGB  # where it is deepest
    sand: RGB
    lamp: RGB  # multiplies the colours of things
    shafts: float  # strength of the light from above
    ray: RGB


WATERS: dict[str, Water] = {
    "noon": Water((0.50, 0.92, 0.95), (0.13, 0.62, 0.76), (0.04, 0.40, 0.62), (0.86, 0.88, 0.70),
                  (0.92, 1.0, 1.0), 0.50, (0.85, 1.0, 1.0)),
    "golden hour": Water((1.0, 0.86, 0.46), (0.66, 0.64, 0.34), (0.30, 0.40, 0.28), (0.96, 0.74, 0.42),
                         (1.0, 0.84, 0.58), 0.55, (1.0, 0.88, 0.50)),
    "dusk": Water((0.62, 0.44, 0.78), (0.30, 0.23, 0.60), (0.15, 0.12, 0.40), (0.50, 0.38, 0.62),
                  (0.66, 0.52, 0.86), 0.25, (0.90, 0.62, 0.95)),
    "night": Water((0.07, 0.20, 0.38), (0.03, 0.09, 0.22), (0.01, 0.03, 0.10), (0.11, 0.22, 0.36),
                   (0.22, 0.33, 0.50), 0.13, (0.50, 0.75, 1.0)),
    "overcast": Water((0.62, 0.70, 0.66), (0.40, 0.50, 0.48), (0.25, 0.33, 0.33), (0.56, 0.58, 0.52),
                      (0.66, 0.70, 0.66), 0.0, (0.8, 0.9, 0.85)),
}  # fmt: skip
FISH: tuple[tuple[RGB, RGB], ...] = (  # body and stripes
    ((1.0, 0.52, 0.10), (1.0, 0.97, 0.92)), ((1.0, 0.82, 0.16), (0.16, 0.22, 0.45)),
    ((0.95, 0.30, 0.34), (1.0, 0.86, 0.40)), ((0.24, 0.50, 0.95), (1.0, 0.86, 0.24)),
)  # fmt: skip


def underwater(canvas: Canvas, rng: random.Random) -> None:
    """A reef: what is far is the colour of the water, what is near keeps its own."""
    name = next((name for name, light in LIGHTS.items() if light is canvas.light), "overcast")
    water = WATERS[name]
    _body(canvas, rng, water)
    stone = mix((0.42, 0.40, 0.44), (0.46, 0.36, 0.34), rng.random())
    for z, tall in ((34.0, 8.0), (23.0, 4.6)):
        _cliff(canvas, rng, z, tall * rng.uniform(0.8, 1.2), stone, water)
    _sand(canvas, rng, water)
    _shafts(canvas, rng, water, 20.0)
    _garden(canvas, rng, 16.0, stone, water)
    jelly = rng.randint(2, 3), rng.random() < 0.3
    _jellyfish(canvas, rng, jelly[0], name == "night" or jelly[1], water)
    canvas.focus()
    _garden(canvas, rng, 11.5, stone, water)
    _school(canvas, rng, water)
    _shafts(canvas, rng, water, 8.0)
    _garden(canvas, rng, 6.0, stone, water)
    _bubbles(canvas, rng, water)
    _plankton(canvas, rng, name == "night")


def tone(colour: RGB, water: Water, depth: float) -> RGB:
    """A surface colour under water: the light that reaches it, fading into the sea with depth."""
    tinted = tuple(c * a for c, a in zip(colour, water.lamp, strict=True))
    return mix((tinted[0], tinted[1], tinted[2]), water.far, 1 - math.exp(-depth / 24))


def _body(canvas: Canvas, rng: random.Random, water: Water) -> None:
    """The open water, bright towards the surface, whose waves glitter overhead."""
    view = canvas.view
    rise = view.dy * torch.rsqrt(view.dx**2 + view.dz**2)
    high, low = (rise * 2.0).clamp(0, 1), (rise * -2.5).clamp(0, 1)
    for c in range(3):
        plane = water.far[c] + high * (water.top[c] - water.far[c])
        canvas.img[c] = plane + low * (water.low[c] - water.far[c])
    p, q = rng.uniform(0, TAU), rng.uniform(0, TAU)
    t = (SURFACE - canvas.eye) / view.dy.clamp(min=0.04)
    x = view.dx * t + view.per_frame(view.pose["x"])
    z = view.dz * t + view.per_frame(view.pose["z"])
    swell = (x * 0.55 + 0.8 * (z * 0.35 + p).sin() + canvas.time * 0.9).sin()
    swell = swell * (z * 0.30 - 0.7 * (x * 0.22 + q).sin() - canvas.time * 0.7).sin()
    full = Patch(slice(None), slice(None), x, z, t, 1.0, t)
    canvas.glow(full, swell.clamp(min=0) * (high - 0.25).clamp(0, 0.6) * (0.4 + water.shafts), water.ray)


def _sand(canvas: Canvas, rng: random.Random, water: Water) -> None:
    """The floor, with a slow net of light on it."""
    p, q = rng.uniform(0, TAU), rng.uniform(0, TAU)
    bright = 0.30 + 0.5 * water.shafts
    time = canvas.time

    def net(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        a = x * 1.15 + 0.9 * (z * 0.8 + time * 0.5 + p).sin()
        b = z * 1.0 + 0.9 * (x * 0.9 - time * 0.6 + q).sin()
        lines = 1 - (a.sin() * b.sin()).abs()
        return (1 - bright) + bright * lines**3

    ground(canvas, water.sand, water.far, 24.0, net, 23.0)


def _cliff(canvas: Canvas, rng: random.Random, z: float, tall: float, stone: RGB, water: Water) -> None:
    """Far rocks, hardly more than shadows."""
    shape = waves(rng, z * 0.75, 3, 0.3)
    a, b = tone(stone, water, z * 1.5), tone(mix(stone, (0, 0, 0), 0.4), water, z)
    ridge(canvas, z, tall * 1.5, lambda x: tall * (2.1 * shape(x) - 0.75), a, b)


def _shafts(canvas: Canvas, rng: random.Random, water: Water, z: float) -> None:
    """Slanting beams from the surface that sway and come and go."""
    skew, p, q = rng.uniform(0.25, 0.5) * rng.choice((-1, 1)), rng.uniform(0, TAU), rng.uniform(0, TAU)
    if not water.shafts:
        return
    patch = canvas.wall(z, z * 1.2)
    if patch is None:
        return
    x = (patch.x + skew * patch.y) / z
    band = 0.55 * (x * 9 + p + 0.5 * (canvas.time * 0.5 + q).sin()).sin()
    band += 0.45 * (x * 15.5 + q - canvas.time * 0.35).sin()
    fade = (patch.y / z * 1.6 + 0.25).clamp(0, 1)
    canvas.glow(patch, (band - 0.1).clamp(min=0) * fade * water.shafts, water.ray)


def _garden(canvas: Canvas, rng: random.Random, z: float, stone: RGB, water: Water) -> None:
    """Boulders, corals and tall weed about one plane, as wide as any camera sees it."""
    weed = rng.choice(((0.30, 0.60, 0.22), (0.52, 0.56, 0.16), (0.20, 0.54, 0.36), (0.58, 0.26, 0.36)))
    coral = rng.choice(((0.95, 0.42, 0.42), (0.95, 0.62, 0.30), (0.80, 0.40, 0.72)))
    gap = 0.34 * z + 1.2
    reach = round((1.75 * z + 5) / gap)
    plants = []
    for place in range(-reach, reach + 1):
        x, far, size = (
            (place + rng.uniform(-0.3, 0.3)) * gap,
            z * rng.uniform(0.93, 1.07),
            rng.uniform(0.7, 1.1),
        )
        kind = rng.choice(("weed", "weed", "weed", "boulder", "coral", "both", "none"))
        plants.append((far, x, size * gap, kind, rng.uniform(0, TAU)))
    for far, x, size, kind, phase in sorted(plants, reverse=True):
        if kind == "weed":
            _weed(canvas, (x, far), 0.50 * z + 0.25 * size, phase, weed, water)
        if kind in ("boulder", "both"):
            _boulder(canvas, (x, far), 0.30 * size, phase, stone, water)
        if kind in ("coral", "both"):
            _coral(canvas, (x + 0.2 * size, far - 0.2), 0.24 * size, phase, coral, water)


def _boulder(
    canvas: Canvas, at: tuple[float, float], half: float, phase: float, stone: RGB, water: Water
) -> None:
    """A round rock half buried in the sand, lit from above."""
    patch = canvas.panel(*at, half * 1.1, 0.0, half)
    if patch is None:
        return
    px, py = patch.x / half, patch.y / half
    swell = 1 + 0.09 * (px * 4 + phase).sin()
    body = 1 - (px**2) ** 1.3 - (py / (0.85 * swell)) ** 2
    alpha = step(body * half * 0.45, patch.pixel * 1.3) * step(patch.y + 0.1 * half, patch.pixel)
    a = tone(mix(stone, water.ray, 0.18), water, at[1])
    b = tone(mix(stone, (0, 0, 0.05), 0.62), water, at[1])
    canvas.blend(patch, alpha, a, b, (1.05 - 0.85 * py + 0.25 * px).clamp(0, 1))


def _coral(
    canvas: Canvas, at: tuple[float, float], size: float, phase: float, colour: RGB, water: Water
) -> None:
    """A fan of rounded fingers."""
    patch = canvas.panel(*at, size * 1.25, 0.0, size * 1.1)
    if patch is None:
        return
    py = patch.y + 0.25 * size
    away, angle = torch.hypot(patch.x, py), torch.atan2(patch.x, py)
    fingers = (angle * 5.0 + phase).cos() * 0.5 + 0.5
    body = size * 0.62 + 0.55 * fingers.sqrt() * away.clamp(max=size) - away
    alpha = step(body * 0.7, patch.pixel * 1.3) * step(patch.y + 0.05 * size, patch.pixel)
    share = (1.2 - 0.75 / size * away - 0.35 * fingers).clamp(0, 1)
    a, b = tone(colour, water, at[1]), tone(mix(colour, (0.1, 0, 0.15), 0.6), water, at[1])
    canvas.blend(patch, alpha, a, b, share)


def _weed(
    canvas: Canvas, at: tuple[float, float], top: float, phase: float, colour: RGB, water: Water
) -> None:
    """A clump of three ribbons that sway more the higher they reach."""
    z = at[1]
    patch = canvas.panel(*at, 0.34 * top, 0.0, top)
    if patch is None:
        return
    rise = patch.y / top
    edge = torch.full_like(rise, -1.0)
    for k in range(3):
        high = 1 - 0.16 * ((k + int(phase * 9)) % 3)
        swing = (rise * 3.6 - canvas.time * 1.3 + 2.0 * k + phase).sin() * 0.085
        slow = (canvas.time * 0.55 + phase + k).sin() * 0.05
        middle = (0.12 * (k - 1) + (swing + slow + 0.06 * (k - 1)) * rise) * top
        left = (1 - rise / high).clamp(min=0)
        half = (0.016 * z + 0.06) * left.sqrt() * (0.85 + 0.3 * (rise * 16 + k).sin()) - 1.0 * (left == 0)
        edge = torch.maximum(edge, half - (patch.x - middle).abs())
    alpha = step(edge, patch.pixel * 1.3) * (patch.y > -0.05)
    a, b = tone(mix(colour, water.ray, 0.15), water, z), tone(mix(colour, (0, 0.05, 0.1), 0.6), water, z)
    canvas.blend(
        patch, alpha, a, b, (0.95 - 0.8 * rise - edge * (3.5 / (0.016 * z + 0.06)) * 0.12).clamp(0, 1)
    )


def _heading(canvas: Canvas, side: int) -> int:
    """Which way the fish swim: with the camera, where one tracks them."""
    if canvas.follow is None:
        return side
    way = canvas.follow[-1] - canvas.follow[0] if canvas.frames > 1 else canvas.follow[0]
    return 1 if float(way) > 0 else -1


def _school(canvas: Canvas, rng: random.Random, water: Water) -> None:
    """One large fish that leads, and a school behind and round it."""
    side = _heading(canvas, rng.choice((-1, 1)))
    speed = side * rng.uniform(0.75, 1.0)
    colours = rng.sample(FISH, 2)
    lead = rng.uniform(1.7, 2.2)
    swarm = [
        (rng.uniform(0.2, 3.4), rng.uniform(-4.6, 3.2), rng.uniform(-0.8, 1.6), rng.uniform(0.65, 1.0),
         rng.uniform(0, TAU))
        for _ in range(rng.randint(8, 12))
    ]  # fmt: skip
    height, phase = rng.uniform(1.7, 2.3), rng.uniform(0, TAU)
    time = canvas.time[:, 0, 0].cpu()
    for far, along, up, size, wag in sorted(swarm, reverse=True):
        x = (
            canvas.subject_x(speed, side * (along + 0.18 * math.sin(wag * 3)))
            + 0.12 * (time * 0.9 + wag).sin()
        )
        _fish(canvas, x, height + up, REEF + far, size, side, colours[1], wag, water)
    x = canvas.subject_x(speed) + 0.06 * (time * 0.8 + phase).sin()
    _fish(canvas, x, height, REEF, lead, side, colours[0], phase, water)


def _fish(
    canvas: Canvas, x: torch.Tensor, y: float, z: float, size: float, side: int, colours: tuple[RGB, RGB],
    phase: float, water: Water,
) -> None:  # fmt: skip
    """A striped body with a fan of a tail, fins and a round eye; `size` is its length."""
    patch = canvas.panel(x, z, size * 0.7, y - size * 0.42, y + size * 0.42)
    if patch is None:
        return
    px = patch.x * side / size
    bob = 0.03 * (canvas.time * 1.4 + phase).sin()
    beat = (canvas.time * 5.5 + phase).sin()
    # The back part swings with the tail.
    py = (patch.y - y) / size - bob - 0.035 * beat * (0.2 - px).clamp(min=0)
    edge = patch.pixel / size * 1.2
    body = (1 - ((px - 0.08) / 0.42) ** 2 - (py / (0.215 + 0.06 * px)) ** 2) * 0.13
    spread = 0.9 + 0.18 * beat
    tail = torch.minimum(
        torch.minimum(-0.24 - px, px + 0.54 + 0.5 * py.abs()), 0.03 + 0.72 * (-0.28 - px) * spread - py.abs()
    )
    fin = torch.minimum(0.25 - py + 0.22 * px, torch.minimum(0.24 - px, px + 0.20))
    fin = torch.minimum(fin, py - 0.08)
    belly = torch.minimum(
        0.24 + py + 0.2 * px, torch.minimum(0.10 - px, torch.minimum(px + 0.14, -py - 0.08))
    )
    # A little of their own colour stays, so that they can be told apart by night.
    hue, stripe = (mix(tone(colour, water, 3.5 + (z - REEF) * 1.5), colour, 0.22) for colour in colours)
    deep = mix(hue, water.low, 0.45)
    fins = torch.maximum(torch.maximum(tail, fin), belly)
    canvas.blend(patch, step(fins, edge), mix(hue, stripe, 0.25), deep, (0.5 - 1.2 * py).clamp(0, 1))
    solid = step(body, edge)
    canvas.blend(patch, solid, hue, deep, (0.35 - 3.4 * py).clamp(0, 1))
    bands = torch.maximum(0.045 - (px - 0.19).abs(), 0.040 - (px + 0.07 + 0.3 * py**2).abs())
    canvas.blend(
        patch, solid * step(bands, edge), stripe, mix(stripe, water.low, 0.35), (0.35 - 3 * py).clamp(0, 1)
    )
    eye = torch.hypot(px - 0.36, py - 0.045)
    white = tone((0.98, 0.98, 0.95), water, 2.0)
    canvas.blend(patch, step(0.052 - eye, edge) * solid, white)
    canvas.blend(patch, step(0.030 - eye, edge) * solid, (0.03, 0.03, 0.06))


def _jellyfish(canvas: Canvas, rng: random.Random, count: int, shown: bool, water: Water) -> None:
    """Bells that pulse upwards, trailing ribbons; at night they shine."""
    glowing = max(water.far) < 0.3
    for _ in range(count):
        z, x, y = rng.uniform(11.5, 15.0), rng.uniform(-0.42, 0.42), rng.uniform(3.2, 5.4)
        size, phase = rng.uniform(0.8, 1.2), rng.uniform(0, TAU)
        hue = rng.choice(((0.45, 0.85, 1.0), (1.0, 0.55, 0.85), (0.70, 0.62, 1.0)))
        patch = canvas.panel(x * z, z, size * 1.7, y - size * 3.2, y + size * 2.0) if shown else None
        if patch is None:
            continue
        pulse = (canvas.time * 2.0 + phase).sin()
        px, py = patch.x / size, (patch.y - y - 0.10 * canvas.time - 0.10 * pulse) / size
        wide = 0.82 + 0.14 * pulse
        bell = torch.minimum(1 - (px / wide) ** 2 - (py / (0.95 - 0.12 * pulse)) ** 2, (py + 0.12) * 2.5)
        edge = patch.pixel / size * 2.4
        sway = 0.16 * (py * 2.6 + canvas.time * 1.5 + phase).sin() * (-py).clamp(0, 1.6)
        strands = 0.085 - (torch.remainder(px - sway + 0.19, 0.38) - 0.19).abs()
        trail = step(strands, patch.pixel / size * 1.3) * (px - sway).abs().lt(0.57 * wide) * (py < 0)
        trail = trail * (1 + py / 2.4).clamp(0, 1)
        solid = step(bell, edge)
        colour = hue if glowing else mix(hue, (1, 1, 1), 0.3)
        canvas.blend(patch, trail * 0.55, mix(colour, water.far, 0.3))
        canvas.blend(
            patch,
            solid * 0.85,
            mix(colour, (1, 1, 1), 0.25),
            mix(colour, water.far, 0.5),
            (0.9 - py).clamp(0, 1),
        )
        if glowing:
            halo = torch.exp((px**2 + (py - 0.2) ** 2) * -0.9) - 0.06
            canvas.glow(patch, halo.clamp(min=0) * (0.42 + 0.12 * pulse), hue)


def _bubbles(canvas: Canvas, rng: random.Random, water: Water) -> None:
    """Strings of bubbles from the floor: pale discs with a bright spot."""
    view, time = canvas.view, canvas.time[:, 0, 0].cpu()
    pale = mix(water.top, (1, 1, 1), 0.35)
    for _ in range(3):
        z, x = rng.uniform(5.5, 10.0), rng.uniform(-0.45, 0.45)
        for _ in range(6):
            start, speed, phase = rng.uniform(0, 7.0), rng.uniform(0.9, 1.2), rng.uniform(0, TAU)
            size = rng.uniform(0.009, 0.017) * z
            y = torch.remainder(start + speed * time, 7.0)
            across = x * z + 0.16 * (y * 2.0 + phase).sin() + 0.2 * math.sin(phase * 5)
            u, v, depth = view.project(across[:, None], y[:, None], torch.tensor(z))
            radius = size * view.pose["focal"] / depth[:, 0].clamp(min=0.5)
            strength = (y * 3).clamp(max=1) * 0.5
            u, v = u[:, 0], v[:, 0]
            canvas.dot(u, v, radius, strength, pale, soft=False)
            canvas.dot(u - 0.35 * radius, v - 0.35 * radius, radius * 0.5, strength * 1.2, (1, 1, 1))


def _plankton(canvas: Canvas, rng: random.Random, shown: bool) -> None:
    """Sparks of living light that drift through the dark."""
    view, time = canvas.view, canvas.time[:, 0, 0].cpu()
    for _ in range(22):
        z, x, y = rng.uniform(5.0, 13.0), rng.uniform(-0.62, 0.62), rng.uniform(0.4, 5.0)
        phase, size = rng.uniform(0, TAU), rng.uniform(0.0055, 0.0085) * z
        hue = rng.choice(((0.40, 1.0, 0.90), (0.45, 0.80, 1.0), (0.70, 1.0, 0.60)))
        if not shown:
            continue
        across = (x * z + 0.3 * (time * 0.5 + phase).sin())[:, None]
        height = (y + 0.25 * (time * 0.4 + 2 * phase).sin())[:, None]
        u, v, depth = view.project(across, height, torch.tensor(z))
        radius = size * view.pose["focal"] / depth[:, 0].clamp(min=0.5)
        canvas.dot(u[:, 0], v[:, 0], radius, 0.65 + 0.30 * (time * 1.1 + phase * 3).sin(), hue)
