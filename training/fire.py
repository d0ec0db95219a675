"""A campfire in a clearing: flames, glowing logs, sparks, a ring of stones, tents and dark firs around.

Everything stands on boards round the fire, so that an orbiting camera sees it all turn about the flames.
"""

from __future__ import annotations

import math
import random

import torch

from training.paint import RGB, TAU, Canvas, Patch, ground, mix, ridge, sky, step
from training.props import waves

HEARTH = 6.5  # z of the fire: the distance of the rig's subject
EMBER: RGB = (1.0, 0.52, 0.18)
RAMP: tuple[tuple[float, RGB], ...] = (  # from how hot on, which colour
    (0.08, (0.86, 0.20, 0.05)), (0.24, (0.98, 0.45, 0.08)),
    (0.44, (1.0, 0.72, 0.20)), (0.66, (1.0, 0.93, 0.62)),
)  # fmt: skip


def campfire(canvas: Canvas, rng: random.Random) -> None:
    """A fire in the middle of a clearing, under the evening sky."""
    lit = canvas.lit
    sky(canvas, rng, rng.uniform(-0.5, 0.5))
    flicker = _flicker(canvas, rng)
    wood = mix((0.10, 0.24, 0.16), (0.16, 0.20, 0.22), rng.random())
    for z, high in ((75.0, 13.0), (42.0, 7.5)):
        hill = waves(rng, z * 0.7, 3, 0.35)
        dark = lit(wood, z, 70)
        ridge(
            canvas,
            z,
            high * 1.1,
            lambda x, h=hill, t=high: t * (0.45 + 0.6 * h(x)),
            dark,
            mix(dark, (0, 0, 0), 0.3),
        )
    _clearing(canvas, rng, flicker)
    _firs(canvas, rng, wood)
    canvas.focus()
    _tents(canvas, rng, flicker)
    _ferns(canvas, rng, wood)
    _halo(canvas, flicker)
    stones = [(TAU * (k + rng.uniform(-0.2, 0.2)) / 9, rng.uniform(0.17, 0.27)) for k in range(9)]
    logs = [
        (TAU * (k + rng.uniform(-0.25, 0.25)) / 6, rng.uniform(0.62, 0.85), rng.uniform(0.4, 0.75))
        for k in range(6)
    ]
    _stones(canvas, stones, flicker, front=False)
    _logs(canvas, logs, flicker, front=False)
    _flames(canvas, rng)
    _logs(canvas, logs, flicker, front=True)
    _stones(canvas, stones, flicker, front=True)
    _sparks(canvas, rng)


def _flicker(canvas: Canvas, rng: random.Random) -> torch.Tensor:
    """[F, 1, 1]: how bright the fire burns, about 1."""
    p, q = rng.uniform(0, TAU), rng.uniform(0, TAU)
    return 1 + 0.10 * (canvas.time * 6.1 + p).sin() + 0.07 * (canvas.time * 9.7 + q).sin()


def _hearth(canvas: Canvas) -> tuple[torch.Tensor, torch.Tensor]:
    """[F] on the CPU: distance of the camera from the fire, and the azimuth it is seen at."""
    pose = canvas.view.pose
    ahead, aside = HEARTH - pose["z"], -pose["x"]
    return torch.hypot(ahead, aside), torch.atan2(aside, ahead)


def _clearing(canvas: Canvas, rng: random.Random, flicker: torch.Tensor) -> None:
    """Grass and trodden earth, with the pool of light on it."""
    grass = mix((0.22, 0.34, 0.16), (0.36, 0.32, 0.18), rng.random())
    earth = mix(grass, (0.40, 0.28, 0.20), 0.7)
    patches = waves(rng, 4.5, 2)
    near, far = canvas.lit(earth, 2), canvas.lit(mix(grass, (0.05, 0.1, 0.1), 0.4), 18, 70)
    ground(canvas, near, far, 14.0, lambda x, z: 0.4 + 0.6 * step(patches(x) + patches(z + 0.6 * x) - 1, 0.8))
    _pool(canvas, flicker)


