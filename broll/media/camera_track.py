"""How points of the picture move: corners followed in short chains.

    look     every frame becomes a small grey picture whose contrast is the same everywhere, so that night, haze and
             exposure do not matter; softened first, so that grain matters little, and where there is much of it, as
             the mean of a few frames
    chain    corners (Shi, Tomasi, CVPR 1994) followed for half a second by pyramidal Lucas-Kanade (Bouguet 2000) and
             all the way back; a track that does not return to where it began is dropped. Then new corners are
             found, so that what comes into the picture is seen and no track gets old

Positions are in frame widths from the middle of the picture, x right and y down.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]  # [h, w, 3] RGB
Grey = NDArray[np.uint8]  # [h, w]
Floats = NDArray[np.float64]
Points = NDArray[np.float32]  # [n, 1, 2] pixels

WIDTH = 320  # of the pictures that are tracked
LOWEST, TALLEST = 48, 2.0  # rows, and heights in widths: thinner strips are stretched, taller ones squeezed
AROUND = 41  # pixels: what contrast is measured over
SOFT, SOFTEST = 1.2, 3.6  # pixels: blur without grain, and the most there is
SOFTER = 0.13  # pixels of blur a level of grain
FAINT = 3.0  # levels: contrast well below it stays low
LAPLACE = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)  # blind to edges and ramps
SPAN = 0.5  # seconds of a chain
TILE, IN_TILE = 32, 6  # pixels; corners in a tile
APART = 9  # pixels
BLOCK = 9  # pixels that a corner is judged by
WEAKEST = 2e-5  # OpenCV's units: what grain makes of a flat picture stays below
WINDOW, WIDER = 21, 31  # pixels that a corner is found again by: without grain, and with much
GRAINY = 3.0  # levels of grain from which on several frames make one look
LOOKS = 8.0  # a second: as many remain
STOP = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 20, 0.02)
RETURN = 0.6  # pixels: how far from its beginning a track may end on its way back


@dataclass(frozen=True)
class Chain:
    """What `steps` frames from `start` on showed: the way of n corners that could be followed to the end.

    A track has a place for every look, and a look may be the mean of a few frames.
    """

    start: int
    steps: int
    track: Floats  # [looks, n, 2]

    @property
    def at(self) -> Floats:
        """[n, 2]: half way, so that growing and shrinking are mirror images."""
        return np.asarray((self.track[0] + self.track[-1]) / 2)

    @property
    def moved(self) -> Floats:
        return np.asarray(self.track[-1] - self.track[0])

    def rate(self, fps: float) -> Floats:
        """[n, 2]: frame widths a second."""
        return np.asarray(self.moved * fps / self.steps)


def sized(frame: Frame, width: int) -> Frame:
    """The frame at this width, by area when it shrinks."""
    height = round(frame.shape[0] * width / frame.shape[1])
    height = min(max(LOWEST, height), round(TALLEST * width))
    if frame.shape[:2] == (height, width):
        return frame
    how = cv2.INTER_AREA if frame.shape[1] > width else cv2.INTER_LINEAR
    if (
        frame.shape[1] >= 2 * width and frame.shape[0] >= 2 * height
    ):  # halving is far quicker than other ratios
        frame = cv2.resize(frame, (frame.shape[1] // 2, frame.shape[0] // 2), interpolation=how)
    return np.asarray(cv2.resize(frame, (width, height), interpolation=how))


def grain(frame: Frame) -> float:
    """Levels of noise in a picture of WIDTH (Immerkaer 1996), by the quieter half, so that texture is not noise."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
    rough = np.abs(cv2.filter2D(grey, -1, LAPLACE)) / 6
    return float(np.quantile(rough[::2, ::2], 0.25)) / 0.3186 * WIDTH / frame.shape[1]


def look(frame: Frame, noise: float = 0.0) -> Grey:
    """[h, WIDTH]: the detail of a frame, every neighbourhood at the same contrast."""
    soft = min(SOFTEST, SOFT + SOFTER * noise)
    left = noise / (2 * np.sqrt(np.pi) * soft)  # of white noise behind this blur
    grey = cv2.cvtColor(sized(frame, WIDTH), cv2.COLOR_RGB2GRAY).astype(np.float32)
    grey = cv2.GaussianBlur(grey, (0, 0), soft)
    detail = grey - cv2.blur(grey, (AROUND, AROUND))
    contrast = np.sqrt(np.maximum(cv2.blur(detail * detail, (AROUND, AROUND)), 0))
    return np.asarray(np.clip(128 + 50 * detail / (contrast + FAINT + 2 * left), 0, 255), np.uint8)


