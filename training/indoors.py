"""Rain on a window: lights out of focus behind drops on the glass, and a sill with something dear on it."""

from __future__ import annotations

import math
import random

import torch

from training.paint import RGB, TAU, Canvas, Patch, chance, mix, step
from training.props import round_body, waves
from training.roadside import LAMP

SILLS = ("cup", "plant", "cat")  # what stands on the sill
GLASS, NEAR = 1.6, 1.28  # depths of the pane and of the thing on the sill
SILL, TOP = 1.10, 2.6  # heights of the opening


def window(canvas: Canvas, rng: random.Random) -> None:
    """Outside, glass, frame, sill, and what stands there."""
    kind = rng.choice(SILLS)  # the first draw, so that captions can repeat it
    city = rng.random() < 0.5
    _outside(canvas, rng, city)
    _bokeh(canvas, rng, city)
    canvas.focus()
    patch = _pane(canvas)
    for gap, size in ((0.15, 0.030), (0.27, 0.054)):
        _beads(canvas, patch, gap, size, rng.random() * 9)
    for gap, size in ((0.36, 0.036), (0.55, 0.050)):
        _runners(canvas, patch, gap, size, rng.random() * 9)
    _frame(canvas, rng)
    x = rng.choice((-1, 1)) * rng.uniform(0.22, 0.46)
    {"cup": _cup, "plant": _plant, "cat": _cat}[kind](canvas, rng, x)


def _pane(canvas: Canvas) -> Patch | None:
    """The glass, without the rows below the sill, which will be painted over."""
    patch, view = canvas.wall(GLASS, TOP), canvas.view
    if patch is None:
        return None
    _, v, _ = view.project(view.pose["x"][:, None], torch.tensor(SILL), torch.tensor(GLASS))
    count = min(view.size[0], int(v.max()) + 12) - patch.rows.start
    if count <= 0:
        return None
    rows = slice(patch.rows.start, patch.rows.start + count)
    return Patch(rows, patch.columns, patch.x[:, :count], patch.y[:, :count], patch.pixel, 1.0, patch.turn)


def _room(canvas: Canvas, colour: RGB) -> RGB:
    """A surface inside: darker than outside by day, warm from a lamp when lamps are on."""
    shade = mix(canvas.lit(colour), (0.05, 0.05, 0.07), 0.22)
    if not canvas.light.lamps:
        return shade
    warm = (colour[0] * LAMP[0], colour[1] * LAMP[1], colour[2] * LAMP[2])
    return mix(shade, warm, 0.30 if canvas.light.dark else 0.34)


def _outside(canvas: Canvas, rng: random.Random, city: bool) -> None:
    """Sky and two rows of houses or trees, all out of focus."""
    view, light = canvas.view, canvas.light
    rise = view.dy * torch.rsqrt(view.dx**2 + view.dz**2)
    low, high = (rise * 3.0 + 0.5).clamp(0, 1), (rise * 1.6).clamp(0, 1)
    for c in range(3):
        plane = low * (light.middle[c] - light.horizon[c]) + light.horizon[c]
        canvas.img[c] = plane + high * (light.zenith[c] - light.middle[c])
    near = mix((0.36, 0.40, 0.48), (0.46, 0.38, 0.34), rng.random()) if city else (0.20, 0.42, 0.16)
    for z, top, gap in ((44.0, 11.0, 9.0), (20.0, 4.6, 5.5)):
        shape, salt = waves(rng, gap * 2, 2), rng.random() * 9
        patch = canvas.wall(z, top * 1.2)
        if patch is None:
            continue
        if city:
            cell = torch.floor(patch.x / gap)
            side = (0.5 - (patch.x / gap - cell - 0.5).abs()) * gap
            height = top * (0.35 + 0.65 * chance(cell, salt) * step(side - 0.05 * z, 0.07 * z))
        else:
            height = top * (0.30 + 0.62 * shape(patch.x))
        alpha = step(height - patch.y, 0.09 * z)
        pair = canvas.lit(near, z, 70), canvas.lit(mix(near, (0.05, 0.08, 0.08), 0.55), z, 90)
        canvas.blend(patch, alpha, *pair, (0.8 - 0.9 * patch.y / top).clamp(0, 1))


