"""What a style does to finished pictures; shallow depth of field is done while painting (Canvas.focus).

Every effect is a closed form of position, frame number and seed, so that a clip is the same however
it is cut into chunks, and each still shows after the blur of a small autoencoder.
"""

from __future__ import annotations

import math
import random

import torch
import torch.nn.functional as F

from training.paint import RGB, soften

STYLES = ("plain", "film", "anamorphic", "shallow", "documentary", "timelapse", "watercolour")
GRAIN, CLUMP = 0.014, 2.5  # standard deviation of film grain, and its size in pixels at 256 wide
SCOPE = 2.39  # width to height of an anamorphic picture
BAND = 2 / 3  # of the height that bars leave at least, so that an upright picture keeps its subject
LEVELS = 5.0  # washes from black to white in a watercolour
PAPER: RGB = (0.97, 0.95, 0.90)


def finish(img: torch.Tensor, style: str, seed: int, frames: torch.Tensor) -> torch.Tensor:
    """[3, F, H, W] in 0..1, these frames [F] of its clip, in that style."""
    if style == "film":
        return _film(img, seed, frames)
    if style == "anamorphic":
        return _anamorphic(img)
    if style == "documentary":
        return _documentary(img)
    if style == "watercolour":
        return _watercolour(img, seed)
    return img


def _luma(img: torch.Tensor) -> torch.Tensor:
    return 0.30 * img[0] + 0.59 * img[1] + 0.11 * img[2]


def _colour(img: torch.Tensor, rgb: RGB) -> torch.Tensor:
    """A colour that broadcasts against [3, F, H, W]."""
    return torch.tensor(rgb, device=img.device)[:, None, None, None]


