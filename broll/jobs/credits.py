"""Credits: integers, double entry, never changed, never lost.

    grant     issued    -> available      an admin gives a tenant credits
    hold      available -> held           a job is accepted, at its highest price
    capture   held      -> revenue        it is done: all of the price, or the share that was used
    void      held      -> available      the rest comes back

Each transfer is two rows whose amounts sum to zero, written in the transaction that changes the job. A job
has at most one transfer of each kind: the table refuses a second. `tenants.available` and `held` are the sums of the
entries, kept beside them so that a hold is one conditional statement; `drift` tells if they ever differ.
"""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from broll.errors import BadOption, NoCredits, NotFound
from broll.jobs import ids
from broll.jobs.database import now
from broll.jobs.tables import api_keys, entries, tenants

MOST = 10**12  # credits in one grant


@dataclass(frozen=True)
class Balance:
    available: int
    held: int
    unmetered: bool


def balance(c: Connection, tenant: str) -> Balance:
    row = c.execute(
        sa.select(tenants.c.available, tenants.c.held, tenants.c.unmetered).where(tenants.c.id == tenant)
    ).first()
    if row is None:
        raise NotFound(f"there is no tenant {tenant!r}")
    return Balance(row.available, row.held, row.unmetered)


def grant(c: Connection, tenant: str, amount: int, note: str = "") -> None:
    """Give credits, or take some of those that are left (a negative amount)."""
    if not 0 < abs(amount) <= MOST:
        raise BadOption(f"a grant is 1 to {MOST} credits, or as many less; got {amount}")
    changed = c.execute(
        sa.update(tenants)
        .where(tenants.c.id == tenant, tenants.c.available + amount >= 0)
        .values(available=tenants.c.available + amount)
    )
    if changed.rowcount == 0:
        raise NoCredits(f"the tenant has only {balance(c, tenant).available} credits")
    _transfer(c, tenant, None, "grant", amount, "issued", f"{tenant}:available", note)


def hold(c: Connection, tenant: str, key: str | None, job: str, amount: int) -> None:
    """Set a job's price aside. The conditional updates settle every race."""
    if amount == 0:
        return
    taken = c.execute(
        sa.update(tenants)
        .where(tenants.c.id == tenant, tenants.c.available >= amount)
        .values(available=tenants.c.available - amount, held=tenants.c.held + amount)
    )
    if taken.rowcount == 0:
        have = balance(c, tenant).available
        raise NoCredits(f"this costs {amount} credits and {have} are left; an admin can grant more")
    if key is not None:
        spent = api_keys.c.spent + amount
        allowed = c.execute(
            sa.update(api_keys)
            .where(api_keys.c.id == key, sa.or_(api_keys.c.cap.is_(None), spent <= api_keys.c.cap))
            .values(spent=spent)
        )
        if allowed.rowcount == 0:
            raise NoCredits(f"this costs {amount} credits, which is more than this key may still spend")
    _transfer(c, tenant, job, "hold", amount, f"{tenant}:available", f"{tenant}:held")


def settle(c: Connection, tenant: str, key: str | None, job: str, held: int, charge: int) -> None:
    """End a hold: `charge` of it is captured, the rest comes back."""
    assert 0 <= charge <= held
    if held == 0:
        return
    back = held - charge
    c.execute(
        sa.update(tenants)
        .where(tenants.c.id == tenant)
        .values(held=tenants.c.held - held, available=tenants.c.available + back)
    )
    if key is not None and back:
        c.execute(sa.update(api_keys).where(api_keys.c.id == key).values(spent=api_keys.c.spent - back))
    if charge:
        _transfer(c, tenant, job, "capture", charge, f"{tenant}:held", "revenue")
    if back:
        _transfer(c, tenant, job, "void", back, f"{tenant}:held", f"{tenant}:available")


def _transfer(
    c: Connection, tenant: str, job: str | None, kind: str, amount: int, source: str, target: str, note: str = ""
) -> None:  # fmt: skip
    common = {"transfer": ids.new("tr"), "kind": kind, "tenant_id": tenant, "job_id": job, "note": note[:500]}
    for account, signed in ((source, -amount), (target, amount)):
        c.execute(sa.insert(entries).values(**common, account=account, amount=signed, at=now()))


def ledger(c: Connection, tenant: str, *, after: int | None = None, limit: int = 100) -> list[dict[str, Any]]:
    """A tenant's transfers as its own balance sees them, the newest first."""
    own = sa.select(entries).where(
        entries.c.tenant_id == tenant, entries.c.account.in_((f"{tenant}:available", f"{tenant}:held"))
    )
    if after is not None:
        own = own.where(entries.c.id < after)
    return [dict(row) for row in c.execute(own.order_by(entries.c.id.desc()).limit(limit)).mappings()]


def drift(c: Connection) -> int:
    """How far the balances are from the entries, and the entries from zero; 0 in a sound ledger."""
    total = int(c.execute(sa.select(sa.func.coalesce(sa.func.sum(entries.c.amount), 0))).scalar_one())
    sums = dict(
        c.execute(sa.select(entries.c.account, sa.func.sum(entries.c.amount)).group_by(entries.c.account)).all()
    )  # fmt: skip
    off = abs(total)
    for row in c.execute(sa.select(tenants.c.id, tenants.c.available, tenants.c.held)):
        off += abs(row.available - int(sums.get(f"{row.id}:available", 0)))
        off += abs(row.held - int(sums.get(f"{row.id}:held", 0)))
    return off
