"""What fits together: a name to a folder to a loaded model, and a spec to a finished clip.

    find -> describe -> pipeline.resolve -> load -> make_clip

The only file that knows everything. A model is looked for in `settings.models / NAME`, or under the last part
of its repository's name; any other checkpoint there is a model too, and nano comes with the distribution
broll-nano. torch, transformers and av are imported by the functions that need them: what only reads names
answers at once.
"""
# ruff: noqa: PLC0415

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from broll import __version__
from broll.engine.config import PUBLISHED, ModelConfig, Task
from broll.errors import (
    BadCheckpoint,
    BadImage,
    BadOption,
    BadSnapshot,
    BrollError,
    ModelMissing,
    OutputError,
    UnknownModel,
)
from broll.settings import Settings
from broll.spec import Artifact, VideoSpec

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from broll.engine.load import Parts, Precision
    from broll.engine.pipeline import Frames
    from broll.engine.sampler import Step
    from broll.engine.snapshot import Snapshot

NANO = "nano"
BEST: dict[str, tuple[str, ...]] = {
    "t2v": (
        "wan2.1-t2v-1.3b",
        NANO,
    ),  # 14b goes before them where there is a GPU, and last where there is none
    "i2v": ("wan2.1-i2v-14b-480p", "wan2.1-i2v-14b-720p"),
    "flf2v": ("wan2.1-flf2v-14b",),
}
LARGEST = "wan2.1-t2v-14b"
WEIGHTS = {".safetensors", ".pth", ".pt"}
WHOLE_FILE = 200_000_000  # bytes; above it a digest looks at the ends only
MAX_PICTURE = 200_000_000  # bytes of a picture's file


# --- models -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Installed:
    """A checkpoint on this machine, known by its small files."""

    name: str
    folder: Path
    task: Task | None  # None: its files do not say


def published_name(text: str) -> str | None:
    """The registry's name for `wan2.1-t2v-1.3b`, `Wan2.1-T2V-1.3B`, `Wan2.1-T2V-1.3B-Diffusers`, `nano`."""
    text = text.lower()
    for name, model in PUBLISHED.items():
        repository = model.source.split("/")[-1].lower()
        if text in (name, repository, f"{repository}-diffusers"):
            return name
    return NANO if text == NANO else None


def read_numbers(folder: Path) -> dict[str, Any] | None:
    """The transformer's config.json; None if this folder is no checkpoint of WAN."""
    diffusers = (folder / "model_index.json").is_file()
    try:
        numbers = json.loads((folder / ("transformer" if diffusers else "") / "config.json").read_text())
    except (OSError, ValueError):
        return {} if diffusers else None
    if not isinstance(numbers, dict):
        return None
    return numbers if diffusers or numbers.get("model_type") in ("t2v", "i2v", "flf2v") else None


def task_of(numbers: dict[str, Any]) -> Task | None:
    if "num_attention_heads" not in numbers:
        return numbers.get("model_type")
    if numbers.get("image_dim") is None:
        return "t2v"
    return "flf2v" if numbers.get("pos_embed_seq_len") else "i2v"


def embedded_nano() -> Path | None:
    """The folder of broll-nano, if it is installed and holds weights."""
    if importlib.util.find_spec("broll_nano") is None:
        return None
    folder = Path(importlib.import_module("broll_nano").FOLDER)
    return folder if read_numbers(folder) is not None else None


def installed(settings: Settings) -> dict[str, Installed]:
    """Every model on this machine, by name."""
    try:
        folders = sorted(path for path in settings.models.iterdir() if path.is_dir())
    except OSError:
        folders = []
    found: dict[str, Installed] = {}
    for folder in folders:
        numbers = read_numbers(folder)
        if numbers is not None:
            name = published_name(folder.name) or folder.name
            found.setdefault(name, Installed(name, folder, task_of(numbers)))
    nano = embedded_nano()
    if nano is not None:
        found.setdefault(NANO, Installed(NANO, nano, "t2v"))
    return found


def how_to_get(name: str, settings: Settings) -> str:
    if name == NANO:
        return 'pip install "broll[nano]"'
    return f"hf download {PUBLISHED[name].source} --local-dir {settings.models / name}"


def find(settings: Settings, wanted: str) -> Installed:
    """The model of this name, or in this folder."""
    here = installed(settings)
    name = published_name(wanted) or wanted
    if name in here:
        return here[name]
    with contextlib.suppress(OSError, ValueError):  # a name too long for the file system, or with a NUL
        folder = Path(wanted).expanduser()
        if folder.is_dir() and published_name(wanted) is None:
            return at(folder)
    if name == NANO or name in PUBLISHED:
        raise ModelMissing(f"{name} is not on this machine; to get it: {how_to_get(name, settings)}")
    known = ", ".join(sorted({NANO, *PUBLISHED, *here}))
    raise UnknownModel(
        f"there is no model {wanted!r}; possible are {known}, or the path of a checkpoint's folder"
    )