def _pool(canvas: Canvas, flicker: torch.Tensor) -> None:
    """Firelight on the ground, and the ashes in the middle of it."""
    view = canvas.view
    horizon = view.size[0] / 2 + float((view.pose["pitch"].tan() * view.pose["focal"]).min())
    rows = slice(min(max(int(horizon) - 1, 0), view.size[0] - 1), view.size[0])
    down = view.dy[:, rows]
    t = canvas.eye / (-down).clamp(min=1e-3)
    x = view.dx[:, rows] * t + view.per_frame(view.pose["x"])
    z = view.dz[:, rows] * t + view.per_frame(view.pose["z"]) - HEARTH
    away = x**2 + z**2
    bright = 0.55 * torch.exp(away * -0.22) + 0.28 * torch.exp(away * -0.035)
    part = Patch(rows, slice(None), x, z, t, 1.0, t)
    edge = step(-down, 1 / view.per_frame(view.pose["focal"]))
    canvas.glow(part, bright * (flicker * edge), (1.0, 0.55, 0.20))
    canvas.blend(part, 0.85 * torch.exp(away * -1.6) * edge, (0.16, 0.09, 0.07))


def _firs(canvas: Canvas, rng: random.Random, wood: RGB) -> None:
    """A ring of firs behind the clearing, each drawn where it stands, far ones first."""
    trees = []
    for k in range(15):
        angle = math.radians(-98 + 14 * k + rng.uniform(-5, 5))
        away = rng.uniform(8.0, 19.0)
        trees.append((away, angle, rng.uniform(5.0, 8.5), rng.random()))
    for away, angle, size, hue in sorted(trees, reverse=True):
        x, z = away * math.sin(angle), HEARTH + away * math.cos(angle)
        patch = canvas.board(x, z, size * 0.27, 0.0, size)
        if patch is None:
            continue
        rise = patch.y / size
        skirt = torch.frac(rise.clamp(min=0) * 4.0 + hue)
        half = size * 0.25 * (1.02 - rise) * (1.12 - 0.42 * skirt)
        body = torch.minimum(half - patch.x.abs(), (rise - 0.08) * size)
        stem = torch.minimum(0.16 - patch.x.abs(), (0.2 - rise) * size)
        alpha = step(torch.maximum(body, stem), patch.pixel * 1.3)
        dark = canvas.lit(mix(wood, (0.0, 0.02, 0.05), 0.45 + 0.2 * hue), away * 0.7, 90)
        near = 1.1 * math.exp(-away / 9)
        warm = mix(dark, mix(wood, (0.95, 0.50, 0.20), 0.6), min(0.75, near))
        share = torch.exp(rise * -2.6) * (0.55 + 0.45 * skirt)
        canvas.blend(patch, alpha, dark, warm, share.clamp(0, 1))


def _tents(canvas: Canvas, rng: random.Random, flicker: torch.Tensor) -> None:
    """One or two tents, lit from the fire and, when it is dark, from inside."""
    count = rng.choice((1, 2, 2))
    side = rng.choice((-1, 1))
    for k in range(2):
        hue = rng.choice(((0.92, 0.42, 0.16), (0.20, 0.50, 0.62), (0.90, 0.74, 0.30), (0.62, 0.24, 0.26)))
        x, z = side * rng.uniform(2.3, 3.3), HEARTH + rng.uniform(1.8, 3.2)
        size, side = rng.uniform(1.9, 2.3), -side
        patch = canvas.board(x, z, size * 0.85, 0.0, size) if k < count else None
        if patch is None:
            continue
        rise = patch.y / size
        half = size * 0.80 * (1 - rise)
        alpha = step((half - patch.x.abs()) * 0.78, patch.pixel * 1.3)
        base = mix(canvas.lit(hue), mix(hue, EMBER, 0.3), 0.38)
        # The flank that looks towards the fire is the bright one.
        towards = (0.5 - 0.5 * math.copysign(1, -x) * patch.x / half.clamp(min=0.1)).clamp(0, 1)
        canvas.blend(patch, alpha, base, mix(base, (0.02, 0.03, 0.08), 0.6), towards)
        door = 0.36 * size * (0.82 - rise) - patch.x.abs()
        inside = mix((0.30, 0.18, 0.12), (1.0, 0.80, 0.42), 0.85 if canvas.light.lamps else 0.25)
        canvas.blend(
            patch, alpha * step(door, patch.pixel * 1.3), inside, mix(inside, (0.3, 0.1, 0.05), 0.6), rise
        )
        canvas.glow(patch, alpha * (flicker - 1).clamp(min=0), EMBER)


