"""`broll generate`: say what will happen, do it, show how far it is, name the result.

Ctrl-C and SIGTERM stop it within a second. What was denoised is then kept in OUT.snapshot, and the last line
says how to go on.
"""

import contextlib
import json
import os
import shlex
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broll.cli.options import Frames, Model, Seconds, Size, Start
from broll.cli.output import duration, gigabytes, say
from broll.cli.stop import Stop, Stopped, stoppable
from broll.cli.watch import Watch
from broll.errors import BadOption

if TYPE_CHECKING:
    from broll.cli.progress import Display
    from broll.cli.request import Job
    from broll.cli.typed import Options
    from broll.clips import Clip
    from broll.engine.load import Parts
    from broll.group import Lead
    from broll.plan import Plan
    from broll.settings import Settings

EXAMPLES = (
    'broll generate "aerial drone shot slowly circling a lighthouse, golden hour"    '
    "broll generate --like clip.mp4 --seed 7"
)
What, How, Coach, Where, Again, There = (
    "What", "How", "Coach and measured takes", "Where it goes", "Again", "On a server"
)  # fmt: skip


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="What the clip shows and how the camera moves.")
    ] = None,
    model: Model = None,
    size: Size = None,
    seconds: Seconds = None,
    frames: Frames = None,
    negative: Annotated[str | None, typer.Option(help="What the clip should not show.")] = None,
    image: Start = None,
    last_image: Annotated[Path | None, typer.Option(help="The picture to end with.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed makes the same clip.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.", rich_help_panel=How)] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How strictly the prompt is followed; 1 is off.", rich_help_panel=How)
    ] = None,
    guidance_until: Annotated[
        float | None,
        typer.Option(
            help="After that share of the steps, guidance is computed in every second.", rich_help_panel=How
        ),
    ] = None,
    shift: Annotated[
        float | None, typer.Option(help="More steps at high noise, for motion.", rich_help_panel=How)
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="unipc, dpm++ or euler.", rich_help_panel=How)] = None,
    grid: Annotated[
        str | None, typer.Option(help="Noise levels: official, diffusers or distilled.", rich_help_panel=How)
    ] = None,
    merge_loras: Annotated[
        bool, typer.Option("--merge-loras", help="Into the weights instead of beside.", rich_help_panel=How)
    ] = False,
    sparsity: Annotated[
        float | None,
        typer.Option(help="Leave out so much of self-attention, 0 to 0.9.", rich_help_panel=How),
    ] = None,
    quality: Annotated[
        str | None,
        typer.Option(help="best computes every step; standard and draft are faster.", rich_help_panel=How),
    ] = None,
    step_cache: Annotated[
        str | None, typer.Option(help="Chooses those steps: magcache or teacache.", rich_help_panel=How)
    ] = None,
    offload: Annotated[
        str | None,
        typer.Option(help="Stream the model's blocks: auto, on or off.", rich_help_panel=How),
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(help="Kernel: auto, sdpa, flash3, sage ...", rich_help_panel=How),
    ] = None,
    compile: Annotated[
        str | None,
        typer.Option(help="Compile what lies between products: auto, on or off.", rich_help_panel=How),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Round the matrices to 8-bit integers.", rich_help_panel=How)
    ] = False,
    native_fp8: Annotated[
        bool, typer.Option("--native-fp8", help="Multiply fp8 weights in fp8.", rich_help_panel=How)
    ] = False,
    vae_precision: Annotated[
        str | None,
        typer.Option(help="Decode in float32 or bfloat16; auto.", rich_help_panel=How),
    ] = None,
    parallel: Annotated[
        str | None,
        typer.Option(help="Under torchrun: auto, or such as cfg=2,ulysses=4,ring=1.", rich_help_panel=How),
    ] = None,
    preprocessing: Annotated[
        str | None, typer.Option(help="Of pictures: official or diffusers.", rich_help_panel=How)
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            help="A LoRA beside the model: NAME[:WEIGHT[:FIRST-LAST]]; may be given again.",
            rich_help_panel=How,
        ),
    ] = None,
    no_coach: Annotated[
        bool, typer.Option("--no-coach", help="Say nothing of the prompt.", rich_help_panel=Coach)
    ] = False,
    fix: Annotated[
        bool, typer.Option("--fix", help="Let the coach rewrite the prompt.", rich_help_panel=Coach)
    ] = False,
    preset: Annotated[
        str | None,
        typer.Option(help="Rewrite it for this use, such as ambient-loop.", rich_help_panel=Coach),
    ] = None,
    style: Annotated[
        str | None, typer.Option(help="Rewrite it in this style, such as cinematic.", rich_help_panel=Coach)
    ] = None,
    motion: Annotated[
        str | None,
        typer.Option(help="low, medium or high: measured, and retimed or retaken.", rich_help_panel=Coach),
    ] = None,
    takes: Annotated[
        int | None, typer.Option(help="So many seeds, measured; the best is kept.", rich_help_panel=Coach)
    ] = None,
    pick: Annotated[
        str | None, typer.Option(help="Best by camera, motion or sharp.", rich_help_panel=Coach)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="A file or a folder. Without it, a new name here.", rich_help_panel=Where),
    ] = None,
    format: Annotated[str | None, typer.Option(help="mp4, webm or gif.", rich_help_panel=Where)] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite --out.", rich_help_panel=Where)] = False,
    poster: Annotated[
        bool, typer.Option("--poster", help="Also one frame as a picture.", rich_help_panel=Where)
    ] = False,
    sheet: Annotated[
        bool, typer.Option("--sheet", help="Also eight frames on a sheet.", rich_help_panel=Where)
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=Where)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Only the result.", rich_help_panel=Where)
    ] = False,
    resume: Annotated[
        Path | None, typer.Option(help="Go on from this snapshot.", rich_help_panel=Again)
    ] = None,
    like: Annotated[
        Path | None, typer.Option(help="Repeat this clip; other options change it.", rich_help_panel=Again)
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="Make it there: address of a broll serve.", rich_help_panel=There)
    ] = None,
    key: Annotated[str | None, typer.Option(help="API key; else BROLL_KEY.", rich_help_panel=There)] = None,
) -> None:
    """Make a clip from a prompt."""
    typed = dict(locals())  # exactly the options, under the names of `Options`, and where
    from broll import group
    from broll.cli import remote
    from broll.cli.typed import Options, settings_of

    del typed["server"], typed["key"]
    if key is not None and server is None:
        raise BadOption("--key is for a server: give --server too")
    if server is not None and group.started() > 1:
        raise BadOption("--server under torchrun: a server starts its own processes; leave torchrun away")
    if group.follows():  # torchrun started it, and another one leads
        from broll import follower

        raise typer.Exit(follower.serve(settings_of(Options(**typed))))
    with stoppable() as stop:
        if server is not None:
            remote.generate(Options(**typed), server, key, stop)
            return
        with group.leading() as lead:
            run(Options(**typed), stop, lead)


