"""Jobs as clients see them: submit, read, cancel, delete. What dispatchers do is in `leases`.

A job, its Idempotency-Key, its credit hold and its first event are one transaction: either all of them are
there, or none.
"""

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from broll.errors import Conflict, KeyInFlight, KeyReused, NotFound, TooMany
from broll.jobs import credits, ids, outbox
from broll.jobs.database import Database
from broll.jobs.job import Job, NewJob, Policy
from broll.jobs.states import State, check_move
from broll.jobs.tables import idempotency, jobs, tenants


class Store:
    def __init__(self, database: Database, policy: Policy) -> None:
        self.database, self.policy = database, policy

    # --- submit -------------------------------------------------------------------------------------------

    def submit(self, new: NewJob, *, key: tuple[str, str] | None = None) -> Job:
        """Accept a job. `key` is the route and Idempotency-Key that `begin_key` has taken."""
        with self.database.write() as c:
            job = self.insert(c, new)
            if key is not None:
                own = _key(new.tenant_id, *key)
                done = c.execute(sa.update(idempotency).where(*own).values(job_id=job.id))
                if done.rowcount == 0:
                    raise KeyInFlight("this Idempotency-Key was taken over by another request; repeat yours")
            return job

    def insert(self, c: Connection, new: NewJob) -> Job:
        job_id, at = ids.new("job"), outbox.clock(c)
        credits.hold(c, new.tenant_id, new.key_id, job_id, new.credits)
        limits = c.execute(
            sa.select(tenants.c.max_queued).where(tenants.c.id == new.tenant_id).with_for_update()
        )
        cap = limits.scalar_one()
        waiting = sa.select(sa.func.count()).select_from(jobs)
        waiting = waiting.where(jobs.c.tenant_id == new.tenant_id, jobs.c.state == State.QUEUED)
        if c.execute(waiting).scalar_one() >= cap:
            raise TooMany(f"{cap} of your jobs are waiting already, which is the limit", retry_after_s=30)
        values: dict[str, Any] = {
            "id": job_id,
            "tenant_id": new.tenant_id,
            "key_id": new.key_id,
            "spec": new.spec,
        }
        values |= {"asked": json.dumps(new.asked), "model": new.model, "memory_mb": new.memory_mb}
        values |= {"priority": new.priority, "state": State.QUEUED, "credits": new.credits}
        values |= {"webhook_url": new.webhook_url, "retry_of": new.retry_of, "remix_of": new.remix_of}
        c.execute(sa.insert(jobs).values(**values, created_at=at))
        job = _get(c, None, job_id)
        outbox.tell(c, job, "video.queued", at, status="queued")
        return job

    def begin_key(self, tenant: str, route: str, key: str, fingerprint: str) -> Job | None:
        """Take an Idempotency-Key for a request; the job that it already made, if it did.

        KeyReused for other parameters, KeyInFlight while another request with it is being worked on.
        """
        with self.database.write() as c:
            own = _key(tenant, route, key)
            at = outbox.clock(c)
            c.execute(sa.delete(idempotency).where(*own, idempotency.c.at < at - self.policy.idempotency_s))
            row = {"tenant_id": tenant, "route": route, "key": key, "fingerprint": fingerprint, "at": at}
            if _insert_if_new(c, row):
                return None
            known = c.execute(sa.select(idempotency).where(*own).with_for_update()).one()
            if known.fingerprint != fingerprint:
                raise KeyReused
            if known.job_id is not None:
                return _get(c, tenant, known.job_id)
            if known.at > at - self.policy.flight_s:
                raise KeyInFlight
            c.execute(sa.update(idempotency).where(*own).values(at=at))
            return None

    def drop_key(self, tenant: str, route: str, key: str) -> None:
        """The request was refused before it made a job: its key may be used again."""
        with self.database.write() as c:
            c.execute(sa.delete(idempotency).where(*_key(tenant, route, key), idempotency.c.job_id.is_(None)))

    # --- read ---------------------------------------------------------------------------------------------

    def get(self, tenant: str | None, job_id: str) -> Job:
        with self.database.read() as c:
            return _get(c, tenant, job_id)

    def list(
        self, tenant: str, *, after: str | None = None, limit: int = 20, ascending: bool = False,
        states: Sequence[State] = (),
    ) -> tuple[list[Job], bool]:  # fmt: skip
        """A page of a tenant's jobs, and whether there are more behind it."""
        with self.database.read() as c:
            query = sa.select(jobs).where(jobs.c.tenant_id == tenant)
            if states:
                query = query.where(jobs.c.state.in_(states))
            if after is not None:
                seq = _get(c, tenant, after).seq
                query = query.where(jobs.c.seq > seq if ascending else jobs.c.seq < seq)
            query = query.order_by(jobs.c.seq if ascending else jobs.c.seq.desc()).limit(limit + 1)
            found = [Job.of(row) for row in c.execute(query).mappings()]
            return found[:limit], len(found) > limit

    def ahead(self, job: Job) -> int:
        """How many waiting jobs are likely to be taken before this one."""
        before = sa.or_(
            jobs.c.priority > job.priority, sa.and_(jobs.c.priority == job.priority, jobs.c.seq < job.seq)
        )
        with self.database.read() as c:
            count = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.state == State.QUEUED, before)
            return int(c.execute(count).scalar_one())

    def events(self, job_id: str, after: int = 0) -> Sequence[dict[str, Any]]:
        with self.database.read() as c:
            return outbox.events_after(c, job_id, after)

    # --- end ----------------------------------------------------------------------------------------------

    def cancel(self, tenant: str, job_id: str) -> Job:
        """A waiting job ends at once; a running one is told to. Cancelling twice changes nothing."""
        with self.database.write() as c:
            job = _get(c, tenant, job_id, lock=True)
            if job.state is State.QUEUED:
                return finish(
                    c, self.policy, job, State.CANCELLED, charge=0, error=("cancelled", "cancelled")
                )
            if job.state is State.RUNNING:
                c.execute(sa.update(jobs).where(jobs.c.id == job_id).values(cancel=True))
            elif job.state is not State.CANCELLED:
                raise Conflict(f"the job is {job.state} already")
            return _get(c, tenant, job_id)

    def delete(self, tenant: str, job_id: str) -> Job:
        """Forget a finished job; its files are the caller's to remove."""
        with self.database.write() as c:
            job = _get(c, tenant, job_id, lock=True)
            if not job.done:
                raise Conflict(f"the job is {job.state}; cancel it first")
            c.execute(sa.delete(jobs).where(jobs.c.id == job_id))
            return job