def at(folder: Path) -> Installed:
    """The checkpoint in a folder that the user named."""
    numbers = read_numbers(folder)
    if numbers is None:
        raise BadCheckpoint(
            f"{folder} holds no checkpoint of WAN 2.1: neither model_index.json nor its config.json"
        )
    own = folder.resolve().name
    return Installed(published_name(own) or own, folder, task_of(numbers))


def best(settings: Settings, task: Task) -> Installed:
    """The best model present for a task."""
    here = {name: model for name, model in installed(settings).items() if model.task == task}
    order = [name for name in BEST[task] if name in here]
    order += [name for name in here if name not in order and name != LARGEST]
    if LARGEST in here:
        order.insert(0 if device().type == "cuda" else len(order), LARGEST)
    if order:
        return here[order[0]]
    kind = {"t2v": "text-to-video", "i2v": "image-to-video", "flf2v": "first-last-frame"}[task]
    name = NANO if task == "t2v" else BEST[task][0]
    raise ModelMissing(
        f"there is no {kind} model on this machine; to get {name}: {how_to_get(name, settings)}"
    )


def size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# --- loading ----------------------------------------------------------------------------------------------


def device() -> "torch.device":
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe(model: Installed) -> ModelConfig:
    """Its numbers and defaults, from its small files."""
    from broll.engine import load

    try:
        return load.describe(model.folder, model.name)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise BadCheckpoint(f"{model.folder} has a configuration that cannot be read: {error}") from error


def precision(config: ModelConfig, where: "torch.device") -> "Precision":
    """bf16 where it is fast and the model large; on a CPU nano stays fp32, and so reproducible."""
    import torch

    from broll.engine.load import Precision

    if where.type == "cpu" and (config.transformer.dim < 1024 or not fast_bf16()):
        return Precision()
    return Precision(linears=torch.bfloat16, text=torch.bfloat16)


def fast_bf16() -> bool:
    """Whether the CPU multiplies bf16 faster than fp32: by its features, else by trying."""
    import torch

    from broll.engine.estimate import matrix_rate

    features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if features.get("architecture") == "x86_64":
        return bool(features.get("amx_bf16") or features.get("avx512_bf16"))
    cpu = torch.device("cpu")
    return matrix_rate(torch.bfloat16, cpu, seconds=0.1) > 1.3 * matrix_rate(torch.float32, cpu, seconds=0.1)


def use_threads(settings: Settings) -> None:
    import torch

    if settings.threads:
        torch.set_num_threads(settings.threads)


def load(model: Installed, config: ModelConfig) -> "Parts":
    from broll.engine import load as engine

    where = device()
    how = precision(config, where)
    return engine.load(model.folder, model.name, device=where, precision=how, digests=digests(model.folder))


def digests(folder: Path) -> tuple[tuple[str, str], ...]:
    """What the weights are: for each file below 200 MB its sha256; for a larger one, since 60 GB
    take minutes, "~" and the sha256 of its size, its time of change, its first and its last megabyte.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix in WEIGHTS and path.is_file())
    return tuple((path.relative_to(folder).as_posix(), digest(path)) for path in files)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        facts = os.fstat(file.fileno())
        if facts.st_size < WHOLE_FILE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        ends = hashlib.sha256(f"{facts.st_size} {facts.st_mtime_ns} ".encode() + file.read(1 << 20))
        file.seek(-(1 << 20), os.SEEK_END)
        ends.update(file.read())
        return "~" + ends.hexdigest()


# --- pictures ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A picture as the engine sees it: decoded, and re-encoded as PNG."""

    artifact: Artifact
    image: "Image.Image"
    png: bytes


def read_picture(path: Path) -> Picture:
    """A picture that a stranger may have sent."""
    from broll.media.pictures import open_picture, to_png

    try:
        if path.stat().st_size > MAX_PICTURE:
            raise BadImage(f"{path} is larger than {MAX_PICTURE // 1_000_000} MB")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadImage(f"the picture {path} cannot be read: {reason}") from None
    image = open_picture(data)
    png = to_png(image)
    return Picture(Artifact.of(png), image, png)


def kept_picture(settings: Settings, artifact: Artifact) -> Picture:
    """A picture that an earlier clip was made from."""
    from PIL import Image

    try:
        png = picture_path(settings, artifact).read_bytes()
    except OSError:
        png = b""
    if hashlib.sha256(png).hexdigest() != artifact.sha256:
        raise BadImage(
            f"the picture {artifact.sha256[:16]} of this clip is not kept here; give it with --image"
        )
    return Picture(artifact, Image.open(io.BytesIO(png)).convert("RGB"), png)


def keep_picture(settings: Settings, picture: Picture) -> None:
    write_whole(picture_path(settings, picture.artifact), picture.png)


def picture_path(settings: Settings, artifact: Artifact) -> Path:
    return settings.data / "artifacts" / f"{artifact.sha256}.png"


