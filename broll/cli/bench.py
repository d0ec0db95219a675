"""`broll bench`: measure what broll decides by. So far: what `--quality` needs to know of a model."""

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broll.cli.output import say
from broll.cli.stop import Stop, Stopped, stoppable
from broll.errors import BadOption

if TYPE_CHECKING:
    from broll.cli.request import Job
    from broll.engine.config import Ratios

PROMPT = "aerial drone shot slowly circling a lighthouse, golden hour"

bench_app = typer.Typer(help="Measure what broll decides by.", no_args_is_help=True)


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
    from broll.cli.request import Options, prepare
    from broll.engine import step_cache
    from broll.settings import Settings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    asked = Options(prompt=prompt, model=model, seed=seed, image=image, last_image=last_image, no_coach=True)
    with stoppable() as stop:
        job = prepare(asked, Settings())
        if step_cache.few(job.spec):
            raise BadOption(
                f"{job.model.name} is made for {job.spec.steps} steps: too few to skip any of them"
            )
        ratios = measured(job, stop, quiet=quiet)
    tell(job, ratios, as_json=as_json)


def measured(job: "Job", stop: Stop, *, quiet: bool) -> "Ratios":
    """Under a display; stopped, it leaves nothing behind."""
    from broll import calibration, wiring
    from broll.cli.progress import display

    show = display(quiet=quiet)
    try:
        show.stage(f"loading {job.model.name}")
        steps = calibration.measure(job.spec, wiring.load(job.model, job.config), job.pictures)
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
