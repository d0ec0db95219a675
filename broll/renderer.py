"""A warm model on one device: Work in, events out. child.py runs it for the local executor.

    Loaded, Stage encode, Stage denoise, (Progress, Preview, Snapshot)*, Stage decode, Progress*, Stage finish, Clip

Of several takes each goes from encode to decode. A snapshot is also made after the last step: whoever goes on from it
only decodes. Asked to stop now, it stops between two blocks or two latents; else at the next step, with a snapshot.
Where steps are skipped (engine/step_cache.py), that is the next one that can be gone on from.
"""
# ruff: noqa: PLC0415  torch is loaded by the process that needs it

import contextlib
import io
import os
import sys
import threading
import time
import traceback
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broll import catalog, features, group, loras, scratch, takes, wiring
from broll import plan as plans
from broll.errors import BadSnapshot, BrollError, GroupLost, OutputError
from broll.events import (
    Clip,
    Event,
    Failed,
    Loaded,
    Preview,
    Progress,
    Snapshot,
    Stage,
    Stopped,
    Work,
)
from broll.floor import Floor, Kind
from broll.settings import Settings
from broll.spec import Artifact, VideoSpec

if TYPE_CHECKING:
    from broll.engine.config import ModelConfig
    from broll.engine.load import Parts
    from broll.engine.pipeline import Frames
    from broll.engine.sampler import Step
    from broll.spec import LoraUse

# Percent of a job that is done when a stage begins: a fixed scale, so that progress never runs backwards.
BEGINS = {"encode": 0.0, "denoise": 2.0, "decode": 88.0, "finish": 98.0}
PREVIEW_S = 1.0
SNAPSHOT_SHARE = 0.02  # of the time that denoising takes: a snapshot costs something too


class Interrupted(Exception):
    """Asked to stop now."""


@dataclass
class Flag:
    """How the running work is told to stop; set by another thread."""

    soon: bool = False
    now: bool = False

    def check(self) -> None:
        if self.now:
            raise Interrupted

    def check_either(self) -> None:
        """Where nothing has begun that could be kept."""
        if self.now or self.soon:
            raise Interrupted


@dataclass(frozen=True)
class Warm:
    """The model that is loaded, the LoRAs that are in its weights, and what memory was free before."""

    name: str
    merged: "tuple[LoraUse, ...]"
    config: "ModelConfig"
    parts: "Parts"
    memory: int


@dataclass
class Renderer:
    settings: Settings
    _warm: Warm | None = None
    leave_s: float = 0.0  # that the last event may still need to get out of this process
    _lead: group.Lead = field(default_factory=group.Lead)  # of the processes that help
    _floor: Floor = field(default_factory=Floor)
    _preparing: threading.Lock = field(default_factory=threading.Lock)
    decode_s_by_shape: dict[tuple[Any, ...], float] = field(default_factory=dict)  # by model and shape

    def run(self, work: Work, flag: Flag) -> Iterator[Event]:
        """Everything that happens, and how it ended."""
        try:
            yield from self._run(work, flag)
        except Interrupted:
            yield Stopped()
        except BrollError as error:
            yield Failed(error.code, str(error), retryable=isinstance(error, OutputError | GroupLost))
        except Exception as error:  # noqa: BLE001  the one broad except: whatever it was, the job must hear of it
            traceback.print_exc()
            yield failure(error)
        if self._lead.broken:
            leave(self.leave_s)

    def _run(self, work: Work, flag: Flag) -> Iterator[Event]:
        spec = VideoSpec.model_validate_json(work.spec)
        kind = self._kind(work.model, spec)
        with self._floor.entered(kind, flag.check_either):
            begin = time.perf_counter()
            config, parts = self._ready(work.model, spec) if kind is None else self._together(work, spec)
            yield Loaded(work.model, time.perf_counter() - begin, shared=kind is not None)
            flag.check()
            if kind is None:
                interruptible(parts, flag)
            with scratch.folder() as name:
                yield from Run(self, work, spec, config, parts, flag, Path(name)).events()

    def _kind(self, name: str, spec: VideoSpec) -> Kind:
        """What others must have in common with it to be made with it."""
        if self.settings.batch == 1 or self.settings.group > 1 or self.settings.compile == "on":
            return None
        from broll.engine import batching

        return batching.kind(spec, wiring.describe(catalog.find(self.settings, name)))

    def _together(self, work: Work, spec: VideoSpec) -> "tuple[ModelConfig, Parts]":
        """The model as whoever of this kind came first has prepared it. A forward of theirs is short: it is not
        interrupted, they are asked between two steps.
        """
        from broll.engine.batching import Meeting

        with self._preparing:
            if self._floor.shared is None:
                config, parts = self._ready(work.model, spec)
                parts.transformer.stack = parts.transformer.run_blocks
                self._floor.shared = config, replace(parts, meeting=Meeting(parts.transformer))
            found: tuple[ModelConfig, Parts] = self._floor.shared
            return found

    def _ready(self, name: str, spec: VideoSpec) -> "tuple[ModelConfig, Parts]":
        """The model, with the clip's LoRAs in it or beside it."""
        found = catalog.find(self.settings, name)
        wants = spec.loras if loras.merges(found, spec, self.settings) else ()
        if group.size(self.settings) > 1:
            group.check(self.settings, spec, wiring.describe(found))
        if self._stale(name, wants, spec):
            self._load(name, wants, spec)
        warm = self._warm
        assert warm is not None
        parts = warm.parts if wants else loras.on(warm.parts, spec, self.settings)[0]
        streamed = plans.STREAMING in parts.levers
        tiles = plans.tiles(spec, warm.config, self.settings, found, warm.memory, streamed=streamed)
        return warm.config, wiring.tiled(parts, tiles)

    def _stale(self, name: str, wants: "tuple[LoraUse, ...]", spec: VideoSpec) -> bool:
        """Whether another model is needed; or this one with its blocks streamed, though it is whole in memory."""
        warm = self._warm
        if warm is None or (warm.name, warm.merged) != (name, wants):
            return True
        if wants or plans.STREAMING in warm.parts.levers:
            return False
        return plans.streams(spec, warm.config, self.settings, catalog.find(self.settings, name), warm.memory)

    def _load(self, name: str, wants: "tuple[LoraUse, ...]", spec: VideoSpec) -> None:
        """Another model: refused before the old one is given up, and that one is gone before the weights are read."""
        found = catalog.find(self.settings, name)
        config = wiring.describe(found)
        self._warm = None
        wiring.free()
        wiring.use_threads(self.settings)
        wiring.prepare_compiler(self.settings)
        team = self._lead.begin(self.settings)
        memory = self.settings.memory_mb * 10**6 or catalog.free_memory(catalog.device())
        streamed = not wants and plans.streams(spec, config, self.settings, found, memory)
        loading = self.settings.loading(streamed=streamed)
        with group.alone(team), group.known():
            if wants:
                parts, _ = loras.merged(found, config, spec, self.settings, loading, team=team)
            else:
                kept = features.shelf(self.settings)
                parts = wiring.load(found, config, loading, kept=kept, team=team)
        for line in wiring.unmet(parts, self.settings):
            sys.stderr.write(f"warning: {line}\n")
        self._warm = Warm(name, wants, config, wiring.with_previews(parts, found), memory)


