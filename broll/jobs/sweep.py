"""Housekeeping: what has expired goes, and nothing else.

clips       after their tenant's retention; the job's row goes with its files
uploads     after theirs, unless a job that is not done still needs the picture
keys        Idempotency-Keys after a day

"""

import json
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from broll.jobs.artifacts import Artifacts
from broll.jobs.database import Database, now
from broll.jobs.job import Policy
from broll.jobs.states import TERMINAL
from broll.jobs.tables import deliveries, devices, endpoints, idempotency, jobs, uploads

BATCH = 200


@dataclass
class Sweeper:
    database: Database
    artifacts: Artifacts
    policy: Policy
    every_s: float = 60.0

    def sweep(self) -> int:
        """Remove what has expired; how many jobs and uploads went."""
        gone = 0
        with self.database.read() as c:
            over = sa.select(jobs.c.id).where(jobs.c.state.in_(TERMINAL), jobs.c.expires_at < now())
            expired = c.execute(over.limit(BATCH)).scalars().all()
        for job_id in expired:
            self.artifacts.delete_below(f"jobs/{job_id}")
            with self.database.write() as c:
                forget(c, job_id)
            gone += 1
        return gone + self._uploads() + self._rest()

    def _uploads(self) -> int:
        with self.database.read() as c:
            over = sa.select(uploads).where(uploads.c.expires_at < now()).limit(BATCH)
            expired = [row for row in c.execute(over) if not needed(c, row.tenant_id, row.sha256)]
        for row in expired:
            with self.database.write() as c:
                c.execute(sa.delete(uploads).where(uploads.c.id == row.id))
                same = (uploads.c.tenant_id == row.tenant_id, uploads.c.sha256 == row.sha256)
                shared = c.execute(sa.select(uploads.c.id).where(*same)).first()
            if shared is None:
                self.artifacts.delete(f"pictures/{row.tenant_id}/{row.sha256}.png")
        return len(expired)

    def _rest(self) -> int:
        with self.database.write() as c:
            c.execute(sa.delete(idempotency).where(idempotency.c.at < now() - self.policy.idempotency_s))
            c.execute(sa.delete(devices).where(devices.c.seen_at < now() - 86_400))
            c.execute(sa.delete(deliveries).where(deliveries.c.created_at < now() - 30 * 86_400))
            used = sa.select(deliveries.c.endpoint_id)
            c.execute(
                sa.delete(endpoints).where(
                    endpoints.c.one_off, endpoints.c.created_at < now() - 86_400, endpoints.c.id.not_in(used)
                )
            )
        return 0


def forget(c: Connection, job_id: str) -> None:
    c.execute(sa.delete(jobs).where(jobs.c.id == job_id))


def needed(c: Connection, tenant: str, sha256: str) -> bool:
    """Whether an unfinished job starts from this picture."""
    waiting = sa.select(jobs.c.spec).where(jobs.c.tenant_id == tenant, jobs.c.state.not_in(TERMINAL))
    specs = (json.loads(row.spec) for row in c.execute(waiting))
    return any(
        (spec.get(name) or {}).get("sha256") == sha256 for spec in specs for name in ("image", "last_image")
    )
