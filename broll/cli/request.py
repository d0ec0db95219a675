"""What was typed, made into a job that can run: every refusal happens here, before any weight is read.

    options -> (--like FILE: its spec underneath) -> model -> pictures -> resolved spec -> where it is written

What is cheap to refuse is refused first; torch is not imported for a bad prompt.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broll import catalog, clips, coaching, loras, ready, takes, wiring
from broll.cli.output import say
from broll.cli.typed import PLAIN, Options, beside, check_together, frames_of, size_of, slug, unused
from broll.engine.config import ModelConfig
from broll.errors import BadOption, BadPrompt, OutputError
from broll.prompts.report import Report
from broll.settings import Settings
from broll.spec import VideoSpec, parse

if TYPE_CHECKING:
    from broll.engine.snapshot import Snapshot


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
    notes: tuple[str, ...] = ()  # what there is to say of how it is made


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
    return replace(job, notes=tuple(ready.check(job.spec, job.config, settings)))


def fresh(options: Options, settings: Settings) -> Job:
    liked = clips.read_record(options.like) if options.like else None
    given: dict[str, Any] = (
        loras.liked(liked.spec, options.quality, options.model).model_dump() if liked else {}
    )
    given |= {
        field: getattr(options, name) for name, field in PLAIN.items() if getattr(options, name) is not None
    }
    given |= size_of(options.size)
    if "prompt" not in given:
        raise BadPrompt('there is no prompt: broll generate "what the clip shows and how the camera moves"')
    name = options.model or given.get("model")
    parse(**given | {"model": "best" if name is None else name})

    pictures = pictures_of(options, liked.spec if liked else None, settings)
    given |= {field: picture.artifact for field, picture in pictures.items()}
    task = catalog.task_for(pictures)
    model = catalog.find(settings, name) if name is not None else catalog.best(settings, task)
    config, places = wiring.describe(model), dict[str, Path]()
    given |= frames_of(options, given.get("fps") or config.defaults.fps)
    spec = parse(**given | {"model": model.name})
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
    return replace(job, loras=again(options, settings, spec), resume=(options.resume, snapshot))


def again(options: Options, settings: Settings, spec: VideoSpec) -> dict[str, Path]:
    """Where the LoRAs of a clip that was begun are, by their digests, if --lora says so."""
    _, places = loras.wanted(settings, map(loras.parse, options.lora or ()), paths=True)
    if not places.keys() <= {use.sha256 for use in spec.loras}:
        raise BadOption(
            "--resume goes on with the LoRAs that the clip was begun with; --lora can only say where they are"
        )
    return places


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
    known.pop("native_fp8", None)
    rounds = wiring.rounds(settings.loading(), catalog.device())
    if known and (rounded != rounds or known != dict(wiring.digests(job.model.folder))):
        say(f"warning: that clip was made with other weights than the {job.model.name} here; it will differ")


# --- where the result goes --------------------------------------------------------------------------------


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


def check_place(out: Path, options: Options) -> str:
    """The format; refuses what cannot be written, and what is there already."""
    from broll.media.video_file import FORMATS, check_output

    chosen, ending = check_output(out, options.format), out.suffix.lower()[1:]
    if ending in FORMATS and ending != chosen:
        raise BadOption(f"{out} ends in .{ending}, and the format is {chosen}: leave one of them out")
    asked = [
        out,
        *(path for path, on in zip(beside(out), (options.poster, options.sheet), strict=True) if on),
    ]
    for path in asked:
        if path.exists() and not options.force:
            raise OutputError(f"{path} is there already; --force overwrites it")
    return chosen
