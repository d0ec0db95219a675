"""`broll jobs`: what a server has to do, what became of it, and the files it made.

What a server says about a prompt was written by someone: it is shown without what could drive the terminal.
"""

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broll.cli.output import duration, one_line
from broll.cli.stop import Stopped, stoppable
from broll.errors import BadOption, OutputError

if TYPE_CHECKING:
    from broll.client import Client, Job

Id = Annotated[str, typer.Argument(metavar="ID", help="The job: job_...")]
Server = Annotated[
    str | None, typer.Option(help="Address of a broll serve; else BROLL_SERVER, else this machine.")
]
Key = Annotated[str | None, typer.Option(help="API key; else BROLL_KEY.")]
LONG = ("spec", "urls", "notes", "coach", "checks")  # of a job: not for a line each; --json has them
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]

jobs_app = typer.Typer(help="Jobs on a server: see, follow, stop, fetch.", no_args_is_help=True)


@jobs_app.command("list")
def list_jobs(
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many, newest first.")] = 20,
    status: Annotated[
        str | None, typer.Option(help="Only queued, processing, completed or failed ones.")
    ] = None,
    server: Server = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Show the jobs, newest first."""
    with at_once(server, key) as client:
        found = list(client.jobs(limit=limit, status=status))
    if as_json:
        print(json.dumps({"jobs": [job.data for job in found]}))
        return
    for job in found:
        at = f"{job.created_at.astimezone():%Y-%m-%d %H:%M}" if job.created_at else ""
        prompt = job.prompt if len(job.prompt) <= 60 else job.prompt[:59] + "…"
        print(one_line(f"{job.id}  {state(job):<15}  {at:<16}  {prompt}"))


@jobs_app.command("show")
def show_job(job_id: Id, server: Server = None, key: Key = None, as_json: Json = False) -> None:
    """Show all that is known about a job."""
    with at_once(server, key) as client:
        job = client.job(job_id)
    if as_json:
        print(json.dumps(job.data))
        return
    rows = {name: value for name, value in job.data.items() if name not in LONG}
    rows["status"] = state(job)
    rows |= {f"spec {name}": value for name, value in job.spec.items() if name not in rows}
    for name, value in rows.items():
        if value not in (None, "", False, [], {}):
            print(one_line(f"{name.replace('_', ' '):<18} {value}"))
    for note in job.notes:
        print(one_line(f"{'note':<18} {note}"))


@jobs_app.command("watch")
def watch(
    job_id: Id,
    server: Server = None,
    key: Key = None,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the result.")] = False,
) -> None:
    """Follow a job until it is done. Ctrl-C stops watching, not the job."""
    from broll.cli.progress import display
    from broll.cli.remote import follow, left
    from broll.client import Client

    with stoppable() as stop, Client(server, key) as client:
        show = display(quiet=quiet)
        job: Job | None = None
        try:
            job = client.job(job_id)
            job = follow(client, job, show)
        except KeyboardInterrupt:
            show.close()
            raise left(job, server, stop) from None
        finally:
            show.close()
    result(job.checked(), as_json=as_json)


@jobs_app.command("cancel")
def cancel(job_id: Id, server: Server = None, key: Key = None, as_json: Json = False) -> None:
    """Stop a job."""
    with at_once(server, key) as client:
        result(client.cancel(job_id), as_json=as_json)


@jobs_app.command("retry")
def retry(job_id: Id, server: Server = None, key: Key = None, as_json: Json = False) -> None:
    """Make a new job like one that failed or was cancelled."""
    with at_once(server, key) as client:
        result(client.retry(job_id), as_json=as_json)


@jobs_app.command("download")
def download(
    job_id: Id,
    out: Annotated[Path | None, typer.Option(help="A file or a folder. Without it, a new name here.")] = None,
    variant: Annotated[str, typer.Option(help="video, thumbnail, spritesheet, gif or preview.")] = "video",
    force: Annotated[bool, typer.Option("--force", help="Overwrite --out.")] = False,
    server: Server = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Fetch a file of a finished job."""
    from broll.cli.typed import slug, unused
    from broll.client import Client
    from broll.client.calls import VARIANTS

    path, ending = out or Path(), VARIANTS.get(variant, "")
    if variant == "video" and path.suffix.lower() == ".webm":
        raise BadOption(f"{path} ends in .webm, and a server makes mp4 and gif")
    if variant != "video" and ending and not path.is_dir() and path.suffix.lower() != ending:
        raise BadOption(f"{path} ends in {path.suffix or 'nothing'}, and a {variant} is a {ending[1:]} file")
    if not path.is_dir() and path.exists() and not force:
        raise OutputError(f"{path} is there already; --force overwrites it")
    with stoppable() as stop, Client(server, key) as client:
        try:
            job = client.job(job_id).checked()
            if path.is_dir():
                path = unused(path, f"{slug(job.prompt)}-{job.seed}", ending)
            client.download(job.id, path, variant)
        except KeyboardInterrupt:
            raise Stopped("stopped; nothing was written", stop.signum or signal.SIGINT) from None
    print(json.dumps({"file": str(path), "job_id": job.id, "seed": job.seed}) if as_json else path)


def at_once(server: str | None, key: str | None) -> "Client":
    """For what takes a moment: whoever mistyped the address should learn it soon."""
    from broll.client import Client, Retries

    return Client(server, key, retries=Retries(times=1))


def result(job: "Job", *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(job.data))
        return
    facts = [state(job), f"seed {job.seed}" if job.seed is not None else ""]
    facts.append(f"retry of {job.retry_of}" if job.retry_of and not job.done else "")
    if job.completed and job.started_at and job.completed_at:
        facts.append(duration((job.completed_at - job.started_at).total_seconds()))
    print(one_line("  ".join([job.id, *(fact for fact in facts if fact)])))


def state(job: "Job") -> str:
    if job.cancelled:
        return "cancelled"
    return f"{job.status} {job.progress} %" if job.status == "processing" else job.status