def corners(picture: Grey) -> Points:
    """The best few of every tile: weak ones count where there is nothing better, or a subject would win every vote."""
    strength = cv2.cornerMinEigenVal(picture, BLOCK)
    peak = (strength == cv2.dilate(strength, np.ones((APART, APART), np.uint8))) & (strength > WEAKEST)
    y, x = np.nonzero(peak)
    tile = (y // TILE) * WIDTH + x // TILE
    order = np.lexsort((-strength[y, x], tile))
    tile, y, x = tile[order], y[order], x[order]
    _, begin, count = np.unique(tile, return_index=True, return_counts=True)
    rank = np.arange(len(tile)) - np.repeat(begin, count)
    kept = rank < IN_TILE
    return np.stack([x[kept], y[kept]], axis=1).astype(np.float32)[:, None]


def walk(pictures: Sequence[Grey], points: Points, window: int) -> tuple[list[Points], NDArray[np.bool_]]:
    """Where the points are in every picture, and which of them were never lost."""
    way, kept = [points], np.ones(len(points), bool)
    for before, after in zip(pictures, pictures[1:], strict=False):
        moved, found, _ = cv2.calcOpticalFlowPyrLK(
            before, after, way[-1], None, winSize=(window, window), maxLevel=3, criteria=STOP
        )
        way.append(moved)
        kept &= found[:, 0] > 0
    return way, kept


def follow(pictures: Sequence[Grey], start: int, frames: int, window: int = WINDOW) -> Chain:
    """A chain over these pictures, `frames` apart, of whatever comes back to where it began."""
    height, width = pictures[0].shape
    first = corners(pictures[0])
    steps = frames * (len(pictures) - 1)
    if len(first) == 0:
        return Chain(start, steps, np.zeros((len(pictures), 0, 2)))
    way, kept = walk(pictures, first, window)
    back, returned = walk(pictures[::-1], way[-1], window)
    miss = np.linalg.norm((back[-1] - first)[:, 0], axis=1)
    end = way[-1][:, 0]
    inside = ((end >= 0) & (end < [width, height])).all(axis=1)
    track = np.stack(way)[:, kept & returned & inside & (miss < RETURN), 0].astype(np.float64)
    return Chain(start, steps, (track + 0.5 - [width / 2, height / 2]) / width)


class Tracker:
    """Takes the frames of a clip one by one and keeps half a second of their looks."""

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._chains: list[Chain] = []
        self._pictures: list[Grey] = []
        self._start = 0
        self._sum: Floats = np.zeros(0)
        self._summed = 0
        self._noise: float | None = None
        self._bin = 1  # frames that make one look
        self._steps = 1  # looks between the first and the last of a chain

    def _begin(self, frame: Frame) -> None:
        self._noise = grain(frame)
        if self._noise > GRAINY:
            self._bin = max(1, int(self._fps / LOOKS))
        self._steps = max(1, round(SPAN * self._fps / self._bin))

    def add(self, frame: Frame, small: Frame | None = None) -> None:
        """A frame; and the same of WIDTH, if there is one already."""
        if self._noise is None:
            self._begin(frame)
        small = sized(frame, WIDTH) if small is None else small
        if self._bin > 1:
            self._sum = small.astype(np.float64) if self._summed == 0 else self._sum + small
            self._summed += 1
            if self._summed < self._bin:
                return
            small = np.asarray(np.round(self._sum / self._bin), np.uint8)
            self._summed = 0
        self._pictures.append(look(small, (self._noise or 0.0) / self._bin**0.5))
        if len(self._pictures) > self._steps:
            self._close()

    def finish(self) -> list[Chain]:
        """The chains, a shorter last one included."""
        if len(self._pictures) > 1:
            self._close()
        return self._chains

    def _close(self) -> None:
        window = WINDOW if self._bin == 1 else WIDER
        chain = follow(self._pictures, self._start, self._bin, window)
        self._chains.append(chain)
        self._start += chain.steps
        self._pictures = self._pictures[-1:]
