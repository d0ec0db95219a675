"""The same clip at another pace: frames between frames, by warping both neighbours along the flow.

    a at time 0, b at time 1, wanted at t:

    from a    a(x - t F_ab(x))            F_ab the DIS flow from a to b, F_ba back
    from b    b(x - (1 - t) F_ba(x))
    blend     (1 - t) and t, each times how well its flow agrees with the way back: exp(-(|F_ab + F_ba| / SLACK)^2)
    nothing   where neither agrees, something is hidden in one of the two: the nearer frame as it is

    https://arxiv.org/abs/1603.03590 for the flow; the backward warp at x takes the flow at x for the one that leads
    there, which is right where the flow is smooth.

Across a cut there is no frame between: the nearer one is repeated. Left out: motion blur; transparent things; objects
that move farther between two frames than they are large.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from broll.errors import BadOption
from broll.media.faults import DIFFERENT, UNLIKE, correlation, difference, thumbnail
from broll.media.flow import LEAST

Frame = NDArray[np.uint8]  # [h, w, 3] RGB
Frames = NDArray[np.uint8]  # [f, h, w, 3]
Floats = NDArray[np.float32]

SLACK = 2.0  # pixels of the flow's picture
FLOW_WIDTH = 480  # a wider picture is made smaller for its flow
CLOSE = 1 / 64  # of the way: nearer to a frame than this is that frame
SLOWEST, FASTEST = 1 / 8, 8.0


def grid(height: int, width: int) -> Floats:
    """[h, w, 2]: where every pixel is, x and y."""
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.stack([x, y], axis=2)


def sampled(picture: NDArray[np.generic], at: Floats) -> NDArray[np.float32]:
    return np.asarray(
        cv2.remap(picture, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.float32
    )


class Between:
    """What lies between two neighbouring frames, at any time from 0 to 1."""

    def __init__(self, a: Frame, b: Frame) -> None:
        self.a, self.b = np.ascontiguousarray(a), np.ascontiguousarray(b)
        small_a, small_b = (self._small(frame) for frame in (self.a, self.b))
        thumbs = [thumbnail(frame) for frame in (self.a, self.b)]
        self.cut = difference(*thumbs) > DIFFERENT and correlation(*thumbs) < UNLIKE
        self.cut |= min(small_a.shape) < LEAST
        if not self.cut:
            method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
            there = method.calc(small_a, small_b, None)
            back = method.calc(small_b, small_a, None)
            self.there, self.trust_there = self._full(there, self._agreement(there, back))
            self.back, self.trust_back = self._full(back, self._agreement(back, there))
            self.grid = grid(*a.shape[:2])

    @staticmethod
    def _small(frame: Frame) -> NDArray[np.uint8]:
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        height, width = grey.shape
        if width <= FLOW_WIDTH:
            return np.asarray(grey)
        size = (FLOW_WIDTH, max(LEAST, round(height * FLOW_WIDTH / width)))
        return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA))

    @staticmethod
    def _agreement(there: Floats, back: Floats) -> Floats:
        """[h, w], 0 to 1: whether going there and back ends where it began."""
        miss = there + sampled(back, grid(*there.shape[:2]) + there)
        return np.exp(-(miss**2).sum(axis=2) / SLACK**2).astype(np.float32)

    def _full(self, moved: Floats, trust: Floats) -> tuple[Floats, Floats]:
        height, width = self.a.shape[:2]
        scale = np.array([width / moved.shape[1], height / moved.shape[0]], np.float32)
        return cv2.resize(moved, (width, height)) * scale, cv2.resize(trust, (width, height))

    def at(self, t: float) -> Frame:
        nearer = self.a if t < 0.5 else self.b
        if self.cut or min(t, 1 - t) < CLOSE:
            return nearer
        from_a = sampled(self.a, self.grid - np.float32(t) * self.there)
        from_b = sampled(self.b, self.grid - np.float32(1 - t) * self.back)
        weight_a, weight_b = (1 - t) * self.trust_there + 1e-4, t * self.trust_back + 1e-4
        hidden = np.maximum(0, 1 - 4 * np.maximum(self.trust_there, self.trust_back))[..., None]
        share = (weight_b / (weight_a + weight_b))[..., None]
        mixed = from_a + share * (from_b - from_a)
        mixed += hidden * (nearer - mixed)
        return np.asarray(mixed.round().clip(0, 255), np.uint8)


def retime(frames: Sequence[Frame] | Frames, factor: float, *, count: int | None = None) -> Frames:
    """The clip at `factor` times its pace: 2 is twice as fast, 0.5 half as fast.

    The whole clip is shown, so its length changes, unless `count` says how many frames are wanted: then it is the
    first of them. A faster clip of the same length needs a longer one to begin with.
    """
    if not SLOWEST <= factor <= FASTEST:
        raise BadOption(
            f"the pace is {factor:g}; it can be {SLOWEST:g} to {FASTEST:g} times that of the clip"
        )
    assert len(frames) > 0, "nothing to retime"
    most = int((len(frames) - 1) / factor + 1e-6) + 1
    wanted = most if count is None else count
    if not 1 <= wanted <= most:
        raise BadOption(
            f"{wanted} frames at {factor:g} times the pace need {int(np.ceil((wanted - 1) * factor)) + 1} frames; "
            f"the clip has {len(frames)}, enough for 1 to {most}"
        )
    made: list[Frame] = []
    pair: tuple[int, Between] | None = None
    for index in range(wanted):
        place = index * factor
        before = min(int(place + 1e-6), len(frames) - 1)
        t = place - before
        if t < CLOSE or before + 1 == len(frames):
            made.append(np.asarray(frames[before]))
            continue
        if pair is None or pair[0] != before:
            pair = (before, Between(frames[before], frames[before + 1]))
        made.append(pair[1].at(t))
    return np.stack(made)
