"""A pinhole camera that moves through a rendered world, and the rays it casts.

World axes: x right, y up, z forward, units of roughly a metre; yaw turns right, pitch turns up.
A move is a list of per-frame poses, so pan, tilt, zoom, dolly, orbit and tracking differ in the
picture exactly as they do in reality: by parallax, not by a 2-D warp of the finished image.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch

CAMERAS = (
    "static", "pan left", "pan right", "tilt up", "tilt down", "zoom in", "zoom out", "truck left", "truck right",
    "crane up", "crane down", "orbit", "tracking", "handheld", "aerial",
)  # fmt: skip
MOVES = {  # how a move is made, where there are several ways
    "zoom in": ("zoom", "dolly"), "zoom out": ("zoom", "dolly", "reveal"),
    "orbit": ("left", "right"), "tracking": ("left", "right"),
}  # fmt: skip
STEADY = ("static", "handheld")  # no speed to speak of
SPEEDS = {"slow": 0.55, "normal": 1.0, "fast": 1.6}
PAN, TILT, ORBIT = (math.radians(d) for d in (36.0, 20.0, 60.0))  # whole clip, normal speed
SCALE = 1.7  # how much larger the subject gets over a zoom or a dolly
CROSSING = 0.7  # frame widths that the subject's depth travels over a truck or a tracking shot
LIFT = 0.24  # rise of a crane, in distances to the subject
FLIGHT, HIGH = 0.8, 0.28  # way and height of an aerial shot, in distances to the subject
STEEP = 0.26  # its pitch, radians
SHAKE = math.radians(1.3)  # of a hand that holds a camera
FOCAL = 0.866  # focal length in frame widths: 60 degrees of horizontal view


@dataclass(frozen=True)
class Rig:
    """Where a scene puts its camera at rest, and the subject that moves refer to."""

    height: float  # of the camera above the floor
    pitch: float  # radians
    subject: float  # distance along +z to the subject
    aim: float = 0.0  # yaw at rest, radians


@dataclass(frozen=True)
class View:
    """Poses ([F] on the CPU) of consecutive frames, and their rays ([F, H, W] on the device)."""

    pose: dict[str, torch.Tensor]
    size: tuple[int, int]
    device: torch.device
    dx: torch.Tensor
    dy: torch.Tensor  # [F, H, 1]: without roll the vertical part is the same along a row
    dz: torch.Tensor

    def per_frame(self, values: torch.Tensor) -> torch.Tensor:
        """[F] on the CPU to [F, 1, 1] on the device."""
        return values.to(self.device)[:, None, None]

    def project(
        self, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """World points (broadcast against [F, 1]) to pixel column, pixel row and depth."""
        p = {name: value[:, None] for name, value in self.pose.items()}
        x, y, z = x - p["x"], y - p["y"], z - p["z"]
        ahead = x * p["yaw"].sin() + z * p["yaw"].cos()
        depth = ahead * p["pitch"].cos() + y * p["pitch"].sin()
        up = y * p["pitch"].cos() - ahead * p["pitch"].sin()
        right = x * p["yaw"].cos() - z * p["yaw"].sin()
        scale = p["focal"] / depth.clamp(min=1e-3)
        return self.size[1] / 2 + right * scale, self.size[0] / 2 - up * scale, depth


def _progress(camera: str, speed: str, frames: int) -> torch.Tensor:
    """[F] running linearly from -s/2 to s/2, where s is the speed factor; zero when steady."""
    if camera in STEADY:
        return torch.zeros(frames)
    return torch.linspace(-0.5, 0.5, frames) * SPEEDS[speed]


def path(
    rig: Rig, camera: str, speed: str, move: str, frames: int, width: int, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Poses x, y, z, yaw, pitch (radians) and focal (pixels), each [F] on the CPU."""
    s = _progress(camera, speed, frames)
    zero = torch.zeros(frames)
    pose = {"x": zero, "y": zero + rig.height, "z": zero, "yaw": zero + rig.aim}
    pose |= {"pitch": zero + rig.pitch, "focal": zero + FOCAL * width}
    side = -1.0 if "left" in (move, camera.rpartition(" ")[2]) else 1.0
    if camera.startswith("pan"):
        pose["yaw"] = pose["yaw"] + s * PAN * side
    elif camera.startswith("tilt"):
        pose["pitch"] = pose["pitch"] + s * (TILT if camera == "tilt up" else -TILT)
    elif camera.startswith("zoom"):
        pose |= _closer(rig, pose, camera, move, SPEEDS[speed], s)
    elif camera == "orbit":
        angle = s * ORBIT * side
        pose["x"] = rig.subject * angle.sin()
        pose["z"] = rig.subject * (1 - angle.cos())
        pose["yaw"] = pose["yaw"] - angle
    elif camera == "tracking" or camera.startswith("truck"):
        pose["x"] = s * CROSSING * rig.subject / FOCAL * side
    elif camera.startswith("crane"):
        up = s if camera == "crane up" else -s
        pose["y"] = 0.75 * rig.height + (up + 0.5 * SPEEDS[speed]) * LIFT * rig.subject
    elif camera == "aerial":
        pose["z"] = (s - s[-1]) * FLIGHT * rig.subject
        pose["y"] = pose["y"] + HIGH * rig.subject
        pose["pitch"] = pose["pitch"] - STEEP
    elif camera == "handheld":
        pose |= {name: pose[name] + shake for name, shake in _hand(frames, seed).items()}
    return pose


