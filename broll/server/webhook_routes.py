"""/v1/webhook-endpoints: where a tenant wants to be told, with what secret, and what became of it.

A job's own `webhook_url` has an endpoint too, `we_` + the job's id. It is not listed, but its deliveries can be read
and replayed like any other's. What goes there is signed with the tenant's default secret.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from broll.jobs import webhooks
from broll.server.deps import JobsCaller, ReadCaller, ServiceDep
from broll.server.problems import documented
from broll.server.schemas import Strict

router = APIRouter(
    prefix="/v1/webhook-endpoints", tags=["webhooks"], responses=documented(401, 403, 404, 409, 422, 429, 503)
)

Limit = Annotated[int, Query(ge=1, le=100)]


class NewEndpoint(Strict):
    url: str = Field(max_length=8000)
    events: list[str] = Field(default=["video.completed", "video.failed", "video.cancelled"], max_length=20)


class Rotation(Strict):
    overlap_s: float = Field(
        default=webhooks.OVERLAP_S, ge=0, le=7 * 86_400, description="so long do the old secrets still sign"
    )


class Endpoint(BaseModel):
    id: str
    url: str
    events: list[str]
    created_at: datetime
    disabled_at: datetime | None = Field(description="when it answered 410")


class CreatedEndpoint(Endpoint):
    secret: str = Field(description="shown only here")


class Secret(BaseModel):
    secret: str


class Endpoints(BaseModel):
    data: list[Endpoint]


class Delivery(BaseModel):
    id: str
    webhook_id: str = Field(description="the header of this name; a replay has the old one's")
    type: str
    job_id: str | None
    state: Literal["pending", "delivered", "failed"]
    attempts: int
    status: int | None = Field(description="of the last answer")
    error: str | None
    created_at: datetime
    next_at: datetime | None = Field(description="when it is sent again, if it is pending")
    ended_at: datetime | None


class Deliveries(BaseModel):
    data: list[Delivery]
    has_more: bool


@router.get("")
def list_endpoints(service: ServiceDep, caller: ReadCaller) -> Endpoints:
    with service.database.read() as c:
        return Endpoints.model_validate({"data": webhooks.list_endpoints(c, caller.tenant_id)})


@router.post("", status_code=201)
def create_endpoint(new: NewEndpoint, service: ServiceDep, caller: JobsCaller) -> CreatedEndpoint:
    service.guard.check(new.url)
    with service.database.write() as c:
        endpoint, secret = webhooks.create_endpoint(c, caller.tenant_id, new.url, new.events)
        made = webhooks.get_endpoint(c, caller.tenant_id, endpoint)
    return CreatedEndpoint.model_validate(made | {"secret": secret})


@router.get("/default-secret")
def default_secret(service: ServiceDep, caller: JobsCaller) -> Secret:
    """The secret for URLs that jobs name themselves."""
    with service.database.write() as c:
        return Secret(secret=webhooks.default_secret(c, caller.tenant_id))


@router.post("/default-secret/rotate")
def rotate_default_secret(
    service: ServiceDep, caller: JobsCaller, rotation: Rotation | None = None
) -> Secret:
    overlap = (rotation or Rotation()).overlap_s
    with service.database.write() as c:
        return Secret(secret=webhooks.rotate_default_secret(c, caller.tenant_id, overlap_s=overlap))


@router.get("/{endpoint}")
def get_endpoint(endpoint: str, service: ServiceDep, caller: ReadCaller) -> Endpoint:
    with service.database.read() as c:
        return Endpoint.model_validate(webhooks.get_endpoint(c, caller.tenant_id, endpoint))


@router.delete("/{endpoint}", status_code=204)
def delete_endpoint(endpoint: str, service: ServiceDep, caller: JobsCaller) -> None:
    """What was to be sent there is forgotten."""
    with service.database.write() as c:
        webhooks.delete_endpoint(c, caller.tenant_id, endpoint)


@router.post("/{endpoint}/rotate")
def rotate_secret(
    endpoint: str, service: ServiceDep, caller: JobsCaller, rotation: Rotation | None = None
) -> Secret:
    """A new secret. The old one signs beside it for a day, unless `overlap_s` says otherwise."""
    overlap = (rotation or Rotation()).overlap_s
    with service.database.write() as c:
        return Secret(secret=webhooks.rotate_secret(c, caller.tenant_id, endpoint, overlap_s=overlap))


@router.post("/{endpoint}/test", status_code=202)
def send_test(endpoint: str, service: ServiceDep, caller: JobsCaller) -> Delivery:
    """Send a `webhook.test` message."""
    with service.database.write() as c:
        made = webhooks.send_test(c, caller.tenant_id, endpoint)
        told = webhooks.get_delivery(c, caller.tenant_id, endpoint, made)
    return _on_its_way(service, told)


@router.get("/{endpoint}/deliveries")
def list_deliveries(
    endpoint: str, service: ServiceDep, caller: ReadCaller, limit: Limit = 20, after: str | None = None
) -> Deliveries:
    """The newest first."""
    with service.database.read() as c:
        found, more = webhooks.list_deliveries(c, caller.tenant_id, endpoint, after=after, limit=limit)
    return Deliveries.model_validate({"data": found, "has_more": more})


@router.post("/{endpoint}/deliveries/{delivery}/replay", status_code=202)
def replay(endpoint: str, delivery: str, service: ServiceDep, caller: JobsCaller) -> Delivery:
    """Send it again, with the webhook-id it had."""
    with service.database.write() as c:
        made = webhooks.replay(c, caller.tenant_id, endpoint, delivery)
        told = webhooks.get_delivery(c, caller.tenant_id, endpoint, made)
    return _on_its_way(service, told)


def _on_its_way(service: ServiceDep, told: dict[str, Any]) -> Delivery:
    service.sender.wake.set()
    return Delivery.model_validate(told)
