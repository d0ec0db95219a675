"""`/v1/videos` as the OpenAI SDK speaks it (openai >= 3.54): create, retrieve, list, delete, content, remix.

A cancelled job reads as failed with error.code "cancelled"; there is no output_url and no queue position in this
dialect. `model` may be one of OpenAI's names, which means the best one here. Edits, extensions and characters
answer 501 with the code `not_supported`.

    shape        openai-python 3.54, resources/videos; OpenAI's OpenAPI document of 2026-08
"""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from broll.errors import BadOption, NotSupported
from broll.jobs.job import Job
from broll.jobs.states import State
from broll.server import bodies, submit
from broll.server.content_routes import serve
from broll.server.deps import JobsCaller, ReadCaller, ServiceDep
from broll.server.job_routes import Key, again
from broll.server.problems import documented
from broll.server.schemas import Generate, Strict

router = APIRouter(tags=["openai"], prefix="/v1/videos")
POLL_MS = "2000"  # read by the SDK's create_and_poll
COMMON = documented(401, 403, 404, 422, 429, 503)
SUBMIT = documented(401, 402, 403, 404, 409, 413, 422, 429, 503)
STATUS = {
    State.QUEUED: "queued",
    State.RUNNING: "in_progress",
    State.COMPLETED: "completed",
    State.FAILED: "failed",
    State.CANCELLED: "failed",
}


class Reference(Strict):
    image_url: Annotated[str | None, Field(max_length=60_000_000)] = None
    file_id: Annotated[str | None, Field(max_length=64)] = None


class Create(Strict):
    prompt: str
    model: Annotated[str | None, Field(max_length=200)] = None
    seconds: Annotated[float | None, Field(gt=0, le=600)] = None
    size: Annotated[str | None, Field(pattern=r"^\d{1,5}x\d{1,5}$")] = None
    input_reference: Reference | None = None
    seed: Annotated[int | None, Field(ge=0, le=2**63 - 1)] = None  # broll's own, through extra_body
    negative_prompt: Annotated[str | None, Field(max_length=10_000)] = None
    steps: Annotated[int | None, Field(ge=1, le=1000)] = None


class Remix(Strict):
    prompt: str


BODY = {
    "requestBody": {
        "required": True,
        "content": {
            kind: {"schema": {"$ref": "#/components/schemas/Create"}}
            for kind in ("application/json", "multipart/form-data")
        },
    }
}


def video(job: Job) -> dict[str, Any]:
    spec, asked = job.spec, job.asked
    error = None
    if job.state in (State.FAILED, State.CANCELLED):
        error = {"code": job.error_code or "failed", "message": job.error or "failed"}
    return {
        "id": job.id,
        "object": "video",
        "model": asked.get("model") or job.model,
        "status": STATUS[job.state],
        "progress": 100 if job.state is State.COMPLETED else min(99, int(job.percent)),
        "created_at": int(job.created_at),
        "completed_at": int(job.finished_at) if job.state is State.COMPLETED and job.finished_at else None,
        "expires_at": int(job.expires_at) if job.expires_at else None,
        "prompt": spec["prompt"],
        "size": f"{spec['width']}x{spec['height']}",
        "seconds": asked.get("seconds") or f"{(spec['frames'] - 1) / spec['fps']:g}",
        "remixed_from_video_id": job.remix_of,
        "error": error,
    }


def answer(job: Job, status: int = 200) -> JSONResponse:
    return JSONResponse(video(job), status, {"openai-poll-after-ms": POLL_MS})


@router.post("", openapi_extra=BODY, responses=SUBMIT)
async def create(request: Request, service: ServiceDep, caller: JobsCaller, key: Key = None) -> Response:
    body = await bodies.read(request, files=("input_reference",))
    asked = bodies.parsed(Create, body.fields)
    files = {"image": body.files["input_reference"]} if "input_reference" in body.files else {}
    native = {
        name: getattr(asked, name)
        for name in ("prompt", "seconds", "size", "seed", "negative_prompt", "steps")
    }
    if asked.model is not None and not asked.model.startswith("sora"):
        native["model"] = asked.model
    native |= reference(asked.input_reference, given=bool(files))
    seconds = None if asked.seconds is None else f"{asked.seconds:g}"
    dialect = {"model": asked.model, "seconds": seconds}
    order = submit.Order(
        bodies.parsed(Generate, {k: v for k, v in native.items() if v is not None}), files, dialect
    )
    named = None if key is None else ("POST /v1/videos", key)
    job, _ = await run_in_threadpool(submit.submit, service, caller, order, key=named)
    return answer(job)


def reference(given_as: Reference | None, *, given: bool) -> dict[str, str]:
    """The three forms of input_reference: a file part, image_url (also a data URI), file_id (an upload)."""
    if given_as is None:
        return {}
    both = [value for value in (given_as.image_url, given_as.file_id) if value is not None]
    if given or len(both) != 1:
        raise BadOption("input_reference is one of a file, image_url and file_id")
    if given_as.file_id is not None:
        return {"image": given_as.file_id}
    link = given_as.image_url or ""
    return {"image" if link.startswith("data:") else "image_url": link}


@router.get("", responses=COMMON)
def list_videos(
    service: ServiceDep, caller: ReadCaller, after: Annotated[str | None, Query(max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20, order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:  # fmt: skip
    found, more = service.store.list(caller.tenant_id, after=after, limit=limit, ascending=order == "asc")
    data = [video(job) for job in found]
    ends = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": ends[0], "last_id": ends[1], "has_more": more}


def unsupported() -> Response:
    """Edits, extensions and characters: the engine cannot yet."""
    raise NotSupported(
        "edits, extensions and characters are not possible here; create, remix, list and content are"
    )


for path in ("/edits", "/extensions", "/characters"):
    router.post(path, status_code=501, response_class=Response, responses=documented(501))(unsupported)


@router.get("/{video_id}", responses=COMMON)
def retrieve(service: ServiceDep, caller: ReadCaller, video_id: str) -> Response:
    return answer(service.store.get(caller.tenant_id, video_id))


@router.delete("/{video_id}", responses=COMMON | documented(409))
def delete(service: ServiceDep, caller: JobsCaller, video_id: str) -> dict[str, Any]:
    job = service.store.delete(caller.tenant_id, video_id)
    service.artifacts.delete_below(f"jobs/{job.id}")
    return {"id": job.id, "object": "video.deleted", "deleted": True}


@router.get(
    "/{video_id}/content", response_class=Response,
    responses=COMMON | documented(409, 416) | {200: {"content": {"video/mp4": {}}}, 206: {}, 304: {}},
)  # fmt: skip
def content(
    request: Request, service: ServiceDep, caller: ReadCaller, video_id: str,
    variant: Literal["video", "thumbnail", "spritesheet"] = "video",
) -> Response:  # fmt: skip
    return serve(request, service, service.store.get(caller.tenant_id, video_id), variant)


@router.post("/{video_id}/remix", responses=SUBMIT)
def remix(service: ServiceDep, caller: JobsCaller, video_id: str, body: Remix, key: Key = None) -> Response:
    """The same seed and settings under another prompt: what the words do not change stays alike."""
    old = service.store.get(caller.tenant_id, video_id)
    order = again(service, caller, old, remix_of=old.id, changes={"prompt": body.prompt})
    named = None if key is None else (f"POST /v1/videos/{old.id}/remix", key)
    job, _ = submit.submit(service, caller, order, key=named)
    return answer(job)
