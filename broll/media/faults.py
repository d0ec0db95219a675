"""What can be wrong with a clip: cuts, freezes, black frames, flicker, drift of light and colour.

A clip is reduced to a few numbers a frame (`glance`), and every fault is a plain function of their course.

    cut       the picture is suddenly another one: as thumbnails, which a moving camera changes slowly, it differs
              from the last several times more than its neighbours do, and does not correlate with it; a flash, after
              which the old picture is back, is none
    frozen    a frame that repeats the one before
    flicker   how much the light jumps from frame to frame, beyond any steady change: by the second difference, which
              is sqrt(6) times the deviation of white noise and nothing for a ramp
    drift     first quarter second against the last, in CIELAB

Left out: dissolves and wipes; faults in a part of the picture.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]  # [h, w, 3] RGB
Grey = NDArray[np.uint8]  # [h, w]
Floats = NDArray[np.float64]

# Levels of 255. A still frame stored twice in mp4 differs by up to 0.15 on average and by 5 at most (on a busy machine
# the encoder decides otherwise now and then); rendered water under a still camera by 0.1 and 13.
STILL, STILL_PEAK = 0.2, 6
RUN = 3  # frames: a shorter repetition is a stutter, not a freeze
THUMB = (16, 10)  # width, height
JUMP = 1.5  # a cut differs from what was before by so many times what is usual around it
DIFFERENT = 8.0  # levels: and at least by so much
UNLIKE, DROP = 0.5, 0.3  # correlation: and it is not like what was before, and less so than is usual
DARK = 4.0  # L of 100: the mean of a black frame
LIT = 12.0  # L: nearly all of a black frame is darker
NEAR = 6  # frames on either side that say what is usual
MOMENT = 0.25  # seconds at either end that a drift is measured between


@dataclass(frozen=True)
class Glance:
    """What is kept of a frame."""

    light: float  # mean L of CIELAB, 0 to 100
    green_red: float  # mean a
    blue_yellow: float  # mean b
    bright: float  # the L that 99 % of the picture stay below
    change: float  # mean absolute difference from the frame before, levels
    peak: float  # the largest of these differences
    step: float  # the mean difference of the thumbnails
    back: float  # the same from the frame before that
    likeness: float  # correlation of the thumbnails with the one before, -1 to 1


def correlation(a: Grey | Frame, b: Grey | Frame) -> float:
    """Of two pictures; 1 for two that show nothing, 0 if one of them does."""
    x, y = (each.astype(np.float32).ravel() for each in (a, b))
    x, y = x - x.mean(), y - y.mean()
    spread_x, spread_y = float(x @ x) / len(x), float(y @ y) / len(y)
    if min(spread_x, spread_y) < 1:
        return 1.0 if max(spread_x, spread_y) < 1 else 0.0
    return float(x @ y) / len(x) / (spread_x * spread_y) ** 0.5


def thumbnail(small: Frame) -> Frame:
    return np.asarray(cv2.resize(small, THUMB, interpolation=cv2.INTER_AREA))


def glance(small: list[Frame]) -> Glance:
    """Of the last of at most three small frames."""
    thumbs = [thumbnail(each) for each in small]
    lab = cv2.cvtColor(small[-1].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    light, green_red, blue_yellow, _ = cv2.mean(lab)
    return Glance(
        light=light,
        green_red=green_red,
        blue_yellow=blue_yellow,
        bright=float(np.percentile(lab[..., 0], 99)),
        change=difference(small[-1], small[-2]) if len(small) > 1 else 0.0,
        peak=float(cv2.norm(small[-1], small[-2], cv2.NORM_INF)) if len(small) > 1 else 0.0,
        step=difference(thumbs[-1], thumbs[-2]) if len(small) > 1 else 0.0,
        back=difference(thumbs[-1], thumbs[-3]) if len(small) > 2 else 255.0,
        likeness=correlation(thumbs[-1], thumbs[-2]) if len(small) > 1 else 1.0,
    )


def difference(a: Frame, b: Frame) -> float:
    return float(cv2.norm(a, b, cv2.NORM_L1)) / a.size


def usual(values: Floats, index: int, nothing: float) -> float:
    """The middle value around a frame, the frame and its next left out: a flash makes two."""
    around = np.r_[values[max(1, index - NEAR) : index], values[index + 2 : index + 2 + NEAR]]
    return float(np.median(around)) if len(around) else nothing


def cuts(course: list[Glance]) -> tuple[int, ...]:
    """Numbers of the frames that begin another picture."""
    steps = np.array([each.step for each in course])
    likes = np.array([each.likeness for each in course])
    found: list[int] = []
    for index, each in enumerate(course):
        if index == 0 or each.step < max(DIFFERENT, JUMP * usual(steps, index, 0.0)):
            continue
        returns = index + 1 < len(course) and course[index + 1].back < each.step / 3
        returned = each.back < each.step / 3
        unlike = min(UNLIKE, usual(likes, index, 1.0) - DROP)
        if each.likeness < unlike and not returns and not returned:
            found.append(index)
    return tuple(found)


def repeats(course: list[Glance]) -> NDArray[np.bool_]:
    """[f]: whether a frame repeats the one before."""
    same = [each.change < STILL and each.peak <= STILL_PEAK for each in course]
    return np.array([False, *same[1:]], bool) if same else np.zeros(0, bool)


def frozen(course: list[Glance]) -> float:
    """The share of frames that repeat the one before."""
    return float(repeats(course)[1:].mean()) if len(course) > 1 else 0.0


def freezes(course: list[Glance]) -> tuple[tuple[int, int], ...]:
    """First and last frame of every run of at least RUN frames that repeat the one before it."""
    same = np.r_[repeats(course), False]
    runs: list[tuple[int, int]] = []
    begin: int | None = None
    for index, repeated in enumerate(same):
        if repeated and begin is None:
            begin = index
        elif not repeated and begin is not None:
            if index - begin >= RUN:
                runs.append((begin, index - 1))
            begin = None
    return tuple(runs)


def black(course: list[Glance]) -> float:
    """The share of frames that are black."""
    return float(np.mean([each.light < DARK and each.bright < LIT for each in course])) if course else 0.0


def flicker(course: list[Glance], cut: tuple[int, ...] = ()) -> float:
    """Deviation of the light from frame to frame, L of 100; what touches a cut is left out."""
    light = np.array([each.light for each in course])
    if len(light) < 3:
        return 0.0
    bend = light[2:] - 2 * light[1:-1] + light[:-2]
    whole = [index for index in range(len(bend)) if not {index + 1, index + 2} & set(cut)]
    return float(np.sqrt((bend[whole] ** 2).mean() / 6)) if whole else 0.0


def drift(course: list[Glance], fps: float) -> tuple[float, float]:
    """From the first to the last moment: of light (L, brighter is positive) and of colour (distance in a and b)."""
    count = max(1, min(len(course) // 2, round(MOMENT * fps)))
    course_lab = np.array([[each.light, each.green_red, each.blue_yellow] for each in course])
    if len(course_lab) < 2:
        return 0.0, 0.0
    change = course_lab[-count:].mean(axis=0) - course_lab[:count].mean(axis=0)
    return float(change[0]), float(np.hypot(change[1], change[2]))


def sharpness(frame: Frame) -> float:
    """Deviation of the Laplacian of the grey picture, levels; 0 shows nothing, grain counts as detail."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_32F).std())
