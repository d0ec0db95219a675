"""Sends what `broll.jobs.webhooks` says is due, as the Standard Webhooks specification has it.

    one thread    asks the table what is due, claims as much as the pool has room for
    the pool      posts it, one message a thread, and writes down what came of it

    2xx                      delivered
    410                      the endpoint is disabled
    429, 502, 503, 504       again, and not before Retry-After
    anything else            again, when the schedule says so; a redirect is not followed

An endpoint is given two threads of the pool and a tenant eight, so a slow receiver holds up nobody else. Only what a
thread is free for is claimed: a lease never runs out in a queue. Nothing of what the receiver says is kept but its
status, because whoever owns the URL may see the log, and the URL may have led to somebody else.

Source: https://www.standardwebhooks.com
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import structlog
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError
from standardwebhooks import Webhook

from broll.errors import BrollError
from broll.jobs import webhooks
from broll.jobs.database import Database
from broll.jobs.webhooks import Delivery
from broll.server.guard import Answer, Guard

GONE = 410
PATIENCE = frozenset({429, 502, 503, 504})  # what they say about Retry-After is heeded


@dataclass
class WebhookSender:
    """`wake` is its own event: setting it saves up to `poll_s` of waiting."""

    database: Database
    guard: Guard
    wake: threading.Event = field(default_factory=threading.Event)
    threads: int = 16
    poll_s: float = 1.0
    lease_s: float = webhooks.LEASE_S

    def __post_init__(self) -> None:
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._running: dict[str, Delivery] = {}
        self._log: Any = structlog.get_logger("broll.webhooks")

    def start(self) -> None:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="webhooks")
        self._thread.start()

    def stop(self) -> None:
        """Claim nothing more, and wait for what is on its way: as long as the guard lets a request take."""
        self._stopping.set()
        self.wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        with ThreadPoolExecutor(self.threads, thread_name_prefix="webhook") as pool:
            while not self._stopping.is_set():
                self.wake.clear()  # before the look, so that what comes after it is not missed
                claimed = self._claim()
                for delivery in claimed:
                    pool.submit(self._send, delivery)
                if not claimed:
                    self.wake.wait(self.poll_s)

    def _claim(self) -> list[Delivery]:
        with self._lock:
            running = list(self._running.values())
        room = self.threads - len(running)
        try:
            with self.database.read() as c:
                if not room or not webhooks.any_due(c):
                    return []
            with self.database.write() as c:
                claimed = webhooks.due(c, room, running, lease_s=self.lease_s)
        except SQLAlchemyError as failure:
            self._log.warning("the deliveries cannot be read; trying again", error=type(failure).__name__)
            return []
        with self._lock:
            self._running |= {delivery.id: delivery for delivery in claimed}
        return claimed

    def _send(self, delivery: Delivery) -> None:
        log = self._log.bind(delivery=delivery.id, endpoint=delivery.endpoint_id, attempt=delivery.attempt)
        try:
            answer = self._post(delivery)
            with self.database.write() as c:
                record(c, delivery, answer)
            log.info("webhook sent", answer=answer.status if isinstance(answer, Answer) else answer.code)
        except SQLAlchemyError as failure:
            log.warning("the outcome cannot be written; the lease will run out", error=type(failure).__name__)
        finally:
            with self._lock:
                self._running.pop(delivery.id, None)
            self.wake.set()

    def _post(self, delivery: Delivery) -> Answer | BrollError:
        try:
            return self.guard.post(delivery.url, delivery.body.encode(), headers(delivery, datetime.now(UTC)))
        except BrollError as failure:
            return failure
        except Exception as failure:  # noqa: BLE001  what nobody thought of gets its ten attempts like the rest
            self._log.exception("webhook not sent", delivery=delivery.id)
            return BrollError(f"the message could not be sent: {type(failure).__name__}")


def headers(delivery: Delivery, at: datetime) -> dict[str, str]:
    """All secrets sign, so that a receiver may know the new one or still the old one."""
    signatures = [Webhook(secret).sign(delivery.webhook_id, at, delivery.body) for secret in delivery.secrets]
    return {
        "content-type": "application/json",
        "webhook-id": delivery.webhook_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def record(c: Connection, delivery: Delivery, answer: Answer | BrollError) -> None:
    """Write down what came of it."""
    if isinstance(answer, BrollError):
        webhooks.retry(c, delivery, str(answer))
        return
    status = answer.status
    if 200 <= status < 300:
        webhooks.delivered(c, delivery, status)
    elif status == GONE:
        webhooks.disable(c, delivery.endpoint_id)  # first: two such answers at once lock in the same order
        webhooks.failed(c, delivery, "the receiver answered 410, so the endpoint is disabled", status)
    else:
        after = (
            retry_after(answer.headers.get("retry-after", ""), datetime.now(UTC)) if status in PATIENCE else 0
        )
        redirect = "; redirects are not followed" if 300 <= status < 400 else ""
        webhooks.retry(c, delivery, f"the receiver answered {status}{redirect}", status, after_s=after)


def retry_after(text: str, at: datetime) -> float:
    """Seconds, from seconds or a date; 0 if it is neither."""
    if text.strip().isdecimal():
        return float(text.strip()[:9])
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return 0.0
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - at).total_seconds())
