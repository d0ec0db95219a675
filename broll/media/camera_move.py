"""What the camera did, named from the field of a clip.

    still      no part moves the picture by more than STILL of its width, or by SURELY with a sign that changes
    handheld   still on the whole, but it shakes
    zoom       the picture grows everywhere alike; dolly: what is near grows more
    pan, tilt  all depths move alike, as a turn of the camera moves them; truck, pedestal: what is near moves more
    orbit      the sides move and the subject in the middle does not, or moves the other way
    roll       the picture leans

Named is the camera's direction: in a pan to the right the picture moves left. One name a clip, the largest part.
A camera that turns with its subject looks like an orbit from these tracks alone, and says orbit.

Left out: moves one after another, of which the largest sum is named; crane, dolly zoom and other mixtures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from broll.media.camera_field import COLUMNS, OFTEN, ROWS, Parts, gather, parts, votes
from broll.media.camera_track import Chain

Floats = NDArray[np.float64]

Move = Literal[
    "static", "pan left", "pan right", "tilt up", "tilt down", "roll left", "roll right", "zoom in", "zoom out",
    "dolly in", "dolly out", "truck left", "truck right", "pedestal up", "pedestal down", "orbit left", "orbit right",
    "handheld",
]  # fmt: skip
MOVES: tuple[str, ...] = get_args(Move)
Speed = Literal["slow", "normal", "fast"]

SURELY, STILL = 0.02, 0.01  # frame widths over the clip: above the first it moves; between them, if steadily
STEADY, STEADIER = 0.6, 0.9  # the sum of a part over the chains against the sum of its sizes
RADIUS = 0.25  # frame widths from the middle at which growing and leaning are compared with moving
GROWS = 0.35  # growing is small at the middle: it counts before moving from this share of it on
ROUND = 0.1  # frame widths over the clip that the sides move in an orbit
HELD = 0.45  # and the part of it that the subject may move along
STAYS = 0.75  # share of the chains in which it does
DEPTH_ACROSS, DEPTH_DOWN, DEPTH_GROW = 0.08, 0.12, 0.25  # spreads above which depths move differently
SHAKE = 0.0025  # frame widths, RMS
FEW = 12  # tracks: the middle of fewer shakes by itself
STRETCH = 5.0  # seconds over which a smooth path is a cubic

# Slow up to the first, fast from the second; percent of the frame a second, for growing percent a second. Midway
# between the paces that nano was taught; in a pan 14 % is the seven seconds that cameramen give a thing to cross.
PACES: dict[str, tuple[float, float]] = {
    "pan": (10, 14.3), "truck": (10, 14.3), "tilt": (8.5, 12), "pedestal": (8.5, 12),
    "zoom": (9, 12.5), "dolly": (9, 12.5), "orbit": (15, 22), "roll": (9, 14),
}  # fmt: skip


class Camera(BaseModel):
    """What the camera did, measured.

    move        the largest move, or static, or handheld
    pan         % of the frame width over the clip; + the camera looks or goes to the right
    tilt        % of the frame height over the clip; + up
    zoom        how many times larger the picture is at the end
    roll        degrees over the clip; + the camera turns clockwise, the picture the other way
    parallax    how differently depths move: the middle deviation from a move that is the same at all depths, as a share
                of the move; 0 to 1
    jitter      % of the frame width, RMS around a smooth path
    rate        % of the frame a second of the named move: width, height, or growth; of the sides in an orbit; of
                a radian in a roll; 0 if static or handheld
    speed       slow, normal or fast by that rate
    confidence  0 to 1: how clearly this name stands above the next
    tracked     the share of the picture in which anything could be followed, 0 to 1
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


@dataclass(frozen=True)
class Course:
    """The parts of every chain, and what they make over the clip: [chains] of each rate times its seconds."""

    across: Floats
    down: Floats
    grow: Floats
    lean: Floats
    far: Floats
    subject: Floats

    @classmethod
    def of(cls, vote: Floats, seconds: Floats, aspect: float) -> "Course":
        often = np.isfinite(vote[..., 0]).mean(axis=0) >= OFTEN
        each = [
            (parts(gather(np.where(often[:, None], one, np.nan)[None], aspect), aspect), time)
            for one, time in zip(vote, seconds, strict=True)
        ]
        columns = {
            name: np.array([getattr(one, name) * time for one, time in each])
            for name in ("across", "down", "grow", "lean", "far", "subject")
        }
        return cls(**columns)


def steadiness(values: Floats) -> float:
    """1 if it always goes the same way, about 0 if it comes and goes."""
    total = float(np.abs(values).sum())
    return float(abs(values.sum())) / total if total > 0 else 0.0


@dataclass(frozen=True)
class Candidate:
    """A family of moves: how far it moves the picture over the clip, with a sign, and how steadily."""

    family: str
    amount: float  # frame widths
    steady: float
    name: str

    @property
    def moves(self) -> bool:
        size = abs(self.amount)
        return (size > SURELY and self.steady > STEADY) or (size > STILL and self.steady > STEADIER)


def orbits(whole: Parts, course: Course, seconds: float) -> bool:
    """The sides go far, and the subject stays: on the whole and nearly always, or it is one that crosses."""
    stays = course.subject * np.sign(course.far) < HELD * np.abs(course.far)
    stayed = whole.subject * np.sign(whole.far) < HELD * abs(whole.far)
    return bool(abs(whole.far) * seconds > ROUND and stayed and stays.mean() > STAYS)