def _bokeh(canvas: Canvas, rng: random.Random, city: bool) -> None:
    """Discs of light out of focus: lamps and traffic, or gaps of sky and flowers among leaves."""
    view, light = canvas.view, canvas.light
    time = canvas.time[:, 0, 0].cpu()
    lamps: tuple[RGB, ...] = (
        (1.0, 0.74, 0.36),
        (1.0, 0.86, 0.58),
        (1.0, 0.36, 0.26),
        (0.42, 0.72, 1.0),
        (0.45, 0.95, 0.62),
    )
    petals: tuple[RGB, ...] = ((0.95, 0.52, 0.60), (0.98, 0.86, 0.42), (0.80, 0.92, 0.60), (0.98, 0.97, 0.94))
    for index in range(32):
        z, moving = rng.uniform(11, 40), city and index % 5 == 0
        x, y = rng.uniform(-0.95, 0.95) * z, 1.5 + rng.uniform(-0.24, 0.20) * z
        tint, size = rng.choice(lamps if city else petals), rng.uniform(0.026, 0.048) * z
        pace, phase, strength = (
            rng.choice((-1, 1)) * rng.uniform(0.05, 0.10) * z,
            rng.uniform(0, TAU),
            rng.uniform(0.4, 0.8),
        )
        if moving:
            y, tint = 1.5 - 0.19 * z, lamps[1] if pace > 0 else lamps[2]
        across = x + pace * (time - 2.5) if moving else x + 0.003 * z * (time * 0.9 + phase).sin()
        u, v, depth = view.project(across[:, None], torch.tensor(y), torch.tensor(z))
        radius = size * view.pose["focal"] / depth[:, 0].clamp(min=1)
        if not light.lamps:  # by day the discs are pale and take the colour of the light
            tint = mix(canvas.lit(tint), light.horizon, 0.45 if city else 0.15)
            strength *= 0.75
        elif not city:
            tint = mix(tint, LAMP, 0.6)
        twinkle = strength * (0.86 + 0.14 * (time * 1.7 + phase).sin())
        canvas.dot(u[:, 0], v[:, 0], radius, twinkle, tint, soft=False)


def _water(canvas: Canvas) -> tuple[RGB, RGB]:
    """Colours of a drop, which shows the world upside down: bright below, dark above."""
    light = canvas.light
    bright = mix(light.horizon, (1.0, 1.0, 1.0), 0.25 if not light.dark else 0.12)
    return bright, mix(mix(light.middle, light.zenith, 0.5), (0.05, 0.07, 0.10), 0.5)


def _beads(canvas: Canvas, patch: Patch | None, gap: float, size: float, salt: float) -> None:
    """Drops that sit, one to a cell."""
    if patch is None:
        return
    column, row = torch.floor(patch.x / gap), torch.floor(patch.y / gap)
    dice, other = chance(column * 3.0 + row * 7.0, salt), chance(column * 5.0 - row * 2.0, salt + 3.7)
    u = patch.x - (column + 0.3 + 0.4 * dice) * gap
    v = patch.y - (row + 0.3 + 0.4 * other) * gap
    radius = size * (0.5 + 0.5 * other) * (0.94 + 0.06 * (canvas.time * 0.8 + dice * 40).sin())
    _drop(canvas, patch, u, v, radius, (torch.frac(dice * 7.3 + other * 5.1) < 0.62).float())


def _drop(
    canvas: Canvas, patch: Patch, u: torch.Tensor, v: torch.Tensor, radius: torch.Tensor, on: torch.Tensor
) -> None:
    """A drop round (u, v) = 0 where `on` is 1, with a glint."""
    far = (u * u + v * v).sqrt()
    alpha = step(radius - far, patch.pixel * 1.3) * on
    bright, dark = _water(canvas)
    canvas.blend(patch, alpha * 0.85, bright, dark, (0.5 + 0.62 * v / radius).clamp(0, 1))
    spot = ((u + 0.32 * radius) ** 2 + (v - 0.36 * radius) ** 2).sqrt()
    canvas.blend(
        patch, alpha * step(0.30 * radius - spot, patch.pixel * 1.5) * 0.8, mix(bright, (1, 1, 1), 0.6)
    )


def _runners(canvas: Canvas, patch: Patch | None, gap: float, size: float, salt: float) -> None:
    """Drops that run down in fits and starts, each in its lane, and leave a trail that dries."""
    if patch is None:
        return
    lane, time = torch.floor(patch.x / gap), canvas.time
    dice, other = chance(lane, salt), chance(lane, salt + 3.7)
    pace, reach = 0.22 + 0.24 * dice, 2.1
    way = pace * time + 0.09 * (time * (1.4 + dice) + other * 30).sin() + reach * other
    head = TOP + 0.1 - torch.remainder(way, reach)
    above = patch.y - head
    u = patch.x - (lane + 0.3 + 0.4 * other) * gap - 0.018 * (patch.y * 8 + lane * 2).sin()
    on = (torch.frac(dice * 7.3 + other * 5.1) < 0.7).float()
    bright, dark = _water(canvas)
    dry = torch.exp(above.clamp(min=0) * -1.7)
    trail = step(0.55 * size * dry - u.abs(), patch.pixel * 1.5) * step(above, 0.02) * on
    canvas.blend(patch, trail * dry * 0.7, bright, dark, (0.35 + 0.5 * u / size).clamp(0, 1))
    _drop(canvas, patch, u, above * 0.75, torch.full_like(u, size), on)


