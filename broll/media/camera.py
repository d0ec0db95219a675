"""What the camera did in a clip, in numbers and in a word.

    tracks -> votes -> field -> evidence -> name; once with every track, and once without the subject that crosses, if
    there is one. The second counts if what is left is explained at least as well.

A move must keep its sign: what comes and goes is a hand, or nothing. The shake is measured around a smooth path.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from broll.media.camera_field import COLUMNS, FEWEST, ROWS, gather, votes
from broll.media.camera_models import Evidence, evidence
from broll.media.camera_move import RADIUS, Move, name
from broll.media.camera_subject import subject, without
from broll.media.camera_track import Chain

Floats = NDArray[np.float64]
Speed = Literal["slow", "normal", "fast"]

STEADY = 0.5  # the sum of a part over the chains against the sum of its sizes
FITS = 0.6  # share of the picture that a rigid fit must explain to be counted over the clip
SHAKE = 0.0025  # frame widths, RMS
HAND = 5.0  # times the shake: a hand sways that far without going anywhere
STRETCH = 5.0  # seconds over which a smooth path is a cubic
FEW = 5  # tracks of half a picture: the middle of fewer says nothing

# Slow up to the first, fast from the second; percent of the frame a second, for growing percent a second. Midway
# between the paces that nano was taught; in a pan 14 % is the seven seconds that cameramen give a thing to cross.
PACES: dict[str, tuple[float, float]] = {
    "pan": (9, 14), "truck": (9, 14), "tilt": (8, 12), "pedestal": (8, 12),
    "zoom": (7, 12), "dolly": (7, 12), "orbit": (11, 20), "roll": (9, 14),
}  # fmt: skip


class Camera(BaseModel):
    """What the camera did, measured.

    move        its largest move, or static, or handheld
    pan         % of the frame width over the clip, by turning or going; + the camera to the right
    tilt        % of the frame height over the clip, by turning or going; + up
    zoom        how many times larger the picture is at the end, by its lens or by going
    roll        degrees over the clip; + the camera clockwise, the picture the other way
    parallax    the share of the picture whose motion no turn of the camera or the lens explains, 0 to 1
    jitter      % of the frame width, RMS around a smooth path
    rate        % of the frame a second of the named move: of the width, of the height (tilt, pedestal), growth (zoom,
                dolly), of a radian (roll); 0 if static or handheld
    speed       slow, normal or fast, by that rate
    confidence  0 to 1: the share of the picture that this move explains, times how much of it could be followed
    tracked     the share of the picture that could be followed, 0 to 1
    subject     whether something was found to cross the picture, and left out
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    move: Move
    pan: float = 0.0
    tilt: float = 0.0
    zoom: float = 1.0
    roll: float = 0.0
    parallax: Annotated[float, Field(ge=0, le=1)] = 0.0
    jitter: Annotated[float, Field(ge=0)] = 0.0
    rate: Annotated[float, Field(ge=0)] = 0.0
    speed: Speed = "slow"
    confidence: Annotated[float, Field(ge=0, le=1)] = 0.0
    tracked: Annotated[float, Field(ge=0, le=1)] = 0.0
    subject: bool = False


@dataclass(frozen=True)
class Seen:
    """One reading of the tracks."""

    chains: Sequence[Chain]
    vote: Floats  # [chains, cells, 2]
    evidence: Evidence
    subject: bool


def read(chains: Sequence[Chain], fps: float, aspect: float, *, subject: bool) -> Seen | None:
    vote = votes(chains, fps, aspect)
    field = gather(vote, aspect)
    return Seen(chains, vote, evidence(field, chains, fps), subject) if len(field) >= FEWEST else None


def tracks_of(chains: Sequence[Chain]) -> int:
    return sum(len(chain.at) for chain in chains)


def better(whole: Seen | None, rest: Seen | None) -> Seen | None:
    """The reading without the subject, if enough is left and it is explained as well."""
    if whole is None or rest is None:
        return whole or rest
    before, after = whole.evidence, rest.evidence
    enough = after.cells >= 12 and after.weight >= 0.3 * before.weight
    # A body of more than half of all tracks may as well be the scene: then much must be gained.
    most = tracks_of(rest.chains) < 0.5 * tracks_of(whole.chains)
    gained = after.plain - before.plain
    return rest if enough and gained > (0.05 if most else -0.02) else whole


def reading(chains: Sequence[Chain], fps: float, aspect: float) -> Seen | None:
    whole = read(chains, fps, aspect, subject=False)
    link = subject(chains, fps, aspect)
    if link is None:
        return whole
    return better(whole, read(without(chains, link, fps, aspect), fps, aspect, subject=True))


def path(chains: Sequence[Chain], side: int) -> Floats:
    """[looks, 2]: where the middle of the tracks at the left (-1) or the right (+1) went, frame widths."""
    steps = [np.zeros((1, 2))]
    for chain in chains:
        x = chain.at[:, 0]
        half = chain.track[:, (x - np.median(x)) * side > 0] if len(x) else chain.track
        each = np.diff(half, axis=0)
        steps.append(np.median(each, axis=1) if each.shape[1] >= FEW else np.zeros((len(each), 2)))
    return np.asarray(np.cumsum(np.concatenate(steps), axis=0))


