"""What every request passes through: a request id, a limit on its body, security headers, metrics, a log line.

Plain ASGI: streams pass untouched.
"""

import asyncio
import json
import re
import secrets
import time
from typing import Any

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broll.server.metrics import Metrics

SECURITY = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-site",
}
DRAIN_S = 10.0  # for what a client is still sending when it has its refusal
OWN_ID = re.compile(r"^[A-Za-z0-9._-]{1,64}$")


class Envelope:
    def __init__(self, app: ASGIApp, *, max_body: int, metrics: Metrics) -> None:
        self.app, self.max_body, self.metrics = app, max_body, metrics
        self.log = structlog.get_logger("broll.access")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await Exchange(self, scope, receive, send).run()


class Exchange:
    """One request and its answer."""

    def __init__(self, envelope: Envelope, scope: Scope, receive: Receive, send: Send) -> None:
        self.e, self.scope, self._receive, self._send = envelope, scope, receive, send
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        self.request_id = given if OWN_ID.match(given) else f"req_{secrets.token_hex(8)}"
        length = headers.get(b"content-length", b"0")
        self.too_large = length.isdigit() and int(length[:20]) > envelope.max_body
        self.received, self.status, self.begin = 0, 0, time.perf_counter()

    async def run(self) -> None:
        state = self.scope.setdefault("state", {})
        state["request_id"] = self.request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=self.request_id)
        try:
            if self.too_large:
                await self._refuse()
            else:
                await self.e.app(self.scope, self.receive, self.send)
        except Exception:
            self.status = self.status or 500  # the answer is made further out
            raise
        finally:
            seconds = time.perf_counter() - self.begin
            route = getattr(self.scope.get("route"), "path", "other")
            self.e.metrics.request(self.scope["method"], route, self.status, seconds)
            self.e.log.info(
                "request", method=self.scope["method"], path=self.scope["path"], status=self.status,
                ms=round(seconds * 1000, 1),
            )  # fmt: skip

    async def receive(self) -> Message:
        message = await self._receive()
        self.received += len(message.get("body", b""))
        if self.received > self.e.max_body:
            self.too_large = True
            return {"type": "http.request", "body": b"", "more_body": False}
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if self.too_large and self.status == 0:
                await self._refuse()
                return
            if self.status == 0:
                self.status = message["status"]
                message["headers"] = [*message.get("headers", []), *self._headers()]
        elif self.too_large:
            return  # the rest of an answer that was replaced
        await self._send(message)

    def _headers(self) -> list[tuple[bytes, bytes]]:
        own: dict[str, Any] = SECURITY | {"x-request-id": self.request_id}
        rate = self.scope["state"].get("rate")
        if rate is not None:
            amount, left, reset_s = rate
            own |= {
                "ratelimit-policy": f'"default";q={amount};w=60',
                "ratelimit": f'"default";r={left};t={reset_s}',
            }
            own |= {"x-ratelimit-limit": str(amount), "x-ratelimit-remaining": str(left)}
        return [(name.encode(), value.encode()) for name, value in own.items()]

    async def _refuse(self) -> None:
        self.status = 413
        message = f"the request has more than {self.e.max_body // 10**6} MB"
        body = json.dumps(
            {
                "type": "https://broll.invalid/errors/too_large", "title": "Too large", "status": 413,
                "detail": message, "instance": self.scope["path"], "code": "too_large",
                "request_id": self.request_id,
                "error": {"message": message, "type": "too_large", "param": None, "code": "too_large"},
            }
        ).encode()  # fmt: skip
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            *self._headers(),
        ]
        await self._send({"type": "http.response.start", "status": 413, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        await self._drain()
        await self._send({"type": "http.response.body", "body": b""})

    async def _drain(self) -> None:
        """Read on for a moment: on a connection cut while it sends, a client never sees the answer."""
        left = self.e.max_body
        try:
            async with asyncio.timeout(DRAIN_S):
                while left > 0:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body"):
                        return
        except TimeoutError:
            return
