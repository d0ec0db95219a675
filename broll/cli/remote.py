"""`broll generate --server URL`: the same request, made there; and how a job elsewhere is followed.

Ctrl-C stops watching, not the job: the last line says how to go on.
"""

import json
import shlex
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broll.cli.output import one_line, say
from broll.cli.stop import Stop, Stopped
from broll.errors import BadOption, BadPrompt, OutputError

if TYPE_CHECKING:
    from broll.cli.progress import Display
    from broll.cli.typed import Options
    from broll.client import Client, Job

SUFFIXES = {".mp4": "video", ".gif": "gif"}  # what a server makes of a clip
STILLS = {"poster": "thumbnail", "sheet": "spritesheet"}


def generate(options: "Options", server: str, key: str | None, stop: Stop) -> None:
    from broll.cli.progress import display
    from broll.client import Client

    begin = time.perf_counter()
    check(options)
    fields = request(options)
    place(options, "clip")  # refused now rather than when the clip is made
    show = display(quiet=options.quiet)
    with Client(server, key) as client:
        job: Job | None = None
        try:
            show.stage("sending")
            job = client.submit(**fields)
            stop.check()
            if not options.quiet:
                announce(job, client.base_url)
            job = follow(client, job, show).checked()
            show.stage("downloading")
            files = fetch(client, job, options)
        except KeyboardInterrupt:
            show.close()
            raise left(job, server, stop) from None
        finally:
            show.close()
    finish(options, job, files, time.perf_counter() - begin)


# --- what is asked for ------------------------------------------------------------------------------------


def check(options: "Options") -> None:
    """Options that a server cannot follow."""
    from broll.cli.typed import HERE, check_together

    if options.resume is not None:
        raise BadOption("--resume goes on with a clip on this machine; it cannot be given with --server")
    for name in ("merge_loras", *HERE):
        if getattr(options, name) not in (None, False):
            option = name.replace("_", "-")
            raise BadOption(f"--{option} is for this machine; a server has the setting {name}")
    check_together(options)
    if options.format not in (None, "mp4", "gif"):
        raise BadOption(f"--format is {options.format!r}; a server makes mp4 and gif")


def request(options: "Options") -> dict[str, Any]:
    """The fields of POST /v1/video/generate; refused here if they would be refused there."""
    from broll.cli.typed import PLAIN, size_of
    from broll.spec import parse

    given, pictures = liked(options.like, options) if options.like else ({}, {})
    given |= {
        field: getattr(options, name) for name, field in PLAIN.items() if getattr(options, name) is not None
    }
    given |= size_of(options.size)
    given |= {"model": options.model} if options.model is not None else {}
    if options.lora:
        given["loras"] = [lora_asked(text) for text in options.lora]
    how = {"coach": "off" if options.no_coach else "fix" if options.fix else None}
    how |= {"preset": options.preset, "style": options.style}
    if "prompt" not in given:
        raise BadPrompt('there is no prompt: broll generate "what the clip shows and how the camera moves"')
    parse(**{"model": "best"} | {name: value for name, value in given.items() if name != "loras"})
    given |= {name: value for name, value in how.items() if value is not None}
    if options.seconds is not None:
        given.pop("frames", None)
        given["seconds"] = options.seconds
    pictures |= {
        name: path for name in ("image", "last_image") if (path := getattr(options, name)) is not None
    }
    if options.like is not None and options.prompt is None:
        given["coach"] = "off"
    return given | pictures


def lora_asked(text: str) -> dict[str, Any]:
    """NAME[:WEIGHT[:FIRST-LAST]] as the server takes it: a name there, steps from 0."""
    from broll import loras

    asked = loras.parse(text)
    first, last = (asked.steps[0] - 1, asked.steps[1] - 1) if asked.steps else (None, None)
    fields = {"name": asked.name, "weight": asked.weight, "first": first, "last": last}
    return {name: value for name, value in fields.items() if value is not None}


