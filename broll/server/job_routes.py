"""Making clips, and following them: the API that users of hosted WAN services know."""

import hashlib
import json
import re
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from broll.errors import Conflict
from broll.jobs.dispatcher import picture_path
from broll.jobs.job import LEVELS, Job
from broll.jobs.keys import Caller
from broll.jobs.states import State
from broll.server import bodies, submit, views
from broll.server.deps import JobsCaller, ReadCaller, Service, ServiceDep
from broll.server.event_stream import Feed, stream
from broll.server.problems import documented
from broll.server.schemas import Estimate, Generate, JobList, JobOut

router = APIRouter(tags=["jobs"])
MOST_WAIT_S = 60.0
PICTURES = ("image", "last_image")
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/Generate"}},
            "multipart/form-data": {"schema": {"$ref": "#/components/schemas/Generate"}},
        },
    }
}
Key = Annotated[str | None, Header(alias="Idempotency-Key", max_length=300)]
Prefer = Annotated[str | None, Header(max_length=100)]


@router.post(
    "/v1/video/generate", status_code=202, response_model=JobOut, openapi_extra=BODY,
    responses=documented(401, 402, 403, 404, 409, 413, 422, 429, 503),
)  # fmt: skip
async def generate(
    request: Request, service: ServiceDep, caller: JobsCaller, key: Key = None, prefer: Prefer = None
) -> Response:
    """Submit a clip; it is made in the background. `Prefer: wait=30` waits that long for it."""
    body = await bodies.read(request, files=PICTURES)
    order = submit.Order(bodies.parsed(Generate, body.fields), body.files)
    named = None if key is None else ("POST /v1/video/generate", key)
    job, replayed = await run_in_threadpool(submit.submit, service, caller, order, key=named)
    job = await waited(service, job, prefer)
    shown = await run_in_threadpool(views.shown, service, request, job)
    headers = {"Location": shown["urls"]["self"]} | ({"Idempotency-Replayed": "true"} if replayed else {})
    return JSONResponse(shown, 202, headers)


@router.post(
    "/v1/video/estimate", response_model=Estimate, openapi_extra=BODY,
    responses=documented(401, 403, 404, 413, 422, 429, 503),
)  # fmt: skip
async def estimate(request: Request, service: ServiceDep, caller: JobsCaller) -> Any:
    """What a clip would cost, take and need; nothing is made."""
    body = await bodies.read(request, files=PICTURES)
    order = submit.Order(bodies.parsed(Generate, body.fields), body.files)
    return await run_in_threadpool(submit.estimate, service, caller, order)


@router.get("/v1/jobs", response_model=JobList, responses=documented(401, 403, 404, 422, 429, 503))
def list_jobs(
    request: Request, service: ServiceDep, caller: ReadCaller,
    limit: Annotated[int, Query(ge=1, le=100)] = 20, after: Annotated[str | None, Query(max_length=100)] = None,
    order: Literal["asc", "desc"] = "desc",
    status: Literal["queued", "processing", "completed", "failed"] | None = None,
) -> Any:  # fmt: skip
    """The tenant's jobs, the newest first."""
    states = views.STATES[status] if status else ()
    found, more = service.store.list(
        caller.tenant_id, after=after, limit=limit, ascending=order == "asc", states=states
    )
    data = [views.shown(service, request, job) for job in found]
    ends = (found[0].id, found[-1].id) if found else (None, None)
    return {"data": data, "has_more": more, "first_id": ends[0], "last_id": ends[1]}


@router.get(
    "/v1/jobs/{job_id}", response_model=JobOut,
    responses=documented(401, 403, 404, 422, 429, 503) | {304: {"description": "Not modified"}},
)  # fmt: skip
async def get_job(
    request: Request, service: ServiceDep, caller: ReadCaller, job_id: str, prefer: Prefer = None
) -> Response:
    """How far a job is. `If-None-Match` saves the body, `Prefer: wait=30` waits for its end."""
    job = await run_in_threadpool(service.store.get, caller.tenant_id, job_id)
    job = await waited(service, job, prefer)
    shown = await run_in_threadpool(views.shown, service, request, job)
    text = json.dumps(shown)
    etag = f'W/"{hashlib.sha256(text.encode()).hexdigest()[:24]}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(text, 200, headers, "application/json")


