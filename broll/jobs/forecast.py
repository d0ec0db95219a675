"""How long it will take, from what these devices did before.

A clip of the same model and shape took so long a forward; another shape is scaled by its pixels and frames, which
is too little for larger clips (attention grows with the square) and corrected by the first one that is made.
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from broll.jobs.database import now
from broll.jobs.job import Job
from broll.jobs.states import State
from broll.jobs.tables import devices, jobs, timings
from broll.spec import guided_steps


def clip_s(c: Connection, model: str, spec: dict[str, Any]) -> float | None:
    """Seconds to make this clip on a free device; None before the model's first one."""
    rows = c.execute(sa.select(timings).where(timings.c.model == model)).all()
    if not rows:
        return None
    size = spec["width"] * spec["height"] * spec["frames"]
    shape = f"{spec['width']}x{spec['height']}x{spec['frames']}"
    best = min(rows, key=lambda row: (row.shape != shape, abs(pixels(row.shape) - size)))
    scale = size / pixels(best.shape)
    forwards = spec["steps"] + guided_steps(spec["steps"], spec["guidance"], spec.get("guidance_until"))
    return float((best.forward_s * forwards + best.decode_s) * scale * (spec.get("takes") or 1))


def pixels(shape: str) -> int:
    width, height, frames = (int(number) for number in shape.split("x"))
    return width * height * frames


def wait_s(c: Connection, job: Job, ahead: int) -> float | None:
    """Seconds until this job is likely to be done."""
    own = clip_s(c, job.model, job.spec)
    if job.state is State.RUNNING:
        return own * (1 - job.percent / 100) if own is not None and job.left_s is None else job.left_s
    if own is None:
        return None
    alive = sa.select(sa.func.count()).select_from(devices).where(devices.c.seen_at > now() - 60)
    busy = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.state == State.RUNNING)
    places = max(1, int(c.execute(alive).scalar_one()))
    return own * ((ahead + int(c.execute(busy).scalar_one())) / places + 1)
