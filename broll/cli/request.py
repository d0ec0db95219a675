"""What was typed, made into a job that can run: every refusal happens here, before any weight is read.

    options -> (--like FILE: its spec underneath) -> model -> pictures -> resolved spec -> where it is written

What is cheap to refuse is refused first; torch is not imported for a bad prompt.
"""

import re
import unicodedata
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broll import catalog, clips, coaching, loras, ready, takes, wiring
from broll.cli.output import say
from broll.engine.config import FPS, ModelConfig
from broll.engine.config import frames_of as nearest
from broll.errors import BadOption, BadPrompt, OutputError
from broll.prompts.report import Report
from broll.settings import Settings
from broll.spec import VideoSpec, parse

if TYPE_CHECKING:
    from broll.engine.snapshot import Snapshot

# Options that are fields of the spec, under the spec's names.
PLAIN = {
    "prompt": "prompt", "steps": "steps", "guidance": "guidance", "shift": "shift", "sampler": "sampler",
    "seed": "seed", "negative": "negative_prompt", "preprocessing": "preprocessing", "grid": "grid",
    "motion": "motion", "takes": "takes", "pick": "pick", "quality": "quality",
    "sparsity": "sparsity", "guidance_until": "guidance_until",
    "step_cache": "step_cache",
}  # fmt: skip


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


@dataclass(frozen=True)
class Job:
    """Everything that `takes.make` needs but the weights."""

    model: catalog.Installed
    config: ModelConfig
    spec: VideoSpec  # resolved
    pictures: tuple[wiring.Picture, ...]
    out: Path
    format: str
    poster: Path | None
    sheet: Path | None
    coach: Report | None = None
    loras: dict[str, Path] = field(default_factory=dict)  # by digest, where they are if not by their name
    resume: "tuple[Path, Snapshot] | None" = None
    together: str = ""  # what there is to say of the processes that make it


def prepare(options: Options, settings: Settings) -> Job:
    check_together(options)
    if options.out is not None and not options.out.is_dir():
        check_place(options.out, options)
    job = continued(options, settings) if options.resume else fresh(options, settings)
    if options.merge_loras:
        if settings.offload == "on":
            raise BadOption(
                "--merge-loras needs the blocks that it merges into in memory: give --offload auto or off"
            )
        loras.check_merge(job.model, job.spec)
    return replace(job, together=ready.check(job.spec, job.config, settings))


def settings_of(options: Options) -> Settings:
    """The settings, and over them what was typed."""
    for name in ("offload", "compile"):
        if getattr(options, name) not in (None, "auto", "on", "off"):
            raise BadOption(f"--{name} is {getattr(options, name)!r}; possible are auto, on and off")
    typed = {name: getattr(options, name) for name in ("offload", "attention", "compile", "parallel")}
    return Settings(**{name: value for name, value in typed.items() if value is not None})


def check_together(options: Options) -> None:
    """Options that exclude or need each other."""
    if options.seconds is not None and options.frames is not None:
        raise BadOption("--seconds and --frames say the same thing: give one of them")
    if options.last_image and not options.image:
        raise BadOption("--last-image needs a first picture: give --image too")
    if options.no_coach and (options.fix or options.preset or options.style):
        raise BadOption("--no-coach leaves the prompt alone; --fix, --preset and --style change it")
    if options.resume is None:
        return
    free = {"resume", "model", "merge_loras", "offload", "attention", "compile", "parallel"}
    free |= {"out", "format", "force", "poster", "sheet", "as_json", "quiet"}
    for option in fields(options):
        if option.name not in free and getattr(options, option.name) not in (None, False):
            name = "the prompt" if option.name == "prompt" else "--" + option.name.replace("_", "-")
            raise BadOption(f"--resume goes on with the clip that was begun; {name} cannot be changed now")


def fresh(options: Options, settings: Settings) -> Job:
    liked = clips.read_record(options.like) if options.like else None
    given: dict[str, Any] = (
        loras.liked(liked.spec, options.quality, options.model).model_dump() if liked else {}
    )
    given |= {
        field: getattr(options, name) for name, field in PLAIN.items() if getattr(options, name) is not None
    }
    given |= size_of(options.size) | frames_of(options)
    if "prompt" not in given:
        raise BadPrompt('there is no prompt: broll generate "what the clip shows and how the camera moves"')
    name = options.model or given.get("model")
    parse(**given | {"model": "best" if name is None else name})

    pictures = pictures_of(options, liked.spec if liked else None, settings)
    given |= {field: picture.artifact for field, picture in pictures.items()}
    task = catalog.task_for(pictures)
    model = catalog.find(settings, name) if name is not None else catalog.best(settings, task)
    spec = parse(**given | {"model": model.name})
    config, places = wiring.describe(model), dict[str, Path]()
    if not liked:
        spec = takes.retaken(spec)
    if options.lora:
        uses, places = loras.wanted(settings, map(loras.parse, options.lora), paths=True)
        spec = parse(**spec.model_dump() | {"loras": uses})
    spec, told = loras.fitted(spec, settings, places)
    if told:
        say(f"{spec.model}, {told}")
    repeated = liked is not None and options.prompt is None
    first = pictures["image"].png if "image" in pictures else None
    spec, report = coached(options, spec, config, "off" if repeated else mode(options), settings, first)
    takes.check(spec)
    job = complete(options, settings, model, config, spec, tuple(pictures.values()))
    job = replace(job, loras=places, coach=liked.coach if liked is not None and repeated else report)
    idle = loras.without_effect(job.spec) if options.negative and not told else ""
    if idle:
        say(idle)
    if liked:
        warn_of_other_weights(liked, job, settings)
    return job


