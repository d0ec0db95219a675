"""A spec to a finished file that says how it was made.

Imports torch and av only when a clip is made; reading what a file says about itself needs av alone.
"""
# ruff: noqa: PLC0415

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from broll import __version__, group, wiring
from broll.errors import BadOption, BrollError
from broll.media.checks import Checks, measure
from broll.prompts.report import Report
from broll.spec import MAX_TAKES, VideoSpec

if TYPE_CHECKING:
    from broll.engine.load import Parts
    from broll.engine.pipeline import Decoded, Frames, Warned
    from broll.engine.sampler import Step
    from broll.engine.snapshot import Snapshot


class Tried(BaseModel):
    """One take of several, as it was measured."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    seed: Annotated[int, Field(ge=0)]
    score: float  # by what was to be picked; higher is better
    camera: Annotated[str, Field(max_length=40)]
    motion: float
    sharpness: float


Name = Annotated[str, Field(max_length=40)]


class Record(BaseModel):
    """What a clip's file says about itself. Read back, it is untrusted."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    broll: Annotated[str, Field(max_length=100)]
    spec: VideoSpec
    latents_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    weights: Annotated[dict[str, str], Field(max_length=1000)] = {}
    conditions: Annotated[dict[str, str], Field(max_length=100)] = {}
    attention: Annotated[str | None, Field(max_length=600)] = None  # how its kernel did in the first step
    levers: Annotated[tuple[Name, ...], Field(max_length=20)] = ()  # switched on to fit in memory
    resumed_elsewhere: bool = False
    seconds: Annotated[float, Field(ge=0)] = 0.0  # of encoding and denoising, in the run that finished it
    checks: Checks | None = None  # what the pictures show, measured
    retimed: Annotated[float, Field(gt=0, le=100)] = 1.0  # how many times slower it plays than it was made
    takes: Annotated[tuple[Tried, ...], Field(max_length=MAX_TAKES)] = ()  # this one among them
    coach: Report | None = None  # what was said of the prompt, and changed in it
    format: Literal["broll clip 1"] = "broll clip 1"


@dataclass(frozen=True)
class Clip:
    """A finished file."""

    path: Path
    record: Record
    stills: "Stills"


@dataclass
class Label:
    """What a file will say about itself, once its pictures have been measured."""

    record: Record

    def __call__(self, unlabelled: Path) -> str:
        self.record = self.record.model_copy(update={"checks": measure(unlabelled)})
        return self.record.model_dump_json(exclude_none=True)


def read_record(path: Path) -> Record:
    from broll.media.video_file import read_metadata

    text = read_metadata(path)
    try:
        return Record.model_validate_json(text)
    except (ValidationError, BrollError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise BadOption(f"{path} was not made by broll, or was changed since: {reason}") from None


def make_clip(
    spec: VideoSpec,
    parts: "Parts",
    out: Path,
    *,
    format: str,
    pictures: Sequence[wiring.Picture] = (),
    resume: "Snapshot | None" = None,
    coach: Report | None = None,
) -> "Iterator[Step | Frames | Decoded | Warned | Clip]":
    """Every step, every group of frames as it is written, then the Clip. Closing it leaves no file behind."""
    from broll.engine import kernels, pipeline
    from broll.engine.sampler import Step
    from broll.media.video_file import VideoWriter

    begin = time.perf_counter()
    images = {picture.artifact.sha256: picture.image for picture in pictures}
    last = resume.step if resume else None
    stills = Stills(spec.frames or 1)
    attention = "" if resume is None else resume.conditions.get("attention", "")
    with (
        contextlib.ExitStack() as stack,
        kernels.as_before(parts.transformer, attention),
        contextlib.closing(
            group.generate(spec, parts, images, last)  # type: ignore[type-var]
        ) as events,
    ):
        writer, label, seconds = None, None, None
        for event in events:
            if isinstance(event, Step | pipeline.Warned):
                last = event if isinstance(event, Step) else last
                yield event
                continue
            seconds = seconds or round(time.perf_counter() - begin, 3)
            if isinstance(event, pipeline.Decoded):
                yield event
                continue
            if writer is None:
                assert last is not None
                record = denoised(spec, parts, last, resume)
                more = {"seconds": seconds, "coach": coach}
                label = Label(record.model_copy(update=more))
                writer = stack.enter_context(VideoWriter(out, **shape(spec), format=format, metadata=label))
            rgb = to_rgb(event)
            stills.add(event.first, rgb)
            writer.write(rgb)
            yield event
    assert label is not None
    yield Clip(out, label.record, stills)


def denoised(spec: VideoSpec, parts: "Parts", step: "Step", resume: "Snapshot | None") -> Record:
    """What is known of a clip before its pictures are."""
    from broll.engine import kernels, pipeline, snapshot

    here = snapshot.conditions(parts, spec)
    return Record(
        broll=__version__, spec=spec, latents_sha256=pipeline.digest(step.x), weights=dict(parts.digests),
        conditions=here, levers=parts.levers, attention=kernels.verdict(parts.transformer) or None,
        resumed_elsewhere=resume is not None and bool(wiring.differences(resume.conditions, here)),
    )  # fmt: skip


def shape(spec: VideoSpec) -> dict[str, int]:
    """What a file is told before its first frame."""
    assert spec.width is not None
    assert spec.height is not None
    assert spec.fps is not None
    return {"width": spec.width, "height": spec.height, "fps": spec.fps}


def to_rgb(event: "Frames") -> Any:
    """[3, f, h, w] in [-1, 1] to uint8 [f, h, w, 3]."""
    import torch

    return (
        ((event.frames + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()
    )


class Stills:
    """Eight frames at equal distances, kept for the poster and the contact sheet."""

    def __init__(self, frames: int, count: int = 8) -> None:
        self.wanted = {round(i * (frames - 1) / (count - 1)) for i in range(count)}
        self.kept: list[Any] = []

    def add(self, first: int, rgb: Any) -> None:
        self.kept += [frame.copy() for i, frame in enumerate(rgb, first) if i in self.wanted]

    def write(self, poster: Path | None, sheet: Path | None, title: str) -> None:
        from broll.media import sheets
        from broll.media.pictures import to_png

        if poster is not None:
            wiring.write_whole(poster, to_png(sheets.poster(self.kept)))
        if sheet is not None:
            wiring.write_whole(sheet, to_png(sheets.contact_sheet(self.kept, title=title)))