def _ferns(canvas: Canvas, rng: random.Random, wood: RGB) -> None:
    """Bushes of arching leaves at the edge of the light, some nearer than the fire."""
    for k in range(6):
        angle = TAU * (k + 0.5 + rng.uniform(-0.2, 0.2)) / 6
        away, size, phase = rng.uniform(2.7, 3.6), rng.uniform(0.5, 0.8), rng.uniform(0, TAU)
        x, z = away * math.sin(angle), HEARTH + away * math.cos(angle)
        patch = canvas.board(x, z, size * 1.2, 0.0, size)
        if patch is None:
            continue
        sway = 0.06 * (canvas.time * 1.3 + phase).sin()
        lean = patch.x / size - sway * patch.y
        blades = (lean * 9 / (0.45 + patch.y / size) + phase).sin().abs()
        height = size * (1 - (lean / 1.1) ** 2).clamp(min=0) * (0.55 + 0.45 * blades)
        alpha = step(height - patch.y - 0.02, patch.pixel * 1.4) * (height > 0.03)
        # The foot of the bush is an arc, as of all that is round.
        alpha = alpha * step(patch.y - 0.10 * size * lean**2, patch.pixel)
        dark = canvas.lit(mix(wood, (0, 0, 0), 0.3), 4)
        # Leaves behind the fire show us their lit side, those in front of it their dark one.
        warm = mix(dark, (0.62, 0.42, 0.14), 0.30 + 0.25 * math.cos(angle))
        canvas.blend(patch, alpha, dark, warm, blades * (patch.y / size).clamp(0, 1))


def _halo(canvas: Canvas, flicker: torch.Tensor) -> None:
    """The air round the fire glows."""
    place = (torch.tensor(value) for value in (0.0, 0.8, HEARTH))
    u, v, depth = canvas.view.project(*place)
    size = 2.0 * canvas.view.pose["focal"] / depth[:, 0]
    canvas.dot(u[:, 0], v[:, 0], size, 0.34 * flicker[:, 0, 0].cpu(), EMBER)


def _stones(canvas: Canvas, stones: list[tuple[float, float]], flicker: torch.Tensor, front: bool) -> None:
    """The half of the ring of stones that lies behind the fire or before it, frame by frame."""
    _, azimuth = _hearth(canvas)
    for angle, size in stones:
        patch = canvas.board(1.02 * math.sin(angle), HEARTH + 1.02 * math.cos(angle), size, 0.0, size * 1.3)
        if patch is None:
            continue
        behind = canvas.view.per_frame(((angle - azimuth).cos() > 0).float())
        px, py = patch.x / size, patch.y / (size * 1.15)
        round_ = 1 - (px.abs() ** 2.4 + py.abs() ** 2.4)
        alpha = step(round_ * size * 0.5, patch.pixel * 1.3) * ((1 - behind) if front else behind)
        grey = canvas.lit((0.42, 0.38, 0.38), 2)
        dark = mix(grey, (0.03, 0.03, 0.05), 0.62)
        warm = mix(grey, (1.0, 0.55, 0.22), 0.62)
        inner = -px * canvas.view.per_frame((angle - azimuth).sin())  # 1 on the side that faces the fire
        facing = 0.45 + 0.45 * inner + 0.25 * (2 * behind - 1) + 0.2 * (py - 0.5)
        canvas.blend(patch, alpha, dark, warm, (facing * flicker).clamp(0, 1))


