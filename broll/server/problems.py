"""Errors as answers: RFC 9457 problem+json, with the `error` object that four vendors' SDKs read.

The one table from codes to statuses. What is not in it is a defect of ours: 500, without a word about its inside.
"""

from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, OperationalError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from broll.errors import (
    BadOption,
    BrollError,
    Conflict,
    KeyInFlight,
    NotAuthenticated,
    NotSupported,
    TooMany,
    Unavailable,
    wrong,
)
from broll.server.envelope import SECURITY

STATUS = {
    "not_authenticated": 401,
    "no_credits": 402,
    "forbidden": 403,
    "not_found": 404,
    "artifact_missing": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "idempotency_in_flight": 409,
    "gone": 410,
    "too_large": 413,
    "unsupported_media_type": 415,
    "range_not_satisfiable": 416,
    "too_many": 429,
    "error": 500,
    "internal_error": 500,
    "not_supported": 501,
    "unavailable": 503,
    "storage_error": 503,
}
REFUSED = 422  # what was asked for cannot be asked
TITLES = {
    401: "Not authenticated",
    402: "Not enough credits",
    404: "Not found",
    422: "Cannot be done",
    429: "Too many",
}


def problem(
    request: Request, code: str, message: str, *, status: int | None = None, param: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:  # fmt: skip
    status = status or STATUS.get(code, REFUSED)
    request_id = getattr(request.state, "request_id", "")
    body = {
        "type": f"https://broll.invalid/errors/{code}",
        "title": TITLES.get(status, code.replace("_", " ").capitalize()),
        "status": status,
        "detail": message,
        "instance": request.url.path,
        "code": code,
        "request_id": request_id,
        "error": {"message": message, "type": code, "param": param, "code": code},
    }
    return JSONResponse(body, status, headers=headers, media_type="application/problem+json")


def of(request: Request, error: BrollError) -> JSONResponse:
    headers = {}
    if isinstance(error, TooMany):
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    elif isinstance(error, KeyInFlight | Unavailable):
        headers["Retry-After"] = "1"
    elif isinstance(error, NotAuthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    elif isinstance(error, Conflict | NotSupported):
        headers["x-should-retry"] = "false"  # SDKs made by Stainless repeat every 409 and 5xx otherwise
    return problem(request, error.code, str(error), headers=headers)


def first_of(error: RequestValidationError) -> BrollError:
    """One line that names the field, what it got and what is possible."""
    first = error.errors()[0]
    cause = (first.get("ctx") or {}).get("error")
    if isinstance(cause, BrollError):
        return cause
    where = (
        ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path")) or "the request"
    )
    return BadOption(wrong(where, first))


def from_framework(app: FastAPI, request: Request, error: HTTPException) -> JSONResponse:
    """What FastAPI and Starlette refuse by themselves."""
    if error.status_code == 400:  # a body that is not JSON, or not a form
        return of(request, BadOption(f"the body cannot be read: {error.detail}"))
    code = {v: k for k, v in STATUS.items() if k not in ("artifact_missing", "idempotency_in_flight")}
    headers = dict(error.headers or {})
    template = getattr(request.scope.get("route"), "path", "")
    methods = {method.upper() for method in app.openapi()["paths"].get(template, {})}
    if error.status_code == 405 and methods:  # Starlette knows only those of one route
        headers["Allow"] = ", ".join(sorted(methods))
    name = code.get(error.status_code, "bad_request")
    return problem(request, name, str(error.detail), status=error.status_code, headers=headers)


def install(app: FastAPI) -> None:
    log = structlog.get_logger("broll.server")

    @app.exception_handler(BrollError)
    def _known(request: Request, error: BrollError) -> Response:
        return of(request, error)

    @app.exception_handler(RequestValidationError)
    def _invalid(request: Request, error: RequestValidationError) -> Response:
        found = first_of(error)
        return problem(request, found.code, str(found), status=REFUSED)

    @app.exception_handler(HTTPException)
    def _http(request: Request, error: HTTPException) -> Response:
        return from_framework(app, request, error)

    @app.exception_handler(ClientDisconnect)
    def _gone(_request: Request, _error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it; nginx's number for a client that hung up

    @app.exception_handler(DBAPIError)
    def _database(request: Request, error: DBAPIError) -> Response:
        if isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated:
            log.warning("database away", error=type(error.orig).__name__)
            return of(request, Unavailable("the database does not answer; try again soon"))
        if isinstance(error, IntegrityError):
            return of(request, Conflict("something of this name has just been made"))
        if isinstance(error, DataError):
            return of(request, BadOption("a value in the request cannot be stored"))
        return _unknown(request, error)

    @app.exception_handler(Exception)
    def _unknown(request: Request, error: Exception) -> Response:
        log.error("internal error", path=request.url.path, exc_info=error)
        return problem(
            request,
            "internal_error",
            "something went wrong here; the log has it under request_id",
            # Made outside of the envelope, so it brings its own headers. uvicorn hangs up after it: a client that was
            # not told would send its next request into the void.
            headers=SECURITY | {"x-request-id": getattr(request.state, "request_id", ""), "connection": "close"},
        )  # fmt: skip


def documented(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Answers for the OpenAPI document."""
    body = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {code: {"description": TITLES.get(code, "Problem"), "content": body} for code in codes}