def _frame(canvas: Canvas, rng: random.Random) -> None:
    """Bars of the window, the wall round it and the sill, a board that comes towards the camera."""
    paint = rng.choice(((0.95, 0.93, 0.88), (0.60, 0.42, 0.27), (0.42, 0.52, 0.50)))
    gap, shift, bar = rng.uniform(1.25, 1.7), rng.random(), rng.uniform(0.038, 0.05)
    cross = rng.choice((1.95, 2.05, 9.0))
    pale, dark = _room(canvas, paint), _room(canvas, mix(paint, (0, 0, 0), 0.45))
    patch = canvas.wall(GLASS - 0.03, 9.0)
    if patch is not None:
        across = (torch.frac(patch.x / gap + shift + 1e3) - 0.5) * gap
        upright = bar - across.abs()
        rail = torch.maximum(bar * 0.8 - (patch.y - cross).abs(), SILL + 0.07 - patch.y)
        wood = torch.maximum(torch.maximum(upright, rail), patch.y - TOP)
        canvas.blend(
            patch,
            step(wood, patch.pixel),
            pale,
            dark,
            step(upright, 0.02) * step(across - 0.25 * bar, 0.02) * 0.8,
        )
    view = canvas.view
    t = (canvas.eye - SILL).clamp(min=1e-3) / (-view.dy).clamp(min=1e-3)
    z = view.dz * t + view.per_frame(view.pose["z"])
    edge = t * t / ((canvas.eye - SILL).clamp(min=1e-3) * view.per_frame(view.pose["focal"]))
    edge = edge.clamp(max=0.2)  # at the horizon it has no bound, and would leave a line there
    board = Patch(slice(None), slice(None), z, z, edge, 1.0, canvas.eye)
    alpha = step(GLASS - 0.03 - z, edge) * (view.dy < 0)
    top, front = _room(canvas, mix(paint, (1, 1, 1), 0.12)), _room(canvas, mix(paint, (0, 0, 0), 0.25))
    canvas.blend(board, alpha, mix(top, canvas.light.horizon, 0.18), front, ((1.5 - z) * 1.3).clamp(0, 1))


def _cup(canvas: Canvas, rng: random.Random, x: float) -> None:
    """A cup with a handle, a stripe, and steam."""
    tint = rng.choice(((0.85, 0.25, 0.20), (0.95, 0.93, 0.88), (0.20, 0.45, 0.60), (0.95, 0.75, 0.30)))
    phase, side = rng.uniform(0, TAU), rng.choice((-1, 1))
    pale, dark = _room(canvas, tint), _room(canvas, mix(tint, (0, 0, 0), 0.55))
    low, high = SILL, SILL + 0.19
    patch = canvas.board(x, NEAR, 0.3, low, high + 0.45)
    if patch is not None:
        ring = ((patch.x - side * 0.10) ** 2 + (patch.y - low - 0.10) ** 2).sqrt()
        canvas.blend(patch, step(0.013 - (ring - 0.055).abs(), patch.pixel), mix(pale, dark, 0.5))
        up = (patch.y - high).clamp(min=0)
        for lane in (-0.035, 0.04):
            bend = lane + 0.035 * (up * 13 - canvas.time * 1.8 + phase + lane * 50).sin() * (0.3 + up * 2.5)
            wisp = torch.exp(((patch.x - bend) / (0.018 + 0.07 * up)) ** 2 * -1) * step(patch.y - high, 0.03)
            canvas.glow(patch, wisp * (0.5 - up * 1.3).clamp(0, 1), (0.9, 0.9, 0.92))
    stripe = _room(canvas, mix(tint, (1, 1, 1), 0.7) if tint[2] < 0.8 else (0.25, 0.4, 0.6))

    def bands(y: torch.Tensor, normal: torch.Tensor, pixel: torch.Tensor) -> tuple[torch.Tensor, RGB]:
        return step(0.018 - (y - low - 0.115).abs(), pixel), stripe

    round_body(
        canvas,
        x,
        NEAR,
        low,
        high,
        lambda y: 0.088 + 0.07 * (y - low),
        (pale, dark),
        math.pi - 0.9,
        bands,
        0.2,
    )


