"""A job as it is read: one row, with its JSON opened."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from broll.jobs.states import TERMINAL, State

PRIORITIES = {"low": 0, "normal": 1, "high": 2}
LEVELS = {level: name for name, level in PRIORITIES.items()}
JSON = ("spec", "asked", "files", "result", "snapshot")


@dataclass(frozen=True)
class Job:
    seq: int
    id: str
    tenant_id: str
    key_id: str | None
    spec: dict[str, Any]
    asked: dict[str, Any]
    model: str
    memory_mb: int
    priority: int
    state: State
    stage: str | None
    percent: float
    left_s: float | None
    attempt: int
    failures: int
    not_before: float
    lease_token: str | None
    lease_until: float | None
    device: str | None
    cancel: bool
    credits: int
    charged: int | None
    error_code: str | None
    error: str | None
    files: dict[str, dict[str, Any]] | None
    result: dict[str, Any] | None  # what was measured in the clip
    preview: str | None
    snapshot: dict[str, Any] | None
    resumed_elsewhere: bool
    webhook_url: str | None
    retry_of: str | None
    remix_of: str | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    expires_at: float | None

    @classmethod
    def of(cls, row: Any) -> "Job":
        """From a row of the jobs table; columns that are not the job's own are passed over."""
        values = {field.name: row[field.name] for field in dataclasses.fields(cls)}
        for name in JSON:
            values[name] = None if values[name] is None else json.loads(values[name])
        return cls(**values | {"state": State(values["state"])})

    @property
    def done(self) -> bool:
        return self.state in TERMINAL


@dataclass(frozen=True)
class NewJob:
    """What `Store.submit` needs. `spec` is resolved; `credits` the most it can cost."""

    tenant_id: str
    key_id: str | None
    spec: str  # JSON
    model: str
    memory_mb: int
    credits: int
    priority: int = PRIORITIES["normal"]
    asked: dict[str, Any] = dataclasses.field(default_factory=dict)
    webhook_url: str | None = None
    retry_of: str | None = None
    remix_of: str | None = None


@dataclass(frozen=True)
class Policy:
    """How the service treats jobs; from settings."""

    lease_s: float = 30.0
    max_attempts: int = 3  # failures and lost leases; drains and preemptions do not count
    backoff_s: float = 5.0  # before the first retry; doubles
    warm_age_s: float = 60.0  # so long may a job be passed over for one whose model is loaded
    cancel_charge: str = "used"  # or "free": what a job cancelled while running costs
    retention_s: float = 7 * 86_400.0  # clips are kept so long after they are finished
    idempotency_s: float = 86_400.0
    flight_s: float = 60.0  # a request that has held an Idempotency-Key so long is taken to be dead
