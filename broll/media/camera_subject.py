"""A subject that crosses the picture, found so that it does not speak for the camera.

    clump    tracks that are near to each other and move alike, while hardly any other track moves so: the picture's
             own motion is never confined to one place
    travel   over the chains it goes where its own motion takes it. Things that a camera passes do not: they are
             replaced by the next at the same place

A subject is left out only where what remains is explained at least as well without it; that is camera's to decide.

Left out: two subjects; one that grows much, or stays where it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broll.media.camera_track import Chain

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

ALIKE = 0.014  # frame widths a second: tracks of one body
WIDE, HIGH = 0.18, 0.33  # half the size of a clump: frame widths, frame heights
LEAST, LEAST_SHARE = 5, 0.05  # tracks of a clump, and of all
CONFINED = 0.75  # of the tracks that move so are in the clump
MOST = 4  # clumps of a chain
NEAR, NEARER = (
    0.09,
    0.03,
)  # frame widths between where it should be and is; and more for each chain it was not seen in
TURNS = 0.045  # frame widths a second that its motion changes by from chain to chain: it bobs
LOST = 3  # chains in a row that it may be away
SEEN = 0.3  # of the chains
STIRS, GOES = 0.012, 0.08  # it moves by so much a second, and so far in all
TRUE = 0.4  # of its motion: how far its way may be from it


@dataclass(frozen=True)
class Clump:
    place: Floats  # [2]
    rate: Floats  # [2]


def clumps(chain: Chain, fps: float, aspect: float) -> list[Clump]:
    at, rate = chain.at, chain.rate(fps)
    count = len(at)
    if count < 2 * LEAST:
        return []
    alike = np.linalg.norm(rate[:, None] - rate, axis=2) < ALIKE
    apart = np.abs(at[:, None] - at)
    core = alike & (apart[..., 0] < WIDE) & (apart[..., 1] < HIGH * aspect)
    left, found = np.ones(count, bool), []
    for _ in range(MOST):
        size = (core & left).sum(axis=1) * left
        first = int(size.argmax())
        if size[first] < max(LEAST, LEAST_SHARE * count):
            break
        members = core[first] & left
        clump = Clump(np.median(at[members], axis=0), np.median(rate[members], axis=0))
        same = np.linalg.norm(rate - clump.rate, axis=1) < ALIKE
        off = np.abs(at - clump.place)
        inside = same & (off[:, 0] < WIDE + 0.01) & (off[:, 1] < (HIGH + 0.01) * aspect)
        left &= ~inside
        if inside.sum() >= CONFINED * same.sum():
            found.append(clump)
    return found


def linked(found: Sequence[Sequence[Clump]], times: Floats, index: int, clump: Clump) -> dict[int, Clump]:
    """The same body in the chains before and after, where its motion takes it."""
    link = {index: clump}
    for direction in (1, -1):
        last, when, missed = clump, times[index], 0
        each = index + direction
        while 0 <= each < len(found) and missed <= LOST:
            due = last.place + last.rate * (times[each] - when)
            near = [
                (float(np.linalg.norm(one.place - due)), number)
                for number, one in enumerate(found[each])
                if np.linalg.norm(one.rate - last.rate) < TURNS
            ]
            distance, number = min(near, default=(np.inf, 0))
            if distance < NEAR + NEARER * missed:
                last, when, missed = found[each][number], times[each], 0
                link[each] = last
            else:
                missed += 1
            each += direction
    return link


def travels(link: dict[int, Clump], times: Floats, chains: int) -> bool:
    """Whether it goes where its motion takes it, far enough to be told from the scene."""
    if len(link) < max(2, SEEN * chains):
        return False
    order = sorted(link)
    when = times[order]
    way = np.polyfit(when, np.array([link[each].place for each in order]), 1)[0]
    rate = np.median([link[each].rate for each in order], axis=0)
    speed = float(np.linalg.norm(rate))
    true = float(np.linalg.norm(way - rate)) <= TRUE * speed + 0.01
    return true and speed * float(when[-1] - when[0]) >= GOES


def subject(chains: Sequence[Chain], fps: float, aspect: float) -> dict[int, Clump] | None:
    """The travelling body that was followed longest, by the numbers of the chains it is in."""
    found = [clumps(chain, fps, aspect) for chain in chains]
    times = np.array([(chain.start + chain.steps / 2) / fps for chain in chains])
    best: dict[int, Clump] = {}
    for index, here in enumerate(found):
        for clump in here:
            if np.linalg.norm(clump.rate) >= STIRS:
                link = linked(found, times, index, clump)
                if len(link) > len(best) and travels(link, times, len(chains)):
                    best = link
    return best or None


def without(chains: Sequence[Chain], link: dict[int, Clump], fps: float, aspect: float) -> list[Chain]:
    """The chains without the tracks of this body; between its sightings, where it should be."""
    order = sorted(link)
    rest = []
    for index, chain in enumerate(chains):
        nearest = min(order, key=lambda each: abs(each - index))
        clump = link[nearest]
        seconds = (chain.start + chain.steps / 2 - chains[nearest].start - chains[nearest].steps / 2) / fps
        off = np.abs(chain.at - (clump.place + clump.rate * seconds))
        slack = 0.03 if nearest == index else 0.05
        its = np.linalg.norm(chain.rate(fps) - clump.rate, axis=1) < slack
        its &= (off[:, 0] < 0.24) & (off[:, 1] < 0.45 * aspect)
        rest.append(Chain(chain.start, chain.steps, chain.track[:, ~its]))
    return rest
