"""What belongs to a tenant besides jobs: models it can use, credits, keys, uploads; and the admin's side of it."""

from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from broll.errors import Forbidden, NotFound, TooLarge
from broll.jobs import credits, keys
from broll.jobs.database import now
from broll.jobs.tables import uploads
from broll.media.pictures import MAX_BYTES
from broll.server import bodies, submit
from broll.server.deps import AdminCaller, JobsCaller, ReadCaller, ServiceDep
from broll.server.problems import documented
from broll.server.schemas import Strict, UploadOut
from broll.server.views import iso

router = APIRouter(tags=["account"])
COMMON = documented(401, 403, 404, 422, 429, 503)
Cursor = Annotated[int | None, Query(ge=1, le=2**62)]
Limit = Annotated[int, Query(ge=1, le=500)]


class NewKey(Strict):
    name: Annotated[str, Field(min_length=1, max_length=200)] = "key"
    scopes: Annotated[list[str], Field(min_length=1, max_length=10)] = ["jobs"]
    expires_in_s: Annotated[float | None, Field(gt=0, le=10**9)] = None
    cap: Annotated[int | None, Field(ge=0, le=10**12)] = None


class Rotate(Strict):
    overlap_s: Annotated[float, Field(ge=0, le=10**7)] = 86_400.0


class NewTenant(Strict):
    name: Annotated[str, Field(min_length=1, max_length=200)]
    credits: Annotated[int | None, Field(ge=0, le=10**12)] = None
    unmetered: bool = False
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    max_running: Annotated[int, Field(ge=0, le=10**6)] = 1000
    max_queued: Annotated[int, Field(ge=0, le=10**6)] = 10_000
    requests_per_minute: Annotated[int, Field(ge=1, le=10**6)] = 600
    retention_s: Annotated[float | None, Field(gt=0, le=10**9)] = None


class ChangedTenant(Strict):
    """What is left out stays as it is."""

    name: Annotated[str | None, Field(min_length=1, max_length=200)] = None
    unmetered: bool | None = None
    weight: Annotated[float | None, Field(gt=0, le=1000)] = None
    max_running: Annotated[int | None, Field(ge=0, le=10**6)] = None
    max_queued: Annotated[int | None, Field(ge=0, le=10**6)] = None
    requests_per_minute: Annotated[int | None, Field(ge=1, le=10**6)] = None
    retention_s: Annotated[float | None, Field(gt=0, le=10**9)] = None


class Grant(Strict):
    amount: Annotated[int, Field(ge=-(10**12), le=10**12)]
    note: Annotated[str, Field(max_length=500)] = ""


@router.get("/v1/models", responses=COMMON)
def list_models(service: ServiceDep, caller: ReadCaller) -> dict[str, Any]:  # noqa: ARG001  needs a key
    """What can be made here."""
    return {
        "object": "list",
        "data": [
            {
                "id": card.id, "object": "model", "task": card.task, "size": f"{card.size[0]}x{card.size[1]}",
                "max_seconds": card.max_seconds, "fps": card.fps,
            }
            for card in service.models.cards()
        ],
    }  # fmt: skip


@router.get("/v1/credits", responses=COMMON)
def get_credits(service: ServiceDep, caller: ReadCaller) -> dict[str, Any]:
    with service.database.read() as c:
        own = credits.balance(c, caller.tenant_id)
    return {"available": own.available, "held": own.held, "unmetered": own.unmetered}


@router.get("/v1/credits/ledger", responses=COMMON)
def get_ledger(
    service: ServiceDep, caller: ReadCaller, after: Cursor = None, limit: Limit = 100
) -> dict[str, Any]:
    """Every change of the balance, the newest first."""
    with service.database.read() as c:
        rows = credits.ledger(c, caller.tenant_id, after=after, limit=limit + 1)
    names = ("id", "transfer", "kind", "amount", "job_id", "note")
    data = [
        {n: row[n] for n in names} | {"account": row["account"].rsplit(":", 1)[-1], "at": iso(row["at"])}
        for row in rows[:limit]
    ]
    return {"data": data, "has_more": len(rows) > limit}


