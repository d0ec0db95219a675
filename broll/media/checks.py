"""What a finished clip shows, measured from its file: `measure(path)`.

Nothing here judges beauty or knows the prompt: these are numbers that can be put beside what was asked. One pass, frame
by frame; memory does not grow with the clip but for a few numbers a frame and the tracks.

    camera              tracks, field, models, name: camera.py and the files it names
    motion, loop seam   dense flow (flow)
    cuts to drift       the course of a few numbers a frame (faults)

docs/checks.md has the thresholds, and how often they are right. Called checks, not VBench scores: only the formula of
the motion is VBench's.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from broll.errors import BadOption
from broll.media import faults, flow
from broll.media.camera import Camera, camera
from broll.media.camera_track import WIDTH, Tracker, sized
from broll.media.video_file import probe, read_frames

Frame = NDArray[np.uint8]  # [h, w, 3] RGB
Floats = NDArray[np.float64]

SMALL = 160  # width of the frames that all but the camera is measured on
MOST_FPS = 120.0
Share = Annotated[float, Field(ge=0, le=1)]
Grid = tuple[tuple[float, ...], ...]


class Checks(BaseModel):
    """What a clip shows.

    frames, fps      of the clip
    camera           see Camera
    motion           % of the frame's shorter side a second: the mean of the fastest twentieth of the picture, the
                     camera's motion included
    motion_class     low below 4.7, high from 18.75 on, where VBench calls a clip dynamic
    cuts             numbers of the frames that begin another shot
    frozen           share of the frames that repeat the one before, 0 to 1
    freezes          first and last of every run of three or more such frames
    black            share of black frames, 0 to 1
    flicker          deviation of the mean light from frame to frame beyond any steady change, L of 100
    drift_light      last quarter second against the first, L of 100; + it became brighter
    drift_chroma     the same of the mean colour, distance in CIELAB's a and b
    sharpness        deviation of the Laplacian, levels of 255; grain counts as detail: mean of the next two
    sharpness_first  of the first frame
    sharpness_last   of the last frame
    loop_seam        3 rows of 4: the step from the last frame to the first in steps that are usual in that region;
                     about 1 joins, 2 is seen, 5 jumps; None for fewer than three frames
    loop_seam_worst  the largest of them
    loop_turn        3 rows of 4: how much the motion changes at that join, % of the frame width a second
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    frames: Annotated[int, Field(ge=0)]
    fps: Annotated[float, Field(gt=0)]
    camera: Camera
    motion: Annotated[float, Field(ge=0)]
    motion_class: flow.Degree
    cuts: tuple[int, ...] = ()
    frozen: Share = 0.0
    freezes: tuple[tuple[int, int], ...] = ()
    black: Share = 0.0
    flicker: Annotated[float, Field(ge=0)] = 0.0
    drift_light: float = 0.0
    drift_chroma: Annotated[float, Field(ge=0)] = 0.0
    sharpness: Annotated[float, Field(ge=0)] = 0.0
    sharpness_first: Annotated[float, Field(ge=0)] = 0.0
    sharpness_last: Annotated[float, Field(ge=0)] = 0.0
    loop_seam: Grid | None = None
    loop_seam_worst: float | None = None
    loop_turn: Grid | None = None


class Watcher:
    """Sees a clip go by, one frame at a time."""

    def __init__(self, fps: float) -> None:
        self.fps = fps
        self.count = 0
        self.course: list[faults.Glance] = []
        self._tracker = Tracker(fps)
        self._every = max(1, round(fps / flow.RATE))  # frames between two looks at the motion
        self._recent: list[Frame] = []  # as many small ones as the next look needs
        self._start: list[Frame] = []  # the first two
        self._steps: list[Floats] = []
        self._motion: list[tuple[int, float]] = []
        self._first: Frame | None = None
        self._last: Frame | None = None

    def see(self, frame: Frame) -> None:
        picture = sized(frame, WIDTH)
        small = sized(picture, SMALL)
        self._first = frame if self._first is None else self._first
        self._last = frame
        self._start = self._start if len(self._start) == 2 else [*self._start, small]
        self._recent = [*self._recent[-max(self._every, 2) :], small]
        self.course.append(faults.glance(self._recent[-3:]))
        if self.count:
            self._steps.append(flow.step(*self._recent[-2:]))
        if self.count and self.count % self._every == 0:
            before, after = (flow.grey(each) for each in (self._recent[-1 - self._every], small))
            self._motion.append((self.count, flow.amount(before, after, self._every / self.fps)))
        self._tracker.add(frame, picture)
        self.count += 1

    def checks(self) -> Checks:
        if self._first is None or self._last is None:
            raise BadOption("there is no frame to measure")
        cuts = faults.cuts(self.course)
        height, width = self._first.shape[:2]
        whole = [each for each in self._tracker.finish() if not crosses(each.start, each.steps, cuts)]
        sharp = faults.sharpness(self._first), faults.sharpness(self._last)
        light, chroma = faults.drift(self.course, self.fps)
        motion = [
            amount
            for at, amount in self._motion
            if not crosses(at - self._every, self._every, cuts)
        ]  # fmt: skip
        mean = float(np.mean(motion)) if motion else 0.0
        return Checks(
            frames=self.count,
            fps=self.fps,
            camera=camera(whole, self.fps, height / width),
            motion=mean,
            motion_class=flow.degree(mean),
            cuts=cuts,
            frozen=faults.frozen(self.course),
            freezes=faults.freezes(self.course),
            black=faults.black(self.course),
            flicker=faults.flicker(self.course, cuts),
            drift_light=light,
            drift_chroma=chroma,
            sharpness=(sharp[0] + sharp[1]) / 2,
            sharpness_first=sharp[0],
            sharpness_last=sharp[1],
            **self._loop(),
        )

    def _loop(self) -> dict[str, Any]:
        """How the last frame joins the first."""
        if self.count < 3:
            return {}
        seam = flow.seam(self._start[0], self._recent[-1], np.median(self._steps, axis=0))
        ends, starts = ([flow.grey(each) for each in pair] for pair in (self._recent[-2:], self._start))
        return {
            "loop_seam": rows(seam),
            "loop_seam_worst": float(seam.max()),
            "loop_turn": rows(flow.turn(ends, starts, self.fps)),
        }


def rows(grid: Floats) -> Grid:
    return tuple(tuple(float(value) for value in row) for row in grid)


def crosses(start: int, steps: int, cuts: tuple[int, ...]) -> bool:
    """Whether a cut lies between the first and the last frame of this stretch."""
    return any(start < cut <= start + steps for cut in cuts)


def measure_frames(frames: Iterable[Frame], fps: float) -> Checks:
    """Of frames [h, w, 3] RGB, all of one size."""
    if not 0 < fps <= MOST_FPS:
        raise BadOption(f"fps is {fps:g}; it must be above 0 and at most {MOST_FPS:g}")
    watcher = Watcher(fps)
    for frame in frames:
        watcher.see(np.ascontiguousarray(frame))
    return watcher.checks()


def measure(path: Path) -> Checks:
    """Of a clip on disk: mp4, webm or gif."""
    fps = probe(path).fps
    return measure_frames(read_frames(path), min(MOST_FPS, fps) or 16.0)