def candidates(whole: Parts, course: Course, seconds: float) -> list[Candidate]:
    """Every family, the largest first; growing comes before moving, which it is small beside at the middle."""
    turned = whole.spread_across < DEPTH_ACROSS, whole.spread_down < DEPTH_DOWN
    across, down = whole.across * seconds, whole.down * seconds
    grow, lean = RADIUS * whole.grow * seconds, RADIUS * whole.lean * seconds
    side = "pan" if turned[0] else "truck"
    rise = "tilt" if turned[1] else "pedestal"
    size = "zoom" if whole.spread_grow < DEPTH_GROW else "dolly"
    found = [
        Candidate(side, across, steadiness(course.across), f"{side} {'left' if across > 0 else 'right'}"),
        Candidate(rise, down, steadiness(course.down), f"{rise} {'up' if down > 0 else 'down'}"),
        Candidate("roll", lean, steadiness(course.lean), f"roll {'left' if lean > 0 else 'right'}"),
    ]
    if orbits(whole, course, seconds):
        far = whole.far * seconds
        found[0] = Candidate("orbit", far, steadiness(course.far), f"orbit {'right' if far > 0 else 'left'}")
    found.sort(key=lambda each: -abs(each.amount))
    growing = Candidate(size, grow, steadiness(course.grow), f"{size} {'in' if grow > 0 else 'out'}")
    place = 0 if abs(grow) > GROWS * abs(found[0].amount) else 1
    return [*found[:place], growing, *found[place:]]


def path(chains: Sequence[Chain]) -> Floats:
    """[frames, 2]: where the middle of all tracks went, frame widths."""
    steps = [np.zeros((1, 2))]
    for chain in chains:
        each = np.diff(chain.track, axis=0)
        steps.append(np.median(each, axis=1) if each.shape[1] >= FEW else np.zeros((chain.steps, 2)))
    return np.asarray(np.cumsum(np.concatenate(steps), axis=0))


def jitter(way: Floats, fps: float) -> float:
    """RMS around a cubic, stretch by stretch, frame widths: an eased move is smooth, a hand is not."""
    pieces = max(1, round(len(way) / fps / STRETCH))
    left = 0.0
    for piece in np.array_split(way, pieces):
        if len(piece) > 6:
            time = np.linspace(-1, 1, len(piece))
            curve = np.polynomial.polynomial.polyfit(time, piece, 3)
            left += float(((piece - np.polynomial.polynomial.polyval(time, curve).T) ** 2).sum())
    return (left / len(way)) ** 0.5


def speed(family: str, rate: float) -> Speed:
    slow, fast = PACES[family]
    return "fast" if rate >= fast else "slow" if rate < slow else "normal"


def rate_of(named: Candidate, seconds: float, aspect: float) -> float:
    """Percent of the frame a second."""
    size = 100 * abs(named.amount) / seconds
    if named.family in ("tilt", "pedestal"):
        return size / aspect
    return size / RADIUS if named.family in ("zoom", "dolly", "roll") else size


def parallax(whole: Parts, family: str) -> float:
    left = {
        "tilt": whole.spread_down, "pedestal": whole.spread_down,
        "zoom": whole.spread_grow, "dolly": whole.spread_grow, "roll": 0.0,
    }.get(family, whole.spread_across)  # fmt: skip
    return min(1.0, left)


def certainty(ranked: Sequence[Candidate], named: Candidate | None, whole: Parts) -> float:
    """How far the largest part stands above the next; of a still camera, how far below what would move it."""
    seen = min(1.0, whole.cells / 20)
    if named is None:
        largest = max((abs(each.amount) * each.steady for each in ranked), default=0.0)
        return seen * max(0.0, 1 - largest / SURELY)
    next_one = max((abs(each.amount) for each in ranked if each is not named), default=0.0)
    return seen * named.steady * abs(named.amount) / (abs(named.amount) + next_one)


def camera(chains: Sequence[Chain], fps: float, aspect: float) -> Camera:
    """aspect: height / width of the frame."""
    times = np.array([chain.steps for chain in chains]) / fps
    seconds = float(times.sum())
    if seconds == 0:
        return Camera(move="static")
    vote = votes(chains, fps, aspect)
    whole, course = parts(gather(vote, aspect), aspect), Course.of(vote, times, aspect)
    ranked = candidates(whole, course, seconds)
    named = next((each for each in ranked if each.moves), None)
    shake = jitter(path(chains), fps)
    rate = rate_of(named, seconds, aspect) if named else 0.0
    return Camera(
        move=named.name if named else "handheld" if shake > SHAKE else "static",  # type: ignore[arg-type]
        pan=-100 * float(course.across.sum()),
        tilt=100 * float(course.down.sum()) / aspect,
        zoom=float(np.exp(np.clip(course.grow.sum(), -3, 3))),
        roll=float(np.degrees(-course.lean.sum())),
        parallax=parallax(whole, named.family) if named else 0.0,
        jitter=100 * shake,
        rate=rate,
        speed=speed(named.family, rate) if named else "slow",
        confidence=certainty(ranked, named, whole),
        tracked=min(1.0, whole.cells / (ROWS * COLUMNS)),
    )
