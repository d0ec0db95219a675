"""Webhook endpoints and what is to be sent to them, as rows. Nothing here opens a connection.

    pending ──due──▶ pending, claimed ──2xx──▶ delivered
       ▲                    │    └──410, or the schedule is at its end──▶ failed
       └───anything else────┘

A claim counts the attempt and moves `next_at` a lease ahead, so that no other process sends the same row meanwhile.
If the sender dies, the row is due again when the lease is over: a message arrives at least once, and its webhook-id
says whether it came before. What a sender writes afterwards counts only while the number of its attempt does.

Once a delivery has ended, `next_at` is when it did. A replay is a new row with the old body; the webhook-id is the
body's own `id`, so it stays the same.

Secrets lie in the table as they are: who signs must have them.
"""

import base64
import json
import random
import secrets
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from broll.errors import BadOption, Conflict, NotFound
from broll.jobs import ids, outbox
from broll.jobs.database import now
from broll.jobs.tables import deliveries, endpoints, tenants

MAX_ENDPOINTS = 20  # of a tenant
LEASE_S = 60.0  # longer than any request may take
OVERLAP_S = 86_400.0  # so long do old secrets still sign
PER_LANE = 2  # sent at a time: to an endpoint, or to all of a tenant's jobs' own URLs together
PER_TENANT = 8  # sent at a time, to whatever endpoints

