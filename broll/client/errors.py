"""What can go wrong between here and a server.

    ServiceError
    ├── ApiError            the server answered with an error: status, code, request_id, retry_after
    │   ├── Refused             400, 422  the request itself
    │   ├── NotAuthenticated    401
    │   ├── NoCredits           402
    │   ├── Forbidden           403
    │   ├── NotFound            404
    │   ├── Conflict            409       not in this state, or this Idempotency-Key is being worked on
    │   ├── TooLarge            413
    │   ├── RateLimited         429
    │   ├── NotSupported        501
    │   └── ServerUnavailable   502, 503, 504
    ├── ConnectionFailed    no answer, or half of one
    ├── UnexpectedAnswer    an answer, but not broll's
    ├── WaitTimeout         the job is not done yet; it goes on
    └── GenerationFailed    the job is done and there is no clip; `code` says why

The code of an ApiError is the server's, so `bad_prompt` is `bad_prompt` and ends `broll` with the same exit
status whether it happens here or there.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from broll import errors
from broll.errors import BadRequest, BrollError, ServiceError

if TYPE_CHECKING:
    from broll.client.job import Job


class ApiError(ServiceError):
    """The server refused."""

    def __init__(
        self,
        message: str | None = None,
        *,
        status: int = 0,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code or type(self).code
        self.request_id = request_id
        self.retry_after = retry_after
        if code:
            self.exit_status = exit_status(code, status)


class Refused(ApiError):
    """What was asked for cannot be asked."""

    code = "bad_request"
    exit_status = 2


class NotAuthenticated(ApiError):
    """An API key is needed, and this is none that counts."""

    code = "not_authenticated"


class NoCredits(ApiError):
    """There are not enough credits."""

    code = "no_credits"


class Forbidden(ApiError):
    """This key may not do that."""

    code = "forbidden"


class NotFound(ApiError):
    """There is no such thing."""

    code = "not_found"


class Conflict(ApiError):
    """That is not possible in this state."""

    code = "conflict"


class TooLarge(ApiError):
    """The request is too large."""

    code = "too_large"


class RateLimited(ApiError):
    """Too many requests or jobs; try again later."""

    code = "too_many"


class NotSupported(ApiError):
    """The server does not have this."""

    code = "not_supported"


class ServerUnavailable(ApiError):
    """The server cannot answer at the moment; try again soon."""

    code = "unavailable"


class ConnectionFailed(ServiceError):
    """The server cannot be reached."""

    code = "connection_failed"


class UnexpectedAnswer(ServiceError):
    """This is not the answer of a broll server."""

    code = "unexpected_answer"


class WaitTimeout(ServiceError):
    """The job is not done yet."""

    code = "wait_timeout"


class GenerationFailed(ServiceError):
    """The job is done and there is no clip."""

    code = "generation_failed"

    def __init__(
        self, message: str | None = None, *, code: str | None = None, job: "Job | None" = None
    ) -> None:
        super().__init__(message)
        self.code = code or type(self).code
        self.job = job
        if code:
            self.exit_status = exit_status(code)


KINDS: dict[int, type[ApiError]] = {
    400: Refused,
    401: NotAuthenticated,
    402: NoCredits,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: Refused,
    429: RateLimited,
    501: NotSupported,
    502: ServerUnavailable,
    503: ServerUnavailable,
    504: ServerUnavailable,
}


def exit_status(code: str, status: int = 0) -> int:
    """That of the same error when it happens here."""
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BrollError)
    ]
    unknown = BadRequest.exit_status if KINDS.get(status) is Refused else ServiceError.exit_status
    return {kind.code: kind.exit_status for kind in kinds}.get(code, unknown)


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
    """The error that an answer means; a proxy in between may have written it, so any part may be missing."""
    told = problem(body)
    inner = told.get("error")
    inner = inner if isinstance(inner, dict) else {}
    message = told.get("detail") or inner.get("message") or told.get("title")
    code = told.get("code") or inner.get("code")
    request_id = told.get("request_id") or headers.get("x-request-id")
    kind = KINDS.get(status, ApiError)
    text = (
        str(message)
        if message
        else f"the server answered {status}" + (f": {kind.__doc__}" if kind is not ApiError else "")
    )
    if status >= 500 and request_id:
        text += f" (request {request_id})"
    return kind(
        text,
        status=status,
        code=str(code) if code else None,
        request_id=str(request_id) if request_id else None,
        retry_after=retry_after(headers.get("retry-after")),
    )


def problem(body: bytes) -> dict[str, Any]:
    try:
        told = json.loads(body)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def retry_after(value: str | None) -> float | None:
    """Seconds, of either form of the header."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
