"""Waiting for jobs: however many requests wait, one look at the database serves them all.

A thousand clients that each asked by themselves twice a second would be two thousand queries; here it is two. Of a job
that this very process has made nobody waits for the next look: its dispatcher says so.
"""

import asyncio
import threading
from collections import defaultdict
from contextlib import suppress

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from starlette.concurrency import run_in_threadpool

from broll.jobs.database import Database
from broll.jobs.states import TERMINAL
from broll.jobs.tables import jobs

LOOK_S = 0.5
BATCH = 500  # ids in one query


class Watch:
    """Of one event loop."""

    def __init__(self, database: Database, leaving: threading.Event) -> None:
        self._database, self._leaving = database, leaving
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def tell(self, job_id: str) -> None:
        """Something has ended an attempt at it: have a look now. From any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._wake, job_id)

    def _wake(self, job_id: str) -> None:
        for event in self._waiting.get(job_id, ()):
            event.set()

    async def done(self, job_id: str, timeout_s: float) -> None:
        """Return when the job is at its end, after `timeout_s`, or when this process is on its way out."""
        event, self._loop = asyncio.Event(), asyncio.get_running_loop()
        self._waiting[job_id].add(event)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look())
        try:
            await asyncio.wait_for(event.wait(), timeout_s)
        except TimeoutError:
            return
        finally:
            self._waiting[job_id].discard(event)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    async def _look(self) -> None:
        while self._waiting:
            try:
                ended = await run_in_threadpool(self._ended, list(self._waiting))
            except DBAPIError:  # away for a moment; those who wait go on waiting
                ended = []
            for job_id in list(self._waiting) if self._leaving.is_set() else ended:
                self._wake(job_id)
            await asyncio.sleep(LOOK_S)

    def _ended(self, ids: list[str]) -> list[str]:
        """Those that are done or gone."""
        going: set[str] = set()
        with self._database.read() as c:
            for start in range(0, len(ids), BATCH):
                some = sa.select(jobs.c.id).where(
                    jobs.c.id.in_(ids[start : start + BATCH]), jobs.c.state.not_in(TERMINAL)
                )
                going |= set(c.execute(some).scalars())
        return [job_id for job_id in ids if job_id not in going]