def _logs(canvas: Canvas, logs: list[tuple[float, float, float]], flicker: torch.Tensor, front: bool) -> None:
    """Logs that lean together over the embers; those before the flames are dark with glowing cracks."""
    patch = canvas.board(0.0, HEARTH, 1.0, 0.0, 1.0)
    if patch is None:
        return
    _, azimuth = _hearth(canvas)
    for index, (angle, foot, top) in enumerate(logs):
        behind = canvas.view.per_frame(((angle - azimuth).cos() > -0.2).float())
        across = canvas.view.per_frame((angle - azimuth).sin())
        x0, x1, y0 = across * foot, across * -0.16, 0.07
        # Distance to the segment from the foot to the top.
        along = ((patch.x - x0) * (x1 - x0) + (patch.y - y0) * (top - y0)) / (
            (x1 - x0) ** 2 + (top - y0) ** 2
        )
        along = along.clamp(0, 1)
        gap = torch.hypot(patch.x - x0 - along * (x1 - x0), patch.y - y0 - along * (top - y0))
        alpha = step(0.105 - gap, patch.pixel * 1.3) * ((1 - behind) if front else behind)
        bark = mix(canvas.lit((0.30, 0.19, 0.13), 2), (0.10, 0.05, 0.04), 0.5)
        pulse = (along * 9 - canvas.time * 0.9 + index * 2.1).sin()
        hot = (0.15 + 0.75 * along + 0.30 * pulse) * flicker
        canvas.blend(patch, alpha, bark, (1.0, 0.40, 0.10), hot.clamp(0, 1))


def _flames(canvas: Canvas, rng: random.Random) -> None:
    """Tongues that lick upwards; their hottest parts are painted last."""
    tongues = [
        (rng.uniform(0, TAU), 0.34 * (k > 0) * rng.uniform(0.6, 1.0), rng.uniform(0.85, 1.45) if k else 1.85,
         rng.uniform(0.24, 0.34) if k else 0.46, rng.uniform(0, TAU), rng.uniform(4.5, 7.0))
        for k in range(6)
    ]  # fmt: skip
    patch = canvas.board(0.0, HEARTH, 1.15, 0.0, 2.5)
    if patch is None:
        return
    _, azimuth = _hearth(canvas)
    time = canvas.time
    heat = torch.zeros_like(patch.x)
    y = (patch.y - 0.08).clamp(min=0)
    lick = 0.10 * (y * 4.2 - time * 7.3).sin() + 0.06 * (y * 8.1 - time * 11.0 + 1.3).sin()
    for angle, away, high, wide, phase, rate in tongues:
        top = high * (1 + 0.16 * (time * rate + phase).sin() + 0.10 * (time * rate * 0.47 + 2 * phase).sin())
        rise = y / top
        middle = away * canvas.view.per_frame((angle - azimuth).sin()) * (1 - 0.55 * rise)
        sway = lick + 0.13 * rise * (time * rate * 0.6 + phase - y * 2.5).sin()
        # A drop: round at the foot, thin at the tip.
        half = wide * (1 - rise).clamp(min=0) ** 0.75 * (0.62 + 1.5 * rise * (1 - rise))
        spread = 1 - (patch.x - middle - sway * (0.2 + rise)).abs() / half.clamp(min=1e-3)
        heat = torch.maximum(heat, spread.clamp(min=0) * (1.15 - 0.75 * rise))
    for threshold, colour in RAMP:
        canvas.blend(patch, step(heat - threshold, 0.13) * 0.93, colour)


def _sparks(canvas: Canvas, rng: random.Random) -> None:
    """Sparks carried up from the fire, fading on their way."""
    view, time = canvas.view, canvas.time[:, 0, 0].cpu()
    for _ in range(16):
        start, speed, phase = rng.uniform(0, 3.6), rng.uniform(0.8, 1.4), rng.uniform(0, TAU)
        drift, far, size = rng.uniform(-0.35, 0.35), rng.uniform(-0.4, 0.4), rng.uniform(0.050, 0.075)
        y = torch.remainder(start + speed * time, 3.6)
        x = drift * (0.4 + y) + 0.16 * (y * 2.2 + phase).sin()
        place = x[:, None], 0.5 + y[:, None], torch.tensor(HEARTH + far)
        u, v, depth = view.project(*place)
        radius = size * view.pose["focal"] / depth[:, 0].clamp(min=0.5)
        canvas.dot(u[:, 0], v[:, 0], radius, (1 - y / 3.6) ** 0.7 * (y * 5).clamp(max=1), (1.0, 0.68, 0.28))
