"""Small worlds in many lights, cameras and styles: the training clips of nano.

A scene is only a handful of words and a seed; `render` turns it into a clip. Every shape is smooth
and every edge soft, because a tiny model has to learn this through a 16x16x4 autoencoder.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from training.camera import CAMERAS, MOVES, STEADY, View, look, path
from training.inland import KINDS
from training.paint import LIGHTS as _LIGHTS
from training.paint import Canvas
from training.styles import STYLES, finish
from training.worlds import WORLDS

SCENES = tuple(WORLDS)
ALLOWED = {camera: tuple(n for n, w in WORLDS.items() if camera in w.cameras) for camera in CAMERAS}
CHUNK = 9  # frames painted at once on a CPU, so that a layer stays in cache
HASTE = 9.0  # seconds that pass in a second of time-lapse
SKIES = ("clouds", "lake", "city", "desert", "sea", "meadow", "storm")  # where time passing fast shows


@dataclass(frozen=True)
class Scene:
    """What a clip shows; together with a size it fixes every pixel."""

    scene: str
    light: str
    camera: str
    speed: str  # slow | normal | fast
    move: str  # which of camera.MOVES, else ""
    seed: int
    style: str = "plain"


def sample(rng: random.Random, camera: str | None = None) -> Scene:
    """Draw a clip: camera (unless it is given) uniform, then scene, light and style among those that suit it."""
    camera = camera or rng.choice(CAMERAS)
    scene = rng.choice(ALLOWED[camera])
    styles = [
        s for s in STYLES if s != "timelapse" or (scene in SKIES and camera not in ("tracking", "handheld"))
    ]
    return Scene(
        scene=scene,
        light=rng.choice(WORLDS[scene].lights),
        camera=camera,
        speed="normal" if camera in STEADY else rng.choice(("slow", "normal", "normal", "fast")),
        move=rng.choice(MOVES.get(camera, ("",))),
        seed=rng.getrandbits(31),
        style="plain" if rng.random() < 0.5 else rng.choice(styles),
    )


OTHER = {"left": "right", "right": "left"}


def mirrored(scene: Scene) -> Scene:
    """What the clip shows when it is flipped left to right."""
    head, _, side = scene.camera.rpartition(" ")
    camera = f"{head} {OTHER[side]}" if side in OTHER else scene.camera
    return replace(scene, camera=camera, move=OTHER.get(scene.move, scene.move))


def stream(scene: Scene) -> random.Random:
    """The numbers that compose this scene."""
    return random.Random(f"{scene.scene} {scene.seed}")


def product_kind(scene: Scene) -> str:
    """Which object a product scene shows: the first thing its stream decides."""
    return stream(scene).choice(KINDS)


def render(
    scene: Scene, *, frames: int = 81, height: int = 160, width: int = 256, fps: float = 16.0,
    device: str | torch.device = "cpu", only: Sequence[int] | None = None,
) -> torch.Tensor:  # fmt: skip
    """Film the scene: [frames, 3, height, width] float32 in [-1, 1] on `device`; `only` these of its frames."""
    device = torch.device(device)
    world = WORLDS[scene.scene]
    pose = path(world.rig, scene.camera, scene.speed, scene.move, frames, width, scene.seed)
    wanted = torch.arange(frames) if only is None else torch.tensor(only)
    clip = torch.empty(len(wanted), 3, height, width, device=device)
    chunk = CHUNK if device.type == "cpu" else frames
    haste = HASTE if scene.style == "timelapse" else 1.0
    for start in range(0, len(wanted), chunk):
        part = wanted[start : start + chunk]
        time = part / fps
        view: View = look({k: v[part] for k, v in pose.items()}, (height, width), device)
        follow = view.pose["x"] if scene.camera == "tracking" else None
        canvas = Canvas(view, _LIGHTS[scene.light], time * haste, world.floor, scene.style, follow)
        # The same numbers for every chunk: the composition is one for the whole clip.
        world.paint(canvas, stream(scene))
        img = finish(canvas.img.clamp(0, 1), scene.style, scene.seed, part)
        clip[start : start + chunk] = img.movedim(0, 1).clamp(0, 1) * 2 - 1
    return clip
