"""A request becomes a job: pictures are fetched and cleaned, the spec resolved, the price set, the row written.

Everything that a client can get wrong is found out before the one transaction that accepts the job; until then
its Idempotency-Key is only borrowed.
"""

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from broll.errors import BadImage, BadOption, BrollError, NotFound
from broll.jobs import forecast, ids
from broll.jobs.database import now
from broll.jobs.dispatcher import picture_path
from broll.jobs.job import PRIORITIES, Job, NewJob
from broll.jobs.keys import Caller
from broll.jobs.tables import uploads
from broll.server.deps import Plan, Service, Wish
from broll.server.intake import Cleaned
from broll.server.schemas import Generate
from broll.settings import Settings

REFERENCE = 1280 * 720  # pixels of the clip whose price the settings name
SPEC_FIELDS = (
    "prompt", "frames", "width", "height", "model", "negative_prompt", "fps", "steps", "guidance", "shift",
    "sampler", "grid", "preprocessing", "seed", "motion", "takes", "pick", "quality", "step_cache", "titles",
    "loras", "sparsity", "guidance_until",
)  # fmt: skip


@dataclass(frozen=True)
class Order:
    """What is asked, whichever API it came through."""

    asked: Generate
    files: Mapping[str, bytes] = field(default_factory=dict)  # image, last_image
    dialect: Mapping[str, Any] = field(default_factory=dict)  # what the client's own API wants back
    retry_of: str | None = None
    remix_of: str | None = None


def price(settings: Settings, width: int, height: int, frames: int, fps: int) -> int:
    """Credits, at least 1: (base + per second) of a 720p clip, by the share of its pixels."""
    whole = settings.price_base + settings.price_second * (frames - 1) / fps
    return max(1, math.ceil(round(whole * width * height / REFERENCE, 6))) if whole else 0


def plan(service: Service, caller: Caller, order: Order) -> tuple[Plan, dict[str, Cleaned]]:
    """The resolved spec, and its pictures by sha256."""
    asked = order.asked
    fields: dict[str, Any] = {name: getattr(asked, name) for name in SPEC_FIELDS}
    seconds = asked.seconds if asked.duration is None else asked.duration
    if asked.size is not None:
        fields["width"], fields["height"] = (int(side) for side in asked.size.split("x"))
    pictures: dict[str, Cleaned] = {}
    for name in ("image", "last_image"):
        found = picture(service, caller, order, name)
        if found is not None:
            digest = hashlib.sha256(found.png).hexdigest()
            pictures[digest] = found
            fields[name] = {"id": digest[:16], "sha256": digest}
    given = {key: value for key, value in fields.items() if value is not None}
    pngs = {digest: cleaned.png for digest, cleaned in pictures.items()}
    changes = asked.preset is not None or asked.style is not None
    wish = Wish(asked.coach or ("fix" if changes else "check"), asked.preset, asked.style)
    return service.models.plan(given | {"seconds": seconds}, pngs, wish), pictures


def picture(service: Service, caller: Caller, order: Order, name: str) -> Cleaned | None:
    """From a file part, an upload, a data URI or a URL; decoded in a limited child, and made anew."""
    if name in order.files:
        return service.clean(order.files[name])
    text, url = getattr(order.asked, name), getattr(order.asked, f"{name}_url")
    if text is not None and text.startswith("upl_"):
        return uploaded(service, caller, text)
    link = url if url is not None else text
    if link is None:
        return None
    if link.startswith("data:"):
        return service.clean(from_data_uri(link))
    if url is None:
        raise BadImage(f"{name} is neither the id of an upload nor a data URI; a link goes into {name}_url")
    return service.clean(service.guard.get(url))


def from_data_uri(text: str) -> bytes:
    head, comma, data = text.partition(",")
    if not comma or not head.endswith(";base64"):
        raise BadImage("a data URI looks like data:image/png;base64,...")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise BadImage("the data URI is not base64") from None


def uploaded(service: Service, caller: Caller, upload: str) -> Cleaned:
    mine = (uploads.c.id == upload, uploads.c.tenant_id == caller.tenant_id, uploads.c.expires_at > now())
    with service.database.read() as c:
        row = c.execute(sa.select(uploads).where(*mine)).first()
    if row is None:
        raise NotFound(f"there is no upload {upload[:64]!r}")
    png = service.artifacts.get(picture_path(caller.tenant_id, row.sha256))
    return Cleaned(png, row.width, row.height)


