"""A job as the native API shows it."""

from datetime import UTC, datetime
from typing import Any

from fastapi import Request

from broll.jobs import forecast
from broll.jobs.job import LEVELS, Job
from broll.jobs.outbox import clock
from broll.jobs.states import State
from broll.server.deps import Service

STATUS = {
    State.QUEUED: "queued",
    State.RUNNING: "processing",
    State.COMPLETED: "completed",
    State.FAILED: "failed",
    State.CANCELLED: "failed",  # with error_code "cancelled"
}
STATES = {
    "queued": (State.QUEUED,),
    "processing": (State.RUNNING,),
    "completed": (State.COMPLETED,),
    "failed": (State.FAILED, State.CANCELLED),
}


def iso(at: float | None) -> str | None:
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def base_url(service: Service, request: Request) -> str:
    return (service.settings.public_url or str(request.base_url)).rstrip("/")


def content_path(job_id: str, variant: str = "video") -> str:
    return f"/v1/jobs/{job_id}/content?variant={variant}"


def output_url(service: Service, base: str, job: Job, now: float, variant: str = "video") -> str:
    """Downloads with no header. The same for half its life, then the next read gives a fresh one."""
    path = content_path(job.id, variant)
    return f"{base}{path}&{service.signer.sign(path, now=now, life_s=service.settings.url_s)}"


def camera(coach: dict[str, Any], result: dict[str, Any]) -> dict[str, Any] | None:
    """Asked beside measured, once there is a clip."""
    if not result.get("checks"):
        return None
    asked, measured = coach.get("camera"), result["checks"]["camera"]["move"]
    return {"asked": asked, "measured": measured, "as_asked": measured in asked["accepts"] if asked else None}


def shown(service: Service, request: Request, job: Job) -> dict[str, Any]:
    ahead = service.store.ahead(job) if job.state is State.QUEUED else None
    with service.database.read() as c:
        now = clock(c)
        eta_s = None if job.done else forecast.wait_s(c, job, ahead or 0)
    base = base_url(service, request)
    own = f"{base}/v1/jobs/{job.id}"
    urls = {"self": own, "events": f"{own}/events"}
    if job.done:
        if job.state is State.COMPLETED:
            urls |= {
                v: f"{base}{content_path(job.id, v)}" for v in ("video", "thumbnail", "spritesheet", "gif")
            }
    else:
        urls |= {"cancel": f"{own}/cancel", "preview": f"{base}{content_path(job.id, 'preview')}"}
    spec, result = job.spec, job.result or {}
    return {
        "job_id": job.id,
        "status": STATUS[job.state],
        "progress": 100 if job.state is State.COMPLETED else min(99, int(job.percent)),
        "stage": job.stage,
        "prompt": spec["prompt"],
        "model": job.model,
        "size": f"{spec['width']}x{spec['height']}",
        "seconds": round(spec["frames"] / spec["fps"], 3),
        "frames": spec["frames"],
        "seed": result.get("seed", spec["seed"]),
        "credits": job.credits if job.charged is None else job.charged,
        "queue_position": None if ahead is None else ahead + 1,
        "eta_s": None if eta_s is None else round(eta_s, 1),
        "output_url": output_url(service, base, job, now) if job.state is State.COMPLETED else None,
        "error": job.error,
        "error_code": job.error_code,
        "attempts": job.attempt,
        "priority": LEVELS[job.priority],
        "retry_of": job.retry_of,
        "remix_of": job.remix_of,
        "resumed_elsewhere": job.resumed_elsewhere,
        "created_at": iso(job.created_at),
        "started_at": iso(job.started_at),
        "completed_at": iso(job.finished_at),
        "expires_at": iso(job.expires_at),
        "notes": job.asked.get("notes", []),
        "coach": job.asked.get("coach"),
        "camera": camera(job.asked.get("coach") or {}, result),
        "checks": result.get("checks"),
        "takes": result.get("takes", []),
        "retimed": result.get("retimed", 1.0),
        "spec": spec,
        "urls": urls,
    }