def write_whole(path: Path, data: bytes) -> None:
    """The whole file or none of it."""
    part = path.with_name(f".{path.name[:40]}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


# --- clips ------------------------------------------------------------------------------------------------


class Record(BaseModel):
    """What a clip's file says about itself. Read back, it is untrusted."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    broll: Annotated[str, Field(max_length=100)]
    spec: VideoSpec
    latents_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    weights: Annotated[dict[str, str], Field(max_length=1000)] = {}
    conditions: Annotated[dict[str, str], Field(max_length=100)] = {}
    resumed_elsewhere: bool = False
    seconds: Annotated[float, Field(ge=0)] = 0.0  # of encoding and denoising, in the run that finished it
    format: Literal["broll clip 1"] = "broll clip 1"


@dataclass(frozen=True)
class Clip:
    """A finished file."""

    path: Path
    record: Record


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
    format: str,  # noqa: A002  the word every caller uses
    pictures: Sequence[Picture] = (),
    resume: "Snapshot | None" = None,
    poster: Path | None = None,
    sheet: Path | None = None,
) -> "Iterator[Step | Frames | Clip]":
    """Every step, every group of frames as it is written, then the Clip. Closing it leaves no file behind."""
    from broll.engine import pipeline, snapshot
    from broll.engine.sampler import Step
    from broll.media.video_file import VideoWriter

    begin = time.perf_counter()
    here = snapshot.conditions(parts)
    images = {picture.artifact.sha256: picture.image for picture in pictures}
    last = resume.step if resume else None
    stills = Stills(spec.frames or 1)
    with (
        contextlib.ExitStack() as stack,
        contextlib.closing(
            pipeline.generate(spec, parts, images, last)  # type: ignore[type-var]
        ) as events,
    ):
        writer, record = None, None
        for event in events:
            if isinstance(event, Step):
                last = event
                yield event
                continue
            if writer is None:
                assert last is not None
                assert spec.width is not None
                assert spec.height is not None
                assert spec.fps is not None
                record = Record(
                    broll=__version__,
                    spec=spec,
                    latents_sha256=pipeline.digest(last.x),
                    weights=dict(parts.digests),
                    conditions=here,
                    resumed_elsewhere=resume is not None and bool(differences(resume.conditions, here)),
                    seconds=round(time.perf_counter() - begin, 3),
                )
                size = {"width": spec.width, "height": spec.height, "fps": spec.fps}
                text = record.model_dump_json(exclude_none=True)
                writer = stack.enter_context(VideoWriter(out, **size, format=format, metadata=text))
            rgb = to_rgb(event)
            stills.add(event.first, rgb)
            writer.write(rgb)
            yield event
    assert record is not None
    stills.write(poster, sheet, spec.prompt)
    yield Clip(out, record)


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
            write_whole(poster, to_png(sheets.poster(self.kept)))
        if sheet is not None:
            write_whole(sheet, to_png(sheets.contact_sheet(self.kept, title=title)))


def differences(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Names of the conditions that are not the same."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


# --- snapshots --------------------------------------------------------------------------------------------


def save_snapshot(path: Path, spec: VideoSpec, parts: "Parts", step: "Step") -> None:
    from broll.engine import snapshot

    snapshot.save(path, snapshot.Snapshot(spec, step, snapshot.conditions(parts)))


def read_snapshot(path: Path) -> "Snapshot":
    from broll.engine import snapshot

    try:
        return snapshot.load(path)
    except (BrollError, TypeError) as error:
        if isinstance(error, BadSnapshot):
            raise
        raise BadSnapshot(f"{path} is not a snapshot of broll: {error}") from error


def check_snapshot(path: Path, snapshot: "Snapshot", config: ModelConfig) -> None:
    """Refuse one that this model cannot go on from: every tensor must be a latent of this clip."""
    from broll.engine import shapes

    spec, step = snapshot.spec, snapshot.step
    if None in (spec.frames, spec.width, spec.height, spec.steps, spec.seed):
        raise BadSnapshot(f"{path} does not say which clip it belongs to")
    assert spec.frames is not None
    assert spec.width is not None
    assert spec.height is not None
    assert spec.steps is not None
    grid = shapes.latent_grid(shapes.Grid(spec.frames, spec.height, spec.width), config.vae.spatial_stride)
    shape = (1, config.transformer.out_dim, grid.frames, grid.height, grid.width)
    odd = [tensor for tensor in (step.x, step.x0, *step.history) if tuple(tensor.shape) != shape]
    if odd or not 0 <= step.index < spec.steps:
        got = f"a latent of {list(odd[0].shape)}" if odd else f"step {step.index + 1} of {spec.steps}"
        raise BadSnapshot(f"{path} holds {got}, which does not fit {config.name} with its own spec")
    need = {"euler": 0, "dpm++": 1, "unipc": min(3, step.index + 2)}[spec.sampler or "unipc"]
    if len(step.history) != need:
        raise BadSnapshot(f"{path} lacks the sampler's memory: {len(step.history)} of {need} tensors")
