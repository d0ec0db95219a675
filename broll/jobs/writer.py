"""What an attempt tells, written down: into artifacts first, then into the job's row, under its lease."""

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog
from sqlalchemy.exc import DBAPIError

from broll.errors import BrollError, StorageError
from broll.events import Clip, Event, Preview, Progress, Snapshot, Stage
from broll.jobs.artifacts import Artifacts
from broll.jobs.leases import Lease, Leases
from broll.spec import guided_steps

KINDS = {
    "video": ("mp4", "video/mp4"),
    "thumbnail": ("webp", "image/webp"),
    "spritesheet": ("webp", "image/webp"),
}


class Writer:
    """An attempt's events, written: progress at most once a second, the rest at once.

    What is only good to have (progress, previews, snapshots) never ends an attempt: a full disk or a database that is
    away for a moment costs a picture or a step, not the work. A lost lease does.
    """

    def __init__(
        self, leases: Leases, artifacts: Artifacts, lease: Lease, every_s: float,
        patiently: Callable[[Callable[[], Any]], None], over: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._leases, self._artifacts, self._patiently, self._over = leases, artifacts, patiently, over
        self._job, self._token, self._every_s = lease.job, lease.token, every_s
        self._folder = f"jobs/{lease.job.id}/{lease.token}"
        self._percent, self._said = lease.job.percent, 0.0
        self._snapshot: str | None = None if lease.job.snapshot is None else lease.job.snapshot["path"]

    def write(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._progress(event)
        elif isinstance(event, Stage):
            self._patiently(lambda: self._leases.stage(self._token, event.name))
        elif isinstance(event, Preview):
            self._if_possible(lambda: self._show(event))
        elif isinstance(event, Snapshot):
            self._if_possible(lambda: self._keep(event))
        elif isinstance(event, Clip):
            self._complete(event)

    def _if_possible(self, write: Callable[[], None]) -> None:
        try:
            write()
        except (StorageError, DBAPIError) as error:
            log = structlog.get_logger("broll.dispatcher")
            log.warning("not written", job_id=self._job.id, error=str(error).splitlines()[0])

    def _show(self, event: Preview) -> None:
        path = f"{self._folder}/preview.webp"
        self._artifacts.put(path, event.webp, content_type="image/webp")
        self._leases.write(self._token, preview=path)

    def _progress(self, event: Progress) -> None:
        self._percent = max(self._percent, event.percent)
        now = time.monotonic()
        if now - self._said >= self._every_s:
            self._said = now
            values = {"percent": self._percent, "left_s": event.left_s}
            self._if_possible(lambda: self._leases.write(self._token, **values))

    def _keep(self, event: Snapshot) -> None:
        """The new one is kept and named before the old one is forgotten."""
        path = f"{self._folder}/{event.step:04d}-{event.sha256[:8]}.snapshot"  # each take has its steps
        self._artifacts.put(path, event.data)
        facts = {"path": path, "sha256": event.sha256, "step": event.step}
        self._leases.write(self._token, snapshot=json.dumps(facts), percent=self._percent)
        if self._snapshot is not None and self._snapshot != path:
            with suppress(BrollError):
                self._artifacts.delete(self._snapshot)
        self._snapshot = path

    def _complete(self, event: Clip) -> None:
        self._patiently(lambda: self._leases.stage(self._token, "deliver"))
        files = {}
        for variant, data in event.files.items():
            ending, kind = KINDS[variant]
            path: str = f"{self._folder}/{variant}.{ending}"
            self._artifacts.put(path, data, content_type=kind)
            digest = hashlib.sha256(data).hexdigest()
            files[variant] = {"path": path, "bytes": len(data), "sha256": digest, "type": kind}
        result = told(event.record)
        share = len(result["takes"] or [0]) / (self._job.spec.get("takes") or 1)
        self._patiently(
            lambda: self._leases.complete(
                self._token, files, resumed_elsewhere=event.resumed_elsewhere, result=result, share=share
            )
        )
        self._over()  # who waits for the clip need not wait for the tidying up
        with suppress(BrollError, DBAPIError):
            self._remember(event)
            for done_with in (self._snapshot, f"{self._folder}/preview.webp"):
                if done_with is not None:
                    self._artifacts.delete(done_with)

    def _remember(self, event: Clip) -> None:
        spec = self._job.spec
        if event.steps > 1:
            guided = guided_steps(spec["steps"], spec["guidance"], spec.get("guidance_until"))
            forwards = event.steps * (1 + guided / spec["steps"])
            shape = f"{spec['width']}x{spec['height']}x{spec['frames']}"
            self._leases.remember(self._job, shape, event.denoise_s / forwards, event.decode_s)


def told(record: str) -> dict[str, Any]:
    """What the clip's record says of the clip, and not of the request."""
    found = json.loads(record)
    result = {name: found.get(name, default) for name, default in (("checks", None), ("takes", []))}
    return result | {"retimed": found.get("retimed", 1.0), "seed": found["spec"]["seed"]}
