"""What dispatchers do to jobs: claim one, keep it, write its progress, end it or give it back.

A claim gives a lease: a token that every later write must carry. A lease is kept by heartbeats; when they stop, any
dispatcher may put the job back into the queue, and the old token writes nothing any more (LeaseLost). So a
dispatcher that was frozen for an hour does no harm when it wakes up.

Order: priority, then a job whose model is loaded here (within an age limit), then the tenant with the smallest
running share, then age.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from broll.errors import LeaseLost
from broll.jobs import ids, outbox
from broll.jobs.database import Database, now
from broll.jobs.job import PRIORITIES, Job, Policy
from broll.jobs.states import State
from broll.jobs.store import finish
from broll.jobs.tables import attempts, devices, jobs, tenants, timings


@dataclass(frozen=True)
class Device:
    """What can run jobs."""

    name: str
    models: tuple[str, ...]
    memory_mb: int
    warm: str | None = None  # the model it holds


@dataclass(frozen=True)
class Lease:
    job: Job
    token: str


@dataclass(frozen=True)
class Beat:
    """What a heartbeat learns of a lease that still stands."""

    cancel: bool
    preempt: bool


class Leases:
    def __init__(self, database: Database, policy: Policy) -> None:
        self.database, self.policy = database, policy

    # --- take and keep ------------------------------------------------------------------------------------

    def claim(self, device: Device) -> Lease | None:
        """The next job that this device can run, now ours for `lease_s`."""
        with self.database.write() as c:
            candidate = c.execute(self._next(device).with_for_update(of=jobs, skip_locked=True)).scalar()
            if candidate is None or not self._within_cap(c, candidate):
                return None
            at, token = outbox.clock(c), ids.new("lease")
            c.execute(
                sa.update(jobs)
                .where(jobs.c.id == candidate, jobs.c.state == State.QUEUED)
                .values(
                    state=State.RUNNING, lease_token=token, lease_until=at + self.policy.lease_s,
                    device=device.name, attempt=jobs.c.attempt + 1, stage="encode",
                    started_at=sa.func.coalesce(jobs.c.started_at, at),
                )
            )  # fmt: skip
            job = _leased(c, token)
            c.execute(
                sa.insert(attempts).values(job_id=job.id, n=job.attempt, device=device.name, started_at=at)
            )
            outbox.tell(c, job, "video.running", at, status="running", attempt=job.attempt)
            return Lease(job, token)

    def _within_cap(self, c: Connection, job_id: str) -> bool:
        """Counted again under a lock on the tenant: two dispatchers may have seen the same free place."""
        owner = sa.select(jobs.c.tenant_id).where(jobs.c.id == job_id).scalar_subquery()
        row = c.execute(
            sa.select(tenants.c.id, tenants.c.max_running).where(tenants.c.id == owner).with_for_update()
        ).one()
        running = sa.select(sa.func.count()).select_from(jobs)
        running = running.where(jobs.c.tenant_id == row.id, jobs.c.state == State.RUNNING)
        return bool(c.execute(running).scalar_one() < row.max_running)

    def _next(self, device: Device) -> sa.Select[Any]:
        running = (
            sa.select(jobs.c.tenant_id, sa.func.count().label("n"))
            .where(jobs.c.state == State.RUNNING)
            .group_by(jobs.c.tenant_id)
            .subquery()
        )
        share = sa.func.coalesce(running.c.n, 0)
        at_hand = sa.or_(
            jobs.c.model == (device.warm or ""), jobs.c.created_at < now() - self.policy.warm_age_s
        )
        return (
            sa.select(jobs.c.id)
            .join(tenants, tenants.c.id == jobs.c.tenant_id)
            .outerjoin(running, running.c.tenant_id == jobs.c.tenant_id)
            .where(
                jobs.c.state == State.QUEUED,
                jobs.c.not_before <= now(),
                jobs.c.model.in_(device.models),
                jobs.c.memory_mb <= device.memory_mb,
                share < tenants.c.max_running,
            )
            .order_by(
                jobs.c.priority.desc(), sa.case((at_hand, 0), else_=1), share / tenants.c.weight, jobs.c.seq
            )
            .limit(1)
        )

    def beat(self, tokens: Sequence[str], running: Sequence[Device] = ()) -> dict[str, Beat]:
        """Keep these leases. A token that is missing in the answer is lost."""
        with self.database.write() as c:
            at = outbox.clock(c)
            for device in running:
                self._seen(c, device, at)
            if not tokens:
                return {}
            kept = c.execute(
                sa.update(jobs)
                .where(jobs.c.lease_token.in_(tokens), jobs.c.state == State.RUNNING)
                .values(lease_until=at + self.policy.lease_s)
                .returning(jobs.c.lease_token, jobs.c.cancel, jobs.c.priority, jobs.c.device)
            ).all()
            urgent = (
                self._urgent(c, running) if any(row.priority < PRIORITIES["high"] for row in kept) else {}
            )
            beats = {row.lease_token: Beat(bool(row.cancel), False) for row in kept}
            for row in sorted(kept, key=lambda r: r.priority):
                if urgent.get(row.device, 0) > row.priority and not row.cancel:
                    beats[row.lease_token] = Beat(cancel=False, preempt=True)
                    break  # one device for one urgent job; the next beat may free another
            return beats

    def cancelled_among(self, tokens: Sequence[str]) -> set[str]:
        """Which of these leases are of jobs that somebody cancelled: a look between two heartbeats."""
        if not tokens:
            return set()
        told = sa.select(jobs.c.lease_token).where(jobs.c.lease_token.in_(tokens), jobs.c.cancel)
        with self.database.read() as c:
            return set(c.execute(told).scalars())

    def _urgent(self, c: Connection, running: Sequence[Device]) -> dict[str, int]:
        """Device -> priority of a waiting high-priority job that it could run."""
        found = {}
        for device in running:
            waiting = sa.select(jobs.c.priority).where(
                jobs.c.state == State.QUEUED, jobs.c.priority >= PRIORITIES["high"], jobs.c.not_before <= now(),
                jobs.c.model.in_(device.models), jobs.c.memory_mb <= device.memory_mb,
            )  # fmt: skip
            level = c.execute(waiting.order_by(jobs.c.priority.desc()).limit(1)).scalar()
            if level is not None:
                found[device.name] = int(level)
        return found

    def _seen(self, c: Connection, device: Device, at: float) -> None:
        values = {"models": json.dumps(device.models), "memory_mb": device.memory_mb, "warm": device.warm}
        known = sa.update(devices).where(devices.c.name == device.name).values(**values, seen_at=at)
        if c.execute(known).rowcount == 0:
            c.execute(sa.insert(devices).values(name=device.name, **values, seen_at=at))

    # --- write, while it is ours --------------------------------------------------------------------------

    def write(self, token: str, **values: Any) -> None:
        """Progress, stage, preview or snapshot; LeaseLost if the job is no longer ours."""
        with self.database.write() as c:
            self._write(c, token, values)

    def stage(self, token: str, name: str) -> None:
        """A stage begins."""
        with self.database.write() as c:
            self._write(c, token, {"stage": name, "left_s": None})
            outbox.tell(c, _leased(c, token), "stage", outbox.clock(c), stage=name)

    def _write(self, c: Connection, token: str, values: Mapping[str, Any]) -> None:
        ours = (jobs.c.lease_token == token, jobs.c.state == State.RUNNING)
        if c.execute(sa.update(jobs).where(*ours).values(**values)).rowcount == 0:
            raise LeaseLost

    def complete(
        self, token: str, files: Mapping[str, Any], *, resumed_elsewhere: bool,
        result: Mapping[str, Any] | None = None, share: float = 1.0,
    ) -> Job:  # fmt: skip
        """The clip is there: published, billed and told in one transaction, once.

        `share`: of what was held, if less was done than could have been.
        """
        with self.database.write() as c:
            job = _leased(c, token, lock=True)
            values: dict[str, Any] = {"files": json.dumps(files), "resumed_elsewhere": resumed_elsewhere}
            values["result"] = None if result is None else json.dumps(result)
            charge = math.ceil(round(job.credits * share, 6))
            _ended(c, job, "completed")
            return finish(
                c, self.policy, job, State.COMPLETED, charge=charge, **values, percent=100.0, snapshot=None
            )  # fmt: skip

    def fail(self, token: str, code: str, message: str) -> Job:
        with self.database.write() as c:
            job = _leased(c, token, lock=True)
            _ended(c, job, code)
            return finish(c, self.policy, job, State.FAILED, charge=0, error=(code, message))

    def cancelled(self, token: str) -> Job:
        """It stopped because it was cancelled; what it costs is the share that was done, or nothing."""
        with self.database.write() as c:
            return self._cancelled(c, _leased(c, token, lock=True))

    def _cancelled(self, c: Connection, job: Job) -> Job:
        share = min(100.0, job.percent) / 100 if self.policy.cancel_charge == "used" else 0.0
        _ended(c, job, "cancelled")
        return finish(
            c, self.policy, job, State.CANCELLED, charge=int(job.credits * share),
            error=("cancelled", "cancelled"),
        )  # fmt: skip

    def hand_back(self, token: str, outcome: str) -> None:
        """To the queue, as if it had never been claimed: a drain or a preemption is not the job's fault."""
        with self.database.write() as c:
            job = _leased(c, token, lock=True)
            if job.cancel:  # nobody wants it any more; no other device need take it to find that out
                self._cancelled(c, job)
            else:
                _requeue(c, job, outcome, delay_s=0.0)

    def retry(self, token: str, code: str, message: str) -> None:
        """This attempt failed in a way that another may not; the last one ends the job."""
        with self.database.write() as c:
            job = _leased(c, token, lock=True)
            self._failed_attempt(c, job, code, message)

    def _failed_attempt(self, c: Connection, job: Job, code: str, message: str) -> None:
        failures = job.failures + 1
        c.execute(sa.update(jobs).where(jobs.c.id == job.id).values(failures=failures))
        if job.cancel:
            _ended(c, job, code)
            finish(c, self.policy, job, State.CANCELLED, charge=0, error=("cancelled", "cancelled"))
        elif failures >= self.policy.max_attempts:
            _ended(c, job, code)
            why = f"{failures} attempts failed; the last one: {message}"
            finish(c, self.policy, job, State.FAILED, charge=0, error=("max_attempts", why))
        else:
            delay_s = 0.0 if code == "lease_lost" else self.policy.backoff_s * 2 ** (failures - 1)
            _requeue(c, job, code, delay_s=delay_s)

    # --- after others -------------------------------------------------------------------------------------

    def reap(self) -> int:
        """Put back the jobs whose dispatcher has not been heard of for a lease."""
        over = sa.select(jobs).where(jobs.c.state == State.RUNNING, jobs.c.lease_until < now())
        # in the order of tenants, whose rows are locked next: two reapers never wait for each other in a circle
        over = over.order_by(jobs.c.tenant_id, jobs.c.seq)
        with self.database.read() as c:
            if c.execute(over.limit(1)).first() is None:
                return 0
        with self.database.write() as c:
            rows = c.execute(over.with_for_update(skip_locked=True)).mappings().all()
            for row in rows:
                job = Job.of(row)
                self._failed_attempt(c, job, "lease_lost", f"{job.device} was not heard of any more")
            return len(rows)

    def remember(self, job: Job, shape: str, forward_s: float, decode_s: float) -> None:
        """How fast it was, for the next estimate."""
        values = {"forward_s": forward_s, "decode_s": decode_s}
        same = (timings.c.model == job.model, timings.c.shape == shape)
        with self.database.write() as c:
            if c.execute(sa.update(timings).where(*same).values(**values, at=now())).rowcount == 0:
                c.execute(sa.insert(timings).values(model=job.model, shape=shape, **values, at=now()))


def _leased(c: Connection, token: str, *, lock: bool = False) -> Job:
    query = sa.select(jobs).where(jobs.c.lease_token == token, jobs.c.state == State.RUNNING)
    row = c.execute(query.with_for_update() if lock else query).mappings().first()
    if row is None:
        raise LeaseLost
    return Job.of(row)


def _ended(c: Connection, job: Job, outcome: str) -> None:
    this = (attempts.c.job_id == job.id, attempts.c.n == job.attempt)
    c.execute(sa.update(attempts).where(*this).values(ended_at=now(), outcome=outcome))


def _requeue(c: Connection, job: Job, outcome: str, *, delay_s: float) -> None:
    at = outbox.clock(c)
    c.execute(
        sa.update(jobs)
        .where(jobs.c.id == job.id, jobs.c.state == State.RUNNING)
        .values(
            state=State.QUEUED, lease_token=None, lease_until=None, stage=None, left_s=None,
            not_before=at + delay_s,
        )
    )  # fmt: skip
    _ended(c, job, outcome)
    outbox.tell(c, job, "requeued", at, reason=outcome)
