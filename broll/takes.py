"""Several takes of one clip: each is measured, and the one that did best what was asked is kept.

Takes differ by their seed: the spec's own, the next one, and so on. The file that is kept says which seed it has, so
that `--like` repeats it alone, and lists the others with what was measured in them.

Where a strength of motion is asked for, takes end with the first that has it, and a clip that moves too much is slowed
down to it; one that moves too little cannot be mended so, since played faster it would be shorter.
"""
# ruff: noqa: PLC0415

import json
import tempfile
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from broll import clips, wiring
from broll.clips import Clip, Label, Record, Tried, make_clip
from broll.errors import BadOption, BadSnapshot
from broll.media.checks import Checks
from broll.media.flow import HIGH, LOW
from broll.prompts.report import Report
from broll.prompts.slots import Asked, asked_camera
from broll.spec import MAX_SEED, VideoSpec

if TYPE_CHECKING:
    from broll.engine.load import Parts
    from broll.engine.pipeline import Decoded, Frames, Warned
    from broll.engine.sampler import Step
    from broll.engine.snapshot import Snapshot

RETAKES = 3  # for a strength of motion that was asked for, unless it is said how many
MOTIONS = ("low", "medium", "high")
SLOWEST = 3.0  # times; beyond it the frames made between two look like what they are
BOUND = {"low": LOW, "medium": HIGH}  # % of the frame a second: below it a clip has this strength of motion
AIM = 0.8  # of the bound: what a clip that moves too much is slowed down to


@dataclass(frozen=True)
class Take:
    """A take begins. `memo` goes into its snapshots, so that `begun` finds the others again."""

    index: int
    count: int
    spec: VideoSpec
    memo: str


@dataclass
class Series:
    """A wish, and the takes of it that are done."""

    wish: VideoSpec
    tried: list[Tried] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.wish.takes or 1

    def spec(self, index: int) -> VideoSpec:
        """One take's own: its seed, and nothing left to choose from."""
        assert self.wish.seed is not None
        seed = (self.wish.seed + index) % (MAX_SEED + 1)
        return self.wish.model_copy(update={"seed": seed, "takes": None, "pick": None})

    def memo(self) -> str:
        done = [take.model_dump() for take in self.tried]
        return json.dumps({"wish": self.wish.model_dump(mode="json", exclude_none=True), "tried": done})

    def best(self) -> int:
        return max(range(len(self.tried)), key=lambda i: self.tried[i].score)


def begun(snapshot: "Snapshot") -> Series:
    """The series that a snapshot belongs to. Read back, it is untrusted."""
    if not snapshot.memo:
        return Series(snapshot.spec)
    try:
        told = json.loads(snapshot.memo)
        made = Series(
            VideoSpec.model_validate(told["wish"]), [Tried.model_validate(t) for t in told["tried"]]
        )
        fits = len(made.tried) < made.count and made.spec(len(made.tried)) == snapshot.spec
    except (ValueError, KeyError, TypeError, AssertionError, ValidationError):
        fits = False
    if not fits:
        raise BadSnapshot("the snapshot's list of takes cannot be read")
    return made


def retaken(spec: VideoSpec) -> VideoSpec:
    """With as many takes as a strength of motion that was asked for may need, if it was not said how many."""
    if spec.motion is None or spec.takes is not None:
        return spec
    return spec.model_copy(update={"takes": RETAKES})


def check(spec: VideoSpec) -> None:
    """Refuse what cannot be chosen by."""
    if spec.pick is not None and (spec.takes or 1) == 1:
        raise BadOption(f"pick is {spec.pick}, but there is one take to pick from; ask for takes, 2 to 16")
    if spec.pick == "camera" and asked_camera(spec.prompt) is None:
        raise BadOption(
            "pick is camera, but the prompt asks for no single camera move, such as 'pan left slowly'"
        )


def make(
    spec: VideoSpec, parts: "Parts", out: Path, *, format: str, pictures: Sequence[wiring.Picture] = (),
    resume: "Snapshot | None" = None, coach: Report | None = None,
) -> "Iterator[Take | Step | Frames | Decoded | Warned | Clip]":  # fmt: skip
    """As `make_clip`, for any number of takes; the last event is the clip that is kept."""
    series = begun(resume) if resume is not None else Series(spec)
    with tempfile.TemporaryDirectory(prefix=".broll-", dir=out.parent) as name:
        work: dict[str, Any] = {"parts": parts, "format": format, "pictures": pictures, "coach": coach}
        kept: Clip | None = None
        while len(series.tried) < series.count and not (series.tried and enough(series, kept)):
            index = len(series.tried)
            own = series.spec(index)
            yield Take(index, series.count, own, series.memo())
            clip = yield from one(own, Path(name) / f"{index}", resume=resume, **work)
            resume = None
            series.tried.append(judged(clip.record, series.wish))
            if series.best() == index:
                kept = clip
        best = series.spec(series.best())
        if kept is None or kept.record.spec != best:  # made before a death, and lost with it
            yield Take(series.best(), series.count, best, "")
            kept = yield from one(best, Path(name) / "again", resume=None, **work)
        yield published(kept, series, out, format)