@router.get("/v1/api-keys", responses=COMMON)
def list_keys(service: ServiceDep, caller: ReadCaller) -> dict[str, Any]:
    with service.database.read() as c:
        return {"data": [shown_key(row) for row in keys.list_keys(c, caller.tenant_id)]}


def shown_key(row: dict[str, Any]) -> dict[str, Any]:
    times = {name: iso(row[name]) for name in ("created_at", "expires_at", "revoked_at", "used_at")}
    plain = {name: row[name] for name in ("id", "name", "hint", "cap", "spent")}
    return plain | times | {"scopes": row["scopes"].split()}


@router.post("/v1/api-keys", status_code=201, responses=COMMON)
def create_key(service: ServiceDep, caller: JobsCaller, body: NewKey) -> dict[str, Any]:
    """A further key of this tenant; it is shown in this answer only. It can do no more than the key that makes it."""
    return new_key(service, caller.tenant_id, body, caller.scopes)


def new_key(service: ServiceDep, tenant: str, body: NewKey, allowed: tuple[str, ...]) -> dict[str, Any]:
    if not set(body.scopes) <= {*allowed, "read"}:
        raise Forbidden(
            f"a key with the scopes {', '.join(allowed)} cannot make one with {', '.join(body.scopes)}"
        )
    with service.database.write() as c:
        key_id, key = keys.create_key(
            c, service.pepper, tenant, body.name, scopes=body.scopes, life_s=body.expires_in_s, cap=body.cap
        )
        row = next(row for row in keys.list_keys(c, tenant) if row["id"] == key_id)
    return shown_key(row) | {"key": key}


@router.delete("/v1/api-keys/{key_id}", status_code=204, responses=COMMON)
def revoke_key(service: ServiceDep, caller: JobsCaller, key_id: str) -> None:
    with service.database.write() as c:
        keys.revoke(c, caller.tenant_id, word(key_id))
    service.known.clear()


@router.post("/v1/api-keys/{key_id}/rotate", status_code=201, responses=COMMON)
def rotate_key(
    service: ServiceDep, caller: JobsCaller, key_id: str, body: Rotate | None = None
) -> dict[str, Any]:
    """A new key in place of this one, which goes on working for the overlap."""
    overlap_s = (body or Rotate()).overlap_s
    with service.database.write() as c:
        old = next((row for row in keys.list_keys(c, caller.tenant_id) if row["id"] == word(key_id)), None)
        if old is not None and not set(old["scopes"].split()) <= {*caller.scopes, "read"}:
            raise Forbidden("a key cannot rotate one that may do more than itself")
        new_id, key = keys.rotate(c, service.pepper, caller.tenant_id, word(key_id), overlap_s=overlap_s)
        row = next(row for row in keys.list_keys(c, caller.tenant_id) if row["id"] == new_id)
    service.known.clear()
    return shown_key(row) | {"key": key}


def word(text: str) -> str:
    """An id from a path; what cannot be one is simply not found."""
    if not (text.isascii() and text.isprintable() and len(text) <= 64):
        raise NotFound
    return text


# --- uploads ----------------------------------------------------------------------------------------------


