"""A small stage with a known camera: a painted wall, a floor, a subject and a pillar, as textured planes.

Every plane is drawn by its homography, so each move shows the parallax that it has in reality. World: x right, y up,
z away; the camera begins at the origin. Clips are uint8 [f, h, w, 3] RGB.
"""

from functools import cache

import cv2
import numpy as np

FOCAL = 0.9  # frame widths
FPS = 16
TEXTURE = 512


@cache
def cloth(seed, contrast=60):
    """Detail at every size; not to be painted on, since everybody gets the same one."""
    rng = np.random.default_rng(seed)
    total = np.zeros((TEXTURE, TEXTURE), np.float32)
    for size in (8, 16, 32, 64, 128):
        total += cv2.resize(rng.normal(0, 1, (size, size)).astype(np.float32), (TEXTURE, TEXTURE))
    total = 120 + contrast * total / total.std()
    tint = rng.uniform(0.7, 1.3, 3)
    made = (total[..., None] * tint).clip(0, 255).astype(np.uint8)
    made.flags.writeable = False
    return made


# Where the lower left corner is, and the two sides.
PLANES = (
    ((-16, -6, 9), (32, 0, 0), (0, 14, 0), 1),  # the wall
    ((-16, -1, 0.9), (32, 0, 0), (0, 0, 8.1), 2),  # the floor
    ((-2.2, -1, 5), (0.8, 0, 0), (0, 2.6, 0), 3),  # a pillar
    ((-0.45, -1, 3), (0.9, 0, 0), (0, 1.6, 0), 4),  # the subject
)
SUBJECT = 3.0  # how far away


def rotation(yaw, pitch, roll):
    """World to camera; yaw turns right, pitch up, roll clockwise, all in radians."""
    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    turn = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    rise = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    cr, sr = np.cos(roll), np.sin(roll)
    lean = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return lean @ rise @ turn


FINER = 2  # times the resolution that a frame is drawn at, so that the cloth does not twinkle


def shot(pose, height, width, cloths):
    """One frame; pose: x, y, z, yaw, pitch, roll, zoom."""
    height, width = FINER * height, FINER * width
    focal = FOCAL * width * pose.get("zoom", 1.0)
    lens = np.array([[focal, 0, width / 2 - 0.5], [0, -focal, height / 2 - 0.5], [0, 0, 1]])
    look = lens @ rotation(pose.get("yaw", 0), pose.get("pitch", 0), pose.get("roll", 0))
    place = np.array([pose.get("x", 0), pose.get("y", 0), pose.get("z", 0)])
    frame = np.full((height, width, 3), 90, np.uint8)
    for (corner, along, up, _), texture in zip(PLANES, cloths, strict=True):
        plane = np.stack([np.array(along) / TEXTURE, np.array(up) / TEXTURE, np.array(corner) - place], 1)
        frame = cv2.warpPerspective(
            texture, look @ plane, (width, height), dst=frame, flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_TRANSPARENT,
        )  # fmt: skip
    return cv2.resize(frame, (width // FINER, height // FINER), interpolation=cv2.INTER_AREA)


def film(poses, height=96, width=160, seed=0):
    cloths = [cloth(10 * seed + number) for *_, number in PLANES]
    return np.stack([shot(pose, height, width, cloths) for pose in poses])


def moves(frames=33, size=1.0):
    """Name to poses: `size` times a move that is plain to see."""
    line = np.linspace(-0.5, 0.5, frames) * size
    angle = line * 0.9
    return {
        "static": [{} for _ in line],
        "pan right": [{"yaw": s * 0.5} for s in line],
        "pan left": [{"yaw": -s * 0.5} for s in line],
        "tilt up": [{"pitch": s * 0.3} for s in line],
        "tilt down": [{"pitch": -s * 0.3} for s in line],
        "roll right": [{"roll": s * 0.5} for s in line],
        "roll left": [{"roll": -s * 0.5} for s in line],
        "zoom in": [{"zoom": 1.2 * np.exp(s * 0.5)} for s in line],
        "zoom out": [{"zoom": 1.2 * np.exp(-s * 0.5)} for s in line],
        "dolly in": [{"z": s - 0.5} for s in line],
        "dolly out": [{"z": -s - 0.5} for s in line],
        "truck right": [{"x": s * 1.6} for s in line],
        "truck left": [{"x": -s * 1.6} for s in line],
        "pedestal up": [{"y": s * 0.9} for s in line],
        "pedestal down": [{"y": -s * 0.9} for s in line],
        "orbit right": [{"x": SUBJECT * np.sin(a), "z": SUBJECT * (1 - np.cos(a)), "yaw": -a} for a in angle],
        "orbit left": [{"x": -SUBJECT * np.sin(a), "z": SUBJECT * (1 - np.cos(a)), "yaw": a} for a in angle],
        "handheld": handheld(frames, 0.012 * size),
    }


def handheld(frames, amplitude, seed=3):
    """A standing operator: sway and tremble, in shares of the frame width."""
    rng = np.random.default_rng(seed)
    time = np.arange(frames) / FPS
    shake = [
        sum(
            rng.normal()
            * amplitude
            / FOCAL
            / (0.6 + rate)
            * np.sin(2 * np.pi * (rate * time + rng.uniform()))
            for rate in (0.7, 1.3, 2.1, 3.4)
        )
        for _ in range(2)
    ]
    return [{"yaw": a, "pitch": b} for a, b in zip(*shake, strict=True)]