def interruptible(parts: "Parts", flag: Flag) -> None:
    from broll.engine.interrupt import Interruptible

    parts.transformer.stack = Interruptible(parts.transformer, group.agreed(parts.team, flag.check))


def leave(after_s: float) -> None:
    """What is left of a group is of no use: who gives out work starts another process, and that one a new group."""
    time.sleep(after_s)
    sys.stderr.flush()
    os._exit(group.LOST)


@dataclass
class Run:
    """One attempt, and what it has seen so far."""

    renderer: Renderer
    work: Work
    spec: VideoSpec
    config: "ModelConfig"
    parts: "Parts"
    flag: Flag
    folder: Path
    times: list[float] = field(default_factory=list)  # of the start and of each step
    kept: float = field(default_factory=time.monotonic)  # when the last snapshot was made
    saved: int = -1  # the step of the last snapshot
    take: "takes.Take | None" = None  # the one that runs
    decoding: float | None = None  # since when
    decoded: float = 0.0  # how much of it
    shown: float = 0.0  # when the last preview was

    def events(self) -> Iterator[Event]:
        made = takes.make(
            self.spec, self.parts, self.folder / "clip.mp4", format="mp4",
            pictures=self._pictures(), resume=self._resume(),
        )  # fmt: skip
        with contextlib.closing(made):  # type: ignore[type-var]
            for event in made:
                self.flag.check()
                stopped = yield from self._saw(event)
                if stopped:
                    yield Stopped()
                    return

    def _saw(self, event: Any) -> Generator[Event, None, bool]:
        """Tell what it means; whether the work ends here, as was asked."""
        from broll.engine.pipeline import Decoded, Frames, Warned
        from broll.engine.sampler import Step

        if isinstance(event, takes.Take):
            self.take, self.decoding, self.saved = event, None, -1
            yield Stage("encode")
            self.times = [time.perf_counter()]
        elif isinstance(event, Warned):
            sys.stderr.write(f"warning: {event.text}\n")
        elif isinstance(event, Step):
            yield from self._step(event)
            if not event.resumable:
                return False
            if self.flag.soon and self.saved != event.index:
                yield self._snapshot(event)
            return self.flag.soon
        elif isinstance(event, Frames | Decoded):
            if self.decoding is None:
                self.decoding, self.decoded = time.perf_counter(), 0.0
                yield Stage("decode")
            seen = event.done / event.total if isinstance(event, Decoded) else self._seen(event)
            yield self._frames(seen)
            return self.flag.soon
        else:
            assert self.decoding is not None
            yield Stage("finish")
            yield self._clip(event, time.perf_counter() - self.decoding)
        return False

    def _resume(self) -> Any:
        if self.work.snapshot is None:
            return None
        path = self.folder / "resume"
        path.write_bytes(self.work.snapshot)
        try:
            snapshot = wiring.read_snapshot(path)
            wiring.check_snapshot(path, snapshot, self.config)
            return snapshot if takes.begun(snapshot).wish == self.spec else None
        except BadSnapshot:
            return None

    def _pictures(self) -> list[wiring.Picture]:
        from PIL import Image

        return [
            wiring.Picture(Artifact.of(png), Image.open(io.BytesIO(png)).convert("RGB"), png)
            for png in self.work.pictures.values()
        ]

    def _step(self, step: "Step") -> Iterator[Event]:
        if len(self.times) == 1:
            yield Stage("denoise")
        now = time.perf_counter()
        self.times.append(now)
        steps = self.spec.steps or 1
        step_s = (now - self.times[0]) / (len(self.times) - 1)
        decode_s = self.renderer.decode_s_by_shape.get(self._shape(), step_s)
        left_s = (steps - step.index - 1) * step_s + decode_s + self._later() * (steps * step_s + decode_s)
        share = (BEGINS["decode"] - BEGINS["denoise"]) * (step.index + 1) / steps
        yield Progress("denoise", step.index + 1, steps, self._percent(BEGINS["denoise"] + share), left_s)
        every_s = max(self.work.snapshot_s, SNAPSHOT_SHARE * steps * step_s)
        if step.index + 1 == steps or (time.monotonic() - self.kept >= every_s and step.resumable):
            yield self._snapshot(step)
        if time.monotonic() - self.shown >= PREVIEW_S:
            self.shown = time.monotonic()
            yield Preview(self._preview(step))

    def _snapshot(self, step: "Step") -> Snapshot:
        path = self.folder / "snapshot"
        assert self.take is not None
        wiring.save_snapshot(path, self.take.spec, self.parts, step, self.take.memo)
        self.kept, self.saved = time.monotonic(), step.index
        return Snapshot.of(step.index, path.read_bytes())

    def _preview(self, step: "Step") -> bytes:
        """The middle of the clip as it looks so far, from the latents alone."""
        from PIL import Image

        from broll.engine.preview import still

        seen = still(step.x0, self.config.preview, self.parts.tiny)
        size = ((self.spec.width or 2) // 2, (self.spec.height or 2) // 2)
        picture = Image.fromarray(seen.numpy()).resize(size, Image.Resampling.BICUBIC)
        return webp(picture, quality=60)

    def _shape(self) -> tuple[Any, ...]:
        return self.spec.model, self.spec.width, self.spec.height, self.spec.frames

    def _later(self) -> int:
        """How many takes are still to come."""
        return self.take.count - self.take.index - 1 if self.take else 0

    def _percent(self, of_take: float) -> float:
        return of_take if self.take is None else (100 * self.take.index + of_take) / self.take.count

    def _seen(self, event: "Frames") -> float:
        return (event.first + event.frames.shape[1]) / (self.spec.frames or 1)

    def _frames(self, share: float) -> Progress:
        """So much of it is decoded. In tiles, frames come when all is."""
        assert self.decoding is not None
        frames, self.decoded = self.spec.frames or 1, max(self.decoded, share)
        part = (BEGINS["finish"] - BEGINS["decode"]) * self.decoded
        left_s = (time.perf_counter() - self.decoding) / self.decoded * (1 - self.decoded)
        left_s += self._later() * (time.perf_counter() - self.times[0])
        done = round(frames * self.decoded)
        return Progress("decode", done, frames, self._percent(BEGINS["decode"] + part), left_s)

    def _clip(self, made: Any, decode_s: float) -> Clip:
        from broll.media import sheets

        self.renderer.decode_s_by_shape[self._shape()] = decode_s
        files = {
            "video": made.path.read_bytes(),
            "thumbnail": webp(sheets.poster(made.stills.kept)),
            "spritesheet": webp(sheets.contact_sheet(made.stills.kept)),
        }
        denoise_s = self.times[-1] - self.times[0]
        return Clip(
            files, made.record.model_dump_json(exclude_none=True), denoise_s, decode_s, len(self.times) - 1,
            made.record.resumed_elsewhere,
        )  # fmt: skip


def webp(picture: Any, quality: int = 80) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()


def failure(error: Exception) -> Failed:
    """Memory will not suffice the next time either; a GPU that failed needs a new process; the rest may pass."""
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, MemoryError) or "out of memory" in text:
        return Failed("out_of_memory", "the memory of this device does not suffice for this clip")
    if isinstance(error, RuntimeError) and "CUDA" in text:
        sys.stderr.flush()
        os._exit(70)  # the dispatcher starts another child
    if isinstance(error, ImportError):
        return Failed("missing_extra", f"{error.name} is not installed on this device's machine")
    return Failed("internal_error", f"{type(error).__name__}: {text}"[:500], retryable=True)


def actor() -> tuple[Renderer, type[Flag]]:
    """What a Ray actor runs, and what stops it."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    return Renderer(Settings(), leave_s=1.0), Flag
