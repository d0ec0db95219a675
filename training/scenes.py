"""Seven small worlds under four lights, filmed by nine camera moves: the training clips of nano.

A scene is only a handful of words and a seed; `render` turns it into a clip. Every shape is smooth
and every edge soft, because a tiny model has to learn this through a 16x16x4 autoencoder.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from training.camera import CAMERAS, View, look, path
from training.inland import KINDS
from training.paint import LIGHTS as _LIGHTS
from training.paint import Canvas
from training.worlds import WORLDS

SCENES = ("lake", "lighthouse", "sea", "city", "desert", "forest", "product")
LIGHTS = ("noon", "golden hour", "night", "overcast")
ALLOWED = {
    "orbit": ("lake", "lighthouse", "city", "product"),
    "tracking": ("lake", "sea", "city", "desert", "forest"),
}
CHUNK = 27  # frames painted at once on a CPU, so that a layer stays in cache


@dataclass(frozen=True)
class Scene:
    """What a clip shows; together with a size it fixes every pixel."""

    scene: str
    light: str
    camera: str
    speed: str  # slow | normal | fast
    move: str  # zoom | dolly for the two zoom cameras, else ""
    seed: int


def sample(rng: random.Random, camera: str | None = None) -> Scene:
    """Draw a clip: camera (unless it is given) and light uniform, scene uniform among those the camera allows."""
    camera = camera or rng.choice(CAMERAS)
    return Scene(
        scene=rng.choice(ALLOWED.get(camera, SCENES)),
        light=rng.choice(LIGHTS),
        camera=camera,
        speed="normal" if camera == "static" else rng.choice(("slow", "normal", "normal", "fast")),
        move=rng.choice(("zoom", "dolly")) if camera.startswith("zoom") else "",
        seed=rng.getrandbits(31),
    )


def stream(scene: Scene) -> random.Random:
    """The numbers that compose this scene."""
    return random.Random(f"{scene.scene} {scene.seed}")


def product_kind(scene: Scene) -> str:
    """Which object a product scene shows: the first thing its stream decides."""
    return stream(scene).choice(KINDS)


def render(
    scene: Scene, *, frames: int = 81, height: int = 96, width: int = 160, fps: float = 16.0,
    device: str | torch.device = "cpu",
) -> torch.Tensor:  # fmt: skip
    """Film the scene: [frames, 3, height, width] float32 in [-1, 1] on `device`."""
    device = torch.device(device)
    world = WORLDS[scene.scene]
    pose = path(world.rig, scene.camera, scene.speed, scene.move, frames, width)
    clip = torch.empty(frames, 3, height, width, device=device)
    chunk = CHUNK if device.type == "cpu" else frames
    for start in range(0, frames, chunk):
        part = slice(start, min(start + chunk, frames))
        time = torch.arange(part.start, part.stop) / fps
        view: View = look({k: v[part] for k, v in pose.items()}, (height, width), device)
        canvas = Canvas(view, _LIGHTS[scene.light], time, world.floor)
        # The same numbers for every chunk: the composition is one for the whole clip.
        world.paint(canvas, stream(scene))
        clip[part] = canvas.img.movedim(0, 1).clamp(0, 1) * 2 - 1
    return clip