def run(options: "Options", stop: Stop, lead: "Lead") -> None:
    begin = time.perf_counter()
    os.environ.setdefault(
        "TRANSFORMERS_VERBOSITY", "error"
    )  # what it warns of is checked, and said, by broll
    from broll.cli.progress import display
    from broll.cli.typed import settings_of

    show = display(quiet=options.quiet)
    try:
        show.stage("starting")
        job, parts, expected = ready(options, settings_of(options), stop, show, lead)
    except KeyboardInterrupt:
        again = f"; {options.resume} is as it was" if options.resume else "; nothing was written"
        raise Stopped(f"stopped before the first step{again}", stop.signum or signal.SIGINT) from None
    finally:
        show.close()
    clip = follow(options, job, parts, expected, stop)
    if job.resume:
        with contextlib.suppress(OSError):
            job.resume[0].unlink()
    finish(options, job, clip, time.perf_counter() - begin)


def ready(
    options: "Options", settings: "Settings", stop: Stop, show: "Display", lead: "Lead"
) -> "tuple[Job, Parts, Plan]":
    """The job, announced, and its model, loaded."""
    from broll import loras, nearest, wiring
    from broll.cli.coaching import announce_coach
    from broll.cli.request import prepare
    from broll.plan import local
    from broll.ready import load

    job = prepare(options, settings)
    stop.check()
    merging = options.merge_loras or loras.merges(job.model, job.spec, settings)
    expected = local(job.spec, job.config, settings, job.model, merging=merging)
    if not options.quiet:
        if job.coach is not None and not options.resume:
            announce_coach(job.coach)
        announce(job, expected)
        for note in job.notes:
            say(note)
    if not expected.fits:
        need, free = gigabytes(expected.estimate.memory_bytes), gigabytes(expected.target.memory)
        say(
            f"warning: this needs about {need} of memory and {free} are free: "
            "it will be very slow, or be stopped by the system"
        )
        say(nearest.sentence(expected, job.config))
    for picture in job.pictures:
        wiring.keep_picture(settings, picture)
    team = lead.begin(settings)
    show.stage(f"loading {job.model.name}")
    parts, unused = load(
        job.model, expected, job.config, settings, merging=merging, places=job.loras, team=team
    )
    for line in unused:
        say(f"warning: {line}")
    stop.check()
    return job, parts, expected