def _across(img: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns [W] and rows [H, 1], each running from -1 to 1 over the picture."""
    height, width = img.shape[2:]
    u = (torch.arange(width, device=img.device) + 0.5) * (2 / width) - 1
    v = (torch.arange(height, device=img.device)[:, None] + 0.5) * (2 / height) - 1
    return u, v


def _film(img: torch.Tensor, seed: int, frames: torch.Tensor) -> torch.Tensor:
    """Faded 35 mm stock: lifted blacks, warm highlights, teal shadows, a vignette and live grain."""
    luma = _luma(img)
    warm, teal = _colour(img, (0.09, 0.02, -0.10)), _colour(img, (-0.05, 0.025, 0.05))
    tone = img.lerp(luma[None].expand_as(img), 0.15) * 0.82 + 0.085
    tone = tone + warm * luma + teal * (1 - luma)
    u, v = _across(img)
    tone = tone * (1.06 - 0.34 * (u**2 + v**2)).clamp(max=1.0)
    return (tone + _grain(img, seed, frames)).clamp(0, 1)


def _grain(img: torch.Tensor, seed: int, frames: torch.Tensor) -> torch.Tensor:
    """[F, H, W]: soft clumps, new in every frame, by an integer hash that is the same on every device."""
    height, width = img.shape[2:]
    clump = CLUMP * max(width, height) / 256
    size = math.ceil(height / clump) + 1, math.ceil(width / clump) + 1
    frame = frames.to(img.device)[:, None, None]
    row = torch.arange(size[0], device=img.device)[:, None]
    column = torch.arange(size[1], device=img.device)
    bits = column * 374761393 + row * 668265263 + frame * 974711 * 1013 + seed % 65521 * 40503
    for _ in range(2):
        bits = bits & 0xFFFFFFFF
        bits = (bits ^ (bits >> 13)) * 1274126177
    bits = bits & 0xFFFFFFFF
    bits = bits ^ (bits >> 16)
    # Four bytes added up are nearly normal; 148 is the deviation of their sum, 1.5 what smoothing takes.
    total = sum(((bits >> shift) & 255).float() for shift in (0, 8, 16, 24))
    noise = (torch.as_tensor(total) - 510) * (GRAIN * 1.5 / 148)
    large = F.interpolate(noise[:, None], size=(height, width), mode="bilinear", align_corners=False)
    return large[:, 0]


def _anamorphic(img: torch.Tensor) -> torch.Tensor:
    """Black bars above and below, and a faint blue streak through whatever is much brighter than the rest."""
    height, width = img.shape[2:]
    luma = _luma(img)
    floor = (luma.mean((1, 2), keepdim=True) + 0.22).clamp(0.55, 0.86)
    spots = F.avg_pool2d((luma - floor).clamp(min=0)[:, None], (1, 4), (1, 4))
    reach = spots.shape[-1] - 1
    taps = torch.exp(torch.arange(-reach, reach + 1, device=img.device).abs() * (-5.0 / reach))
    streak = F.conv2d(spots, taps[None, None, None] * 0.16, padding=(0, reach))
    streak = F.interpolate(streak, size=(height, width), mode="bilinear", align_corners=False)[:, 0]
    streak = streak.clamp(max=0.38)
    lit = img + (1 - img) * streak * _colour(img, (0.10, 0.45, 1.0))
    half = max(width / SCOPE, BAND * height) / 2
    row = (torch.arange(height, device=img.device)[:, None] + 0.5 - height / 2).abs()
    return lit * (half - row + 0.5).clamp(0, 1)


def _documentary(img: torch.Tensor) -> torch.Tensor:
    """Natural and unpolished: less colour and a flat tone curve."""
    plain = img.lerp(_luma(img)[None].expand_as(img), 0.42)
    return plain * 0.76 + _colour(img, (0.095, 0.105, 0.095))


def _watercolour(img: torch.Tensor, seed: int) -> torch.Tensor:
    """Pale washes in a few tones, darker where they meet, on white paper with a ragged border."""
    unit = max(img.shape[2:]) / 256
    wash = soften(img, 1.5 * unit)
    luma = _luma(wash)
    level = luma * LEVELS
    floor = level.floor()
    part = ((level - floor - 0.5) * 2.2 + 0.5).clamp(0, 1)
    tone = (floor + part * part * (3 - 2 * part)) / LEVELS
    # Pigment gathers at the rim of an area: darker where the colours change quickly.
    rim = _rim(wash) / unit
    vivid = luma + (wash - luma) * 1.35 + (tone - luma)
    paint = (0.20 + 0.78 * vivid) * (1 - 0.42 * (rim * 7 - 0.12).clamp(0, 1))
    bloom, border = _paper(img, seed)
    paint = paint + (_colour(img, PAPER) - paint) * (0.12 + 0.16 * bloom)
    return (paint + (_colour(img, PAPER) - paint) * border).clamp(0, 1)


def _rim(wash: torch.Tensor) -> torch.Tensor:
    """[F, H, W]: how quickly the colours change, per pixel at 256 wide."""
    across = F.pad(wash[..., 2:] - wash[..., :-2], (1, 1)) / 2
    down = F.pad(wash[..., 2:, :] - wash[..., :-2, :], (0, 0, 1, 1)) / 2
    return (across**2 + down**2).sum(0).sqrt()


def _paper(img: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[H, W]: low blooms of water in -1..1, and the border where the paper stays white."""
    rng = random.Random(f"paper/{seed}")
    u, v = _across(img)
    bloom = torch.zeros(img.shape[2:], device=img.device)
    for _ in range(3):
        k, m, phase = rng.uniform(2.0, 5.0), rng.uniform(2.0, 5.0), rng.uniform(0, 6.28)
        bloom = bloom + (u * k + v * m * rng.choice((-1, 1)) + phase).sin() / 3
    a, b = rng.uniform(0, 6.28), rng.uniform(0, 6.28)
    ragged = 0.022 * (v * 9 + a).sin() + 0.016 * (u * 13 + b).sin() + 0.012 * (u * 29 - v * 17 + a).sin()
    edge = torch.minimum(1 - u.abs(), (1 - v.abs()) * 0.75) - 0.10 + ragged
    return bloom, (0.5 - edge / 0.045).clamp(0, 1)