def one(
    spec: VideoSpec, path: Path, *, parts: "Parts", format: str, **options: Any
) -> "Generator[Step | Frames | Decoded | Warned, None, Clip]":
    """A single take; hands back its Clip."""
    made: Clip | None = None
    for event in make_clip(spec, parts, path, format=format, **options):
        if isinstance(event, Clip):
            made = event
        else:
            yield event
    assert made is not None
    return made


def enough(series: Series, kept: Clip | None) -> bool:
    """Whether the motion that was asked for is there: then the other takes would be in vain."""
    wish = series.wish
    if wish.motion is None or wish.pick not in (None, "motion") or kept is None or kept.record.checks is None:
        return False
    return slowness(kept.record.checks, wish.motion) is not None


def published(clip: Clip, series: Series, out: Path, format: str) -> Clip:
    """Retimed if need be, told of the other takes, and moved to its place."""
    from broll.media.labels import label

    record = clip.record
    wish = series.wish.motion
    factor = slowness(record.checks, wish) if wish is not None and record.checks is not None else None
    takes = tuple(series.tried) if len(series.tried) > 1 else ()
    record = record.model_copy(update={"takes": takes, "retimed": factor or 1.0})
    if factor is not None and factor > 1:
        record = slowed(clip, record, factor, out, format)
    else:
        if takes:
            label(clip.path, format, record.model_dump_json(exclude_none=True))
        clip.path.replace(out)
    return Clip(out, record, clip.stills)


def slowed(clip: Clip, record: Record, factor: float, out: Path, format: str) -> Record:
    """The same length, playing only the beginning of what was made."""
    import numpy as np

    from broll.media.retime import retime
    from broll.media.video_file import VideoWriter, read_frames

    frames = np.stack(list(read_frames(clip.path)))
    told = Label(record)
    with VideoWriter(out, **clips.shape(record.spec), format=format, metadata=told) as video:
        video.write(retime(frames, 1 / factor, count=len(frames)))
    return told.record


# --- what was asked, and what was measured ----------------------------------------------------------------


def judged(record: Record, wish: VideoSpec) -> Tried:
    assert record.checks is not None
    assert record.spec.seed is not None
    checks = record.checks
    return Tried(
        seed=record.spec.seed, score=round(score(checks, wish), 4), camera=checks.camera.move,
        motion=checks.motion, sharpness=sharpness(checks),
    )  # fmt: skip


def score(checks: Checks, wish: VideoSpec) -> float:
    """Higher is better. Without a choice of what to pick by: the camera if one is asked for, else sharpness."""
    asked = asked_camera(wish.prompt)
    pick = wish.pick or ("motion" if wish.motion else "camera" if asked else "sharp")
    if pick == "sharp":
        return sharpness(checks)
    if pick == "motion":
        if wish.motion is None:
            return checks.motion
        return -abs(MOTIONS.index(checks.motion_class) - MOTIONS.index(wish.motion))
    assert asked is not None
    return followed(checks, asked) + 0.1 * checks.camera.confidence - 0.01 * checks.camera.jitter


def sharpness(checks: Checks) -> float:
    """A clip is as sharp as its softer end."""
    return min(checks.sharpness_first, checks.sharpness_last)


def slowness(checks: Checks, motion: str) -> float | None:
    """How many times slower the clip must play to move as much as asked; None if that cannot be had."""
    have, want = MOTIONS.index(checks.motion_class), MOTIONS.index(motion)
    if have == want:
        return 1.0
    if have < want:
        return None
    factor = min(SLOWEST, checks.motion / (AIM * BOUND[motion]))
    return factor if checks.motion / factor < BOUND[motion] else None


def followed(checks: Checks, asked: Asked) -> float:
    """1 for the move asked for, and up to another half for its speed."""
    if checks.camera.move not in asked.accepts:
        return 0.0
    return 1.0 + 0.5 * (asked.speed is None or checks.camera.speed == asked.speed)
