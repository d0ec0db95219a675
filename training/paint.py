"""Painter's-algorithm primitives: sky, water, floor, silhouettes, billboards and soft dots.

Everything is painted back to front into one canvas. Edges are antialiased analytically: a signed
distance divided by the footprint of a pixel at that depth is the coverage. Each primitive touches
only the rectangle of pixels that its bounds project to.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from training.camera import View

RGB = tuple[float, float, float]
TAU = 2 * math.pi
STRETCH = 1.45  # how far ripples may draw a reflection out, in heights of the thing


@dataclass(frozen=True)
class Light:
    """Colours (0 to 1) and sun position that make one time of day."""

    zenith: RGB
    middle: RGB
    horizon: RGB
    haze: RGB
    cloud: RGB
    sun: RGB
    ambient: RGB  # multiplies surface colours
    saturation: float
    glow: float  # strength of the halo round the sun or moon
    disc: float  # strength of the disc itself
    elevation: float  # of the sun or moon, radians
    cover: float  # share of the sky under clouds, roughly

    @property
    def dark(self) -> bool:
        """Whether lamps, windows and stars shine."""
        return max(self.horizon) < 0.5

    @property
    def lamps(self) -> bool:
        """Whether people have switched their lights on."""
        return max(self.zenith) < 0.45


LIGHTS: dict[str, Light] = {
    "noon": Light(
        (0.13, 0.38, 0.80), (0.33, 0.62, 0.93), (0.76, 0.90, 0.98), (0.66, 0.82, 0.95),
        (1.0, 1.0, 1.0), (1.0, 0.97, 0.86), (1.0, 1.0, 0.97), 1.1, 0.35, 0.0, 0.75, 0.42,
    ),
    "golden hour": Light(
        (0.36, 0.33, 0.58), (0.94, 0.52, 0.42), (1.0, 0.78, 0.42), (0.96, 0.62, 0.47),
        (1.0, 0.60, 0.50), (1.0, 0.90, 0.62), (0.86, 0.52, 0.36), 1.0, 0.75, 1.0, 0.13, 0.45,
    ),
    "dusk": Light(
        (0.13, 0.12, 0.38), (0.36, 0.24, 0.55), (0.76, 0.46, 0.58), (0.46, 0.34, 0.56),
        (0.44, 0.32, 0.56), (1.0, 0.80, 0.80), (0.46, 0.38, 0.66), 0.9, 0.25, 0.0, 0.02, 0.40,
    ),
    "night": Light(
        (0.02, 0.03, 0.11), (0.05, 0.09, 0.23), (0.12, 0.20, 0.38), (0.10, 0.17, 0.33),
        (0.15, 0.21, 0.36), (0.93, 0.94, 0.86), (0.23, 0.31, 0.50), 0.8, 0.30, 1.0, 0.23, 0.36,
    ),
    "overcast": Light(
        (0.47, 0.49, 0.52), (0.61, 0.63, 0.65), (0.76, 0.77, 0.78), (0.70, 0.71, 0.73),
        (0.80, 0.81, 0.82), (0.8, 0.8, 0.8), (0.60, 0.61, 0.63), 0.35, 0.0, 0.0, 0.75, 0.56,
    ),
}  # fmt: skip


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """The colour `share` of the way from a to b."""
    return tuple(p + (q - p) * share for p, q in zip(a, b, strict=True))  # type: ignore[return-value]


def chance(cell: torch.Tensor, salt: float) -> torch.Tensor:
    """A repeatable number in [0, 1) for each integer cell; a small factor keeps CPU = CUDA."""
    return torch.frac((cell * 12.9898 + salt).sin() * 91.7).abs()


def step(distance: torch.Tensor, width: torch.Tensor | float) -> torch.Tensor:
    """Coverage of a half plane whose signed distance is given: a ramp one `width` wide."""
    return (distance / width + 0.5).clamp_(0, 1)


def soften(img: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of [3, F, H, W]; sigma in pixels."""
    reach = max(1, round(2.5 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=img.device) / sigma) ** 2)
    taps = taps / taps.sum()
    flat = img.flatten(0, 1)[:, None]
    flat = F.conv2d(F.pad(flat, (reach, reach, 0, 0), mode="replicate"), taps[None, None, None])
    flat = F.conv2d(F.pad(flat, (0, 0, reach, reach), mode="replicate"), taps[None, None, :, None])
    return flat[:, 0].unflatten(0, img.shape[:2]).contiguous()


