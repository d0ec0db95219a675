"""What was typed, as far as it can be read without an engine: so a server can be asked from a machine that has none."""

import re
import unicodedata
from dataclasses import dataclass, fields
from pathlib import Path

from broll.cli.output import say
from broll.engine.config import FPS
from broll.engine.config import frames_of as nearest
from broll.errors import BadOption
from broll.settings import Settings

# Options that are fields of the spec, under the spec's names.
PLAIN = {
    "prompt": "prompt", "steps": "steps", "guidance": "guidance", "shift": "shift", "sampler": "sampler",
    "seed": "seed", "negative": "negative_prompt", "preprocessing": "preprocessing", "grid": "grid",
    "motion": "motion", "takes": "takes", "pick": "pick", "quality": "quality",
    "frames": "frames", "sparsity": "sparsity", "guidance_until": "guidance_until",
    "step_cache": "step_cache",
}  # fmt: skip


# How this machine computes: each is a setting, which a server has for itself.
HERE = ("offload", "attention", "compile", "int8", "native_fp8", "vae_precision", "parallel")
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Options:
    """`broll generate`, as typed."""

    prompt: str | None = None
    model: str | None = None
    size: str | None = None
    seconds: float | None = None
    frames: int | None = None
    steps: int | None = None
    guidance: float | None = None
    guidance_until: float | None = None
    shift: float | None = None
    sampler: str | None = None
    seed: int | None = None
    negative: str | None = None
    image: Path | None = None
    last_image: Path | None = None
    grid: str | None = None
    preprocessing: str | None = None
    quality: str | None = None
    sparsity: float | None = None
    step_cache: str | None = None
    lora: list[str] | None = None
    merge_loras: bool = False
    offload: str | None = None
    attention: str | None = None
    compile: str | None = None
    int8: bool = False
    native_fp8: bool = False
    vae_precision: str | None = None
    parallel: str | None = None
    motion: str | None = None
    takes: int | None = None
    pick: str | None = None
    no_coach: bool = False
    fix: bool = False
    preset: str | None = None
    style: str | None = None
    out: Path | None = None
    format: str | None = None
    force: bool = False
    poster: bool = False
    sheet: bool = False
    resume: Path | None = None
    like: Path | None = None
    as_json: bool = False
    quiet: bool = False


def settings_of(options: Options) -> Settings:
    """The settings, and over them what was typed."""
    for name in ("offload", "compile"):
        if getattr(options, name) not in (None, "auto", "on", "off"):
            raise BadOption(f"--{name} is {getattr(options, name)!r}; possible are auto, on and off")
    if options.vae_precision not in (None, *PRECISIONS):
        raise BadOption(f"--vae-precision is {options.vae_precision!r}; possible are {', '.join(PRECISIONS)}")
    typed = {name: getattr(options, name) for name in HERE}
    return Settings(**{name: value for name, value in typed.items() if value not in (None, False)})


def check_together(options: Options) -> None:
    """Options that exclude or need each other."""
    if options.seconds is not None and options.frames is not None:
        raise BadOption("--seconds and --frames say the same thing: give one of them")
    if options.seconds is not None:
        length(options.seconds)
    if options.last_image and not options.image:
        raise BadOption("--last-image needs a first picture: give --image too")
    if options.no_coach and (options.fix or options.preset or options.style):
        raise BadOption("--no-coach leaves the prompt alone; --fix, --preset and --style change it")
    if options.resume is None:
        return
    free = {"resume", "model", "lora", "merge_loras", *HERE}
    free |= {"out", "format", "force", "poster", "sheet", "as_json", "quiet"}
    for option in fields(options):
        if option.name not in free and getattr(options, option.name) not in (None, False):
            name = "the prompt" if option.name == "prompt" else "--" + option.name.replace("_", "-")
            raise BadOption(f"--resume goes on with the clip that was begun; {name} cannot be changed now")


def size_of(text: str | None) -> dict[str, int]:
    if text is None:
        return {}
    match = re.fullmatch(r"([0-9]{1,5})[xX×*]([0-9]{1,5})", text.strip())
    if match is None:
        raise BadOption(f"--size is {text!r}; it must be WIDTHxHEIGHT, such as 832x480")
    return {"width": int(match[1]), "height": int(match[2])}


def frames_of(options: Options, fps: int) -> dict[str, int]:
    """--seconds to the nearest 4k + 1 frames, at `fps` frames a second, the model's rate."""
    if options.seconds is None:
        return {}
    frames = length(options.seconds, fps)
    if abs(frames - options.seconds * fps) > 1:
        say(
            f"{options.seconds:g} s is not a length the model makes; "
            f"the nearest is {frames} frames, {frames / fps:.2f} s"
        )
    return {"frames": frames}


def length(seconds: float, fps: int = FPS) -> int:
    try:
        return nearest(seconds, fps)
    except BadOption as error:
        raise BadOption(f"--{error}") from None  # --seconds is ...


# --- names of files --------------------------------------------------------------------------------------


def slug(prompt: str) -> str:
    """The first words of a prompt, as a name for a file."""
    words, name = re.findall(r"\w+", unicodedata.normalize("NFKC", prompt).lower()), ""
    for word in words:
        if len(f"{name}-{word}".encode()) > 48:
            break
        name = f"{name}-{word}" if name else word
    return name or "clip"


def unused(folder: Path, stem: str, suffix: str) -> Path:
    number, name = 1, stem
    while any(path.exists() for path in (folder / f"{name}{suffix}", *beside(folder / f"{name}{suffix}"))):
        number += 1
        name = f"{stem}-{number}"
    return folder / f"{name}{suffix}"


def beside(out: Path) -> tuple[Path, Path]:
    """Where the poster and the contact sheet go."""
    return out.with_name(f"{out.stem}.poster.png"), out.with_name(f"{out.stem}.sheet.png")