def keep_upload(service: Service, caller: Caller, cleaned: Cleaned, *, life_s: float) -> dict[str, Any]:
    """Store a picture, and write down until when; the sweep removes it afterwards."""
    digest = hashlib.sha256(cleaned.png).hexdigest()
    service.artifacts.put(picture_path(caller.tenant_id, digest), cleaned.png, content_type="image/png")
    row = {"id": ids.new("upl"), "sha256": digest, "width": cleaned.width, "height": cleaned.height}
    row |= {"bytes": len(cleaned.png), "tenant_id": caller.tenant_id}
    with service.database.write() as c:
        insert = sa.insert(uploads).values(**row, created_at=now(), expires_at=now() + life_s)
        return row | {"expires_at": c.execute(insert.returning(uploads.c.expires_at)).scalar_one()}


def submit(
    service: Service, caller: Caller, order: Order, *, key: tuple[str, str] | None = None
) -> tuple[Job, bool]:
    """The job, and whether an earlier request with the same Idempotency-Key had made it."""
    if key is None:
        return _submit(service, caller, order, None), False
    if not 1 <= len(key[1]) <= 255 or not key[1].isascii() or not key[1].isprintable():
        raise BadOption("an Idempotency-Key has 1 to 255 printable ASCII characters")
    known = service.store.begin_key(caller.tenant_id, *key, fingerprint(order))
    if known is not None:
        return known, True
    try:
        return _submit(service, caller, order, key), False
    except BrollError:
        service.store.drop_key(caller.tenant_id, *key)
        raise


def _submit(service: Service, caller: Caller, order: Order, key: tuple[str, str] | None) -> Job:
    if order.asked.webhook_url is not None:
        service.guard.check(order.asked.webhook_url)
    made, pictures = plan(service, caller, order)
    for cleaned in pictures.values():  # as long as the clip, so that it can be tried again or remixed
        keep_upload(service, caller, cleaned, life_s=service.settings.retention_s)
    spec = made.spec
    assert spec.width
    assert spec.height
    assert spec.frames
    assert spec.fps
    cost = (spec.takes or 1) * price(service.settings, spec.width, spec.height, spec.frames, spec.fps)
    told = dict(order.dialect) | {"notes": list(made.notes)}
    if made.coach is not None:
        told |= {"coach": made.coach.model_dump(mode="json", exclude_none=True)}
        told |= {"built_negative": order.asked.negative_prompt is None}
    new = NewJob(
        tenant_id=caller.tenant_id, key_id=caller.key_id, spec=spec.model_dump_json(exclude_none=True),
        model=spec.model, memory_mb=made.memory_mb, credits=0 if caller.unmetered else cost,
        priority=PRIORITIES[order.asked.priority], asked=told,
        webhook_url=order.asked.webhook_url, retry_of=order.retry_of, remix_of=order.remix_of,
    )  # fmt: skip
    job = service.store.submit(new, key=key)
    service.wake.set()
    return job


def fingerprint(order: Order) -> str:
    """What must be the same when an Idempotency-Key is used again."""
    files = {name: hashlib.sha256(data).hexdigest() for name, data in order.files.items()}
    told = order.asked.model_dump(exclude_none=True) | {
        "files": files,
        "of": [order.retry_of, order.remix_of],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def estimate(service: Service, caller: Caller, order: Order) -> dict[str, Any]:
    made, _ = plan(service, caller, order)
    spec = made.spec
    with service.database.read() as c:
        seen = forecast.clip_s(c, spec.model, spec.model_dump())
    took = service.models.seconds(spec) if seen is None else seen
    hour = service.settings.gpu_hour
    assert spec.width
    assert spec.height
    assert spec.frames
    assert spec.fps
    return {
        "credits": (spec.takes or 1) * price(service.settings, spec.width, spec.height, spec.frames, spec.fps),
        "seconds_s": took, "time_source": None if took is None else "measured" if seen is None else "seen",
        "money": round(took / 3600 * hour, 4) if took is not None and hour else None,
        "memory_mb": made.memory_mb, "model": spec.model,
        "size": f"{spec.width}x{spec.height}", "frames": spec.frames,
        "seconds": round(spec.frames / spec.fps, 3), "notes": list(made.notes),
    }  # fmt: skip