@router.post(
    "/v1/jobs/{job_id}/cancel", response_model=JobOut, responses=documented(401, 403, 404, 409, 422, 429, 503)
)
def cancel_job(request: Request, service: ServiceDep, caller: JobsCaller, job_id: str) -> Any:
    """A waiting job ends at once, a running one within a second or two."""
    return views.shown(service, request, service.store.cancel(caller.tenant_id, job_id))


@router.post(
    "/v1/jobs/{job_id}/retry", status_code=202, response_model=JobOut,
    responses=documented(401, 402, 403, 404, 409, 422, 429, 503),
)  # fmt: skip
def retry_job(request: Request, service: ServiceDep, caller: JobsCaller, job_id: str, key: Key = None) -> Any:
    """The same clip again, seed included, as a new job with a price of its own."""
    old = service.store.get(caller.tenant_id, job_id)
    if old.state not in (State.FAILED, State.CANCELLED):
        raise Conflict(f"the job is {old.state}; only a failed or cancelled one can be tried again")
    named = None if key is None else (f"POST /v1/jobs/{old.id}/retry", key)
    job, _ = submit.submit(service, caller, again(service, caller, old, retry_of=old.id), key=named)
    return views.shown(service, request, job)


def again(service: Service, caller: Caller, old: Job, **fields: Any) -> submit.Order:
    """An order for what an earlier job asked; its pictures are still kept, or ArtifactMissing."""
    spec, files = dict(old.spec), {}
    for name in PICTURES:
        given = spec.pop(name, None)
        if given is not None:
            files[name] = service.artifacts.get(picture_path(caller.tenant_id, given["sha256"]))
    spec.pop("schema_version", None)
    changes, told = fields.pop("changes", {}), {k: v for k, v in old.asked.items() if k != "notes"}
    if "prompt" not in changes:
        changes = {"coach": "off"} | changes  # it was coached when it was first asked for
    elif old.asked.get("built_negative"):
        del spec["negative_prompt"]  # it was made for the other prompt
    common = {"priority": LEVELS[old.priority], "webhook_url": old.webhook_url}
    return submit.Order(Generate.model_validate(spec | common | changes), files, told, **fields)


@router.delete("/v1/jobs/{job_id}", status_code=204, responses=documented(401, 403, 404, 409, 422, 429, 503))
def delete_job(service: ServiceDep, caller: JobsCaller, job_id: str) -> None:
    """Forget a finished job and its files."""
    job = service.store.delete(caller.tenant_id, job_id)
    service.artifacts.delete_below(f"jobs/{job.id}")


async def waited(service: Service, job: Job, prefer: str | None) -> Job:
    """The job when it is done, or when the client's patience ends."""
    match = re.search(r"\bwait=(\d{1,4})\b", prefer or "")
    until = time.monotonic() + (min(MOST_WAIT_S, float(match[1])) if match else 0.0)
    while not job.done and time.monotonic() < until and not service.draining.is_set():
        await service.watch.done(job.id, until - time.monotonic())
        job = await run_in_threadpool(service.store.get, None, job.id)
    return job


@router.get(
    "/v1/jobs/{job_id}/events", response_class=StreamingResponse,
    responses=documented(401, 403, 404, 422, 429, 503) | {200: {"content": {"text/event-stream": {}}}},
)  # fmt: skip
async def job_events(
    request: Request, service: ServiceDep, caller: ReadCaller, job_id: str,
    last: Annotated[str | None, Header(alias="Last-Event-ID", max_length=30)] = None,
) -> StreamingResponse:  # fmt: skip
    """Server-sent events: status, stage, progress, preview, done. `Last-Event-ID` goes on where it broke off."""
    job = await run_in_threadpool(service.store.get, caller.tenant_id, job_id)
    seen = min(int(last), 2**62) if last and last.isascii() and last.isdigit() else 0
    told = stream(Feed(request, service, job, seen))
    return StreamingResponse(told, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
