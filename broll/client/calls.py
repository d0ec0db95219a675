"""Each endpoint once, as a value: method, path, body, and what the answer means. Nothing is sent here."""

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from broll.client import job as jobs
from broll.client.errors import UnexpectedAnswer
from broll.client.job import Job
from broll.errors import BadImage, BadOption

T = TypeVar("T")
Object = dict[str, Any]
Image = str | Path | bytes  # a file, its bytes, an upload's id, a URL or a data URI
VARIANTS = {"video": ".mp4", "thumbnail": ".webp", "spritesheet": ".webp", "gif": ".gif", "preview": ".webp"}
SAFE = ("GET", "HEAD", "DELETE")


@dataclass(frozen=True)
class Call(Generic[T]):
    method: str
    path: str
    parse: Callable[[Any], T]  # of the answer's JSON
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    form: Mapping[str, str] | None = None
    files: Mapping[str, tuple[str, bytes]] | None = None
    hold_s: float = 0.0  # the server may take so much longer to answer

    @property
    def repeatable(self) -> bool:
        return self.method in SAFE or "Idempotency-Key" in self.headers


@dataclass(frozen=True)
class Page(Generic[T]):
    items: list[T]
    after: str | None  # of the next page; None: this was the last


# --- jobs -------------------------------------------------------------------------------------------------


def submit(
    prompt: str,
    *,
    image: Image | None = None,
    last_image: Image | None = None,
    idempotency_key: str | None = None,
    **fields: Any,
) -> Call[Job]:
    key = header("the Idempotency-Key", idempotency_key or uuid.uuid4().hex)
    return video(
        "/v1/video/generate", jobs.parse, {"Idempotency-Key": key}, prompt, image, last_image, fields
    )


def estimate(
    prompt: str, *, image: Image | None = None, last_image: Image | None = None, **fields: Any
) -> Call[Object]:
    return video("/v1/video/estimate", an_object, {}, prompt, image, last_image, fields)


def prompt(route: str, text: str, fields: Mapping[str, Any]) -> Call[Object]:
    """`route` is check or rewrite."""
    given = {"prompt": text} | {name: value for name, value in fields.items() if value is not None}
    return Call("POST", f"/v1/prompts/{route}", an_object, headers=JSON, body=as_json(given))


def video(
    path: str,
    parse: Callable[[Any], T],
    headers: Mapping[str, str],
    prompt: str,
    image: Image | None,
    last_image: Image | None,
    fields: Mapping[str, Any],
) -> Call[T]:
    """A request for a clip: JSON, or a form if pictures come with it."""
    given = {"prompt": prompt} | {name: value for name, value in fields.items() if value is not None}
    files: dict[str, tuple[str, bytes]] = {}
    for name, picture in (("image", image), ("last_image", last_image)):
        if isinstance(picture, str) and picture.startswith(("http://", "https://")):
            given[f"{name}_url"] = picture
        elif isinstance(picture, str) and picture.startswith(("upl_", "data:")):
            given[name] = picture
        elif isinstance(picture, str | Path | bytes):
            files[name] = file(picture)
        elif picture is not None:
            raise BadImage(
                f"{name} is {type(picture).__name__}; it is a file, its bytes, an upload's id or a URL"
            )
    if not files:
        return Call("POST", path, parse, headers={**headers, **JSON}, body=as_json(given))
    form = {name: v if isinstance(v, str) else as_json(v).decode() for name, v in given.items()}
    as_json(form)  # refuses what is not text
    return Call("POST", path, parse, headers=headers, form=form, files=files)


def job(job_id: str, *, hold_s: int = 0) -> Call[Job]:
    headers = {"Prefer": f"wait={hold_s}"} if hold_s else {}
    return Call("GET", at("jobs", job_id), jobs.parse, headers=headers, hold_s=hold_s)


def job_page(
    *, limit: int = 100, after: str | None = None, order: str = "desc", status: str | None = None
) -> Call[Page[Job]]:
    def parse(data: Any) -> Page[Job]:
        items = [jobs.parse(item) for item in a_list(data)]
        last = data.get("last_id") or (items[-1].id if items else None)
        return Page(items, last if data.get("has_more") and items else None)

    return Call("GET", "/v1/jobs", parse, query=query(limit=limit, after=after, order=order, status=status))


def cancel(job_id: str) -> Call[Job]:
    return Call("POST", at("jobs", job_id, "cancel"), jobs.parse)