def rough(way: Floats, pieces: int) -> Floats:
    """What is left of a path around a cubic, piece by piece: an eased move is smooth, a hand is not."""
    left = np.zeros_like(way)
    for place in np.array_split(np.arange(len(way)), pieces):
        if len(place) > 6:
            time = np.linspace(-1, 1, len(place))
            curve = np.polynomial.polynomial.polyfit(time, way[place], 3)
            left[place] = way[place] - np.polynomial.polynomial.polyval(time, curve).T
    return left


def jitter(chains: Sequence[Chain], seconds: float) -> float:
    """RMS of the roughness that the two halves of the picture share, frame widths: noise is not shared."""
    pieces = max(1, round(seconds / STRETCH))
    left, right = (rough(path(chains, side), pieces) for side in (-1, 1))
    return max(0.0, float((left * right).sum(axis=1).mean())) ** 0.5


@dataclass(frozen=True)
class Totals:
    """Of the picture over the clip: frame widths, the logarithm of its growth, radians."""

    across: float
    down: float
    grow: float
    lean: float


def totals(seen: Seen, seconds: Floats) -> Totals:
    """From the fit where one fits and keeps its sign; else from the middle votes, chain by chain."""
    e, time = seen.evidence, float(seconds.sum())
    fits = e.rigid.share > FITS and e.steady > STEADY
    if fits:
        rigid = e.rigid
        return Totals(*(each * time for each in (rigid.across, rigid.down, rigid.grow, rigid.lean)))
    seen_at = [np.isfinite(vote[:, 0]) for vote in seen.vote]
    each = [
        np.median(vote[at], axis=0) if at.any() else np.zeros(2)
        for vote, at in zip(seen.vote, seen_at, strict=True)
    ]
    across, down = (np.array(each) * seconds[:, None]).sum(axis=0)
    return Totals(float(across), float(down), e.growth * e.steady * time, 0.0)


def rate_of(family: str, e: Evidence, total: Totals, seconds: float, aspect: float) -> float:
    """Percent of the frame a second."""
    size = {
        "tilt": abs(total.down) / aspect / seconds, "pedestal": abs(total.down) / aspect / seconds,
        "zoom": abs(total.grow) / seconds, "dolly": abs(total.grow) / seconds, "roll": abs(total.lean) / seconds,
    }  # fmt: skip
    return 100 * size.get(family, e.pace)


def speed(family: str, rate: float) -> Speed:
    slow, fast = PACES[family]
    return "fast" if rate >= fast else "slow" if rate < slow else "normal"


def explained(move: str, e: Evidence) -> float:
    """The share of the picture that this move explains."""
    family, _, way = move.partition(" ")
    if family == "truck":
        return e.left if way == "right" else e.right
    if family == "pedestal":
        return e.down if way == "up" else e.up
    if family == "dolly":
        return e.bigger if way == "in" else e.smaller
    if family == "orbit":
        return e.orbit_right if way == "right" else e.orbit_left
    return e.rest if family in ("static", "handheld") else e.rigid.share


def reach(e: Evidence) -> float:
    """The largest part, frame widths a second."""
    rigid = e.rigid
    parts = (
        e.pace,
        abs(rigid.down),
        RADIUS * abs(rigid.grow),
        RADIUS * abs(rigid.lean),
        RADIUS * abs(e.growth),
    )
    return max(parts)


def unreadable(chains: Sequence[Chain], fps: float, aspect: float, seconds: float) -> Camera:
    """No two chains agree, or there is nothing to follow: a hand that shakes much, or a still camera."""
    shake = jitter(chains, seconds) if len(chains) else 0.0
    often = np.isfinite(votes(chains, fps, aspect)[..., 0]).sum(axis=0) >= max(1, len(chains) / 2)
    tracked = float(often.mean())
    sure = min(1.0, 3 * tracked) if shake > SHAKE else 0.0
    move: Move = "handheld" if shake > SHAKE else "static"
    return Camera(move=move, jitter=100 * shake, confidence=sure, tracked=tracked)


def camera(chains: Sequence[Chain], fps: float, aspect: float) -> Camera:
    """aspect: height / width of the frame."""
    seconds = np.array([chain.steps for chain in chains]) / fps
    seen = reading(chains, fps, aspect) if len(chains) else None
    time = float(seconds.sum())
    if seen is None:
        return unreadable(chains, fps, aspect, time)
    e, shake, total = seen.evidence, jitter(seen.chains, time), totals(seen, seconds)
    move: Move = name(e) if e.steady > STEADY and reach(e) * time > HAND * shake else "static"
    if move == "static" and shake > SHAKE:
        move = "handheld"
    family = move.partition(" ")[0]
    rate = rate_of(family, e, total, time, aspect) if family in PACES else 0.0
    tracked = min(1.0, e.cells / (ROWS * COLUMNS))
    return Camera(
        move=move,
        pan=-100 * total.across,
        tilt=100 * total.down / aspect,
        zoom=float(np.exp(np.clip(total.grow, -3, 3))),
        roll=-float(np.degrees(total.lean)),
        parallax=max(0.0, 1 - e.rigid.share),
        jitter=100 * shake,
        rate=rate,
        speed=speed(family, rate) if family in PACES else "slow",
        confidence=min(1.0, explained(move, e) * min(1.0, 3 * tracked)),
        tracked=tracked,
        subject=seen.subject,
    )
