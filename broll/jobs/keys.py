"""Tenants and their API keys.

A key is `broll_` + 10 letters that name it + `_` + 256 bits + a checksum that scanners can verify. It is shown once;
kept is its HMAC, because 256 bits of chance need no slow hash, and a copy of the database opens nothing.
"""

import hashlib
import hmac
import secrets
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from broll.errors import BadOption, Forbidden, NotAuthenticated, NotFound
from broll.jobs import credits as ledger
from broll.jobs import ids
from broll.jobs.database import now
from broll.jobs.tables import api_keys, tenants

SCOPES = ("jobs", "read", "admin")  # read sees what jobs made; admin also manages tenants, keys and credits
SEEN_S = 60.0  # `used_at` is this coarse, so that a poll writes nothing


@dataclass(frozen=True)
class Caller:
    """Who is asking."""

    tenant_id: str
    key_id: str
    scopes: tuple[str, ...]
    requests_per_minute: int
    unmetered: bool

    def need(self, scope: str) -> None:
        if scope not in self.scopes and not (scope == "read" and "jobs" in self.scopes):
            raise Forbidden(f"this key has the scopes {', '.join(self.scopes)}; this needs {scope}")


def create_tenant(c: Connection, name: str, *, credits: int = 0, **fields: Any) -> str:
    name = name.strip()
    if not 1 <= len(name) <= 200:
        raise BadOption("a tenant's name has 1 to 200 letters")
    if find_tenant(c, name) is not None:
        raise BadOption(f"there is a tenant {name!r} already")
    tenant = ids.new("ten")
    c.execute(sa.insert(tenants).values(id=tenant, name=name, created_at=now(), **fields))
    if credits:
        ledger.grant(c, tenant, credits, "welcome")
    return tenant


def find_tenant(c: Connection, name_or_id: str) -> str | None:
    found = sa.select(tenants.c.id).where(sa.or_(tenants.c.name == name_or_id, tenants.c.id == name_or_id))
    return c.execute(found).scalar()


def list_tenants(c: Connection) -> list[dict[str, Any]]:
    return [dict(row) for row in c.execute(sa.select(tenants).order_by(tenants.c.created_at)).mappings()]


def change_tenant(c: Connection, tenant: str, **fields: Any) -> None:
    if c.execute(sa.update(tenants).where(tenants.c.id == tenant).values(**fields)).rowcount == 0:
        raise NotFound(f"there is no tenant {tenant!r}")


def create_key(
    c: Connection, pepper: bytes, tenant: str, name: str, *, scopes: Iterable[str] = ("jobs",),
    life_s: float | None = None, cap: int | None = None,
) -> tuple[str, str]:  # fmt: skip
    """(id, the key itself). It cannot be shown again."""
    wanted = tuple(dict.fromkeys(scopes))
    if not wanted or not set(wanted) <= set(SCOPES):
        raise BadOption(f"scopes are {', '.join(SCOPES)}; got {', '.join(wanted) or 'none'}")
    if cap is not None and cap < 0:
        raise BadOption(f"a cap is 0 or more credits; got {cap}")
    own, body = secrets.token_hex(5), secrets.token_urlsafe(32)
    key = f"broll_{own}_{body}"
    key += f"{zlib.crc32(key.encode()):08x}"
    row: dict[str, Any] = {
        "id": f"key_{own}",
        "tenant_id": tenant,
        "name": name[:200],
        "digest": digest(pepper, key),
    }
    row |= {"hint": f"broll_{own}_...{key[-4:]}", "scopes": " ".join(wanted), "cap": cap, "spent": 0}
    expires = None if life_s is None else now() + life_s
    c.execute(sa.insert(api_keys).values(**row, created_at=now(), expires_at=expires))
    return f"key_{own}", key


def adopt(c: Connection, pepper: bytes, tenant: str, key: str) -> None:
    """Make a key that the operator chose valid, with every scope."""
    if len(key) < 20:
        raise BadOption("admin_key is too short: 20 characters at least")
    own = digest(pepper, key)
    if c.execute(sa.select(api_keys.c.id).where(api_keys.c.digest == own)).first() is None:
        row = {"id": f"key_{own[:10]}", "tenant_id": tenant, "name": "admin", "digest": own, "spent": 0}
        c.execute(
            sa.insert(api_keys).values(
                **row, hint=f"...{key[-4:]}", scopes=" ".join(SCOPES), created_at=now()
            )
        )


def digest(pepper: bytes, key: str) -> str:
    return hmac.new(pepper, key.encode(), hashlib.sha256).hexdigest()


def authenticate(c: Connection, pepper: bytes, key: str) -> Caller:
    """Whose key this is. One indexed look-up by its HMAC: timing tells nothing about other keys."""
    found = c.execute(
        sa.select(api_keys, tenants.c.requests_per_minute, tenants.c.unmetered, now().label("now"))
        .join(tenants, tenants.c.id == api_keys.c.tenant_id)
        .where(api_keys.c.digest == digest(pepper, key[:200]))
    ).first()
    if found is None or found.revoked_at is not None:
        raise NotAuthenticated("this API key is not known here, or was revoked")
    if found.expires_at is not None and found.expires_at < found.now:
        raise NotAuthenticated("this API key has expired")
    return Caller(
        found.tenant_id, found.id, tuple(found.scopes.split()), found.requests_per_minute, found.unmetered
    )


def touch(c: Connection, key_id: str) -> None:
    stale = sa.or_(api_keys.c.used_at.is_(None), api_keys.c.used_at < now() - SEEN_S)
    c.execute(sa.update(api_keys).where(api_keys.c.id == key_id, stale).values(used_at=now()))


def list_keys(c: Connection, tenant: str) -> list[dict[str, Any]]:
    shown = [column for column in api_keys.c if column.name != "digest"]
    rows = c.execute(sa.select(*shown).where(api_keys.c.tenant_id == tenant).order_by(api_keys.c.created_at))
    return [dict(row) for row in rows.mappings()]


def revoke(c: Connection, tenant: str, key_id: str, *, after_s: float = 0.0) -> None:
    """End a key, at once or after a while."""
    mine = (api_keys.c.id == key_id, api_keys.c.tenant_id == tenant)
    values: dict[str, Any] = {"expires_at": now() + after_s} if after_s else {"revoked_at": now()}
    if c.execute(sa.update(api_keys).where(*mine).values(**values)).rowcount == 0:
        raise NotFound(f"there is no key {key_id!r}")


def rotate(
    c: Connection, pepper: bytes, tenant: str, key_id: str, *, overlap_s: float = 86_400.0
) -> tuple[str, str]:
    """A new key like this one; the old one goes on working for the overlap."""
    mine = sa.select(api_keys).where(api_keys.c.id == key_id, api_keys.c.tenant_id == tenant)
    old = c.execute(mine).first()
    if old is None or old.revoked_at is not None:
        raise NotFound(f"there is no key {key_id!r}")
    left = None if old.cap is None else max(0, old.cap - old.spent)
    made = create_key(c, pepper, tenant, old.name, scopes=old.scopes.split(), cap=left)
    revoke(c, tenant, key_id, after_s=overlap_s)
    return made