def continued(options: Options, settings: Settings) -> Job:
    assert options.resume
    snapshot = wiring.read_snapshot(options.resume)
    spec = takes.begun(snapshot).wish
    model = replace(catalog.find(settings, options.model or spec.model), name=spec.model)
    config = wiring.describe(model)
    wiring.check_snapshot(options.resume, snapshot, config)
    artifacts = [artifact for artifact in (spec.image, spec.last_image) if artifact]
    pictures = tuple(wiring.kept_picture(settings, artifact) for artifact in artifacts)
    job = complete(options, settings, model, config, spec, pictures)
    return replace(job, resume=(options.resume, snapshot))


def complete(
    options: Options,
    settings: Settings,
    model: catalog.Installed,
    config: ModelConfig,
    spec: VideoSpec,
    pictures: tuple[wiring.Picture, ...],
) -> Job:
    """Fill in the model's defaults and choose the place of the result."""
    from broll.engine import pipeline

    wiring.use_threads(settings)
    spec = pipeline.resolve(spec, config, picture=pictures[0].image if pictures else None)
    out = place(options, spec)
    form = check_place(out, options)
    poster, sheet = beside(out)
    return Job(
        model,
        config,
        spec,
        pictures,
        out,
        form,
        poster if options.poster else None,
        sheet if options.sheet else None,
    )


def mode(options: Options) -> coaching.Mode:
    """A preset or a style is something to change the prompt for."""
    if options.no_coach:
        return "off"
    return "fix" if options.fix or options.preset or options.style else "check"


def coached(
    options: Options,
    spec: VideoSpec,
    config: ModelConfig,
    how: coaching.Mode,
    settings: Settings,
    picture: bytes | None,
) -> tuple[VideoSpec, Report | None]:
    known = coaching.context(config, spec, settings, use=options.preset, style=options.style)
    return coaching.coached(spec, known, how, coaching.endpoint(settings), picture)


def pictures_of(options: Options, liked: VideoSpec | None, settings: Settings) -> dict[str, wiring.Picture]:
    """The pictures given, or those of the clip to repeat."""
    found = {}
    for name in ("image", "last_image"):
        path, artifact = getattr(options, name), getattr(liked, name, None)
        if path is not None:
            found[name] = wiring.read_picture(path)
        elif artifact is not None:
            found[name] = wiring.kept_picture(settings, artifact)
    return found


def warn_of_other_weights(liked: clips.Record, job: Job, settings: Settings) -> None:
    known = {name: digest for name, digest in liked.weights.items() if not name.startswith("lora ")}
    rounded = known.pop("int8", None) is not None
    if known and (rounded != settings.int8 or known != dict(wiring.digests(job.model.folder))):
        say(f"warning: that clip was made with other weights than the {job.model.name} here; it will differ")


def size_of(text: str | None) -> dict[str, int]:
    if text is None:
        return {}
    match = re.fullmatch(r"([0-9]{1,5})[xX×*]([0-9]{1,5})", text.strip())
    if match is None:
        raise BadOption(f"--size is {text!r}; it must be WIDTHxHEIGHT, such as 832x480")
    return {"width": int(match[1]), "height": int(match[2])}


def frames_of(options: Options) -> dict[str, int]:
    """--frames as it is; --seconds to the nearest 4k + 1 frames."""
    if options.frames is not None:
        return {"frames": options.frames}
    if options.seconds is None:
        return {}
    frames = nearest(options.seconds)
    if abs(frames - options.seconds * FPS) > 1:
        say(
            f"{options.seconds:g} s is not a length the model makes; "
            f"the nearest is {frames} frames, {frames / FPS:.2f} s"
        )
    return {"frames": frames}


# --- where the result goes --------------------------------------------------------------------------------


def slug(prompt: str) -> str:
    """The first words of a prompt, as a name for a file."""
    words, name = re.findall(r"\w+", unicodedata.normalize("NFKC", prompt).lower()), ""
    for word in words:
        if len(f"{name}-{word}".encode()) > 48:
            break
        name = f"{name}-{word}" if name else word
    return name or "clip"


def place(options: Options, spec: VideoSpec) -> Path:
    """--out as given; else a name that says what it is and that nothing has yet."""
    folder, out = Path(), options.out
    if out is not None and not out.is_dir():
        return out
    if out is not None:
        folder = out
    elif options.resume and options.resume.suffix == ".snapshot":
        folder = options.resume.parent
        begun = options.resume.with_suffix("")
        if options.format in (None, begun.suffix[1:].lower()):
            return unused(folder, begun.stem, begun.suffix)
    return unused(folder, f"{slug(spec.prompt)}-{spec.seed}", f".{options.format or 'mp4'}")


def unused(folder: Path, stem: str, suffix: str) -> Path:
    number, name = 1, stem
    while any(path.exists() for path in (folder / f"{name}{suffix}", *beside(folder / f"{name}{suffix}"))):
        number += 1
        name = f"{stem}-{number}"
    return folder / f"{name}{suffix}"


def beside(out: Path) -> tuple[Path, Path]:
    """Where the poster and the contact sheet go."""
    return out.with_name(f"{out.stem}.poster.png"), out.with_name(f"{out.stem}.sheet.png")


def check_place(out: Path, options: Options) -> str:
    """The format; refuses what cannot be written, and what is there already."""
    from broll.media.video_file import check_output

    chosen = check_output(out, options.format)
    asked = [
        out,
        *(path for path, on in zip(beside(out), (options.poster, options.sheet), strict=True) if on),
    ]
    for path in asked:
        if path.exists() and not options.force:
            raise OutputError(f"{path} is there already; --force overwrites it")
    return chosen