@dataclass
class Patch:
    """One upright plane as seen through a rectangle of pixels."""

    rows: slice
    columns: slice
    x: torch.Tensor  # along the plane, world units
    y: torch.Tensor  # height above the floor; mirrored below a water line
    pixel: torch.Tensor  # size of a pixel on the plane, world units
    visible: torch.Tensor | float  # 1 above the floor; the reflectivity (or 0) below it
    turn: torch.Tensor  # [F, 1, 1] azimuth the camera looks along, radians


class Canvas:
    """Frames in the making: img is [3, F, H, W] in 0 to 1."""

    def __init__(
        self, view: View, light: Light, time: torch.Tensor, floor: float | None,
        style: str = "plain", follow: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        """`time` is [F] seconds; `floor` the reflectivity at y = 0, or None for no floor at all.

        `follow` is [F] on the CPU: the x of the subject that a tracking camera keeps in frame; None for other cameras.
        """
        self.style, self.follow = style, follow
        self.view, self.light, self.floor = view, light, floor
        self.time = view.per_frame(time)
        self.frames = len(time)
        self.img = torch.empty(3, self.frames, *view.size, device=view.device)
        self.ripple: torch.Tensor | None = None
        self.eye = view.per_frame(view.pose["y"])

    def focus(self) -> None:
        """Call between background and subject: with shallow depth of field, what is painted so far goes soft."""
        if self.style == "shallow":
            self.img = soften(self.img, self.view.size[1] / 70)

    def subject_x(self, speed: float, start: float = 0.0) -> torch.Tensor:
        """[F] on the CPU: x of a thing that moves at `speed` (units a second), or that the camera tracks."""
        if self.follow is not None:
            return self.follow + start
        return start + speed * (self.time[:, 0, 0].cpu() - 2.5)

    def lit(self, colour: RGB, depth: float = 0.0, reach: float = 150.0) -> RGB:
        """A surface colour under this light, fading into haze with depth."""
        grey = sum(colour) / 3
        lamp = self.light.ambient
        tinted = [
            max(0.0, grey + (c - grey) * self.light.saturation) * a for c, a in zip(colour, lamp, strict=True)
        ]
        return mix((tinted[0], tinted[1], tinted[2]), self.light.haze, 1 - math.exp(-depth / reach))

    def blend(
        self, patch: Patch, alpha: torch.Tensor, a: RGB, b: RGB | None = None,
        share: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        """Paint colour a, or `share` of the way to b per pixel, with coverage alpha."""
        alpha = alpha * patch.visible
        for channel in range(3):
            target = self.img[channel, :, patch.rows, patch.columns]
            if b is None or share is None:
                target.lerp_(torch.full((), a[channel], device=target.device), alpha)
            else:
                target.lerp_(share * (b[channel] - a[channel]) + a[channel], alpha)

    def glow(self, patch: Patch, amount: torch.Tensor, colour: RGB) -> None:
        """Add light: a screen blend, which never clips hard."""
        amount = amount * patch.visible
        for channel in range(3):
            target = self.img[channel, :, patch.rows, patch.columns]
            target += (1 - target) * (amount * colour[channel])

    def _window(self, u: torch.Tensor, v: torch.Tensor) -> tuple[slice, slice] | None:
        """Pixel rectangle round the points [F, N], or None when it is off screen."""
        height, width = self.view.size
        top, bottom = int(v.min().clamp(-9, height + 9)) - 2, int(v.max().clamp(-9, height + 9)) + 3
        left, right = int(u.min().clamp(-9, width + 9)) - 2, int(u.max().clamp(-9, width + 9)) + 3
        rows = slice(max(top, 0), min(bottom, height))
        columns = slice(max(left, 0), min(right, width))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return None
        return rows, columns

    def _cut(
        self, rows: slice, columns: slice, normal: tuple[torch.Tensor, torch.Tensor],
        distance: torch.Tensor, offset: torch.Tensor,
    ) -> Patch:  # fmt: skip
        """Intersect the rays of a rectangle with the upright plane at `distance` ([F]) ahead."""
        view = self.view
        nx, nz = (view.per_frame(n) for n in normal)
        dx, dz = view.dx[:, rows, columns], view.dz[:, rows, columns]
        t = view.per_frame(distance) / (dx * nx + dz * nz)
        x = (dx * nz - dz * nx) * t - view.per_frame(offset)
        y = view.dy[:, rows] * t + self.eye
        pixel = view.per_frame(distance / view.pose["focal"])
        turn = view.per_frame(torch.atan2(normal[0], normal[1]))
        if self.floor is None:
            return Patch(rows, columns, x, y, pixel, 1.0, turn)
        above = step(y, pixel)
        if self.ripple is not None:
            sway = self.ripple[:, rows, columns] * (y.clamp(max=0))
            x, y = x + 0.25 * sway, (y + 0.5 * sway).abs_()
        return Patch(rows, columns, x, y, pixel, above * (1 - self.floor) + self.floor, turn)

    def wall(self, z: float, top: float, low: float | None = None) -> Patch | None:
        """The plane at depth z across the whole frame, as far up as `top` and, if given, as far down as `low`."""
        view = self.view
        distance = z - view.pose["z"]
        side = distance[:, None] * torch.linspace(-1.2, 1.2, 9) * 1.2
        ahead = view.pose["yaw"][:, None]
        x = view.pose["x"][:, None] + side * ahead.cos() + distance[:, None] * ahead.sin()
        u, v, _ = view.project(x, torch.tensor(top), torch.tensor(z))
        first = int(v.min().clamp(-9, view.size[0] + 9)) - 2
        bottom = view.size[0]
        if self.floor is not None:
            _, v, _ = view.project(x, torch.tensor(-STRETCH * top * (self.floor > 0)), torch.tensor(z))
            bottom = min(bottom, int(v.max().clamp(0, bottom)) + 3)
        if low is not None:
            _, v, _ = view.project(x, torch.tensor(low), torch.tensor(z))
            bottom = min(bottom, int(v.max().clamp(0, bottom)) + 3)
        rows = slice(max(first, 0), bottom)
        if rows.start >= rows.stop:
            return None
        normal = torch.zeros_like(distance), torch.ones_like(distance)
        return self._cut(rows, slice(0, view.size[1]), normal, distance, -view.pose["x"])

    def board(
        self, x: float | torch.Tensor, z: float | torch.Tensor, half: float, low: float, high: float
    ) -> Patch | None:
        """A plane through (x, z), each a number or [F], that always faces the camera; its x = 0 is the axis."""
        view = self.view
        x, z = (torch.as_tensor(place).expand(self.frames) for place in (x, z))
        ahead, aside = z - view.pose["z"], x - view.pose["x"]
        distance = torch.sqrt(ahead**2 + aside**2)
        normal = aside / distance, ahead / distance
        half = half + 0.2 * high if self.floor else half
        across = torch.tensor([-half, half, -half, half])
        bottom = -STRETCH * high if self.floor else low
        corner = torch.tensor([bottom, bottom, high, high])
        wide_x = x[:, None] + normal[1][:, None] * across
        wide_z = z[:, None] - normal[0][:, None] * across
        u, v, depth = view.project(wide_x, corner, wide_z)
        if float(depth.max()) < 0.1:
            return None
        window = self._window(u, v)
        if window is None:
            return None
        return self._cut(*window, normal, distance, torch.zeros_like(distance))

    def panel(self, x: float | torch.Tensor, z: float, half: float, low: float, high: float) -> Patch | None:
        """A piece of the wall at depth z round x, a number or [F]; its x = 0 is the middle of the piece."""
        view = self.view
        middle = torch.as_tensor(x).expand(self.frames)
        across = middle[:, None] + torch.tensor([-half, half, -half, half])
        corner = torch.tensor([low, low, high, high])
        u, v, depth = view.project(across, corner, torch.tensor(z))
        window = self._window(u, v)
        if window is None or float(depth.max()) < 0.1:
            return None
        distance = z - view.pose["z"]
        normal = torch.zeros_like(distance), torch.ones_like(distance)
        return self._cut(*window, normal, distance, middle - view.pose["x"])

    def dot(
        self, u: torch.Tensor, v: torch.Tensor, radius: torch.Tensor,
        strength: float | torch.Tensor, colour: RGB, soft: bool = True,
    ) -> None:  # fmt: skip
        """A glowing (soft) or solid disc at pixel (u, v), radius in pixels, each [F]; nothing beyond its reach."""
        reach = radius * (2.2 if soft else 1.2)
        edges = torch.stack([u - reach, u + reach], 1), torch.stack([v - reach, v + reach], 1)
        window = self._window(*edges)
        if window is None:
            return
        rows, columns = window
        device = self.view.device
        du = torch.arange(columns.start, columns.stop, device=device) + 0.5 - self.view.per_frame(u)
        dv = torch.arange(rows.start, rows.stop, device=device)[:, None] + 0.5
        dv = dv - self.view.per_frame(v)
        size = self.view.per_frame(radius)
        patch = Patch(rows, columns, du, dv, size, 1.0, size)
        if isinstance(strength, torch.Tensor):
            strength = self.view.per_frame(strength)
        if soft:
            fall = (torch.exp(-(du**2 + dv**2) / (size**2) * 1.2) - 0.003).clamp(min=0)
            self.glow(patch, fall * strength, colour)
        else:
            self.blend(patch, step(size - (du**2 + dv**2).sqrt(), 1.3) * strength, colour)


def sky(canvas: Canvas, rng: random.Random, azimuth: float | None = None) -> None:
    """The dome, mirrored below the horizon when there is water: gradient, halo, disc, clouds."""
    view, light = canvas.view, canvas.light
    flat = torch.rsqrt(view.dx**2 + view.dz**2)
    east, rise = view.dx * flat, view.dy * flat
    if canvas.ripple is not None:
        rise = torch.where(rise < 0, -rise + canvas.ripple * 0.045, rise)
        east = east + canvas.ripple * 0.012 * (view.dy < 0)
    rise = rise.clamp(min=0)
    low, high = (rise * 5).clamp(max=1), (rise * 1.7).clamp(max=1)
    for c in range(3):
        plane = low * (light.middle[c] - light.horizon[c]) + light.horizon[c]
        canvas.img[c] = plane + high * (light.zenith[c] - light.middle[c])
    everywhere = Patch(slice(None), slice(None), rise, rise, rise, 1.0, canvas.eye)
    _stars(canvas, rng)
    azimuth = rng.uniform(-0.42, 0.42) if azimuth is None else azimuth
    elevation = light.elevation * rng.uniform(0.8, 1.25)
    if light.glow:
        # Squared angular distance: the halo is a Gaussian in it, the disc a step.
        angle = (east - math.sin(azimuth)) ** 2 + (rise - math.tan(elevation)) ** 2
        canvas.glow(everywhere, torch.exp(angle * -14) * light.glow, light.sun)
        if light.disc:
            size = 0.042 if light.elevation < 0.2 else 0.036
            canvas.blend(everywhere, step(size**2 - angle, size * 0.035) * light.disc, light.sun)
    k = [rng.uniform(0.8, 1.2) for _ in range(4)]
    p = [rng.uniform(0, TAU) for _ in range(4)]
    drift = east + canvas.time * 0.006
    field = (drift * 8 * k[0] + 1.1 * (rise * 15 * k[1] + p[1]).sin() + p[0]).sin()
    field += 0.6 * (drift * 15 * k[2] - rise * 21 + p[2]).sin()
    field += 0.7 * (rise * 24 * k[3] + drift * 4 + p[3]).sin()
    cover = ((field + (light.cover - 0.5) * 4) * 0.55).clamp_(0, 1)
    cover *= (rise * 12).clamp(max=1) * 0.8
    canvas.blend(everywhere, cover, mix(light.cloud, light.middle, 0.25), light.cloud, cover)


def _stars(canvas: Canvas, rng: random.Random) -> None:
    """A few large soft stars, far enough away to stand still under every translation."""
    if not canvas.light.dark:
        return
    view = canvas.view
    for _ in range(46):
        azimuth, elevation = rng.uniform(-1.3, 1.3), rng.uniform(0.10, 0.75)
        size, strength = rng.uniform(1.0, 1.7), rng.uniform(0.45, 1.0)
        x, z = view.pose["x"][:, None], view.pose["z"][:, None]
        far_x, far_z = x + 1e4 * math.sin(azimuth), z + 1e4 * math.cos(azimuth)
        u, v, depth = view.project(far_x, torch.tensor(1e4 * math.tan(elevation)), far_z)
        if float(depth.max()) > 0:
            radius = torch.full((canvas.frames,), size * view.size[1] / 160)
            canvas.dot(u[:, 0], v[:, 0], radius, strength, (1.0, 1.0, 0.95))


def ripples(canvas: Canvas, rng: random.Random, height: float) -> None:
    """Three moving sines on the water plane, each faded where a pixel spans its wavelength."""
    view = canvas.view
    t = canvas.eye / (-view.dy).clamp(min=2e-3)
    x = view.dx * t + view.per_frame(view.pose["x"])
    z = view.dz * t + view.per_frame(view.pose["z"])
    span = t * t / (canvas.eye * view.per_frame(view.pose["focal"]))
    total = torch.zeros_like(x)
    for octave, share in enumerate((0.5, 0.65, 0.8)):
        length = canvas.eye.mean() * 0.9 * 3.1**octave
        k = TAU / length
        phase, skew = rng.uniform(0, TAU), rng.uniform(-0.45, 0.45)
        fade = share / (1 + (span * 3.2 / length) ** 2)
        bend = (x * (0.31 * k) + phase).sin()
        total += (z * k + x * (skew * k) + bend + canvas.time * (1.5 - 0.3 * octave)).sin() * fade
    # Bounded, so that a reflection is drawn out by at most STRETCH.
    canvas.ripple = (total * (height / 0.6)).tanh_() * 0.6 * (view.dy < 0)


def tint_water(canvas: Canvas, deep: RGB) -> None:
    """Darken the mirrored sky towards the water's own colour, more so where it is seen steeply."""
    view = canvas.view
    down = (-view.dy * 3.2).clamp(0, 1)
    edge = step(-view.dy, 1 / view.per_frame(view.pose["focal"]))
    assert canvas.ripple is not None
    share = edge * (0.16 + 0.5 * down) - canvas.ripple * 0.13
    everywhere = Patch(slice(None), slice(None), share, share, share, 1.0, canvas.eye)
    canvas.blend(everywhere, share.clamp(0, 0.8), canvas.lit(deep))


def ground(canvas: Canvas, near: RGB, far: RGB, reach: float, pattern: Callable, edge: float = 1e9) -> None:
    """The plane y = 0 as far as z = edge: near fades to far, `pattern(x, z)` in 0..1 picks near."""
    view = canvas.view
    t = canvas.eye / (-view.dy).clamp(min=1e-3)
    z = view.dz * t + view.per_frame(view.pose["z"])
    x = view.dx * t + view.per_frame(view.pose["x"])
    depth = torch.exp(z * (-1 / reach)).clamp(max=1)
    alpha = step(-view.dy, 1 / view.per_frame(view.pose["focal"]))
    if edge < 1e9:
        alpha = alpha * step(edge - z, t * t / (canvas.eye * view.per_frame(view.pose["focal"])))
    share = depth * pattern(x, z)
    everywhere = Patch(slice(None), slice(None), x, z, t, 1.0, canvas.eye)
    canvas.blend(everywhere, alpha, far, near, share)


def ridge(
    canvas: Canvas, z: float, top: float, profile: Callable, a: RGB, b: RGB,
    shade: Callable | None = None,
) -> None:  # fmt: skip
    """A silhouette at depth z below height profile(x): colour a at the crest, b at the foot."""
    patch = canvas.wall(z, top)
    if patch is None:
        return
    height = profile(patch.x)
    alpha = step(height - patch.y, patch.pixel * 1.2)
    share = shade(patch.x, patch.y, height) if shade else 1 - patch.y / top
    canvas.blend(patch, alpha, a, b, share.clamp(0, 1))
