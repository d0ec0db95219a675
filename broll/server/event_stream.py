"""A job's story as server-sent events: status, stage, progress, preview, done.

Changes of state and stage are rows of the events table, and their numbers are the events' ids: a client that lost its
connection goes on behind the last one it saw. Progress and preview are only as fresh as the job's own row.

    https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from broll.errors import ArtifactMissing, NotFound
from broll.jobs.job import Job
from broll.jobs.states import State
from broll.server import views
from broll.server.deps import Service

LOOK_S = 0.5  # between two looks at the job
KEEP_ALIVE_S = 15.0


def sse(event: str, data: Any, number: int | None = None) -> str:
    head = "" if number is None else f"id: {number}\n"
    return f"{head}event: {event}\ndata: {json.dumps(data)}\n\n"


@dataclass
class Feed:
    """What one listener has heard so far."""

    request: Request
    service: Service
    job: Job
    seen: int  # number of the last event
    over: bool = False
    progress: tuple[float, str | None] = (-1.0, None)
    preview: str = ""
    spoke: float = field(default_factory=time.monotonic)

    def news(self) -> list[str]:
        """What has happened since the last look."""
        try:
            self.job = self.service.store.get(None, self.job.id)
        except NotFound:  # deleted while somebody listened
            self.over = True
            return []
        told = [*self._rows(), *self._state()]
        if told:
            self.spoke = time.monotonic()
        elif time.monotonic() - self.spoke > KEEP_ALIVE_S:
            self.spoke = time.monotonic()
            return [": still here\n\n"]
        return told

    def _shown(self) -> dict[str, Any]:
        return views.shown(self.service, self.request, self.job)

    def _rows(self) -> Iterator[str]:
        for event in self.service.store.events(self.job.id, self.seen):
            self.seen = event["id"]
            if event["type"] == "stage":
                yield sse("stage", event["data"], self.seen)
            elif not self.job.done:
                yield sse("status", self._shown(), self.seen)

    def _state(self) -> Iterator[str]:
        if self.job.done:
            self.over = True
            yield sse("done", self._shown(), self.seen)
            return
        progress = (self.job.percent, self.job.stage)
        if self.job.state is State.RUNNING and progress != self.progress:
            self.progress = progress
            told = {"progress": int(self.job.percent), "stage": self.job.stage, "eta_s": self.job.left_s}
            yield sse("progress", told)
        picture = f"{self.job.preview} {self.job.percent}"
        if self.job.preview and self.job.stage == "denoise" and picture != self.preview:
            self.preview = picture
            with suppress(ArtifactMissing):  # the next one is on its way
                webp = self.service.artifacts.get(self.job.preview)
                yield sse("preview", {"webp": base64.b64encode(webp).decode()})


async def stream(feed: Feed) -> AsyncIterator[str]:
    """Until the job is done, the listener is gone, or this process is on its way out."""
    while not await feed.request.is_disconnected():
        for told in await run_in_threadpool(feed.news):
            yield told
        if feed.over or feed.service.draining.is_set():
            return
        await feed.service.watch.done(feed.job.id, LOOK_S)