def _plant(canvas: Canvas, rng: random.Random, x: float) -> None:
    """Broad leaves on bent stems, and a pot."""
    clay = rng.choice(((0.78, 0.42, 0.26), (0.90, 0.88, 0.84), (0.25, 0.42, 0.55)))
    leaf = rng.choice(((0.24, 0.52, 0.22), (0.36, 0.58, 0.24), (0.18, 0.44, 0.32)))
    count = rng.randint(7, 9)
    turns = [
        (-1.15 + 2.3 * i / (count - 1) + rng.uniform(-0.12, 0.12), rng.uniform(0.20, 0.36))
        for i in range(count)
    ]
    patch = canvas.board(x, NEAR, 0.5, SILL, SILL + 0.62)
    for index, (turn, long) in enumerate(turns):
        if patch is None:
            continue
        sway = turn + 0.05 * (canvas.time * 1.0 + index * 1.3).sin()
        u, v = patch.x, patch.y - SILL - 0.16
        along, across = u * sway.sin() + v * sway.cos(), u * sway.cos() - v * sway.sin()
        across = across - 0.35 * turn * along**2 / long  # leaves hang over
        s = along / long
        wide = long * 0.24 * (TAU / 2 * s.clamp(0, 1) ** 1.4).sin()
        alpha = step(wide - across.abs(), patch.pixel * 1.3) * (s > 0) * (s < 1)
        tone = mix(leaf, (0.02, 0.06, 0.05), 0.35 if index % 2 else 0.0)
        pair = _room(canvas, mix(tone, (0.8, 0.9, 0.5), 0.15)), _room(canvas, mix(tone, (0, 0, 0), 0.4))
        canvas.blend(patch, alpha, *pair, (0.5 + across / wide.clamp(min=0.01)).clamp(0, 1))
    pair = _room(canvas, clay), _room(canvas, mix(clay, (0, 0, 0), 0.5))
    round_body(canvas, x, NEAR, SILL, SILL + 0.17, lambda y: 0.08 + 0.25 * (y - SILL), pair, math.pi - 0.9)


def _cat(canvas: Canvas, rng: random.Random, x: float) -> None:
    """A cat seen from behind as it watches the rain: its tail swings, its head turns, its ears twitch."""
    fur = rng.choice(((0.16, 0.15, 0.17), (0.84, 0.50, 0.22), (0.55, 0.55, 0.58), (0.93, 0.90, 0.86)))
    size, side, phase = rng.uniform(0.44, 0.52), rng.choice((-1, 1)), rng.uniform(0, TAU)
    patch = canvas.board(x, NEAR, size * 0.85, SILL, SILL + size)
    if patch is None:
        return
    u, v, edge = patch.x / size * side, (patch.y - SILL) / size, patch.pixel / size * 1.2
    turn = 0.035 * (canvas.time * 0.7 + phase).sin()
    swing = 0.10 + 0.09 * (canvas.time * 1.3 + phase).sin()
    lift = 0.06 + swing * ((u - 0.15).clamp(min=0) / 0.5) ** 2 * 2.2
    tail = torch.minimum(0.05 - (v - lift).abs() * 0.85, torch.minimum(u - 0.1, 0.66 - u))
    body = 1 - ((u / (0.27 - 0.09 * v)) ** 2 + ((v - 0.26) / 0.40) ** 2).sqrt()
    head = 1 - (((u - turn) / 0.19) ** 2 + ((v - 0.70) / 0.155) ** 2).sqrt()
    away = (u - turn).abs()
    ears = torch.minimum(0.93 - v - (away - 0.11).abs() * 1.9, torch.minimum(v - 0.72, 0.2 - away))
    shape = torch.maximum(torch.maximum(body * 0.22, head * 0.16), torch.maximum(ears * 0.5, tail))
    pale, dark = _room(canvas, fur), _room(canvas, mix(fur, (0, 0, 0), 0.45))
    inner = torch.maximum(body * 0.22, head * 0.16)
    canvas.blend(patch, step(shape, edge), pale, dark, (0.25 + inner * 4.5).clamp(0, 1))
    # Light from outside runs along the outline.
    rim = step(shape, edge) * step(0.022 - shape, 0.03)
    canvas.blend(patch, rim * 0.55, mix(pale, canvas.light.horizon, 0.6))
