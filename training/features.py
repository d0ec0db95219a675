"""What is looked at in a clip, before anything is named: how pictures move, and a few of the pictures.

    flow      DIS optical flow over a quarter second, ten times a clip, each as its means over a grid of 10 x 16
    frames    four frames, small

That is 22 of 81 frames, and small: a scene is rendered for it in a tenth of the time of its clip.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, fields
from typing import TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

T, R = TypeVar("T"), TypeVar("R")
REACH, PAIRS = 4, 10  # frames between the two pictures of a flow; flows a clip
GRID = (10, 16)
FLOW_WIDTH = 160  # pixels of width that a flow is measured at, and in
PICTURES, SMALL = 4, (60, 96)  # and their height and width
Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Features:
    """Of one clip; of many, with a first axis."""

    flow: Tensor  # [10, 2, 10, 16] fp16: pixels a frame to the right and down, of 160 across
    frames: Tensor  # [4, 3, 60, 96] uint8

    @classmethod
    def of(cls, arrays: Arrays) -> "Features":
        return cls(*map(torch.from_numpy, arrays))

    @property
    def arrays(self) -> Arrays:
        """As another process is given them: tensors would be handed over as open files, of which there is a limit."""
        return self.flow.numpy(), self.frames.numpy()

    def to(self, device: str) -> "Features":
        return Features(self.flow.to(device), self.frames.to(device))

    def __getitem__(self, picked: Tensor | slice) -> "Features":
        return Features(self.flow[picked], self.frames[picked])

    def __len__(self) -> int:
        return len(self.flow)


def evenly(frames: int, count: int) -> list[int]:
    """So many frames of a clip's, from the first to the last."""
    return np.linspace(0, frames - 1, count).round().astype(int).tolist()


def needed(frames: int) -> list[int]:
    """Which frames of a clip are looked at."""
    begun = evenly(frames - REACH, PAIRS)
    return sorted({*evenly(frames, PICTURES), *begun, *(i + REACH for i in begun)})


def features(clip: Tensor) -> Features:
    """Of [f, 3, h, w] uint8."""
    return seen({i: clip[i] for i in needed(len(clip))}, len(clip))


def seen(shown: dict[int, Tensor], frames: int) -> Features:
    """Of the frames [3, h, w] uint8 that are needed, by their place in the clip of so many."""
    some = torch.stack([shown[i] for i in evenly(frames, PICTURES)]).float()
    small = F.interpolate(some, size=SMALL, mode="area").round().clamp(0, 255).to(torch.uint8)
    return Features(flows(shown, frames), small)


def flows(shown: dict[int, Tensor], frames: int) -> Tensor:
    """See Features."""
    height, width = shown[0].shape[1:]
    size = (FLOW_WIDTH, round(height * FLOW_WIDTH / width))
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    starts = evenly(frames - REACH, PAIRS)
    gray = {
        i: cv2.resize(cv2.cvtColor(shown[i].permute(1, 2, 0).contiguous().numpy(), cv2.COLOR_RGB2GRAY), size)
        for i in sorted({i + step for i in starts for step in (0, REACH)})
    }
    found = np.stack([flow.calc(gray[i], gray[i + REACH], None) for i in starts]) / REACH
    return F.adaptive_avg_pool2d(torch.from_numpy(found).permute(0, 3, 1, 2), GRID).half()


def stack(many: list[Features]) -> Features:
    return Features(*(torch.stack([getattr(f, key.name) for f in many]) for key in fields(Features)))


def in_processes(clips: Iterable[Tensor]) -> Iterator[Features]:
    """Features of clips [f, 3, h, w] uint8, in order, on all cores."""
    whole = (np.ascontiguousarray(clip.cpu().numpy()) for clip in clips)
    return map(Features.of, on_all_cores(_of_clip, whole))


def on_all_cores(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """The work of each, in order, on all cores; no more of it is taken up at once than they need."""
    workers = len(os.sched_getaffinity(0))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, _one_thread) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)


def _one_thread() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _of_clip(clip: np.ndarray) -> Arrays:
    return features(torch.from_numpy(clip)).arrays
