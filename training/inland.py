"""Worlds on solid ground: desert dunes, a forest, a product on a table."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch

from training.paint import RGB, TAU, Canvas, Patch, chance, ground, mix, ridge, sky, step
from training.props import crowns, round_body, trunks, waves

SPIN, SWEEP = 0.5, 0.63  # radians a second: of the turntable, and of the light over it
KINDS = ("bottle", "vase", "ball", "jar")  # of products
LAMP: RGB = (1.0, 0.80, 0.45)


def desert(canvas: Canvas, rng: random.Random) -> None:
    """Dune behind dune, each a clean crest with a lit and a shaded flank."""
    lit = canvas.lit
    sky(canvas, rng)
    sand = mix((0.93, 0.70, 0.42), (0.88, 0.56, 0.36), rng.random())
    shadow = mix(sand, (0.34, 0.16, 0.18), 0.62)
    if rng.random() < 0.6:
        mesa = waves(rng, 260, 2)
        ridge(
            canvas,
            320,
            46,
            lambda x: 44 * ((mesa(x) - 0.45) * 3.2).clamp(0, 1) * (0.8 + 0.2 * mesa(x * 2)),
            lit((0.62, 0.40, 0.36), 190),
            lit((0.66, 0.44, 0.38), 260),
        )
    cactus = rng.random() < 0.6
    for z, base, tall in (
        (240, 0, 15),
        (130, -2, 10.5),
        (75, -3, 6.5),
        (44, -3, 4.2),
        (26, -3.2, 3.0),
        (15, -3.3, 2.2),
    ):
        if z == 44:
            canvas.focus()
        shape, inner = waves(rng, z * 0.85, 2, 0.12), waves(rng, z * 0.5, 2)
        skew = rng.uniform(0.5, 1.1) * rng.choice((-1, 1))

        def shade(x, y, height, inner=inner, tall=tall, skew=skew, z=z) -> torch.Tensor:
            flank = (inner(x + skew * 2.2 * (height - y)) - 0.5) * 5
            return 0.42 + 0.5 * flank.clamp(-1, 1) + 0.30 * (height - y) / tall

        ridge(
            canvas,
            float(z),
            base + tall + 0.5,
            lambda x, s=shape, b=base, t=tall: b + t * s(x),
            lit(sand, z, 230),
            lit(shadow, z, 230),
            shade,
        )
        if cactus and z in (44, 26):
            _cacti(canvas, z - 1.0, base + tall * 0.3, rng.random() * 9)


def _cacti(canvas: Canvas, z: float, foot: float, salt: float) -> None:
    """Rounded stems with one bent arm, a few across the plane."""
    patch = canvas.wall(z, foot + 5)
    if patch is None:
        return
    gap = 16.0
    cell = torch.floor(patch.x / gap)
    x = patch.x - (cell + 0.3 + 0.4 * chance(cell, salt)) * gap
    y = patch.y - foot
    x = x * torch.where(chance(cell, salt + 1) > 0.5, 1.0, -1.0)
    stem = 0.34 - torch.sqrt(x**2 + (y - y.clamp(-2.0, 3.6)) ** 2)
    arm = 0.24 - torch.sqrt((x - 1.0) ** 2 + (y - y.clamp(1.5, 2.6)) ** 2)
    elbow = 0.24 - torch.sqrt((x - x.clamp(0, 1.0)) ** 2 + (y - 1.5) ** 2)
    body = torch.maximum(torch.maximum(stem, arm), elbow)
    alpha = step(body, patch.pixel) * (chance(cell, salt + 3) < 0.55)
    canvas.blend(
        patch,
        alpha,
        canvas.lit((0.22, 0.36, 0.22), z),
        canvas.lit((0.10, 0.16, 0.14), z),
        (x / 0.5 + 0.5).clamp(0, 1),
    )


def forest(canvas: Canvas, rng: random.Random) -> None:
    """Stems in mist under an autumn canopy, with leaves spiralling down."""
    lit, light = canvas.lit, canvas.light
    leaf = rng.choice(((0.90, 0.46, 0.12), (0.86, 0.32, 0.12), (0.92, 0.62, 0.16)))
    floor, patches = mix((0.60, 0.38, 0.18), (0.44, 0.40, 0.18), 0.6 * rng.random()), waves(rng, 5.0, 2)
    bright = mix(mix(light.haze, light.horizon, 0.5), lit(mix(leaf, (1.0, 0.85, 0.6), 0.4)), 0.42)
    _glade(canvas, rng, bright)

    def moss(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return 0.45 + 0.55 * step(patches(x) + patches(z + 0.5 * x) - 1, 0.7)

    ground(canvas, lit(mix(floor, (0, 0, 0), 0.25)), bright, 24, moss)
    far, hazy = waves(rng, 22, 2), mix(lit(leaf), bright, 0.62)
    ridge(canvas, 75, 40, lambda x: 13 + 14 * far(x), mix(hazy, bright, 0.25), mix(hazy, bright, 0.75))
    bark = mix((0.30, 0.20, 0.15), (0.24, 0.22, 0.22), rng.random())
    for z, gap in ((36.0, 7.4), (20.0, 6.0), (12.0, 5.2), (8.0, 5.0)):
        if z == 12.0:
            canvas.focus()
        salt, top, tone = rng.random() * 9, 16.0 + z * 0.8, lit(bark, z, 40)
        trunks(canvas, z, gap, 0.26, top, mix(tone, light.sun, 0.10), mix(tone, (0, 0, 0), 0.35), salt)
        if z > 10:
            heads = lit(leaf, z, 75), lit(mix(leaf, (0.1, 0.12, 0.05), 0.5), z, 75)
            crowns(canvas, z, gap * 0.62, 2.3 + z * 0.2, top, *heads, salt)
    if light.glow:
        _shafts(canvas, rng)
    _leaves(canvas, rng, leaf)


def _glade(canvas: Canvas, rng: random.Random, bright: RGB) -> None:
    """What little of the sky shows between the crowns: a gradient and the halo of the sun."""
    view, light, azimuth = canvas.view, canvas.light, rng.uniform(-0.3, 0.3)
    rise = view.dy.clamp(0, 0.7) / 0.7
    for c in range(3):
        canvas.img[c] = rise * (light.middle[c] - bright[c]) + bright[c]
    away = (view.dx - azimuth) ** 2 + (view.dy - 0.22) ** 2
    full = Patch(slice(None), slice(None), away, away, away, 1.0, away)
    canvas.glow(full, torch.exp(away * -9) * light.glow, light.sun)


def _shafts(canvas: Canvas, rng: random.Random) -> None:
    """Slanting bands of light between the stems."""
    skew, phase = rng.uniform(0.4, 0.7) * rng.choice((-1, 1)), rng.uniform(0, TAU)
    patch = canvas.wall(16.0, 32.0)
    if patch is None:
        return
    x = patch.x + skew * patch.y
    band = (0.5 + 0.3 * (x * 0.55 + phase).sin() + 0.3 * (x * 1.0 + phase * 2).sin() - 0.25).clamp(0, 1)
    fade = (patch.y * 0.14 + 0.1).clamp(0, 1)
    strength = 0.55 * canvas.light.glow
    canvas.glow(patch, band * fade * strength, canvas.light.sun)


def _leaves(canvas: Canvas, rng: random.Random, leaf: RGB) -> None:
    """Large leaves that fall in wide spirals; each falls for as long as it takes and starts again above."""
    view, time = canvas.view, canvas.time[:, 0, 0].cpu()
    if canvas.style == "timelapse":
        time = time / 9
    for index in range(13):
        z, x = rng.uniform(3.6, 7.5), (index - 6) * 0.7 + rng.uniform(-0.4, 0.4)
        phase, turns, fall = (
            rng.uniform(0, TAU),
            rng.choice((-1, 1)) * rng.uniform(1.7, 2.3),
            rng.uniform(0.45, 0.7),
        )
        start, wide = rng.uniform(0, 5.0), rng.uniform(0.4, 0.65)
        tint = mix(
            leaf, rng.choice(((1.0, 0.85, 0.25), (0.85, 0.20, 0.08), (0.98, 0.55, 0.12))), rng.random() * 0.7
        )
        half, spin = rng.uniform(0.20, 0.27), time * turns + phase
        y = torch.remainder(start - fall * time, 5.0)
        across, ahead = x + wide * spin.sin() + 0.15 * time, z + wide * spin.cos()
        u, v, depth = view.project(across[:, None], y[:, None], ahead[:, None])
        if float(depth.min()) < 0.5:
            continue
        size = half * view.pose["focal"] / depth[:, 0]
        # It leans into the curve and tumbles once a turn: the way a leaf slides on the air.
        _leaf(
            canvas,
            u[:, 0],
            v[:, 0],
            size,
            0.6 * spin.cos() + phase,
            0.30 + 0.34 * (spin * 0.5).sin() ** 2,
            tint,
        )


def _leaf(
    canvas: Canvas, u: torch.Tensor, v: torch.Tensor, size: torch.Tensor, lean: torch.Tensor,
    flat: torch.Tensor, colour: RGB,
) -> None:  # fmt: skip
    """A pointed leaf at pixel (u, v), half as long as `size` pixels and `flat` times as wide, each [F]."""
    window = canvas._window(torch.stack([u - size, u + size], 1), torch.stack([v - size, v + size], 1))
    if window is None:
        return
    rows, columns = window
    view, device = canvas.view, canvas.view.device
    lean, flat, size = (view.per_frame(value) for value in (lean, flat, size))
    du = (torch.arange(columns.start, columns.stop, device=device) + 0.5 - view.per_frame(u)) / size
    dv = (torch.arange(rows.start, rows.stop, device=device)[:, None] + 0.5 - view.per_frame(v)) / size
    along, across = du * lean.cos() + dv * lean.sin(), dv * lean.cos() - du * lean.sin()
    inside = flat * (1 - along**2) - across.abs()
    patch = Patch(rows, columns, along, across, size, 1.0, lean)
    pale, dark = (
        canvas.lit(mix(colour, (1, 1, 1), 0.12), 2.0),
        canvas.lit(mix(colour, (0.2, 0.05, 0.0), 0.4), 2.0),
    )
    canvas.blend(patch, step(inside, 1.3 / size), pale, dark, step(across, 1.5 / size))


def product(canvas: Canvas, rng: random.Random) -> None:
    """One object on a table before soft backdrop panels, lit from the side as in a studio."""
    kind = rng.choice(KINDS)  # the first draw, so that captions can repeat it
    light, lit = canvas.light, canvas.lit
    night = light.dark
    backdrop = mix(light.middle, light.horizon, 0.4) if not night else (0.07, 0.10, 0.22)
    canvas.img[:] = torch.tensor(backdrop, device=canvas.view.device)[:, None, None, None]
    side = rng.choice((-1, 1))
    hue = rng.choice(
        (
            (0.86, 0.22, 0.20),
            (0.14, 0.42, 0.66),
            (0.16, 0.52, 0.40),
            (0.94, 0.70, 0.20),
            (0.55, 0.30, 0.60),
            (0.92, 0.90, 0.86),
        )
    )
    folds = waves(rng, 2.6, 2)
    patch = canvas.wall(5.5, 30.0)
    if patch is not None:
        panels = folds(patch.x)
        sweep = side * -1.5 * (canvas.time * SWEEP).cos()
        warm = torch.exp(((patch.x - sweep) ** 2 + (patch.y - 1.6) ** 2) * -0.35)
        share = step(panels - 0.5, 0.30) * 0.6 + 0.4 * step(patch.y.sin(), 0.8)
        canvas.blend(patch, torch.ones_like(share), backdrop, mix(backdrop, light.zenith, 0.55), share)
        strength = 0.75 if night else 0.5 if light.lamps else 0.30
        canvas.glow(patch, warm * strength, LAMP if light.lamps else light.sun)
    wood = rng.choice(((0.62, 0.44, 0.30), (0.80, 0.76, 0.70), (0.42, 0.30, 0.24)))
    lamp = LAMP if night else light.sun
    shine = 2.0 if night else 1.0
    grain = waves(rng, 0.9, 2)
    top = lit(wood) if not night else mix(mix(wood, (0.02, 0.02, 0.05), 0.5), LAMP, 0.05)
    ground(
        canvas, top, mix(top, backdrop, 0.55), 4.0, lambda x, z: 0.62 + 0.38 * step(grain(x) - 0.5, 0.5), 3.7
    )
    bright = mix(lit(hue), hue, 0.15)
    bright = (min(1.0, bright[0] * shine), min(1.0, bright[1] * shine), min(1.0, bright[2] * shine))
    canvas.focus()
    _object(canvas, rng, kind, bright, side, lamp)


def _object(canvas: Canvas, rng: random.Random, kind: str, colour: RGB, side: int, lamp: RGB) -> None:
    """A bottle, vase, ball or jar that turns on a turntable under a light that sweeps over it."""
    z = 2.05
    # The azimuth of the light as the object sees it: from one side over the front to the other.
    sun = math.pi - side * 1.0 * (canvas.time * SWEEP).cos()
    high = {"bottle": 1.0, "vase": 0.85, "ball": 0.64, "jar": 0.6}[kind]
    wide = {"bottle": 0.17, "vase": 0.24, "ball": 0.32, "jar": 0.26}[kind]
    marks = ((0.97, 0.95, 0.90), (0.10, 0.12, 0.16), (0.95, 0.80, 0.35))
    label, stripe, way = rng.choice(marks), rng.uniform(0, TAU), rng.choice((-1, 1))
    label = canvas.lit(label) if lamp != LAMP else mix(label, (0.4, 0.25, 0.1), 0.3)
    turned = stripe + way * SPIN * canvas.time
    _turntable(canvas, z, wide, sun, turned, mix(colour, (0.85, 0.83, 0.80), 0.6))

    def bands(y: torch.Tensor, normal: torch.Tensor, pixel: torch.Tensor) -> tuple[torch.Tensor, RGB]:
        height = step(0.15 * high - (y - 0.36 * high).abs(), pixel)
        patchy = step(((normal + turned) * 3).sin() * 0.3 + 0.05, 0.12)
        return height * (0.12 + 0.88 * patchy), label

    radius, dark = _silhouette(kind, high, wide), mix(colour, (0.02, 0.02, 0.06), 0.72)
    round_body(canvas, 0, z, 0.0, high, radius, (colour, dark), sun, bands, 0.55)
    if kind in ("bottle", "jar"):
        cap = mix(dark, (0.1, 0.1, 0.1), 0.4)
        size = wide * (0.40 if kind == "bottle" else 0.9)
        round_body(canvas, 0, z, high, high + 0.10, lambda y: y * 0 + size, (mix(cap, lamp, 0.25), cap), sun)


def _silhouette(kind: str, high: float, wide: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """The radius of the object at each height."""

    def radius(y: torch.Tensor) -> torch.Tensor:
        s = (y / high).clamp(0, 1)
        if kind == "bottle":
            neck = ((s - 0.58) * 5).clamp(0, 1)
            return wide * (1 - 0.66 * neck**2 * (3 - 2 * neck))
        if kind == "vase":
            return wide * (0.64 + 0.36 * (s * 4.4 + 0.1).sin())
        if kind == "ball":
            return wide * (1 - (2 * s - 1) ** 2).clamp(min=0).sqrt()
        return wide * (1 - (s * 2 - 1).abs() ** 8 * 0.25)

    return radius


def _turntable(
    canvas: Canvas, z: float, wide: float, sun: torch.Tensor, turned: torch.Tensor, colour: RGB
) -> None:
    """The disc on which the object turns, its marks, and the shadow that the light throws across it."""
    view, ground = canvas.view, canvas.lit(colour)
    t = canvas.eye / (-view.dy).clamp(min=1e-3)
    gx = view.dx * t + view.per_frame(view.pose["x"])
    gz = view.dz * t + view.per_frame(view.pose["z"]) - z
    full = Patch(slice(None), slice(None), gx, gz, t, (view.dy < 0).float(), t)
    away, pixel = (gx**2 + gz**2).sqrt(), 3 * t / view.per_frame(view.pose["focal"])
    disc = step(0.52 - away, pixel)
    sector = step((torch.atan2(gx, gz) * 4 + turned * 4).sin() * 0.4, 0.3)
    rim = step(away - 0.40, pixel)
    canvas.blend(full, disc, ground, mix(ground, (0.02, 0.02, 0.04), 0.45), rim * sector)
    along, across = -gx * sun.sin() - gz * sun.cos(), gx * sun.cos() - gz * sun.sin()
    soft = torch.exp(((along - 0.28) ** 2 / 0.14 + across**2 / (wide * wide * 1.3)) * -1)
    contact = torch.exp(away**2 * (-1.2 / wide**2))
    canvas.blend(full, (0.5 * soft + 0.35 * contact).clamp(max=0.75), (0.03, 0.03, 0.06))
