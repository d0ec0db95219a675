"""What takes more than one request, said once for the sync and the async client.

A flow is a generator: it yields the call to send, or the seconds to wait, and is given the answer, or
ConnectionFailed where there was none. It does no I/O, so whoever drives it decides how.
"""

import json
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from broll.client import calls
from broll.client.calls import Call
from broll.client.errors import ConnectionFailed, UnexpectedAnswer, WaitTimeout, refusal
from broll.client.job import Job
from broll.client.retries import Attempts, Failure, Retries

T = TypeVar("T")
HOLD_S = 30  # of one long poll; proxies end what is silent for a minute


@dataclass(frozen=True)
class Answer:
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


Flow = Generator[Call[Any] | float, Answer, T]


def exchange(call: Call[T], retries: Retries) -> Flow[T]:
    """One call, and again as far as that is safe."""
    attempts, lost = Attempts(retries), False
    while True:
        try:
            answer = yield call
        except ConnectionFailed as broken:
            failure: Failure = broken
            lost = True
        else:
            if answer.status < 300:
                return call.parse(content(answer))
            if lost and call.method == "DELETE" and answer.status == 404:
                return call.parse(None)  # it was the one without an answer that deleted it
            failure = refusal(answer.status, answer.headers, answer.body)
        if not call.repeatable:
            raise failure
        yield attempts.pause_s(failure)


def content(answer: Answer) -> Any:
    if answer.status == 204 or not answer.body:
        return None
    try:
        return json.loads(answer.body)
    except ValueError:
        raise UnexpectedAnswer(
            f"the answer ({answer.status}) is not JSON: is this the address of a broll server?"
        ) from None


def wait(job_id: str, timeout_s: float, retries: Retries) -> Flow[Job]:
    """Until it is done, asking the server to hold its answers as long."""
    until = time.monotonic() + timeout_s
    while True:
        asked = time.monotonic()
        hold_s = int(max(0.0, min(HOLD_S, until - asked)))
        job = yield from exchange(calls.job(job_id, hold_s=hold_s), retries)
        now = time.monotonic()
        if job.done:
            return job
        if now >= until:
            raise WaitTimeout(
                f"{job_id} is not done after {timeout_s:g} s ({job.status}, {job.progress} %); it goes on"
            )
        if now - asked < hold_s or not hold_s:  # not held: do not ask in a circle
            yield min(1.0, until - now)