@router.post(
    "/v1/uploads", status_code=201, response_model=UploadOut, responses=documented(401, 403, 413, 422, 429, 503),
    openapi_extra={"requestBody": {"required": True, "content": {
        "multipart/form-data": {"schema": {"type": "object", "required": ["file"], "properties": {
            "file": {"type": "string", "format": "binary"}}}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}},
)  # fmt: skip
async def upload(request: Request, service: ServiceDep, caller: JobsCaller) -> Response:
    """A picture to start from: a form with `file`, or just its bytes. It is decoded and made anew."""
    if request.headers.get("content-type", "").startswith("multipart/"):
        data = (await bodies.read(request, files=("file",))).files.get("file", b"")
    else:
        data = await request.body()
    if len(data) > MAX_BYTES:
        raise TooLarge(f"a picture may have {MAX_BYTES // 10**6} MB")
    cleaned = await run_in_threadpool(service.clean, data)
    row = await run_in_threadpool(
        submit.keep_upload, service, caller, cleaned, life_s=service.settings.upload_s
    )
    return JSONResponse(shown_upload(row), 201)


def shown_upload(row: Any) -> dict[str, Any]:
    plain = {name: row[name] for name in ("id", "sha256", "width", "height", "bytes")}
    return plain | {"expires_at": iso(row["expires_at"])}


@router.get("/v1/uploads/{upload_id}", response_model=UploadOut, responses=COMMON)
def get_upload(service: ServiceDep, caller: ReadCaller, upload_id: str) -> Any:
    mine = (
        uploads.c.id == word(upload_id),
        uploads.c.tenant_id == caller.tenant_id,
        uploads.c.expires_at > now(),
    )
    with service.database.read() as c:
        row = c.execute(sa.select(uploads).where(*mine)).mappings().first()
    if row is None:
        raise NotFound(f"there is no upload {upload_id!r}")
    return shown_upload(row)


@router.delete("/v1/uploads/{upload_id}", status_code=204, responses=COMMON)
def delete_upload(service: ServiceDep, caller: JobsCaller, upload_id: str) -> None:
    """The name goes now, the picture when no job needs it."""
    mine = (uploads.c.id == word(upload_id), uploads.c.tenant_id == caller.tenant_id)
    with service.database.write() as c:
        if c.execute(sa.update(uploads).where(*mine).values(expires_at=0)).rowcount == 0:
            raise NotFound(f"there is no upload {upload_id!r}")


# --- admin ------------------------------------------------------------------------------------------------


@router.get("/v1/admin/tenants", responses=COMMON)
def list_tenants(service: ServiceDep, caller: AdminCaller) -> dict[str, Any]:  # noqa: ARG001
    with service.database.read() as c:
        rows = keys.list_tenants(c)
    return {"data": [row | {"created_at": iso(row["created_at"])} for row in rows]}


@router.post("/v1/admin/tenants", status_code=201, responses=COMMON)
def create_tenant(service: ServiceDep, caller: AdminCaller, body: NewTenant) -> dict[str, Any]:  # noqa: ARG001
    """A tenant with its welcome credits."""
    fields = body.model_dump(exclude={"name", "credits"})
    given = service.settings.welcome_credits if body.credits is None else body.credits
    with service.database.write() as c:
        tenant = keys.create_tenant(c, body.name, credits=given, **fields)
    return {"id": tenant, "name": body.name, "credits": given}


@router.patch("/v1/admin/tenants/{tenant_id}", status_code=204, responses=COMMON)
def change_tenant(service: ServiceDep, caller: AdminCaller, tenant_id: str, body: ChangedTenant) -> None:  # noqa: ARG001
    fields = body.model_dump(exclude_unset=True)
    with service.database.write() as c:
        credits.balance(c, word(tenant_id))  # NotFound if there is no such tenant
        if fields:
            keys.change_tenant(c, tenant_id, **fields)
    service.known.clear()


@router.post("/v1/admin/tenants/{tenant_id}/credits", status_code=201, responses=COMMON | documented(402))
def grant_credits(service: ServiceDep, caller: AdminCaller, tenant_id: str, body: Grant) -> dict[str, Any]:  # noqa: ARG001
    with service.database.write() as c:
        credits.grant(c, word(tenant_id), body.amount, body.note)
        own = credits.balance(c, tenant_id)
    return {"available": own.available, "held": own.held, "unmetered": own.unmetered}


@router.post("/v1/admin/tenants/{tenant_id}/api-keys", status_code=201, responses=COMMON)
def create_tenant_key(
    service: ServiceDep, caller: AdminCaller, tenant_id: str, body: NewKey
) -> dict[str, Any]:
    with service.database.read() as c:
        credits.balance(c, word(tenant_id))  # NotFound if there is no such tenant
    return new_key(service, tenant_id, body, caller.scopes)