def liked(path: Path, options: "Options") -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields and the pictures of a clip to repeat."""
    from broll import clips, loras, wiring
    from broll.settings import Settings

    spec = loras.liked(clips.read_record(path).spec, options.quality, options.model)
    pictures = {
        name: wiring.kept_picture(Settings(), artifact).png
        for name in ("image", "last_image")
        if (artifact := getattr(spec, name)) is not None
    }
    return spec.model_dump(exclude_none=True, exclude={"schema_version", "image", "last_image"}), pictures


# --- while it is made -------------------------------------------------------------------------------------


def announce(job: "Job", server: str) -> None:
    facts = [f"{job.frames} frames" if job.frames else "", f"seed {job.seed}" if job.seed is not None else ""]
    facts.append(f"{job.credits} credits" if job.credits else "")
    about = ", ".join(fact for fact in (job.size, *facts) if fact)
    say(one_line(f"{job.id} at {server}: {job.model}: {about}"))
    for note in job.notes:
        say(one_line(note))


def follow(client: "Client", job: "Job", show: "Display") -> "Job":
    """The job once it is done; until then, its progress on the display."""
    watch = Watch(show)
    watch.job(job)
    if job.done:
        return job
    for event in client.stream(job.id):
        job = event.job or job
        watch.saw(event.kind, event.data)
        if event.job:
            watch.job(job)
    return job if job.done else client.job(job.id)


class Watch:
    """Events of a job, on the display: its place in the queue, then percent of the whole."""

    def __init__(self, show: "Display") -> None:
        self.show, self.name = show, ""
        self.first: tuple[float, float] | None = None  # when, and how far it was

    def job(self, job: "Job") -> None:
        if job.status == "queued":
            before = f", {job.queue_position} in line" if job.queue_position else ""
            self._stage(f"queued{before}", None)
        elif job.status == "processing":
            self.saw("progress", {"stage": job.stage, "progress": job.progress, "eta_s": job.eta_s})

    def saw(self, kind: str, data: dict[str, Any]) -> None:
        if kind not in ("stage", "progress"):
            return
        stage = data.get("stage")
        self._stage(one_line(str(stage)) if stage else "working", 100)
        done, left_s = data.get("progress"), data.get("eta_s")
        if isinstance(done, int | float) and done > 0:
            seen_s = self.left_s(done)
            left_s = left_s if isinstance(left_s, int | float) else seen_s
            if left_s is not None:
                self.show.at(int(done), left_s)

    def left_s(self, done: float) -> float | None:
        """As it went since watching began, for a server that does not say."""
        now = time.monotonic()
        self.first = self.first or (now, done)
        begin, before = self.first
        return (now - begin) / (done - before) * (100 - done) if done > before else None

    def _stage(self, name: str, total: int | None) -> None:
        if name != self.name:
            self.name = name
            self.show.stage(name, total)


def left(job: "Job | None", server: str | None, stop: Stop) -> Stopped:
    """Ctrl-C: nothing is cancelled, and there is a way on."""
    there = f" --server {shlex.quote(server)}" if server else ""
    if job is None:
        message = f"stopped before the server answered; whether it has the job: broll jobs list{there}"
    elif job.done:
        message = f"stopped; {job.id} is done; fetch it with: broll jobs download {job.id}{there}"
    else:
        message = f"stopped watching; {job.id} goes on; continue with: broll jobs watch {job.id}{there}"
    return Stopped(message, stop.signum or signal.SIGINT)


# --- the result -------------------------------------------------------------------------------------------


def place(options: "Options", stem: str, *, suffix: str = ".mp4") -> Path:
    """--out, or a new name in the folder; refuses what is there already, and endings that no server makes."""
    from broll.cli.typed import unused

    suffix = f".{options.format}" if options.format else suffix
    out = options.out or Path()
    if out.is_dir():
        return unused(out, stem, suffix)
    if out.suffix.lower() not in SUFFIXES or (options.format and out.suffix.lower() != suffix):
        raise BadOption(f"{out} ends in {out.suffix or 'nothing'}; a server makes mp4 and gif")
    if not out.parent.is_dir():
        raise OutputError(f"cannot write {out}: there is no folder {out.parent}")
    asked = [out, *(still(out, name) for name in STILLS if getattr(options, name))]
    for path in asked:
        if path.exists() and not options.force:
            raise OutputError(f"{path} is there already; --force overwrites it")
    return out


def still(out: Path, name: str) -> Path:
    return out.with_name(f"{out.stem}.{name}.webp")


def fetch(client: "Client", job: "Job", options: "Options") -> dict[str, Path]:
    """The clip, and the stills that were asked for."""
    from broll.cli.typed import slug

    out = place(options, f"{slug(job.prompt)}-{job.seed}")
    files = {"file": client.download(job.id, out, SUFFIXES[out.suffix.lower()])}
    for name, variant in STILLS.items():
        if getattr(options, name):
            files[name] = client.download(job.id, still(out, name), variant)
    return files


def finish(options: "Options", job: "Job", files: dict[str, Path], seconds: float) -> None:
    """As `broll generate` says it here; the latents' digest is known only to the file."""
    if options.as_json:
        result = {
            "file": str(files["file"]),
            "seed": job.seed,
            "seconds": round(seconds, 2),
            "latents_sha256": None,
            "resumed_elsewhere": job.resumed_elsewhere,
            "spec": job.spec,
            "job_id": job.id,
        }
        print(json.dumps(result | {name: str(path) for name, path in files.items()}))
        return
    print(f"{files['file']}  seed {job.seed}  {seconds:.1f} s")
    for name in STILLS:
        if name in files:
            print(files[name])
