"""What fits together: a name to a folder to a loaded model, pictures, snapshots.

    catalog.find -> describe -> pipeline.resolve -> load -> clips.make_clip

The only file that knows everything. torch, transformers and av are imported by the functions that need them:
what only reads names answers at once.
"""
# ruff: noqa: PLC0415

import contextlib
import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from broll import group
from broll.catalog import Installed, device, free_main_memory
from broll.engine.config import ModelConfig
from broll.errors import (
    BadCheckpoint,
    BadImage,
    BadSnapshot,
    BrollError,
    OutputError,
)
from broll.settings import Loading, Settings
from broll.spec import Artifact, VideoSpec

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from broll.engine.load import Parts, Precision
    from broll.engine.lora import Entry
    from broll.engine.mesh import Team
    from broll.engine.sampler import Step
    from broll.engine.snapshot import Snapshot
    from broll.engine.text_encoder import Kept

WHOLE_FILE = 200_000_000  # bytes; above it a digest looks at the ends only
LARGE = 1024  # width of a transformer; nano's is 256
PINNABLE = 0.8  # of the main memory that is free: pinned, it is nobody else's
AS_IT_IS = Loading()
MAX_PICTURE = 200_000_000  # bytes of a picture's file


# --- loading ----------------------------------------------------------------------------------------------


def describe(model: Installed) -> ModelConfig:
    """Its numbers and defaults, from its small files."""
    from broll.engine import load

    try:
        return load.describe(model.folder, model.name)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise BadCheckpoint(f"{model.folder} has a configuration that cannot be read: {error}") from error


def precision(config: ModelConfig, where: "torch.device", loading: Loading = AS_IT_IS) -> "Precision":
    """bf16 where it is fast and the model large; on a CPU nano stays fp32, and so reproducible.

    A large model that is computed in fp32 keeps its 16-bit matrices as they are. Frames are decoded in what
    `loading.vae_precision` says; auto is bf16 on a GPU (docs/engine/vae.md).
    """
    import torch

    from broll.engine.load import Precision

    vae = loading.vae_precision
    low = vae == "bfloat16" or (vae == "auto" and where.type == "cuda")
    found = Precision(
        decoder=torch.bfloat16 if low else None, int8=rounds(loading, where), native_fp8=loading.native_fp8
    )
    if where.type == "cpu" and (config.transformer.dim < LARGE or not fast_bf16()):
        return replace(found, halves=config.transformer.dim >= LARGE)
    return replace(found, linears=torch.bfloat16, text=torch.bfloat16)


def rounds(loading: Loading, where: "torch.device") -> bool:
    """Whether int8 is asked for and can be had; a GPU that is not here is taken to have it."""
    import torch

    from broll.engine import int8

    elsewhere = where.type == "cuda" and not torch.cuda.is_available()
    return loading.int8 and (elsewhere or int8.reach(where) > 0)


def unmet(parts: "Parts", settings: Settings) -> list[str]:
    """What is asked for and changes nothing of this loaded model, each in a line."""
    from broll.engine import fp8

    asked, done = settings.loading(), {name for name, _ in parts.digests}
    lacks = {
        "int8": (rounds(asked, parts.device), "its matrices are quantized already, or would lose too much"),
        "native_fp8": (fp8.available(parts.device), "it has no matrices in e4m3"),
    }
    return [
        f"{name} changes nothing of {parts.config.name}: "
        + (why if can else "this device, or this torch, has no such products")
        for name, (can, why) in lacks.items()
        if getattr(asked, name) and name not in done
    ]


def fast_bf16() -> bool:
    """Whether the CPU multiplies bf16 faster than fp32: by its features, else by trying."""
    import torch

    from broll.engine.rates import matrix_rate

    features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if features.get("architecture") == "x86_64":
        return bool(features.get("amx_bf16") or features.get("avx512_bf16"))
    cpu = torch.device("cpu")
    return matrix_rate(torch.bfloat16, cpu, seconds=0.1) > 1.3 * matrix_rate(torch.float32, cpu, seconds=0.1)


