"""Requests that come as JSON or as a form with files, read into the same fields."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile

from broll.errors import BadOption, BrollError, TooLarge, wrong
from broll.media.pictures import MAX_BYTES

M = TypeVar("M", bound=BaseModel)
LISTS = ("loras", "titles")  # fields that are no single word or number


@dataclass(frozen=True)
class Body:
    fields: dict[str, Any]
    files: dict[str, bytes]


async def read(request: Request, *, files: tuple[str, ...] = ()) -> Body:
    """A JSON object, or a form whose parts named in `files` may be files."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        return await _form(request, files)
    if kind not in ("application/json", ""):
        raise BadOption(f"the body is {kind[:100]}; it must be application/json or multipart/form-data")
    data = await request.body()
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        raise BadOption("the body is not JSON") from None
    if not isinstance(fields, dict):
        raise BadOption(f"the body is a JSON {type(fields).__name__}; it must be an object")
    return Body(fields, {})


async def _form(request: Request, names: tuple[str, ...]) -> Body:
    fields: dict[str, Any] = {}
    found: dict[str, bytes] = {}
    async with request.form(max_files=4, max_fields=100) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name not in names:
                    raise BadOption(
                        f"the form has a file {name[:100]!r}; possible are {', '.join(names) or 'none'}"
                    )
                found[name] = await value.read(MAX_BYTES + 1)
                if len(found[name]) > MAX_BYTES:
                    raise TooLarge(f"the file {name} has more than {MAX_BYTES // 10**6} MB")
            elif name.endswith("]") and "[" in name:  # input_reference[image_url]
                outer, _, inner = name[:-1].partition("[")
                fields.setdefault(outer, {})
                if not isinstance(fields[outer], dict):
                    raise BadOption(f"the form has {outer[:100]} twice")
                fields[outer][inner] = value
            else:
                fields[name] = listed(name, value) if name in LISTS else value
    return Body(fields, found)


def listed(name: str, text: str) -> Any:
    """A form has words only: lists come as JSON, as broll's own client sends them."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadOption(f"{name} in the form is not JSON") from None


def parsed(kind: type[M], fields: Mapping[str, Any]) -> M:
    """Checked by its model; the first thing that is wrong, in one line."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        cause = (first.get("ctx") or {}).get("error")
        if isinstance(cause, BrollError):
            raise cause from None
        name = ".".join(str(part) for part in first["loc"]) or "the request"
        raise BadOption(wrong(name, first)) from None
