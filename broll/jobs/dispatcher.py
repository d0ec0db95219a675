"""Claims jobs and drives executors: one thread a device, one heartbeat for all of them, and one sweeper.

    device thread   claim -> run -> (write what happens) -> complete, fail or give back -> claim
    heartbeat       keeps the leases, learns of cancels, preemptions and losses, looks after dead dispatchers' jobs
    sweeper         removes what has expired

Nothing is written without the lease. What is stored goes first into artifacts under the attempt's own folder, and
counts only when the row that names it is committed; a kill between the two leaves a file that the sweep removes.
"""

import functools
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import structlog
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from broll.errors import ArtifactMissing, BrollError, LeaseLost, StorageError
from broll.events import Clip, Event, Failed, Loaded, Stopped, Work
from broll.jobs.artifacts import Artifacts
from broll.jobs.executor import Executor, ExecutorDied
from broll.jobs.job import Job
from broll.jobs.leases import Device, Lease, Leases
from broll.jobs.sweep import Sweeper
from broll.jobs.writer import Writer

LOOK_S = 0.3  # between two looks for cancelled jobs


@dataclass
class Slot:
    """A device, and what runs on it. `beside`: a place for jobs that are made with another slot's, on its device."""

    device: Device
    executor: Executor
    beside: bool = False
    lease: Lease | None = None
    reason: str = ""  # why it was told to stop: cancel | lost | drain | preempt | timeout
    heard: float = field(default_factory=time.monotonic)  # when the executor last said anything
    lock: threading.Lock = field(default_factory=threading.Lock)  # a reason to stop belongs to one lease


@dataclass(frozen=True)
class Pace:
    """How often things happen, in seconds."""

    beat_s: float = 5.0
    poll_s: float = 2.0
    progress_s: float = 1.0
    snapshot_s: float = 30.0
    stage_timeout_s: float = 3600.0  # without a word from the executor
    drain_s: float = 30.0


