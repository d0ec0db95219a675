"""How good the pictures are, whatever they show: the autoencoder, flicker, variety."""

import random

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from broll.engine.load import Parts
from training import run
from training.latents import encode
from training.measures import decoded
from training.render import to_float, to_uint8
from training.scenes import Scene, render
from training.scenes import sample as draw


def to_video(clip: Tensor) -> Tensor:
    """[f, 3, h, w] uint8 to [3, f, h, w] in [-1, 1]."""
    return to_float(clip).transpose(0, 1)


def rendered(scene: Scene, parts: Parts, frames: int) -> Tensor:
    """[3, f, h, w] in [-1, 1] on the CPU, as it would be kept: in 256 levels."""
    width, height = parts.config.defaults.size
    clip = render(scene, frames=frames, height=height, width=width, device=parts.device)
    return to_video(to_uint8(clip).cpu())


@torch.no_grad()
def encoded(parts: Parts, video: Tensor) -> Tensor:
    """Normalised latents of [b, 3, f, h, w]."""
    mean, std = parts.vae._statistics()
    with run.autocast(video.device.type):
        mu, _ = parts.vae.moments(video, {})
    return (mu.float() - mean) / std


def psnr(a: Tensor, b: Tensor) -> float:
    """Of values in [-1, 1], in dB."""
    return float(-10 * ((a - b).square().mean() / 4).log10())


def ssim(a: Tensor, b: Tensor) -> float:
    """Mean structural similarity of [3, f, h, w] in [-1, 1], over windows of 7 x 7 pixels of luminance.

    https://doi.org/10.1109/TIP.2003.819861
    """
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1, 1)
    x, y = ((((v + 1) / 2) * weights).sum(0)[:, None] for v in (a, b))
    mx, my, xx, yy, xy = (F.avg_pool2d(v, 7, 1) for v in (x, y, x * x, y * y, x * y))
    vx, vy, cov = xx - mx * mx, yy - my * my, xy - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return float((((2 * mx * my + c1) * (2 * cov + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())


def flicker(clip: Tensor) -> float:
    """Mean size of the second difference over time of [f, 3, h, w] uint8, in levels: what neither stays nor glides."""
    x = clip.float().mean(1)
    return float((x[2:] - 2 * x[1:-1] + x[:-2]).abs().mean())


def diversity(latents: Tensor, seeds: int) -> float:
    """How far clips of one prompt lie apart, over how far those of two prompts do: latents [prompts * seeds, ...]."""
    flat = latents.flatten(1)
    apart = torch.cdist(flat, flat)
    group = torch.arange(len(flat)) // seeds
    same = group[:, None] == group[None]
    own = same & ~torch.eye(len(flat), dtype=torch.bool)
    return float(apart[own].mean() / apart[~same].mean())


def autoencoder(parts: Parts, device: str, count: int, seed: int) -> dict[str, float]:
    """Fresh renders there and back, all frames, those of the style `film` apart; and the renders' own flicker."""
    rng = random.Random(f"psnr/{seed}")
    values: dict[str, list[float]] = {"psnr": [], "ssim": [], "grainy psnr": [], "renders' flicker": []}
    for _ in range(count):
        scene = draw(rng)
        video = rendered(scene, parts, frames=parts.config.defaults.frames)
        clip = to_uint8(video).transpose(0, 1)
        z = encode(parts.vae, clip[None].to(device))[0]
        back = to_video(next(iter(decoded([z], parts.vae, device))))
        grainy = scene.style == "film"
        values["grainy psnr" if grainy else "psnr"].append(psnr(back, video))
        values["renders' flicker"].append(flicker(clip))
        if not grainy:
            values["ssim"].append(ssim(back, video))
    return {key: sum(v) / len(v) for key, v in values.items() if v}


def strip(clip: Tensor, pictures: int = 5) -> Image.Image:
    """Frames side by side, first to last."""
    chosen = clip[torch.linspace(0, len(clip) - 1, pictures).round().long()]
    return Image.fromarray(torch.cat(list(chosen), dim=2).permute(1, 2, 0).numpy())
