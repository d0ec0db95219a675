"""Dense optical flow, and what is made of it: how much moves, and how a loop joins.

    flow     DIS (Kroeger et al. 2016, https://arxiv.org/abs/1603.03590) between two small grey pictures
    amount   VBench's "dynamic degree" (https://arxiv.org/abs/2311.17982) without its network: the mean of the largest
             5 % of the flow, eight times a second, in shorter sides a second
    seam     the step from the last frame to the first against the steps around it, region by region, because a
             fast sky over a calm foreground passes any average over the frame

It counts the camera's motion too, as VBench does.
"""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]  # [h, w, 3] RGB
Grey = NDArray[np.uint8]  # [h, w]
Floats = NDArray[np.float64]

LEAST = 32  # pixels of the lesser side: DIS has no room for its patches below, and crashes
RATE = 8.0  # looks a second, VBench's own
TOP = 0.05
# Shorter sides a second, in percent. VBench calls a clip dynamic from 6 * min(h, w) / 256 pixels a look: 18.75 % a
# second. A quarter of that takes more than twenty seconds to cross the picture: water, leaves, a breath.
HIGH = 18.75
LOW = HIGH / 4
Degree = Literal["low", "medium", "high"]

REGIONS = (3, 4)  # rows, columns of the seam
FLOOR = 0.5  # levels: a region that never changes is not judged by less


def grey(small: Frame) -> Grey:
    """Softened, or grain would move."""
    return np.asarray(cv2.GaussianBlur(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), (0, 0), 1.0))


def flow(before: Grey, after: Grey) -> NDArray[np.float32]:
    """[h, w, 2] pixels, x and y."""
    if min(before.shape) < LEAST:
        return np.zeros((*before.shape, 2), np.float32)
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    return np.asarray(method.calc(before, after, None))


def amount(before: Grey, after: Grey, seconds: float) -> float:
    """Mean of the largest TOP of the flow, percent of the shorter side a second."""
    length = np.linalg.norm(flow(before, after), axis=2).ravel()
    count = max(1, round(TOP * length.size))
    return 100 * float(np.partition(length, -count)[-count:].mean()) / min(before.shape) / seconds


def degree(motion: float) -> Degree:
    """One of low, medium, high."""
    return "high" if motion >= HIGH else "low" if motion < LOW else "medium"


def by_region(picture: NDArray[np.float32]) -> Floats:
    """[h, w] to the mean of each of REGIONS."""
    return np.asarray(cv2.resize(picture, REGIONS[::-1], interpolation=cv2.INTER_AREA), np.float64)


def step(before: Frame, after: Frame) -> Floats:
    """[3, 4]: mean absolute difference, levels."""
    return by_region(cv2.absdiff(before, after).mean(axis=2, dtype=np.float32))


def seam(first: Frame, last: Frame, usual: Floats) -> Floats:
    """[3, 4]: the step of the join in steps that are usual there: about 1 joins, 2 is seen, 5 jumps."""
    return np.asarray(step(last, first) / np.maximum(usual, FLOOR))


def turn(ends: list[Grey], starts: list[Grey], fps: float) -> Floats:
    """[3, 4]: how much the motion changes across the join, percent of the width a second.

    `ends` are the last two pictures, `starts` the first two.
    """
    before, after = flow(*ends), flow(*starts)
    change = np.stack([by_region(after[..., axis] - before[..., axis]) for axis in range(2)])
    return 100 * fps * np.hypot(*change) / ends[0].shape[1]
