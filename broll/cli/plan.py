"""`broll plan`: what a clip would take here or on another card, and what fits if it does not. Nothing is made."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broll.cli.options import Frames, Model, Seconds, Size, Start
from broll.cli.output import duration, gigabytes

if TYPE_CHECKING:
    from broll.catalog import Installed
    from broll.cli.typed import Options
    from broll.engine.config import ModelConfig
    from broll.plan import Plan
    from broll.settings import Settings
    from broll.spec import VideoSpec

PROMPT = "a clip"


def plan(
    prompt: Annotated[
        str | None, typer.Argument(help="What the clip shows; its length counts for the text encoder.")
    ] = None,
    model: Model = None,
    size: Size = None,
    seconds: Seconds = None,
    frames: Frames = None,
    image: Start = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="1 is off, and half the work.")] = None,
    guidance_until: Annotated[
        float | None,
        typer.Option(help="After that share of the steps, guidance is computed in every second."),
    ] = None,
    takes: Annotated[int | None, typer.Option(help="So many seeds.")] = None,
    quality: Annotated[str | None, typer.Option(help="best, standard or draft.")] = None,
    step_cache: Annotated[str | None, typer.Option(help="Of those: magcache or teacache.")] = None,
    sparsity: Annotated[float | None, typer.Option(help="Of self-attention left out, 0 to 0.9.")] = None,
    offload: Annotated[str | None, typer.Option(help="Stream the blocks: auto, on or off.")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Matrices rounded to 8-bit integers.")] = False,
    device: Annotated[
        str | None, typer.Option(help="A card that is not here, by its data sheet: H100, A100, RTX4090 ...")
    ] = None,
    gpu_hour: Annotated[
        float | None, typer.Option(help="What an hour of the device costs; else the setting gpu_hour.", min=0)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Say what a clip takes before it is made: seconds, memory, money, and what fits if it does not."""
    from broll import cards, nearest
    from broll import plan as plans
    from broll.cli.typed import Options, check_together, settings_of, size_of
    from broll.engine import guidance as guiding
    from broll.engine import sparse
    from broll.engine import step_cache as caching

    options = Options(frames=frames, seconds=seconds, offload=offload, int8=int8)
    settings = settings_of(options)
    card = None if device is None else cards.find(device)
    check_together(options)
    given = {"prompt": prompt or PROMPT, "steps": steps, "guidance": guidance, "takes": takes}
    given |= {"quality": quality, "guidance_until": guidance_until, "frames": options.frames}
    given |= {"step_cache": step_cache, "sparsity": sparsity}
    spec, found, config = asked(settings, model, given | size_of(size), options, image)
    if card is None:
        target, can = plans.here(spec, config, settings, found), plans.possible(settings)
    else:
        how = plans.on_a_gpu(config, settings.loading())
        target, can = plans.published(card, config, found, how), plans.levers()
    hour = settings.gpu_hour if gpu_hour is None else gpu_hour
    made = plans.make(spec, config, target, can=can, gpu_hour=hour, offload=settings.offload)
    instead = [] if made.fits else nearest.nearest(made, config)
    if as_json:
        print(json.dumps(made.told() | {"nearest": instead}))
        return
    told = guiding.told(spec), caching.told(spec, config), sparse.told(spec, config, target.kind)
    print("\n".join(lines(made) + [line for line in told if line]))
    if not made.fits:
        print(nearest.sentence(made, config))


def asked(
    settings: "Settings", model: str | None, given: dict[str, Any], options: "Options", image: Path | None
) -> "tuple[VideoSpec, Installed | None, ModelConfig]":
    """The clip, and the model that would make it, if it is here. `options`: its seconds."""
    from broll import loras, wiring
    from broll import plan as plans
    from broll.cli.typed import frames_of
    from broll.spec import parse

    parse(**given | {"model": model or "best"})
    wiring.use_threads(settings)
    first = None if image is None else wiring.read_picture(image)
    found, config = plans.wanted(settings, model, "t2v" if first is None else "i2v")
    given = given | frames_of(options, config.defaults.fps)
    start = {} if first is None else {"image": first.artifact}
    spec, _ = loras.fitted(parse(**given | start | {"model": config.name}), settings, {})
    return plans.whole(spec, config, None if first is None else first.image), found, config


def lines(made: "Plan") -> list[str]:
    from broll.plan import HOW, words

    spec, target = made.spec, made.target
    assert spec.frames
    assert spec.fps
    told = [
        f"{spec.model}: {spec.width}x{spec.height}, {spec.frames} frames ({spec.frames / spec.fps:.1f} s), "
        f"{spec.steps} steps, guidance {spec.guidance:g}"
        + (f", {spec.takes} takes" if (spec.takes or 1) > 1 else ""),
        f"on {target.name}, {words(target.precision)}, {gigabytes(target.memory)} of memory",
        f"  {'':8} {'time':>8} {'memory':>9} {'operations':>12}",
    ]
    told += [
        f"  {stage.name:8} {duration(made.seconds[stage.name]):>8} "
        f"{gigabytes(made.estimate.base + stage.peak_bytes):>9} {tera(stage.operations.total):>12}"
        for stage in made.estimate.stages
    ]
    told += [f"switched on: {lever.words}" for lever in made.on]
    price = "" if made.money is None else f", {made.money:.2f} at {made.gpu_hour:g} an hour"
    told.append(f"time   {duration(made.total_s)} ({HOW[target.source]}){price}")
    verdict = "fits" if made.fits else "does not fit"
    told.append(f"memory {gigabytes(made.estimate.memory_bytes)}: {verdict}")
    return told


def tera(operations: float) -> str:
    return f"{operations / 1e12:.3g} TFLOP" if operations < 1e15 else f"{operations / 1e15:.3g} PFLOP"