class Dispatcher:
    def __init__(
        self, leases: Leases, artifacts: Artifacts, slots: Sequence[Slot], pace: Pace, *,
        sweeper: Sweeper | None = None, wake: threading.Event | None = None,
        over: Callable[[Job], None] = lambda job: None,
    ) -> None:  # fmt: skip
        self.leases, self.artifacts, self.slots, self.pace = leases, artifacts, list(slots), pace
        self.sweeper, self.wake, self.over = sweeper, wake or threading.Event(), over
        self._draining, self._closed = threading.Event(), threading.Event()
        self._log = structlog.get_logger("broll.dispatcher")
        work = [
            threading.Thread(target=self._work, args=(slot,), name=slot.device.name) for slot in self.slots
        ]
        self._workers, self._heart = work, threading.Thread(target=self._beats, name="heartbeat")
        self._broom = threading.Thread(target=self._sweeps, name="sweeper")

    def start(self) -> None:
        for thread in (*self._workers, self._heart, self._broom):
            thread.daemon = True
            thread.start()

    def drain(self) -> None:
        """Claim nothing more; hand running jobs back at their next step; then let the devices go."""
        self._draining.set()
        self.wake.set()
        for slot in self.slots:
            self._stop(slot, "drain", now=False)
        until = time.monotonic() + self.pace.drain_s
        for thread in self._workers:
            thread.join(max(0.0, until - time.monotonic()))
        for slot in self.slots:
            self._stop(slot, "drain", now=True)
        for thread in self._workers:
            thread.join(10.0)
        for slot in self.slots:
            slot.executor.close()
        self._closed.set()
        self._heart.join(10.0)
        self._broom.join(5.0)  # it holds a connection; but a storage that does not answer holds it

    # --- one device ---------------------------------------------------------------------------------------

    def _work(self, slot: Slot) -> None:
        while not self._draining.is_set():
            self.wake.clear()
            lease = None
            with suppress(SQLAlchemyError):  # the database is away: ask again
                models = slot.executor.ready(slot.device.models)
                lease = self.leases.claim(replace(slot.device, models=models)) if models else None
            if lease is None:
                self.wake.wait(self.pace.poll_s)
                continue
            log = self._log.bind(job_id=lease.job.id, device=slot.device.name, attempt=lease.job.attempt)
            with slot.lock:
                slot.reason, slot.heard, slot.lease = "", time.monotonic(), lease
            if self._draining.is_set():  # it was claimed while the drain began
                slot.reason = "drain"
            try:
                log.info("claimed")
                self._run(slot, lease)
            except LeaseLost:
                log.warning("lease lost")
            except Exception:
                log.exception("the attempt could not be brought to an end; its lease will run out")
            finally:
                slot.lease = None
                self.over(lease.job)

    def _run(self, slot: Slot, lease: Lease) -> None:
        """Drive one attempt to its end, whatever the end is."""
        token = lease.token
        if slot.reason == "drain":
            self.patiently(lambda: self.leases.hand_back(token, "drain"))
            return
        try:
            final = self._follow(slot, lease)
        except ExecutorDied as error:
            self._died(slot, lease, error)
            return
        except (StorageError, ArtifactMissing) as error:  # before the work or after it: the device is idle
            code, why = error.code, str(error)
            self.patiently(lambda: self.leases.retry(token, code, why))
            return
        except (LeaseLost, DBAPIError):
            self._abandon(slot)
            raise
        if isinstance(final, Failed):
            end = self.leases.retry if final.retryable else self.leases.fail
            self.patiently(lambda: end(token, final.code, final.message))
            self._log.warning("failed", job_id=lease.job.id, code=final.code, error=final.message)
        elif isinstance(final, Stopped):
            self._stopped(slot, lease)
        self.wake.set()  # the next one may wait for this tenant's share

    def _follow(self, slot: Slot, lease: Lease) -> Failed | Stopped | Clip:
        """Write what the executor says; its last word."""
        over = functools.partial(self.over, lease.job)
        writer = Writer(self.leases, self.artifacts, lease, self.pace.progress_s, self.patiently, over)
        with self._closing(slot.executor.run(self._prepare(lease))) as events:
            if slot.reason:  # told to stop while the work was prepared
                slot.executor.stop(now=slot.reason != "preempt")
            for event in events:
                slot.heard = time.monotonic()
                if isinstance(event, Loaded):
                    slot.device = replace(slot.device, warm=event.model)
                    if event.shared:
                        self.wake.set()  # others may be made with it
                elif isinstance(event, Failed | Stopped):
                    return event
                else:
                    writer.write(event)
                if isinstance(event, Clip):
                    return event
        raise ExecutorDied("the executor said nothing at the end")

    @contextmanager
    def _closing(self, events: Iterator[Event]) -> Iterator[Iterator[Event]]:
        try:
            yield events
        finally:
            close = getattr(events, "close", None)
            if close is not None:
                close()

    def _prepare(self, lease: Lease) -> Work:
        job = lease.job
        pictures = {}
        for name in ("image", "last_image"):
            given = job.spec.get(name)
            if given:
                pictures[given["sha256"]] = self.artifacts.get(picture_path(job.tenant_id, given["sha256"]))
        return Work(
            job.id,
            job.model,
            json.dumps(job.spec),
            pictures,
            self._snapshot(job),
            snapshot_s=self.pace.snapshot_s,
        )

    def _snapshot(self, job: Job) -> bytes | None:
        """The last one, if it is whole."""
        if job.snapshot is None:
            return None
        with suppress(ArtifactMissing):
            data = self.artifacts.get(job.snapshot["path"])
            if hashlib.sha256(data).hexdigest() == job.snapshot["sha256"]:
                return data
        self._log.warning("the snapshot is gone or damaged; starting anew", job_id=job.id)
        return None

    def _stopped(self, slot: Slot, lease: Lease) -> None:
        if slot.reason == "cancel":
            self.patiently(lambda: self.leases.cancelled(lease.token))
        elif slot.reason == "timeout":
            self.patiently(lambda: self.leases.retry(lease.token, "stage_timeout", self._timeout_text()))
        elif slot.reason != "lost":
            self.patiently(lambda: self.leases.hand_back(lease.token, slot.reason or "stopped"))

    def _died(self, slot: Slot, lease: Lease, error: ExecutorDied) -> None:
        """Killed by us after it did not stop, or by something else."""
        slot.device = replace(slot.device, warm=None)
        self._abandon(slot)
        if slot.reason in ("cancel", "timeout", "drain", "lost"):
            self._stopped(slot, lease)
            return
        self._log.warning("executor died", job_id=lease.job.id, error=str(error))
        self.patiently(lambda: self.leases.retry(lease.token, error.code, str(error)))

    def _timeout_text(self) -> str:
        return f"nothing was heard from the executor for {self.pace.stage_timeout_s:.0f} s"

    def _abandon(self, slot: Slot) -> None:
        """Make sure that nothing runs on the device any more."""
        slot.executor.close()

    def patiently(self, write: Callable[[], Any]) -> None:
        """A write that ends an attempt is worth waiting for a database that is away; for as long as a lease lasts."""
        until = time.monotonic() + self.leases.policy.lease_s
        while True:
            try:
                write()
            except DBAPIError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)
            else:
                return

    # --- all devices --------------------------------------------------------------------------------------

    def _beats(self) -> None:
        while not self._closed.is_set():
            begin = time.monotonic()
            try:
                self._beat()
                if self.leases.reap():
                    self.wake.set()
            except SQLAlchemyError as error:  # the database is away: ask again
                self._log.warning("no heartbeat", error=type(error).__name__)
            except Exception:  # noqa: BLE001  every lease of this process hangs on this thread
                self._log.exception("no heartbeat")
            next_beat = begin + self.pace.beat_s
            while (left_s := next_beat - time.monotonic()) > 0 and not self._closed.wait(min(left_s, LOOK_S)):
                with suppress(SQLAlchemyError):
                    self._look()

    def _sweeps(self) -> None:
        """Beside the heartbeat, because a storage may be slow or away."""
        while self.sweeper is not None:
            try:
                self.sweeper.sweep()
            except (SQLAlchemyError, BrollError) as error:
                self._log.warning("not swept", error=type(error).__name__)
            if self._closed.wait(self.sweeper.every_s):
                return

    def _look(self) -> None:
        """Somebody who cancels does not wait for a heartbeat."""
        leased = {slot.lease.token: slot for slot in self.slots if slot.lease is not None}
        for token in self.leases.cancelled_among([t for t, s in leased.items() if s.reason != "cancel"]):
            slot = leased[token]
            if slot.lease is not None and slot.lease.token == token:
                self._stop(slot, "cancel", now=True)

    def _beat(self) -> None:
        leased = {slot.lease.token: slot for slot in self.slots if slot.lease is not None}
        beats = self.leases.beat(list(leased), [slot.device for slot in self.slots if not slot.beside])
        for token, slot in leased.items():
            beat = beats.get(token)
            if beat is None:
                self._stop(slot, "lost", now=True, token=token)
            elif beat.cancel:
                self._stop(slot, "cancel", now=True, token=token)
            elif time.monotonic() - slot.heard > self.pace.stage_timeout_s:
                self._stop(slot, "timeout", now=True, token=token)
            elif self._draining.is_set():  # told before the executor had begun, it has not heard it
                self._stop(slot, "drain", now=False, token=token)
            elif beat.preempt:
                self._stop(slot, "preempt", now=False, token=token)

    def _stop(self, slot: Slot, reason: str, *, now: bool, token: str | None = None) -> None:
        """Stop what runs there, if it still is what was meant."""
        with slot.lock:
            if slot.lease is None or token not in (None, slot.lease.token):
                return
            if not slot.reason or reason in ("cancel", "lost"):
                slot.reason = reason
        slot.executor.stop(now=now)


def picture_path(tenant: str, sha256: str) -> str:
    return f"pictures/{tenant}/{sha256}.png"
