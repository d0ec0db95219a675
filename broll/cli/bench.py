"""`broll bench`: measure what broll decides by.

broll bench              this machine: what each model and size takes on it, and the rates that plans go by
broll bench calibrate    a model: what `--quality` needs to know of it
"""

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broll.cli.output import duration, gigabytes, say, speeds
from broll.cli.stop import Stop, Stopped, stoppable
from broll.errors import BadOption

if TYPE_CHECKING:
    from broll.cli.request import Job
    from broll.engine.config import Ratios
    from broll.engine.rates import Rates
    from broll.outlook import Offer
    from broll.plan import Plan
    from broll.settings import Settings

PROMPT = "aerial drone shot slowly circling a lighthouse, golden hour"

bench_app = typer.Typer()


# --- this machine -----------------------------------------------------------------------------------------


@bench_app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    model: Annotated[
        list[str] | None, typer.Option(help="Only this model; may be given again. Else all of them.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the result.")] = False,
) -> None:
    """Measure this machine, and say what each model and size takes on it."""
    if context.invoked_subcommand is not None:
        if model or as_json or quiet:
            raise BadOption(f"options come last: broll bench {context.invoked_subcommand} --model NAME ...")
        return
    from broll import outlook, pace, wiring
    from broll.settings import Settings

    settings = Settings()
    wiring.use_threads(settings)
    offers, odd = outlook.offers(settings, model or [])
    for line in odd:
        say(f"warning: {line}")
    with stoppable() as stop:
        rates, made = look(offers, settings, stop, quiet=quiet)
    kept, best = pace.rates_file(settings), outlook.most(rates)
    if as_json:
        models = [outlook.told(offer, plan) for offer, plan in zip(offers, made, strict=True)]
        target = made[0].target
        told = {"device": target.name, "kind": target.kind, "free_bytes": int(target.memory)}
        print(json.dumps(told | {"rates": dataclasses.asdict(best), "file": str(kept), "models": models}))
        return
    print("\n".join(lines(offers, made, best)))
    if not quiet:
        say(f"kept in {kept}, where plans find it")


def look(
    offers: "list[Offer]", settings: "Settings", stop: Stop, *, quiet: bool
) -> "tuple[list[Rates], list[Plan]]":
    """Everything that is measured, and the plans that follow; stopped, it leaves the old rates as they were."""
    from broll import outlook
    from broll.cli.progress import display

    show, kept = display(quiet=quiet), False
    rates: list[Rates] = []
    made: list[Plan] = []
    try:
        show.stage("measure", len(offers))
        begin = time.perf_counter()
        for found in outlook.measured(offers, settings):
            rates.append(found)
            show.at(len(rates), (time.perf_counter() - begin) / len(rates) * (len(offers) - len(rates)))
            stop.check()
        kept = True
        show.stage("planning")
        for offer in offers:
            made.append(outlook.planned(offer, settings))
            stop.check()
    except KeyboardInterrupt:
        left = "the new rates are kept" if kept else "the rates that were kept are as they were"
        raise Stopped(f"stopped; {left}", stop.signum) from None
    finally:
        show.close()
    return rates, made


def lines(offers: "list[Offer]", made: "list[Plan]", best: "Rates") -> list[str]:
    from broll import outlook
    from broll.plan import HOW

    target = made[0].target
    told = [
        f"{target.name}, {gigabytes(target.memory)} of memory free",
        f"at best: {speeds(best)}; copies {best.copy / 1e9:.0f} GB/s",
        f"{'':20} {'size':>9} {'clip':>6} {'steps':>5} {'quality':8} {'a step':>7} {'a clip':>9} {'memory':>8}",
    ]
    for offer, plan in zip(offers, made, strict=True):
        spec = plan.spec
        length = f"{(spec.frames or 0) / (spec.fps or 1):.1f} s"
        size = f"{spec.width}x{spec.height}"
        words = "; ".join(filter(None, (outlook.verdict(plan), outlook.advice(offer))))
        told.append(
            f"{spec.model:20} {size:>9} {length:>6} {spec.steps:>5} {outlook.quality(plan):8} "
            f"{duration(outlook.step_s(plan)):>7} {duration(plan.total_s):>9} "
            f"{gigabytes(plan.estimate.memory_bytes):>8}  {words}"
        )
    seen = sorted({plan.spec.model for plan in made if plan.target.source == "seen"})
    return told + ([f"{', '.join(seen)}: {HOW['seen']}"] if seen else [])


# --- a model ----------------------------------------------------------------------------------------------


@bench_app.command("calibrate")
def calibrate(
    model: Annotated[str, typer.Option(help="A model's name, or its folder.")],
    prompt: Annotated[str, typer.Option(help="What the clip shows that is measured.")] = PROMPT,
    seed: Annotated[int, typer.Option(help="Its seed.")] = 1,
    image: Annotated[Path | None, typer.Option(help="The picture that it starts from.")] = None,
    last_image: Annotated[Path | None, typer.Option(help="The picture that it ends with.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the result.")] = False,
) -> None:
    """Measure how much a model changes from step to step, so that --quality can skip steps of it."""
    from broll.cli.request import prepare
    from broll.cli.typed import Options
    from broll.engine import step_cache
    from broll.settings import Settings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    settings = Settings()
    asked = Options(prompt=prompt, model=model, seed=seed, image=image, last_image=last_image, no_coach=True)
    with stoppable() as stop:
        job = prepare(asked, settings)
        if step_cache.few(job.spec):
            raise BadOption(
                f"{job.model.name} is made for {job.spec.steps} steps: too few to skip any of them"
            )
        ratios = measured(job, settings, stop, quiet=quiet)
    tell(job, ratios, as_json=as_json)


def measured(job: "Job", settings: "Settings", stop: Stop, *, quiet: bool) -> "Ratios":
    """Under a display; stopped, it leaves nothing behind."""
    from broll import calibration
    from broll.cli.progress import display
    from broll.plan import local
    from broll.ready import load

    show = display(quiet=quiet)
    try:
        show.stage(f"loading {job.model.name}")
        expected = local(job.spec, job.config, settings, job.model)
        parts, _ = load(job.model, expected, job.config, settings, merging=False)
        steps = calibration.measure(job.spec, parts, job.pictures)
        show.stage("measure", job.spec.steps)
        begin = time.perf_counter()
        while True:
            try:
                done = next(steps).index + 1
            except StopIteration as end:
                return end.value
            show.at(done, (time.perf_counter() - begin) / done * ((job.spec.steps or 1) - done))
            stop.check()
    except KeyboardInterrupt:
        raise Stopped("stopped; nothing was written", stop.signum) from None
    finally:
        show.close()


def tell(job: "Job", ratios: "Ratios", *, as_json: bool) -> None:
    """Keep it, and say what each quality comes to."""
    from broll import calibration
    from broll.engine import step_cache

    path = calibration.keep(job.model.folder, ratios)
    config = dataclasses.replace(job.config, ratios=ratios)
    specs = {name: job.spec.model_copy(update={"quality": name}) for name in step_cache.QUALITY}
    if as_json:
        computed = {name: step_cache.computed(spec, config) for name, spec in specs.items()}
        told = {"file": str(path), "computed": computed | {"best": job.spec.steps}}
        print(json.dumps(told | dataclasses.asdict(ratios)))
        return
    print(path)
    for spec in specs.values():
        say(step_cache.told(spec, config))