def _closer(rig: Rig, pose: dict, camera: str, move: str, tempo: float, s: torch.Tensor) -> dict:
    """A zoom changes the focal length; a dolly drives; a reveal drives back and rises."""
    sign = 1.0 if camera == "zoom in" else -1.0
    total = math.log(SCALE) * tempo
    if move == "zoom":
        return {"focal": pose["focal"] * torch.exp(math.log(SCALE) * s * sign + 0.1 * total)}
    # The nearest point is the pose at rest, so that no layer is ever driven through.
    near, far = rig.subject, rig.subject * math.exp(total)
    share = torch.linspace(0, 1, len(s))
    share = 1 - share if sign > 0 else share
    rise = 0.25 * (far - near) * share if move == "reveal" else 0.0
    return {"z": (near - far) * share, "y": pose["y"] + rise}


def _hand(frames: int, seed: int) -> dict[str, torch.Tensor]:
    """Sway of a hand: sines of 0.35 to 2 cycles a second at 16 frames a second, the slow ones larger."""
    rng, time = random.Random(f"hand/{seed}"), torch.arange(frames) / 16.0
    shakes = {}
    for name in ("yaw", "pitch"):
        waves = [(rng.uniform(low, high), rng.uniform(0, 2 * math.pi), weight)
                 for low, high, weight in ((0.35, 0.55, 1.0), (0.7, 1.1, 0.55), (1.5, 2.0, 0.3))]  # fmt: skip
        sway = sum(w * torch.sin(2 * math.pi * f * time + p) for f, p, w in waves)
        shakes[name] = SHAKE * sway
    return shakes


def look(pose: dict[str, torch.Tensor], size: tuple[int, int], device: torch.device) -> View:
    """Cast the rays of these poses; a ray at depth 1 along the optical axis has length 1."""
    height, width = size
    p = {name: value.to(device)[:, None, None] for name, value in pose.items()}
    u = (torch.arange(width, device=device) + 0.5 - width / 2) / p["focal"]
    v = (height / 2 - 0.5 - torch.arange(height, device=device)[:, None]) / p["focal"]
    forward = p["pitch"].cos() - v * p["pitch"].sin()
    sin, cos = p["yaw"].sin(), p["yaw"].cos()
    return View(
        pose=pose,
        size=size,
        device=device,
        dx=u * cos + forward * sin,
        dy=v * p["pitch"].cos() + p["pitch"].sin(),
        dz=forward * cos - u * sin,
    )