def announce(job: "Job", expected: "Plan") -> None:
    from broll.engine import guidance, sparse, step_cache
    from broll.plan import HOW, STREAMING

    spec = job.spec
    assert spec.frames is not None
    assert spec.fps is not None
    takes = spec.takes or 1
    say(
        f"{spec.model}: {spec.width}x{spec.height}, {spec.frames} frames ({spec.frames / spec.fps:.1f} s), "
        f"{spec.steps} steps, guidance {spec.guidance:g}, seed {spec.seed}"
        + (f", {takes} takes" if takes > 1 else "")
    )
    seconds = expected.total_s
    if job.resume:
        done = job.resume[1].step.index + 1
        seconds -= expected.denoise_s * done / (spec.steps or 1)
        say(f"going on after step {done} of {spec.steps}")
    memory = gigabytes(expected.estimate.memory_bytes)
    say(f"expected: {duration(seconds)} ({HOW[expected.target.source]}), {memory} of memory -> {job.out}")
    kind = expected.target.kind
    told = guidance.told(spec), step_cache.told(spec, job.config), sparse.told(spec, job.config, kind)
    for line in filter(None, told):
        say(line)
    for lever in expected.on:
        asked = lever.name == STREAMING and expected.offload == "on"
        say(f"switched on{'' if asked else ', so that it fits'}: {lever.words}")


def follow(options: "Options", job: "Job", parts: "Parts", expected: "Plan", stop: Stop) -> "Clip":
    """Run it under one display; when stopped, keep what was done."""
    from broll import takes
    from broll.cli.progress import display
    from broll.cli.typed import settings_of

    warn_of_other_conditions(job, parts)
    snapshot = job.resume[1] if job.resume else None
    show = display(quiet=options.quiet)
    watch = Watch(job, expected, show)
    events = takes.make(
        job.spec, parts, job.out, format=job.format, pictures=job.pictures, resume=snapshot, coach=job.coach
    )  # fmt: skip
    try:
        for event in events:
            watch.saw(event)
            stop.check()
    except KeyboardInterrupt:
        stop.saving = True
        events.close()  # type: ignore[attr-defined]
        show.close()
        message = keep(options, job, parts, watch)
        raise Stopped(message, stop.signum or signal.SIGINT) from None
    finally:
        show.close()
    assert watch.clip is not None
    watch.clip.stills.write(job.poster, job.sheet, watch.clip.record.spec.prompt)
    if parts.team is None:  # what is remembered is the pace of one
        watch.remember(settings_of(options))
    return watch.clip


def warn_of_other_conditions(job: "Job", parts: "Parts") -> None:
    from broll import wiring
    from broll.engine import kernels
    from broll.engine.snapshot import conditions

    if job.resume:
        before = job.resume[1].conditions
        with kernels.as_before(parts.transformer, before.get("attention", "")):
            differ = wiring.differences(before, conditions(parts, job.spec))
        if differ:
            say(f"warning: begun under other conditions ({', '.join(differ)}): the clip may differ a little")


def keep(options: "Options", job: "Job", parts: "Parts", watch: Watch) -> str:
    """Save the last step beside the output, and say how to go on."""
    from broll import wiring
    from broll.engine import kernels

    step, take = watch.step, watch.take
    if step is None or take is None:
        again = f"; continue with: broll generate --resume {shlex.quote(str(options.resume))}"
        return "stopped before the first step" + (again if options.resume else "; nothing was written")
    path = job.out.with_name(job.out.name + ".snapshot")
    begun = job.resume[1].conditions.get("attention", "") if job.resume else ""
    with kernels.as_before(parts.transformer, begun):  # as it was denoised
        wiring.save_snapshot(path, take.spec, parts, step, take.memo)
    command = f"broll generate --resume {shlex.quote(str(path))}"
    if options.model and Path(options.model).expanduser().is_dir():
        command += f" --model {shlex.quote(options.model)}"
    for path in job.loras.values():
        command += f" --lora {shlex.quote(str(path))}"
    which = f" of take {take.index + 1}" if take.count > 1 else ""
    return f"stopped after step {step.index + 1} of {job.spec.steps}{which}; continue with: {command}"


def finish(options: "Options", job: "Job", clip: "Clip", seconds: float) -> None:
    from broll.cli.coaching import measured

    record = clip.record
    result = {
        "file": str(clip.path),
        "seed": record.spec.seed,
        "seconds": round(seconds, 2),
        "latents_sha256": record.latents_sha256,
        "resumed_elsewhere": record.resumed_elsewhere,
        "spec": record.spec.model_dump(exclude_none=True),
    }
    told = record.model_dump(mode="json", exclude_none=True)
    more = ("checks", "coach", "takes", "retimed", "attention")
    result |= {name: told[name] for name in more if told.get(name)}
    result |= {name: str(path) for name, path in (("poster", job.poster), ("sheet", job.sheet)) if path}
    if options.as_json:
        print(json.dumps(result))
        return
    print(f"{clip.path}  seed {record.spec.seed}  {seconds:.1f} s")
    if not options.quiet:
        for name, text in measured(record).items():
            say(f"{name}: {text}")
    for path in (job.poster, job.sheet):
        if path is not None:
            print(path)