def finish(
    c: Connection, policy: Policy, job: Job, to: State, *, charge: int, error: tuple[str, str] | None = None,
    **values: Any,
) -> Job:  # fmt: skip
    """Move a job to a terminal state, settle its credits, and tell. The row is locked by the caller."""
    check_move(job.state, to)
    at = outbox.clock(c)
    kept = c.execute(sa.select(tenants.c.retention_s).where(tenants.c.id == job.tenant_id)).scalar()
    values |= {"state": to, "finished_at": at, "charged": charge, "lease_token": None, "lease_until": None}
    values |= {
        "stage": None,
        "left_s": None,
        "expires_at": at + (policy.retention_s if kept is None else kept),
    }
    if error is not None:
        values |= {"error_code": error[0], "error": error[1][:2000]}
    moved = c.execute(sa.update(jobs).where(jobs.c.id == job.id, jobs.c.state == job.state).values(**values))
    if moved.rowcount == 0:
        raise Conflict("the job has just changed its state")
    credits.settle(c, job.tenant_id, job.key_id, job.id, job.credits, charge)
    told: dict[str, Any] = {"status": str(to), "credits": charge}
    if error is not None:
        told |= {"error": {"code": error[0], "message": error[1][:2000]}}
    outbox.tell(c, job, f"video.{to}", at, **told)
    return _get(c, None, job.id)


def _get(c: Connection, tenant: str | None, job_id: str, *, lock: bool = False) -> Job:
    query = sa.select(jobs).where(jobs.c.id == job_id)
    if tenant is not None:
        query = query.where(jobs.c.tenant_id == tenant)
    row = c.execute(query.with_for_update() if lock else query).mappings().first()
    if row is None:
        raise NotFound(f"there is no job {job_id[:64]!r}")
    return Job.of(row)


def _key(tenant: str, route: str, key: str) -> tuple[Any, ...]:
    return (idempotency.c.tenant_id == tenant, idempotency.c.route == route, idempotency.c.key == key)


def _insert_if_new(c: Connection, row: dict[str, Any]) -> bool:
    """Insert, or say that the row is there; on PostgreSQL a concurrent insert waits for the first one's end."""
    make = sqlite.insert if c.dialect.name == "sqlite" else postgresql.insert
    insert = make(idempotency).values(**row).on_conflict_do_nothing().returning(idempotency.c.key)
    return c.execute(insert).first() is not None