def use_threads(settings: Settings) -> None:
    import torch

    if settings.threads:
        torch.set_num_threads(settings.threads)


def load(
    model: Installed,
    config: ModelConfig,
    loading: Loading = AS_IT_IS,
    *,
    merge: "Sequence[Entry]" = (),
    prompts: Sequence[str] = (),
    kept: "Kept | None" = None,
    team: "Team | None" = None,
) -> "Parts":
    """`merge` goes into the weights. `prompts`: all that will be asked for, if that is known. If `kept` has their
    features, the text encoder is not read. `team`: the processes that all do so; what is kept of prompts may differ
    between them, so they look nothing up.
    """
    from broll.engine import load as engine

    if team is not None and not merge:
        group.tell(team, group.Load(model, loading, tuple(prompts)))
    where = device()
    sharing = 1 if team is None else team.size  # of main memory: others pin theirs at the same time
    return engine.load(
        model.folder,
        model.name,
        device=where,
        precision=precision(config, where, loading),
        digests=digests(model.folder),
        merge=merge,
        prompts=prompts,
        text_first=loading.text_first,
        kept=kept if team is None else None,
        streamed=loading.streamed,
        pinnable=round(PINNABLE * free_main_memory() / sharing) if loading.streamed else 0,
        attention=loading.attention,
        compile=loading.compile,
        team=team,
    )


def with_previews(parts: "Parts", model: Installed) -> "Parts":
    """And with the tiny decoder for previews that lies beside the model, if one does."""
    from broll.engine import sources, tiny_decoder

    path = sources.preview_file(model.folder)
    if path is None:
        return parts
    return replace(parts, tiny=tiny_decoder.load(path, parts.config.vae.z_dim, parts.device))


def tiled(parts: "Parts", count: int) -> "Parts":
    """The same model, decoding in so many tiles. Its autoencoder is changed in place. In a team it decodes in strips,
    which take as little memory.
    """
    from broll.engine import tiles

    if parts.team is not None:
        return parts
    tiles.use(parts.vae, count)
    others = tuple(lever for lever in parts.levers if lever != tiles.LEVER)
    return replace(parts, levers=others + (tiles.LEVER,) * (count > 1))


def check_attention(name: str, config: ModelConfig) -> None:
    """Refuse a kernel that cannot compute this model here, before any weight is read."""
    from broll.engine import kernels

    if name == kernels.AUTO:
        return
    where = device()
    kernels.chosen(name, kernels.Here.of(where, precision(config, where).linears))


def prepare_compiler(settings: Settings) -> None:
    """Refuse to compile where that cannot be. What is compiled is kept in `data`, unless the environment says where."""
    from broll.engine import compiled

    if compiled.chosen(settings.compile, device()) != compiled.OFF:
        compiled.keep(settings.data / "compiled")


def free() -> None:
    """Give back a model that nobody holds any more: a transformer refers to itself, so it waits for the collector."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def digests(folder: Path) -> tuple[tuple[str, str], ...]:
    """What the weights are: for each file below 200 MB its sha256; for a larger one, since 60 GB
    take minutes, "~" and the sha256 of its size, its time of change, its first and its last megabyte.
    """
    from broll.engine.sources import weight_files

    files = sorted({path for paths in weight_files(folder).values() for path in paths if path.is_file()})
    return tuple((label(path, folder), digest(path)) for path in files)


def label(path: Path, folder: Path) -> str:
    """A file's name in a record: inside its model's folder, or, of a part that lies elsewhere, alone."""
    inside = path.is_relative_to(folder)
    return path.relative_to(folder).as_posix() if inside else path.name


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


# --- snapshots --------------------------------------------------------------------------------------------


def save_snapshot(path: Path, spec: VideoSpec, parts: "Parts", step: "Step", memo: str = "") -> None:
    from broll.engine import snapshot

    snapshot.save(path, snapshot.Snapshot(spec, step, snapshot.conditions(parts, spec), memo))


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


def differences(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Names of the conditions that are not the same."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
