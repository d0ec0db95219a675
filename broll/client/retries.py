"""When to ask again, and after how long.

    what    GET, HEAD and DELETE, and a POST with an Idempotency-Key: asking twice does no more than asking once
    when    no answer; 429, 502, 503, 504; 409 if the first of two such POSTs is still being worked on
    pause   what Retry-After says, else 0.5, 1, 2, 4 s, a quarter more or less so that clients do not march in step

A server that asks for more than `most_s` is not waited for: the error says how long it wants.
"""

import random
from dataclasses import dataclass

from broll.client.errors import ApiError, ConnectionFailed

AGAIN = frozenset({429, 502, 503, 504})

Failure = ApiError | ConnectionFailed


@dataclass(frozen=True)
class Retries:
    times: int = 4
    first_s: float = 0.5
    most_s: float = 60.0


def passing(failure: Failure) -> bool:
    """May it be gone in a moment?"""
    if isinstance(failure, ConnectionFailed):
        return True
    return failure.status in AGAIN or failure.code == "idempotency_in_flight"


class Attempts:
    """How often something went wrong in a row."""

    def __init__(self, retries: Retries) -> None:
        self.retries, self.failed = retries, 0

    def worked(self) -> None:
        self.failed = 0

    def pause_s(self, failure: Failure) -> float:
        """How long to wait before the next attempt; raises the failure if there is to be none."""
        asked = failure.retry_after if isinstance(failure, ApiError) else None
        enough = self.failed >= self.retries.times or (asked or 0) > self.retries.most_s
        if enough or not passing(failure):
            raise failure
        self.failed += 1
        own = self.retries.first_s * 2 ** (self.failed - 1) * random.uniform(0.75, 1.25)
        return min(own, self.retries.most_s) if asked is None else asked
