"""The finished files: whole or in ranges, by key or by a signed link."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response, StreamingResponse

from broll.errors import ArtifactMissing, Conflict, NotAuthenticated, NotFound
from broll.jobs.job import Job
from broll.jobs.outbox import clock
from broll.jobs.states import State
from broll.media.video_file import VideoWriter, read_frames
from broll.server import ranges
from broll.server.deps import Service, ServiceDep, authenticated
from broll.server.problems import documented, problem
from broll.server.views import content_path

router = APIRouter(tags=["jobs"])
Variant = Literal["video", "thumbnail", "spritesheet", "gif", "preview"]
ENDINGS = {"video": "mp4", "gif": "gif"}


PATH = "/v1/jobs/{job_id}/content"
ANSWERS = documented(401, 403, 404, 409, 416, 422, 429, 503) | {
    200: {"content": {kind: {} for kind in ("video/mp4", "image/webp", "image/gif")}}, 206: {}, 304: {},
}  # fmt: skip


@router.head(PATH, response_class=Response, responses=ANSWERS, operation_id="content_head")
@router.get(PATH, response_class=Response, responses=ANSWERS, operation_id="content")
def content(
    request: Request, service: ServiceDep, job_id: str, variant: Variant = "video",
    exp: Annotated[str | None, Query(max_length=20)] = None, kid: Annotated[str | None, Query(max_length=64)] = None,
    sig: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:  # fmt: skip
    """A finished clip, or its thumbnail, spritesheet or gif; or the latest preview of a running one."""
    if sig is not None:
        with service.database.read() as c:
            now = clock(c)
        given = {"exp": exp or "", "kid": kid or "", "sig": sig}
        if not service.signer.verify(content_path(job_id, variant), given, now=now):
            raise NotAuthenticated("this link has expired or was changed; read the job again for a fresh one")
        tenant = None
    else:
        caller = authenticated(request, service)
        caller.need("read")
        tenant = caller.tenant_id
    return serve(request, service, service.store.get(tenant, job_id), variant)


def serve(request: Request, service: Service, job: Job, variant: str) -> Response:
    """The file of one variant, with ETag and Range."""
    path, kind, tag, size = located(service, job, variant)
    etag = f'"{tag}"'
    headers = {
        "ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "private, no-cache" if variant == "preview" else
        "private, max-age=3600", "Content-Security-Policy": "sandbox; default-src 'none'",
        "Content-Disposition": f'inline; filename="{job.id}.{ENDINGS.get(variant, "webp")}"',
    }  # fmt: skip
    if request.headers.get("if-none-match") in (etag, "*"):
        return Response(status_code=304, headers=headers)
    asked = request.headers.get("range")
    if request.headers.get("if-range", etag) != etag:
        asked = None
    try:
        part = ranges.wanted(asked, size)
    except ranges.NotSatisfiable:
        head = {"Content-Range": f"bytes */{size}"}
        return problem(request, "range_not_satisfiable", f"the file has {size} bytes", headers=head)
    start, end = part or (0, size)
    headers["Content-Length"] = str(end - start)
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    body: Iterator[bytes] = iter(()) if request.method == "HEAD" else service.artifacts.read(path, start, end)
    return StreamingResponse(body, 206 if part else 200, headers, kind)


def located(service: Service, job: Job, variant: str) -> tuple[str, str, str, int]:
    """Path, media type, tag and size of a variant."""
    if variant == "preview":
        if job.preview is None or job.done:
            raise NotFound("there is no preview of this job at the moment")
        return job.preview, "image/webp", f"{job.id}-{job.percent:.3f}", service.artifacts.size(job.preview)
    if job.state is not State.COMPLETED or job.files is None:
        raise Conflict(f"the job is {job.state}; it has no {variant}")
    if variant == "gif":
        path = as_gif(service, job)
        return path, "image/gif", f"{job.files['video']['sha256']}-gif", service.artifacts.size(path)
    found = job.files.get(variant)
    if found is None:
        raise ArtifactMissing(f"this clip has no {variant}")
    return found["path"], found["type"], found["sha256"], found["bytes"]


def as_gif(service: Service, job: Job) -> str:
    """Made from the video when it is first asked for, and kept beside it."""
    assert job.files is not None
    video = job.files["video"]["path"]
    path: str = f"{video.rsplit('/', 1)[0]}/video.gif"
    if service.artifacts.exists(path):
        return path
    spec = job.spec
    with tempfile.TemporaryDirectory(prefix="broll-") as name:
        source, target = Path(name) / "clip.mp4", Path(name) / "clip.gif"
        source.write_bytes(service.artifacts.get(video))
        size = {"width": spec["width"], "height": spec["height"], "fps": spec["fps"]}
        with VideoWriter(target, **size, format="gif") as writer:
            for frame in read_frames(source):
                writer.write(frame[None])
        service.artifacts.put(path, target.read_bytes(), content_type="image/gif")
    return path
