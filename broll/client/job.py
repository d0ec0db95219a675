"""What the server says about a job, as a frozen object.

A server may be newer or older than this client: unknown fields are left in `data`, missing ones have defaults.
"""

from dataclasses import MISSING, dataclass, field, fields
from datetime import datetime
from typing import Any

from broll.client.errors import GenerationFailed, UnexpectedAnswer

TIMES = ("created_at", "started_at", "completed_at", "expires_at")


@dataclass(frozen=True)
class Job:
    id: str
    status: str = "queued"  # queued, processing, completed or failed
    progress: int = 0  # percent
    stage: str | None = None  # encode, denoise, decode, finish or deliver
    prompt: str = ""
    model: str = ""
    size: str = ""  # 832x480
    seconds: float | None = None
    frames: int | None = None
    seed: int | None = None
    credits: int | None = None  # held; once done, what it cost
    queue_position: int | None = None
    eta_s: float | None = None
    output_url: str | None = None  # signed: works without a key
    error: str | None = None
    error_code: str | None = None
    attempts: int = 0
    priority: str = "normal"
    retry_of: str | None = None
    remix_of: str | None = None
    resumed_elsewhere: bool = False
    created_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    expires_at: datetime | None = None
    notes: tuple[str, ...] = ()
    coach: dict[str, Any] = field(default_factory=dict, hash=False)  # what was said of the prompt
    camera: dict[str, Any] = field(default_factory=dict, hash=False)  # asked, measured, as_asked
    checks: dict[str, Any] = field(default_factory=dict, hash=False)  # all that was measured in the clip
    spec: dict[str, Any] = field(default_factory=dict, hash=False)
    urls: dict[str, str] = field(default_factory=dict, hash=False)
    data: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)  # all of it, as it came

    @property
    def done(self) -> bool:
        return self.status in ("completed", "failed")

    @property
    def completed(self) -> bool:
        return self.status == "completed"

    @property
    def cancelled(self) -> bool:
        return self.error_code == "cancelled"

    def checked(self) -> "Job":
        """Itself, unless it failed."""
        if self.status != "failed":
            return self
        reason = self.error or ("it was cancelled" if self.cancelled else "the server does not say why")
        raise GenerationFailed(f"{self.id} failed: {reason}", code=self.error_code, job=self)


def parse(data: Any) -> Job:
    if not isinstance(data, dict) or not isinstance(data.get("job_id"), str):
        raise UnexpectedAnswer("the server's answer has no job_id: it is not a job")
    known = {f.name: data[f.name] for f in fields(Job) if data.get(f.name) is not None}
    if isinstance(known.get("progress"), float):
        known["progress"] = int(known["progress"])
    for f in fields(Job):  # a wrong kind of thing is as good as none
        plain = f.default if f.default is not MISSING else None
        if isinstance(plain, str | int) and not isinstance(known.get(f.name, plain), type(plain)):
            del known[f.name]
    for name in TIMES:
        known[name] = time(known.get(name))
    for name in ("spec", "urls", "coach", "camera", "checks"):
        known[name] = known[name] if isinstance(known.get(name), dict) else {}
    notes = known.get("notes")
    known["notes"] = tuple(map(str, notes)) if isinstance(notes, list) else ()
    return Job(**known | {"id": data["job_id"], "data": data})


def time(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