def retry(job_id: str) -> Call[Job]:
    return Call("POST", at("jobs", job_id, "retry"), jobs.parse)


def delete(job_id: str) -> Call[None]:
    return Call("DELETE", at("jobs", job_id), nothing)


def events(job_id: str, last_id: str = "") -> Call[None]:
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
    headers |= {"Last-Event-ID": last_id} if last_id else {}
    return Call("GET", at("jobs", job_id, "events"), nothing, headers=headers, hold_s=60)


def content(job_id: str, variant: str, headers: Mapping[str, str]) -> Call[None]:
    if variant not in VARIANTS:
        raise BadOption(f"the variant is {variant!r}; it must be one of {', '.join(VARIANTS)}")
    # A compressed answer would have other offsets than the file.
    headers = {"Accept-Encoding": "identity", **headers}
    return Call("GET", at("jobs", job_id, "content"), nothing, query={"variant": variant}, headers=headers)


def place(job_id: str, path: str | Path, variant: str) -> Path:
    """Where a download goes: the file named, or one named after the job in the folder named."""
    path = Path(path)
    return path / f"{job_id}{VARIANTS.get(variant, '')}" if path.is_dir() else path


# --- the rest ---------------------------------------------------------------------------------------------


def upload(image: str | Path | bytes) -> Call[Object]:
    return Call("POST", "/v1/uploads", an_object, files={"file": file(image)})


def models() -> Call[list[Object]]:
    return Call("GET", "/v1/models", a_list)


def credit() -> Call[Object]:
    return Call("GET", "/v1/credits", an_object)


def ledger_page(*, limit: int = 100, after: str | None = None) -> Call[Page[Object]]:
    def parse(data: Any) -> Page[Object]:
        items = a_list(data)
        return Page(items, str(items[-1]["id"]) if data.get("has_more") and items else None)

    return Call("GET", "/v1/credits/ledger", parse, query=query(limit=limit, after=after))


def keys() -> Call[list[Object]]:
    return Call("GET", "/v1/api-keys", a_list)


def create_key(name: str, **fields: Any) -> Call[Object]:
    given = {"name": name} | {field: value for field, value in fields.items() if value is not None}
    return Call("POST", "/v1/api-keys", an_object, headers=JSON, body=as_json(given))


def rotate_key(key_id: str, *, overlap_s: int | None = None) -> Call[Object]:
    body = as_json({} if overlap_s is None else {"overlap_s": overlap_s})
    return Call("POST", at("api-keys", key_id, "rotate"), an_object, headers=JSON, body=body)


def revoke_key(key_id: str) -> Call[None]:
    return Call("DELETE", at("api-keys", key_id), nothing)


# --- parts of a request and of an answer ------------------------------------------------------------------

JSON = {"Content-Type": "application/json"}


def at(*parts: str) -> str:
    """A path; an id that is not one cannot lead elsewhere."""
    if not all(part.strip(".") for part in parts):
        raise BadOption(f"{parts[1]!r} is not an id")
    try:
        return "/v1/" + "/".join(quote(part, safe="") for part in parts)
    except UnicodeEncodeError:
        raise BadOption(f"{parts[1]!r} is not an id") from None


def query(**given: object) -> dict[str, str]:
    return {name: str(value) for name, value in given.items() if value is not None}


def header(name: str, value: str) -> str:
    if not (value.isascii() and value.isprintable() and value):
        raise BadOption(f"{name} must be printable ASCII characters")
    return value


def file(image: str | Path | bytes) -> tuple[str, bytes]:
    """Name and content. The name says nothing about whose machine this is."""
    if isinstance(image, bytes):
        return "image", image
    try:
        return "image", Path(image).read_bytes()
    except (OSError, ValueError) as error:
        raise BadImage(f"{image} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def as_json(value: Any) -> bytes:
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, TypeError) as error:  # NaN, half a character, or no JSON at all
        raise BadOption(f"the request cannot be sent: {error}") from error


def an_object(data: Any) -> Object:
    if not isinstance(data, dict):
        raise UnexpectedAnswer("the server's answer is not a JSON object")
    return data


def a_list(data: Any) -> list[Object]:
    items = an_object(data).get("data")
    if not isinstance(items, list):
        raise UnexpectedAnswer("the server's answer has no list `data`")
    return items


def nothing(_data: Any) -> None:
    return None
