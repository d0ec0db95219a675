"""What happened, written down with the change itself: events for streams, deliveries for webhooks.

A delivery's body is the Standard Webhooks payload and OpenAI's event at once:

    {"id", "object": "event", "type": "video.completed", "created_at", "timestamp", "data": {...}}
"""

import json
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from broll.jobs import ids
from broll.jobs.database import now
from broll.jobs.job import Job
from broll.jobs.tables import deliveries, endpoints, events

TYPES = ("video.queued", "video.running", "video.completed", "video.failed", "video.cancelled")


def tell(c: Connection, job: Job, kind: str, at: float, **data: Any) -> None:
    """Write an event; if it is one of TYPES, also a delivery for each endpoint that wants it."""
    c.execute(sa.insert(events).values(job_id=job.id, type=kind, data=json.dumps(data), at=at))
    if kind not in TYPES:
        return
    wanted = sa.select(endpoints.c.id, endpoints.c.events).where(
        endpoints.c.tenant_id == job.tenant_id, endpoints.c.disabled_at.is_(None), ~endpoints.c.one_off
    )
    targets = [row.id for row in c.execute(wanted) if kind in json.loads(row.events)]
    if job.webhook_url and kind in TYPES[2:]:
        targets.append(own_endpoint(c, job, at))
    for endpoint in targets:
        delivery = ids.new("msg")
        c.execute(
            sa.insert(deliveries).values(
                id=delivery, endpoint_id=endpoint, tenant_id=job.tenant_id, job_id=job.id, type=kind,
                body=body(delivery, kind, at, {"id": job.id, "job_id": job.id} | data), state="pending",
                attempt=0, next_at=at, created_at=at,
            )
        )  # fmt: skip


def own_endpoint(c: Connection, job: Job, at: float) -> str:
    """The endpoint of a job's own webhook_url; made when it is first needed. The tenant's default secret signs."""
    endpoint = f"we_{job.id}"
    known = c.execute(sa.select(endpoints.c.id).where(endpoints.c.id == endpoint)).first()
    if known is None:
        c.execute(
            sa.insert(endpoints).values(
                id=endpoint, tenant_id=job.tenant_id, url=job.webhook_url, events="[]",
                secrets="[]", created_at=at, one_off=True,
            )
        )  # fmt: skip
    return endpoint


def body(delivery: str, kind: str, at: float, data: dict[str, Any]) -> str:
    """Less than 20 kB, as receivers may expect: a letter of an error can take 12 bytes."""
    if "error" in data:
        data = data | {"error": data["error"] | {"message": data["error"]["message"][:1000]}}
    timestamp = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    head = {"id": delivery, "object": "event", "type": kind, "created_at": int(at), "timestamp": timestamp}
    return json.dumps(head | {"data": data})


def events_after(c: Connection, job_id: str, after: int, limit: int = 500) -> list[dict[str, Any]]:
    rows = c.execute(
        sa.select(events).where(events.c.job_id == job_id, events.c.id > after).order_by(events.c.id).limit(limit)
    )  # fmt: skip
    return [{"id": r.id, "type": r.type, "at": r.at, "data": json.loads(r.data)} for r in rows]


def clock(c: Connection) -> float:
    return float(c.execute(sa.select(now())).scalar_one())