# Seconds before each attempt; https://github.com/standard-webhooks/standard-webhooks, "Deliverability and reliability"
SCHEDULE = (0, 5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
MAX_WAIT_S = 86_400.0  # more than that no Retry-After gets
JITTER = 0.1  # of the wait, added by chance: what failed together need not come back together

# Where a lane's deliveries wait in line. A job's own URL has an endpoint to itself, however slow its host is.
LANE = sa.case((endpoints.c.one_off, deliveries.c.tenant_id), else_=deliveries.c.endpoint_id)
DUE = (deliveries.c.state == "pending", deliveries.c.next_at <= now(), endpoints.c.disabled_at.is_(None))
PAIR = deliveries.join(endpoints, endpoints.c.id == deliveries.c.endpoint_id)


@dataclass(frozen=True)
class Delivery:
    """One message on its way, claimed by the sender that has it."""

    id: str
    webhook_id: str
    endpoint_id: str
    tenant_id: str
    lane: str
    url: str
    body: str
    attempt: int
    secrets: tuple[str, ...] = field(repr=False)


# --- endpoints --------------------------------------------------------------------------------------------


def create_endpoint(c: Connection, tenant: str, url: str, events: Iterable[str]) -> tuple[str, str]:
    """(id, secret). Whether the URL may be reached is for the caller to ask."""
    wanted = list(dict.fromkeys(events))
    if not wanted or not set(wanted) <= set(outbox.TYPES):
        raise BadOption(f"events are {', '.join(outbox.TYPES)}; got {', '.join(wanted)[:200] or 'none'}")
    c.execute(sa.select(tenants.c.id).where(tenants.c.id == tenant).with_for_update())
    if len(list_endpoints(c, tenant)) >= MAX_ENDPOINTS:
        raise Conflict(f"there are {MAX_ENDPOINTS} webhook endpoints already, which is the limit")
    endpoint, secret = ids.new("we"), new_secret()
    row = {"id": endpoint, "tenant_id": tenant, "url": url, "events": json.dumps(wanted)}
    c.execute(sa.insert(endpoints).values(**row, secrets=_packed(secret), created_at=now()))
    return endpoint, secret


def list_endpoints(c: Connection, tenant: str) -> list[dict[str, Any]]:
    """Those that were created; not what jobs named themselves."""
    made = sa.select(endpoints).where(
        endpoints.c.tenant_id == tenant, ~endpoints.c.one_off, endpoints.c.url != ""
    )
    return [_shown(row) for row in c.execute(made.order_by(endpoints.c.created_at, endpoints.c.id))]


def get_endpoint(c: Connection, tenant: str, endpoint: str) -> dict[str, Any]:
    return _shown(_own(c, tenant, endpoint))


def delete_endpoint(c: Connection, tenant: str, endpoint: str) -> None:
    """Its deliveries go with it."""
    row = _own(c, tenant, endpoint, lock=True)
    c.execute(sa.delete(endpoints).where(endpoints.c.id == row.id))


def disable(c: Connection, endpoint: str) -> None:
    """Nothing is sent there again: not what waits, and not what happens from now on."""
    still = (endpoints.c.id == endpoint, endpoints.c.disabled_at.is_(None))
    c.execute(sa.update(endpoints).where(*still).values(disabled_at=now()))
    waiting = (deliveries.c.endpoint_id == endpoint, deliveries.c.state == "pending")
    ended = {"state": "failed", "next_at": now(), "error": "the endpoint is disabled"}
    c.execute(sa.update(deliveries).where(*waiting).values(**ended))


def _own(c: Connection, tenant: str, endpoint: str, *, lock: bool = False) -> Any:
    query = sa.select(endpoints).where(
        endpoints.c.id == endpoint, endpoints.c.tenant_id == tenant, endpoints.c.url != ""
    )
    row = c.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise NotFound(f"there is no webhook endpoint {endpoint[:64]!r}")
    return row


def _shown(row: Any) -> dict[str, Any]:
    return {
        "id": row.id,
        "url": row.url,
        "events": json.loads(row.events),
        "disabled_at": row.disabled_at,
        "created_at": row.created_at,
    }


# --- secrets ----------------------------------------------------------------------------------------------


def new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def rotate_secret(c: Connection, tenant: str, endpoint: str, *, overlap_s: float = OVERLAP_S) -> str:
    """A new secret; the old ones sign beside it for the overlap."""
    row = _own(c, tenant, endpoint, lock=True)
    if row.one_off:
        raise Conflict("what goes to a job's own webhook_url is signed with the default secret; rotate that")
    return _rotate(c, row, overlap_s)


def default_secret(c: Connection, tenant: str) -> str:
    """The one that signs what goes to URLs that jobs name themselves; made when it is first asked for."""
    return _signing(c, _default(c, tenant).secrets)[0]


def rotate_default_secret(c: Connection, tenant: str, *, overlap_s: float = OVERLAP_S) -> str:
    return _rotate(c, _default(c, tenant, lock=True), overlap_s)


def _default(c: Connection, tenant: str, *, lock: bool = False) -> Any:
    """The row that holds it: an endpoint without a URL, which nothing is sent to."""
    name = f"we_default_{tenant}"
    query = sa.select(endpoints).where(endpoints.c.id == name)
    if c.execute(query).first() is None:
        row = {"id": name, "tenant_id": tenant, "url": "", "events": "[]", "secrets": _packed(new_secret())}
        make = sqlite.insert if c.dialect.name == "sqlite" else postgresql.insert
        c.execute(make(endpoints).values(**row, created_at=now(), one_off=False).on_conflict_do_nothing())
    return c.execute(query.with_for_update() if lock else query).one()


def _rotate(c: Connection, row: Any, overlap_s: float) -> str:
    at, secret = outbox.clock(c), new_secret()
    kept = [
        {"secret": old["secret"], "until": min(old["until"] or at + overlap_s, at + overlap_s)}
        for old in json.loads(row.secrets)
    ]
    current = [old for old in kept if old["until"] > at]
    if len(current) >= 10:
        raise Conflict("10 secrets sign already; wait, or end them with an overlap of 0")
    changed = json.dumps([{"secret": secret, "until": None}, *current])
    c.execute(sa.update(endpoints).where(endpoints.c.id == row.id).values(secrets=changed))
    return secret


def _packed(secret: str) -> str:
    return json.dumps([{"secret": secret, "until": None}])


def _signing(c: Connection, packed: str) -> tuple[str, ...]:
    """Those that are not over, the newest first."""
    at = outbox.clock(c)
    return tuple(one["secret"] for one in json.loads(packed) if one["until"] is None or one["until"] > at)


# --- sending ----------------------------------------------------------------------------------------------


def any_due(c: Connection) -> bool:
    """A look that locks nothing, before `due` takes the write lock."""
    return bool(
        c.execute(sa.select(sa.exists(sa.select(deliveries.c.id).select_from(PAIR).where(*DUE)))).scalar()
    )


def lag(c: Connection) -> float:
    """For how many seconds the oldest delivery has been due; 0 if none is."""
    oldest = sa.select(now() - sa.func.min(deliveries.c.next_at)).select_from(PAIR).where(*DUE)
    return float(c.execute(oldest).scalar() or 0.0)


def due(
    c: Connection, limit: int, running: Collection[Delivery] = (), *, lease_s: float = LEASE_S
) -> list[Delivery]:
    """Claim what to send now, beside what is `running` in this process. Nothing is claimed twice by anyone."""
    lanes = Counter(sent.lane for sent in running)
    owners = Counter(sent.tenant_id for sent in running)
    claimed: list[Delivery] = []
    for row in c.execute(_candidates(lanes, owners, limit + len(running))).all():
        if len(claimed) == limit:
            break
        if lanes[row.lane] >= PER_LANE or owners[row.tenant_id] >= PER_TENANT:
            continue
        own = (deliveries.c.id == row.id, deliveries.c.attempt == row.attempt)
        values = {"attempt": row.attempt + 1, "next_at": now() + lease_s}
        if c.execute(sa.update(deliveries).where(*own).values(**values)).rowcount:
            lanes[row.lane] += 1
            owners[row.tenant_id] += 1
            claimed.append(_claimed(c, row))
    return claimed


def _candidates(lanes: Counter[str], owners: Counter[str], limit: int) -> Any:
    """The first in each lane that has room, the oldest first; on PostgreSQL those that nobody else is looking at."""
    full = [lane for lane, sent in lanes.items() if sent >= PER_LANE]
    busy = [owner for owner, sent in owners.items() if sent >= PER_TENANT]
    room = (*DUE, LANE.not_in(full), deliveries.c.tenant_id.not_in(busy))
    place = sa.func.row_number().over(partition_by=LANE, order_by=(deliveries.c.next_at, deliveries.c.id))
    line = sa.select(deliveries.c.id, place.label("place")).select_from(PAIR).where(*room).subquery()
    columns = (deliveries, endpoints.c.url, endpoints.c.secrets, endpoints.c.one_off, LANE.label("lane"))
    query = sa.select(*columns).select_from(PAIR.join(line, line.c.id == deliveries.c.id))
    query = query.where(*DUE, line.c.place <= PER_LANE).order_by(deliveries.c.next_at, deliveries.c.id)
    return query.limit(limit).with_for_update(of=deliveries, skip_locked=True)


def _claimed(c: Connection, row: Any) -> Delivery:
    packed = _default(c, row.tenant_id).secrets if row.one_off else row.secrets
    return Delivery(
        row.id, json.loads(row.body)["id"], row.endpoint_id, row.tenant_id, row.lane, row.url, row.body,
        row.attempt + 1, _signing(c, packed),
    )  # fmt: skip


def delivered(c: Connection, sent: Delivery, status: int) -> None:
    _end(c, sent, "delivered", status, None)


def failed(c: Connection, sent: Delivery, error: str, status: int | None = None) -> None:
    _end(c, sent, "failed", status, error)


def retry(
    c: Connection, sent: Delivery, error: str, status: int | None = None, *, after_s: float = 0.0
) -> None:
    """Try again when the schedule says so, but not before the `after_s` that the receiver asked for."""
    if sent.attempt >= len(SCHEDULE):
        failed(c, sent, error, status)
        return
    wait = max(SCHEDULE[sent.attempt], min(after_s, MAX_WAIT_S)) * random.uniform(1, 1 + JITTER)
    own = (deliveries.c.id == sent.id, deliveries.c.attempt == sent.attempt, deliveries.c.state == "pending")
    values = {"next_at": now() + wait, "status": status, "error": error[:500]}
    c.execute(sa.update(deliveries).where(*own).values(**values))


def _end(c: Connection, sent: Delivery, state: str, status: int | None, error: str | None) -> None:
    own = (deliveries.c.id == sent.id, deliveries.c.attempt == sent.attempt)
    values = {"state": state, "next_at": now(), "status": status, "error": error and error[:500]}
    c.execute(sa.update(deliveries).where(*own).values(**values))


# --- what was sent ----------------------------------------------------------------------------------------


def list_deliveries(
    c: Connection, tenant: str, endpoint: str, *, after: str | None = None, limit: int = 20
) -> tuple[list[dict[str, Any]], bool]:
    """A page, the newest first, and whether there are more behind it."""
    own = sa.select(deliveries).where(deliveries.c.endpoint_id == _own(c, tenant, endpoint).id)
    if after is not None:
        last = _delivery(c, tenant, endpoint, after)
        place = sa.tuple_(deliveries.c.created_at, deliveries.c.id)
        own = own.where(place < sa.tuple_(sa.literal(last.created_at), sa.literal(last.id)))
    own = own.order_by(deliveries.c.created_at.desc(), deliveries.c.id.desc()).limit(limit + 1)
    found = [_told(row) for row in c.execute(own)]
    return found[:limit], len(found) > limit


def get_delivery(c: Connection, tenant: str, endpoint: str, delivery: str) -> dict[str, Any]:
    return _told(_delivery(c, tenant, endpoint, delivery))


def replay(c: Connection, tenant: str, endpoint: str, delivery: str) -> str:
    """Send it again as a delivery of its own, with the webhook-id it had; the id of the new one."""
    old = _delivery(c, tenant, endpoint, delivery)
    return _enqueue(c, _own(c, tenant, endpoint, lock=True), ids.new("msg"), old.type, old.body, old.job_id)


def send_test(c: Connection, tenant: str, endpoint: str) -> str:
    """A `webhook.test` message, whatever events the endpoint wants; the id of its delivery."""
    delivery, kind = ids.new("msg"), "webhook.test"
    body = outbox.body(delivery, kind, outbox.clock(c), {"id": endpoint})
    return _enqueue(c, _own(c, tenant, endpoint, lock=True), delivery, kind, body, None)


def _enqueue(c: Connection, endpoint: Any, delivery: str, kind: str, body: str, job: str | None) -> str:
    if endpoint.disabled_at is not None:
        raise Conflict("this webhook endpoint is disabled, because it answered 410; create it anew")
    row = {"id": delivery, "endpoint_id": endpoint.id, "tenant_id": endpoint.tenant_id, "job_id": job}
    row |= {
        "type": kind,
        "body": body,
        "state": "pending",
        "attempt": 0,
        "next_at": now(),
        "created_at": now(),
    }
    c.execute(sa.insert(deliveries).values(**row))
    return delivery


def _delivery(c: Connection, tenant: str, endpoint: str, delivery: str) -> Any:
    own = (
        deliveries.c.id == delivery,
        deliveries.c.endpoint_id == endpoint,
        deliveries.c.tenant_id == tenant,
    )
    row = c.execute(sa.select(deliveries).where(*own)).first()
    if row is None:
        raise NotFound(f"there is no delivery {delivery[:64]!r} of this webhook endpoint")
    return row


def _told(row: Any) -> dict[str, Any]:
    waits = row.state == "pending"
    return {
        "id": row.id,
        "webhook_id": json.loads(row.body)["id"],
        "type": row.type,
        "job_id": row.job_id,
        "state": row.state,
        "attempts": row.attempt,
        "status": row.status,
        "error": row.error,
        "created_at": row.created_at,
        "next_at": row.next_at if waits else None,
        "ended_at": None if waits else row.next_at,
    }
