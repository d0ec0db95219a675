"""What routes are given: the service's parts, and who is asking."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import limits
import sqlalchemy as sa
from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from broll.errors import NotAuthenticated, TooMany
from broll.jobs import keys
from broll.jobs.artifacts import Artifacts
from broll.jobs.database import Database
from broll.jobs.keys import Caller
from broll.jobs.store import Store
from broll.prompts.findings import Context
from broll.prompts.report import Report
from broll.prompts.rewriter import Rewrite
from broll.server.guard import Guard
from broll.server.intake import Cleaned, clean_picture
from broll.server.signing import Signer
from broll.server.watch import Watch
from broll.settings import Settings
from broll.spec import VideoSpec

if TYPE_CHECKING:
    from broll.server.webhooks import WebhookSender

DECODERS = 2  # pictures decoded at a time, each in a child of up to 1.5 GB
REMEMBER_S = 5.0  # a revoked key works so long at most
bearer = HTTPBearer(auto_error=False, description="An API key: `broll keys create`")


@dataclass(frozen=True)
class Card:
    """A model as clients see it."""

    id: str
    task: str
    size: tuple[int, int]
    max_seconds: float
    fps: int


@dataclass(frozen=True)
class Plan:
    """A resolved spec, what it needs, and what was changed of what was asked."""

    spec: VideoSpec
    memory_mb: int
    notes: tuple[str, ...] = ()
    coach: Report | None = None


@dataclass(frozen=True)
class Wish:
    """What the coach is to do with a prompt."""

    mode: Literal["off", "check", "fix"] = "check"
    preset: str | None = None
    style: str | None = None


class Models(Protocol):
    """What can be made here. `wiring`'s side of it knows the engine."""

    def cards(self) -> list[Card]: ...

    def plan(self, fields: Mapping[str, Any], pictures: Mapping[str, bytes], wish: Wish) -> Plan:
        """Resolve a request: `fields` of VideoSpec (and `seconds`), pictures as PNG by sha256."""

    def context(self, fields: Mapping[str, Any], wish: Wish) -> Context:
        """What the coach knows of a clip that is only thought of; `fields` as in `plan`."""

    def seconds(self, spec: VideoSpec) -> float | None:
        """How long a resolved spec would take on the devices here, if none has made its like; None: not known."""

    def better(self, prompt: str, known: Context, without: tuple[str, ...]) -> tuple[Rewrite, str]:
        """The prompt rewritten, and a note on the language model that helped, if there is one."""


@dataclass
class Service:
    settings: Settings
    database: Database
    store: Store
    artifacts: Artifacts
    models: Models
    guard: Guard
    signer: Signer
    pepper: bytes
    sender: "WebhookSender"
    wake: threading.Event  # a job is waiting
    draining: threading.Event = field(default_factory=threading.Event)
    limiter: limits.strategies.MovingWindowRateLimiter = field(
        default_factory=lambda: limits.strategies.MovingWindowRateLimiter(limits.storage.MemoryStorage())
    )
    watch: Watch = field(init=False)
    intake: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(DECODERS))
    known: dict[str, tuple[float, Caller]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.watch = Watch(self.database, self.draining)

    def probe(self) -> None:
        """Raise if the database or the storage does not answer."""
        with self.database.read() as c:
            c.execute(sa.select(1))
        self.artifacts.check()

    def clean(self, data: bytes) -> Cleaned:
        """A client's picture, decoded in a limited child and made anew."""
        with self.intake:
            return clean_picture(data)

    def caller(self, key: str) -> Caller:
        """Whose key this is; remembered for a moment, so that a thousand pollers do not ask the database each time."""
        now = time.monotonic()
        at, found = self.known.get(key, (0.0, None))
        if found is None or now - at > REMEMBER_S:
            with self.database.read() as c:
                found = keys.authenticate(c, self.pepper, key)
            with self.database.write() as c:
                keys.touch(c, found.key_id)
            if len(self.known) > 10_000:
                self.known.clear()
            self.known[key] = (now, found)
        return found


def service(request: Request) -> Service:
    return request.app.state.service


ServiceDep = Annotated[Service, Depends(service)]


def authenticated(
    request: Request, own: ServiceDep, _shown: Annotated[Any, Depends(bearer)] = None
) -> Caller:
    """Bearer, or Key as fal's client sends it; counted against the tenant's rate."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() not in ("bearer", "key") or not key.strip():
        raise NotAuthenticated
    caller = own.caller(key.strip())
    count(request, own, caller)
    return caller


def count(request: Request, own: Service, caller: Caller) -> None:
    """Rate limit of the tenant in this process, told in the answer's RateLimit headers."""
    rate = limits.RateLimitItemPerMinute(caller.requests_per_minute)
    allowed = own.limiter.hit(rate, caller.tenant_id)
    window = own.limiter.get_window_stats(rate, caller.tenant_id)
    reset_s = max(0, round(window.reset_time - time.time()))
    request.state.rate = (rate.amount, window.remaining, reset_s)
    if not allowed:
        raise TooMany(f"more than {rate.amount} requests a minute", retry_after_s=max(1, reset_s))


def caller(scope: str) -> Callable[[Caller], Caller]:
    def allowed(who: Annotated[Caller, Depends(authenticated)]) -> Caller:
        who.need(scope)
        return who

    return allowed


JobsCaller = Annotated[Caller, Depends(caller("jobs"))]
ReadCaller = Annotated[Caller, Depends(caller("read"))]
AdminCaller = Annotated[Caller, Depends(caller("admin"))]
